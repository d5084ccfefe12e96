#!/usr/bin/env python3
"""Compares retune with PyTorch on this machine's CPU, in float32, with the same batches, image size and threads.

    scripts/bench-vs-pytorch.py --retune target/release/retune --rounds 5
    scripts/bench-vs-pytorch.py --work latency,start --check
    scripts/bench-vs-pytorch.py --arch resnet50 --batch-size 8 --work training,inference

training   steps of fine-tuning, and the memory that they need
inference  batches
latency    batches of one image
start      from the start of the process to a prediction for a JPEG of 500 x 375 pixels: `retune predict` and a Python
           script that does the same

Each round runs PyTorch (default layout, then channels_last) and retune, one process after the other, so that a slow
phase of the machine affects all of them. PyTorch's figure of a round is that of its faster layout. Each round gives a
ratio, and the table shows the median, the least and the greatest of them. Every measurement is a process of its own;
peak memory is what the kernel reports for it (ru_maxrss). For `start`, each program runs once without being timed, so
that its files are cached. Needs torch, torchvision and Pillow.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

LAYOUTS = ("default", "channels_last")

WORKS = ("training", "inference", "latency", "start")

# The requirements for each architecture: at least this speed-up, or at most this share of PyTorch's time or memory.
REQUIRED = {
    "resnet18": {"training": 1.8, "memory": 0.6, "inference": 2.0, "latency": 1.2, "start": 0.1},
    "resnet50": {"training": 1.3, "inference": 1.3},
}
AT_MOST = ("memory", "start")

# A script that classifies one image. `python -c` runs it with the architecture, the model, the image and the number of
# threads.
PREDICT = """
import sys
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import get_model

architecture, model, image, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
try:
    from safetensors.torch import load_file
    weights = load_file(model)
except ImportError:
    weights = torch.load(model.replace(".safetensors", ".pth"), weights_only=True)
net = get_model(architecture)
net.load_state_dict(weights)
net.eval()
transform = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
with torch.inference_mode():
    logits = net(transform(Image.open(image).convert("RGB")).unsqueeze(0))
probabilities, classes = logits.softmax(1)[0].topk(3)
answers = zip(classes.tolist(), probabilities.tolist())
print(image + ": " + ", ".join(f"{name} {probability:.3f}" for name, probability in answers))
"""


def measure_pytorch(settings):
    """Runs in its own process: the seconds of each training step or inference batch, after some to warm up."""
    import torch
    import torchvision

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    batch, size = settings["batch_size"], settings["image_size"]
    net = torchvision.models.get_model(settings["architecture"], num_classes=2)
    images = torch.randn(batch, 3, size, size)
    if settings["layout"] == "channels_last":
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    target = torch.randint(0, 2, (batch,))
    body = [parameter for name, parameter in net.named_parameters() if not name.startswith("fc.")]
    groups = [{"params": body}, {"params": net.fc.parameters(), "lr": 5e-4}]
    optimiser = torch.optim.SGD(groups, lr=5e-5, weight_decay=1e-3)

    def training_step():
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images), target, reduction="sum").backward()
        optimiser.step()

    def inference_batch():
        with torch.inference_mode():
            net(images)

    training = settings["mode"] == "training"
    net.train(training)
    run = training_step if training else inference_batch
    for _ in range(settings["warm_up"]):
        run()
    seconds = []
    for _ in range(settings["steps"]):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def prepare_start(folder, architecture):
    """Runs in its own process: makes the model and the image that both programs read."""
    import torch
    import torchvision

    torch.manual_seed(0)
    weights = torchvision.models.get_model(architecture).state_dict()
    # One class is far more probable than the others, so that both programs must predict it.
    weights["fc.weight"] *= 100
    header, offset = {}, 0
    for name, tensor in weights.items():
        end = offset + tensor.nbytes
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in weights.values():
            file.write(tensor.numpy().tobytes())
    torch.save(weights, folder / "model.pth")
    clouds = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), size=(375, 500), mode="bilinear")[0]
    torchvision.transforms.functional.to_pil_image(clouds).save(folder / "image.jpg", quality=90)


def run_process(command, environment):
    """Returns a process's standard output, peak memory and seconds. The calling process must stay small, because the kernel
    counts a child's memory from before it executes another program."""
    command = [str(word) for word in command]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment)
    output = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return output, peak, seconds


def pytorch_environment(arguments):
    environment = {"OMP_NUM_THREADS": str(arguments.threads)}
    if arguments.keep_freed_memory:
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    return environment


def batches_and_steps(arguments, work):
    """Returns the batch size and the number of measured steps: more steps if they are short."""
    return (1, 6 * arguments.steps) if work == "latency" else (arguments.batch_size, arguments.steps)


def run_pytorch(arguments, work, layout):
    """Returns the seconds of a step and the peak memory."""
    batch, steps = batches_and_steps(arguments, work)
    settings = {"architecture": arguments.arch, "mode": work, "layout": layout, "threads": arguments.threads,
                "batch_size": batch, "image_size": arguments.image_size, "steps": steps, "warm_up": max(1, steps // 5)}
    command = [arguments.python, __file__, "--measure-pytorch", json.dumps(settings)]
    output, peak, _ = run_process(command, pytorch_environment(arguments))
    return statistics.median(json.loads(output)), peak


def run_retune(arguments, work):
    """Returns the seconds of a step and the peak memory."""
    batch, steps = batches_and_steps(arguments, work)
    mode = "training" if work == "training" else "inference"
    command = [arguments.retune, "bench", "--device", "cpu", "--arch", arguments.arch, "--threads", arguments.threads,
               "--batch-size", batch, "--image-size", arguments.image_size, "--steps", steps, "--mode", mode, "--json"]
    output, peak, _ = run_process(command, {})
    seconds = json.loads(output)[mode]["step_seconds" if mode == "training" else "batch_seconds"]
    return statistics.median(seconds), peak


def compare_steps(arguments, work):
    """Runs all rounds of `training`, `inference` or `latency`."""
    runs = {name: [] for name in (*LAYOUTS, "retune")}
    for number in range(1, arguments.rounds + 1):
        for name in runs:
            runs[name].append(run_retune(arguments, work) if name == "retune" else run_pytorch(arguments, work, name))
        report_round(arguments, work, number, {name: values[-1][0] for name, values in runs.items()})
    return summarise(arguments, work, runs, LAYOUTS)


def compare_start(arguments, work):
    """Runs all rounds of `start`: whole processes, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        run_process([arguments.python, __file__, "--prepare-start", folder, "--arch", arguments.arch], {})
        files = [pathlib.Path(folder) / "model.safetensors", pathlib.Path(folder) / "image.jpg"]
        programs = {
            "PyTorch": ([arguments.python, "-c", PREDICT, arguments.arch, *files, arguments.threads],
                        pytorch_environment(arguments)),
            "retune": ([arguments.retune, "predict", *files, "--device", "cpu", "--threads", arguments.threads], {}),
        }
        answers = {name: run_process(*program)[0].strip() for name, program in programs.items()}
        likeliest = {name: answer.rpartition(": ")[2].split()[0] for name, answer in answers.items()}
        if likeliest["PyTorch"] != likeliest["retune"]:
            sys.exit(f"the predictions differ: {answers}")
        runs = {name: [] for name in programs}
        for number in range(1, arguments.rounds + 1):
            measured = {name: [] for name in programs}
            for _ in range(arguments.steps):
                for name, program in programs.items():
                    _, peak, seconds = run_process(*program)
                    measured[name].append((seconds, peak))
            for name, values in measured.items():
                runs[name].append(tuple(statistics.median(parts) for parts in zip(*values)))
            report_round(arguments, work, number, {name: values[-1][0] for name, values in runs.items()})
    return summarise(arguments, work, runs, ("PyTorch",))


def report_round(arguments, work, number, seconds):
    figures = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())
    print(f"{work}, round {number} of {arguments.rounds}: {figures} ms", file=sys.stderr, flush=True)


def judge(required, name, values):
    """Returns the median of the rounds with its range, and whether it meets the requirement, if there is one."""
    median, required = statistics.median(values), required.get(name)
    met = required is None or (median <= required if name in AT_MOST else median >= required)
    return {"median": median, "least": min(values), "most": max(values), "required": required, "met": met}


def summarise(arguments, work, runs, rivals):
    """Summarises the seconds and bytes of every round; `rivals` are PyTorch's layouts."""
    batch = 1 if work == "start" else batches_and_steps(arguments, work)[0]
    seconds = {name: [run[0] for run in values] for name, values in runs.items()}
    peaks = {name: [run[1] for run in values] for name, values in runs.items()}
    faster = min(rivals, key=lambda name: statistics.median(seconds[name]))
    fastest = [min(values) for values in zip(*(seconds[name] for name in rivals))]
    speedups = [theirs / ours for ours, theirs in zip(seconds["retune"], fastest)]
    required = REQUIRED.get(arguments.arch, {})
    result = {
        "architecture": arguments.arch,
        "work": work,
        "batch_size": batch,
        "pytorch_version": arguments.pytorch_version,
        "pytorch_faster_layout": faster,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "images_per_second": {name: batch / statistics.median(values) for name, values in seconds.items()},
        "ratio": judge(required, work, [1 / speedup for speedup in speedups] if work in AT_MOST else speedups),
        "peak_resident_bytes": {name: statistics.median(values) for name, values in peaks.items()},
        "rounds": {"seconds": seconds, "peak_resident_bytes": peaks},
    }
    if work == "training":
        shares = [ours / theirs for ours, theirs in zip(peaks["retune"], peaks[faster])]
        result["memory"] = judge(required, "memory", shares)
    return result


def show(arguments, results):
    """Prints one table of all measurements."""
    print(f"{arguments.arch}, float32, {arguments.image_size} x {arguments.image_size}, {arguments.threads} threads, "
          f"PyTorch {arguments.pytorch_version}; medians of {arguments.rounds} rounds of {arguments.steps} steps")
    print(f"{'work':24}{'retune':>16}{'PyTorch':>16}    {'ratio':26}required")
    for result in results:
        work, faster = result["work"], result["pytorch_faster_layout"]

        def row(title, figure, verdict, sign):
            ratio = f"{verdict['median']:.2f} ({verdict['least']:.2f}..{verdict['most']:.2f})"
            required = ""
            if verdict["required"] is not None:
                required = f"{sign} {verdict['required']}{'' if verdict['met'] else '  missed'}"
            print(f"{title:24}{figure('retune'):>16}{figure(faster):>16}    {ratio:26}{required}".rstrip())

        def images(name):
            return f"{result['images_per_second'][name]:.2f} images/s"

        def milliseconds(name):
            return f"{1e3 * result['seconds'][name]:.1f} ms"

        def memory(name):
            return f"{result['peak_resident_bytes'][name] / 2**20:.0f} MiB"

        if work in ("training", "inference"):
            row(f"{work}, batch {result['batch_size']}", images, result["ratio"], ">=")
        elif work == "latency":
            row("inference, batch 1", milliseconds, result["ratio"], ">=")
        else:
            row("start to prediction", milliseconds, result["ratio"], "<=")
        if "memory" in result:
            row("  memory", memory, result["memory"], "<=")


def chosen_works(text):
    works = text.split(",")
    if unknown := [work for work in works if work not in WORKS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {','.join(WORKS)}")
    return [work for work in WORKS if work in works]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", metavar="PATH")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python that has torch (this one)")
    parser.add_argument("--arch", default="resnet18", metavar="NAME",
                        help="architecture, by its name in torchvision (resnet18)")
    parser.add_argument("--work", type=chosen_works, default=list(WORKS), metavar="LIST",
                        help=f"some of {','.join(WORKS)} (all)")
    parser.add_argument("--batch-size", type=int, default=32, help="batch size of training and inference (32)")
    parser.add_argument("--image-size", type=int, default=224, help="image size of all but start (224)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cores", metavar="LIST", help="keep all processes on these cores, such as 0,1 (any)")
    parser.add_argument("--steps", type=int, default=5,
                        help="measured steps of each process, or processes of start, in a round (5); latency takes six "
                             "times as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-freed-memory", action="store_true",
                        help="keep PyTorch's allocator (glibc's) from returning pages: faster, but needs more memory")
    parser.add_argument("--check", action="store_true", help="exit 1 if a median misses a requirement")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure-pytorch", metavar="SETTINGS", help=argparse.SUPPRESS)
    parser.add_argument("--prepare-start", metavar="FOLDER", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_pytorch:
        measure_pytorch(json.loads(arguments.measure_pytorch))
        return
    if arguments.prepare_start:
        prepare_start(arguments.prepare_start, arguments.arch)
        return
    if arguments.cores:
        os.sched_setaffinity(0, [int(core) for core in arguments.cores.split(",")])
    version = [arguments.python, "-c", "import torch; print(torch.__version__)"]
    arguments.pytorch_version = run_process(version, {})[0].strip()
    results = [(compare_start if work == "start" else compare_steps)(arguments, work) for work in arguments.work]
    if arguments.json:
        print(json.dumps({result["work"]: result for result in results}))
    else:
        show(arguments, results)
    verdicts = [result[name] for result in results for name in ("ratio", "memory") if name in result]
    if arguments.check and not all(verdict["met"] for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()

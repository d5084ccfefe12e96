#!/usr/bin/env python3
"""Compares `retune bench` with PyTorch on this machine's CPU: ResNet-18, float32, same batch, picture size and threads.

    scripts/bench-vs-pytorch.py --retune target/release/retune --rounds 5

Each round runs PyTorch (default layout, then channels_last) and retune, one process after the other, so that a machine
that slows down does so for both. PyTorch's figure of a round is that of its faster layout. Every measurement is a
process of its own, and peak memory is what the kernel says of that process (ru_maxrss). Needs torch and torchvision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LAYOUTS = ("default", "channels_last")


def measure_pytorch(settings):
    """Runs in its own process: the seconds of each training step or inference batch, after one to warm up."""
    import torch
    import torchvision

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    batch, size = settings["batch_size"], settings["image_size"]
    net, images = torchvision.models.resnet18(num_classes=2), torch.randn(batch, 3, size, size)
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
    seconds = []
    for _ in range(settings["steps"] + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds[1:], "version": torch.__version__}))


def run_process(command, environment):
    """A process's standard output as JSON, and the most memory it held. This process has to stay small: the kernel
    counts a child's memory from before it becomes another program."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return json.loads(output), peak


def run_pytorch(arguments, mode, layout):
    settings = {"mode": mode, "layout": layout, "threads": arguments.threads, "batch_size": arguments.batch_size,
                "image_size": arguments.image_size, "steps": arguments.steps}
    environment = {"OMP_NUM_THREADS": str(arguments.threads)}
    if arguments.keep_freed_memory:
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    command = [arguments.python, __file__, "--measure-pytorch", json.dumps(settings)]
    result, peak = run_process(command, environment)
    return arguments.batch_size / statistics.median(result["seconds"]), peak, result["version"]


def run_retune(arguments, mode):
    command = [arguments.retune, "bench", "--device", "cpu", "--threads", arguments.threads, "--batch-size",
               arguments.batch_size, "--image-size", arguments.image_size, "--steps", arguments.steps, "--mode", mode,
               "--json"]
    result, peak = run_process([str(word) for word in command], {})
    seconds = result[mode]["step_seconds" if mode == "training" else "batch_seconds"]
    return arguments.batch_size / statistics.median(seconds), peak


def compare(arguments, mode):
    """All rounds of one mode."""
    speeds = {name: [] for name in (*LAYOUTS, "retune")}
    peaks = {name: [] for name in speeds}
    version = ""
    for number in range(1, arguments.rounds + 1):
        for layout in LAYOUTS:
            speed, peak, version = run_pytorch(arguments, mode, layout)
            speeds[layout].append(speed)
            peaks[layout].append(peak)
        speed, peak = run_retune(arguments, mode)
        speeds["retune"].append(speed)
        peaks["retune"].append(peak)
        figures = ", ".join(f"{name} {values[-1]:.2f}" for name, values in speeds.items())
        print(f"{mode}, round {number} of {arguments.rounds}: {figures} images/s", file=sys.stderr, flush=True)
    faster = max(LAYOUTS, key=lambda layout: statistics.median(speeds[layout]))
    fastest = [max(pair) for pair in zip(*(speeds[layout] for layout in LAYOUTS))]
    ratios = [ours / theirs for ours, theirs in zip(speeds["retune"], fastest)]
    return {
        "mode": mode,
        "pytorch_version": version,
        "pytorch_faster_layout": faster,
        "images_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "peak_resident_bytes": {name: max(values) for name, values in peaks.items()},
        "rounds": speeds,
    }


def show(arguments, result):
    print(f"\n{result['mode']}: ResNet-18, float32, batch {arguments.batch_size}, {arguments.image_size} x "
          f"{arguments.image_size}, {arguments.threads} threads, {arguments.steps} steps, medians of "
          f"{arguments.rounds} rounds")
    names = {**{layout: f"PyTorch {result['pytorch_version']}, {layout}" for layout in LAYOUTS}, "retune": "retune"}
    for name, title in names.items():
        values = result["rounds"][name]
        print(f"  {title:36} {result['images_per_second'][name]:8.2f} images/s ({min(values):.2f} to {max(values):.2f})"
              f"   peak {result['peak_resident_bytes'][name] / 2**20:7.0f} MiB")
    ratio = result["ratio"]
    memory = result["peak_resident_bytes"]
    share = memory["retune"] / memory[result["pytorch_faster_layout"]]
    print(f"  retune is {ratio['median']:.2f} x as fast as PyTorch's faster layout ({ratio['least']:.2f} to "
          f"{ratio['most']:.2f}) in {share:.2f} x its memory")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", metavar="PATH")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python that has torch (this one)")
    parser.add_argument("--mode", choices=("training", "inference", "both"), default="both")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each process, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-freed-memory", action="store_true",
                        help="keep PyTorch's allocator (glibc's) from giving pages back: faster, and more memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure-pytorch", metavar="SETTINGS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_pytorch:
        measure_pytorch(json.loads(arguments.measure_pytorch))
        return
    modes = ("training", "inference") if arguments.mode == "both" else (arguments.mode,)
    results = [compare(arguments, mode) for mode in modes]
    if arguments.json:
        print(json.dumps({result["mode"]: result for result in results}))
    else:
        for result in results:
            show(arguments, result)


if __name__ == "__main__":
    main()

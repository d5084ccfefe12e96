#!/usr/bin/env python3
"""Compares `retune bench --device cuda` with PyTorch on the same GPU, in training and inference.

    scripts/bench-gpu-vs-pytorch.py --retune target/release/retune --rounds 3
    scripts/bench-gpu-vs-pytorch.py --arch resnet50

PyTorch runs in one process throughout, so that torch.compile compiles once. Each round measures every variant of both
programs in turn, so that a slow phase of the GPU affects all of them. Many steps are timed at once, on the host, around a
synchronisation. The images are on the GPU for both programs. Needs torch and torchvision with CUDA.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

# name: (storage and arithmetic, channels_last, compiled)
VARIANTS = {
    "eager fp32": ("fp32", False, False),
    "channels_last fp32": ("fp32", True, False),
    "channels_last tf32": ("tf32", True, False),
    "autocast bf16": ("bf16", False, False),
    "channels_last autocast bf16": ("bf16", True, False),
    "compiled channels_last autocast bf16": ("bf16", True, True),
}
PRECISIONS = ("fp32", "tf32", "bf16")


def make_step(architecture, mode, variant, batch, size):
    """Returns a function that issues one training step or inference batch."""
    import torch
    import torchvision

    precision, channels_last, compiled = VARIANTS[variant]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    net = torchvision.models.get_model(architecture, num_classes=2).cuda()
    images = torch.randn(batch, 3, size, size, device="cuda")
    if channels_last:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    target = torch.randint(0, 2, (batch,), device="cuda")
    net.train(mode == "training")
    body = [parameter for name, parameter in net.named_parameters() if not name.startswith("fc.")]
    groups = [{"params": body}, {"params": net.fc.parameters(), "lr": 5e-4}]
    optimiser = torch.optim.SGD(groups, lr=5e-5, weight_decay=1e-3)
    call = torch.compile(net) if compiled else net

    def training_step():
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(call(images), target, reduction="sum")
        loss.backward()
        optimiser.step()

    def inference_batch():
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            call(images)

    return training_step if mode == "training" else inference_batch


def serve_pytorch(architecture):
    """Runs in its own process: each line of standard input asks for one measurement."""
    import torch

    steps_made = {}
    print(json.dumps({"version": torch.__version__, "gpu": torch.cuda.get_device_name()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        mode, variant, batch, size = (request[key] for key in ("mode", "variant", "batch_size", "image_size"))
        try:
            # These are settings of the process, not of the network.
            precision = VARIANTS[variant][0]
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            step = steps_made.get((mode, variant))
            if step is None:
                step = steps_made[mode, variant] = make_step(architecture, mode, variant, batch, size)
                for _ in range(5):
                    step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for _ in range(request["steps"]):
                step()
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - start) / request["steps"]
            answer = {"images_per_second": batch / seconds, "peak_bytes": torch.cuda.max_memory_allocated()}
        except Exception as cause:  # reports variants that this PyTorch cannot run
            answer = {"error": f"{type(cause).__name__}: {cause}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


def ask(server, request):
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    line = server.stdout.readline()
    if not line:
        sys.exit("the PyTorch process ended")
    return json.loads(line)


def run_retune(arguments, mode, precision):
    command = [arguments.retune, "bench", "--device", arguments.device, "--arch", arguments.arch, "--precision", precision,
               "--batch-size", arguments.batch_size, "--image-size", arguments.image_size, "--steps", arguments.steps,
               "--mode", mode, "--json"]
    run = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        return {"error": f"retune bench ended with {run.returncode}"}
    result = json.loads(run.stdout)
    return {"images_per_second": result[mode]["images_per_second"], "peak_bytes": result["arena_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", metavar="PATH")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python that has torch (this one)")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--arch", default="resnet18", metavar="NAME",
                        help="architecture, by its name in torchvision (resnet18)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=30, help="steps of a measurement, after a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    parser.add_argument("--serve-pytorch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_pytorch:
        serve_pytorch(arguments.arch)
        return
    server = subprocess.Popen([arguments.python, __file__, "--serve-pytorch", "--arch", arguments.arch],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    hello = server.stdout.readline()
    if not hello:
        sys.exit("PyTorch could not be started: does this Python have torch with CUDA?")
    result = {"pytorch": json.loads(hello), "architecture": arguments.arch, "batch_size": arguments.batch_size,
              "image_size": arguments.image_size}
    failed = False
    for mode in ("training", "inference"):
        rounds = {name: [] for name in (*(f"retune {precision}" for precision in PRECISIONS), *VARIANTS)}
        errors = {}
        for _ in range(arguments.rounds):
            for name in rounds:
                if name in errors:
                    continue
                if name.startswith("retune "):
                    answer = run_retune(arguments, mode, name.removeprefix("retune "))
                else:
                    answer = ask(server, {"mode": mode, "variant": name, "batch_size": arguments.batch_size,
                                          "image_size": arguments.image_size, "steps": arguments.steps})
                if "error" in answer:
                    errors[name] = answer["error"]
                else:
                    rounds[name].append(answer)
        print(f"\n{mode}: {arguments.arch}, batch {arguments.batch_size}, {arguments.image_size} x {arguments.image_size}, "
              f"{result['pytorch']['gpu']}, PyTorch {result['pytorch']['version']}, medians of {arguments.rounds} rounds")
        table = {}
        for name, answers in rounds.items():
            title = name if name.startswith("retune ") else f"PyTorch {name}"
            if name in errors:
                print(f"  {title:48} failed: {errors[name]}")
                table[name] = {"error": errors[name]}
                failed |= name.startswith("retune ")
                continue
            speeds = [answer["images_per_second"] for answer in answers]
            peak = max(answer["peak_bytes"] for answer in answers)
            print(f"  {title:48} {statistics.median(speeds):9.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f})"
                  f"   {peak / 2**30:6.2f} GiB")
            table[name] = {"images_per_second": speeds, "peak_bytes": peak}
        result[mode] = table
        for precision in PRECISIONS:
            ours = table[f"retune {precision}"].get("images_per_second")
            rivals = {name: table[name]["images_per_second"] for name, (kind, _, _) in VARIANTS.items()
                      if kind == precision and "images_per_second" in table[name]}
            if ours and rivals:
                fastest = max(rivals, key=lambda name: statistics.median(rivals[name]))
                ratios = [a / b for a, b in zip(ours, rivals[fastest])]
                print(f"  retune {precision} is {statistics.median(ratios):.2f} x as fast as PyTorch {fastest} "
                      f"({min(ratios):.2f} to {max(ratios):.2f})")
    server.stdin.close()
    server.wait()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

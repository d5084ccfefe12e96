#!/usr/bin/env python3
"""Compares the speed of retune and torchvision from JPEG files to the network's input, each with one thread on one core.

    cargo build --release
    scripts/bench-data-vs-torchvision.py --folder photos/train --rounds 7

--folder has one folder of images per class. Without it, the script draws 300 images with Pillow (500 x 375, quality 90, the
size of a photo's file) in a temporary folder.

Each round runs torchvision and retune, one process after the other, pinned to the same core, so that a slow phase of the
machine affects both; odd rounds run torchvision first, even rounds retune. Every process reads the folder once without
being measured, then --epochs times with the training transform (RandomResizedCrop, RandomHorizontalFlip) and as often with
the test transform (Resize, CenterCrop), both from the file to normalised float32. torchvision reads an ImageFolder item by
item, without a DataLoader: it does not assemble batches, which retune does (`retune bench --mode data
--workers 1`). The ratio of a round is that of its two processes, once for wall-clock time and once for processor time, which
other processes on a busy machine disturb less. Needs torch, torchvision and Pillow.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

TRANSFORMS = ("training", "test")
MEASURES = ("clock", "processor")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure_torchvision(settings):
    """Runs in its own process: images per second of wall-clock and of processor time with each transform."""
    import PIL
    import torch
    import torchvision
    from torchvision import transforms

    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = settings["image_size"]
    finish = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    begin = {
        "training": [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()],
        "test": [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)],
    }
    result = {"version": f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"}
    for name in TRANSFORMS:
        dataset = torchvision.datasets.ImageFolder(settings["folder"], transforms.Compose(begin[name] + finish))
        seconds, computed = [], []
        for _ in range(settings["epochs"] + 1):
            start, computing = time.perf_counter(), time.process_time()
            for index in range(len(dataset)):
                dataset[index]
            seconds.append(time.perf_counter() - start)
            computed.append(time.process_time() - computing)
        result[name] = [len(dataset) / statistics.median(measured[1:]) for measured in (seconds, computed)]
        result["images"] = len(dataset)
    print(json.dumps(result))


def draw_images(folder, count):
    """Runs in its own process: draws images of two classes, with smooth light, edges and fine grain."""
    import numpy
    from PIL import Image

    random = numpy.random.default_rng(0)
    width, height = 500, 375
    across, down = numpy.meshgrid(numpy.arange(width), numpy.arange(height))
    for number in range(count):
        pixels = numpy.zeros((height, width, 3))
        # Like a photo: detail at every scale, weaker at finer scales.
        for step in (125, 64, 32, 16, 8, 4, 2, 1):
            coarse = random.normal(size=(math.ceil(height / step) + 1, math.ceil(width / step) + 1, 3))
            smooth = [Image.fromarray(coarse[..., c].astype(numpy.float32)).resize((width, height), Image.BICUBIC)
                      for c in range(3)]
            grey = numpy.stack(smooth, axis=-1)
            grey = 0.8 * grey.mean(axis=-1, keepdims=True) + 0.2 * grey
            pixels += grey * 2.5 * step**0.55
        for _ in range(12):
            x, y, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(10, 90)
            pixels[(across - x)**2 + (down - y)**2 < radius**2] += random.normal(0, 30, 3)
        pixels = numpy.clip(128 + pixels, 0, 255).astype(numpy.uint8)
        place = os.path.join(folder, ("first", "second")[number % 2])
        os.makedirs(place, exist_ok=True)
        Image.fromarray(pixels).save(os.path.join(place, f"{number:04}.jpg"), quality=90)


def run_process(command, core):
    """Returns a process's standard output as JSON. The process stays on one core if the system supports it."""
    pin = (lambda: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, stdout=subprocess.PIPE, env=environment, preexec_fn=pin)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return json.loads(child.stdout)


def run_torchvision(arguments, folder):
    settings = {"folder": folder, "epochs": arguments.epochs, "image_size": arguments.image_size}
    command = [arguments.python, __file__, "--measure-torchvision", json.dumps(settings)]
    return run_process(command, arguments.core)


def run_retune(arguments, folder):
    command = [arguments.retune, "bench", "--mode", "data", "--data", folder, "--workers", "1", "--steps",
               str(arguments.epochs), "--image-size", str(arguments.image_size), "--json"]
    result = run_process(command, arguments.core)
    rates = {}
    for name in TRANSFORMS:
        measured = result[f"{name}_transform"]
        # Uses wall-clock time if the system does not report processor time.
        computed = measured["epoch_processor_seconds"] or measured["epoch_seconds"]
        rates[name] = [result["images"] / statistics.median(seconds) for seconds in (measured["epoch_seconds"], computed)]
    return rates


def compare(arguments, folder):
    rounds, version, images = [], "", 0
    for number in range(1, arguments.rounds + 1):
        programs = [("torchvision", run_torchvision), ("retune", run_retune)]
        rates = {name: run(arguments, folder) for name, run in (programs if number % 2 else programs[::-1])}
        version, images = rates["torchvision"].pop("version"), rates["torchvision"].pop("images")
        rounds.append(rates)
        figures = ", ".join(f"{name} {rates[name]['training'][0]:.0f} and {rates[name]['test'][0]:.0f}" for name in rates)
        print(f"round {number} of {arguments.rounds}, images/s in training and test: {figures}", file=sys.stderr,
              flush=True)
    result = {"torchvision_version": version, "images": images, "image_size": arguments.image_size, "rounds": rounds}
    for name in TRANSFORMS:
        result[name] = {}
        for kind, measure in enumerate(MEASURES):
            of = {program: [rates[program][name][kind] for rates in rounds] for program in ("torchvision", "retune")}
            ratios = [ours / theirs for ours, theirs in zip(of["retune"], of["torchvision"])]
            result[name][measure] = {**{program: summary(of[program]) for program in of}, "ratio": summary(ratios)}
    return result


def summary(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(arguments, result):
    print(f"\n{result['images']} files to {result['image_size']} x {result['image_size']}, one core, one thread; medians "
          f"of {arguments.rounds} rounds (least to most)\n{result['torchvision_version']}")
    for name in TRANSFORMS:
        print(f"{name} transform, from the file")
        for program in ("torchvision", "retune"):
            rates = [result[name][measure][program] for measure in MEASURES]
            clock, processor = (f"{rate['median']:.1f} ({rate['least']:.1f} to {rate['most']:.1f})" for rate in rates)
            print(f"  {program:11}  {clock} images/s, {processor} images per processor second")
        clock, processor = (result[name][measure]["ratio"] for measure in MEASURES)
        print(f"  retune is {clock['median']:.2f} x as fast ({clock['least']:.2f} to {clock['most']:.2f}), by processor "
              f"time {processor['median']:.2f} x ({processor['least']:.2f} to {processor['most']:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", metavar="PATH", help="one folder of images per class (by default images are drawn)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="measured passes of each process, after one to warm up")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--retune", default="target/release/retune", metavar="PATH")
    parser.add_argument("--python", default=sys.executable, metavar="PATH",
                        help="a Python that has torchvision (this one)")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    parser.add_argument("--core", type=int, default=cores[-1], help="where both run (the last one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure-torchvision", metavar="SETTINGS", help=argparse.SUPPRESS)
    parser.add_argument("--draw", metavar="PATH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_torchvision:
        measure_torchvision(json.loads(arguments.measure_torchvision))
    elif arguments.draw:
        draw_images(arguments.draw, 300)
    else:
        with tempfile.TemporaryDirectory() as drawn:
            if not arguments.folder:
                print("drawing images", file=sys.stderr, flush=True)
                subprocess.run([arguments.python, __file__, "--draw", drawn], check=True)
            result = compare(arguments, arguments.folder or drawn)
        print(json.dumps(result)) if arguments.json else show(arguments, result)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compares the test accuracy and the time of `retune train` with those of fastai's `fine_tune`.

    scripts/compare-with-fastai.py photos --weights resnet18.safetensors --results flowers.jsonl
    scripts/compare-with-fastai.py photos --weights resnet18.safetensors --results small.jsonl --per-class 30
    scripts/compare-with-fastai.py photos --weights resnet18.safetensors --results uneven.jsonl --imbalance 10
    scripts/compare-with-fastai.py photos --weights resnet18.safetensors --results flowers.jsonl --arm "fixed body=--head-only"

photos contains train/ and test/, each with one folder for each class. Every arm trains with every seed on the same images, from
the same weights, and is tested on test/ once, at its end. Each training is a process of its own, and its time is that of the
whole process. Results that the file has already are not computed again.

fastai is `vision_learner(resnet18).fine_tune(5)` with `Resize(460)` and `aug_transforms(size=224)`. It needs the Python packages
fastai, torch, torchvision and safetensors; without them, choose arms with --only.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

FASTAI = """
import json, sys
from fastai.vision.all import *
data, seed, answer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
set_seed(seed, reproducible=True)
loaders = ImageDataLoaders.from_folder(data, train="train", valid="test", seed=seed,
    item_tfms=Resize(460), batch_tfms=aug_transforms(size=224))
learner = vision_learner(loaders, resnet18, metrics=accuracy)
with learner.no_bar(), learner.no_logging():
    learner.fine_tune(5)
    scores, targets = learner.get_preds()
open(answer, "w").write(json.dumps([targets.tolist(), scores.argmax(1).tolist()]))
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="ResNet-18 of ImageNet, as safetensors")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="file of results, one JSON object per line")
    parser.add_argument("--retune", default="target/release/retune")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--per-class", type=int, help="train on this number of images of each class, drawn by the seed")
    parser.add_argument("--imbalance", type=float, help="train on this many times fewer images of the last class than of the "
                        "first, with equal ratios between neighbours")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=FLAGS", help="another training with flags of retune train")
    parser.add_argument("--only", help="names of the arms to train, separated by commas; the table still has all")
    return parser.parse_args()


def subset(options, seed, place):
    """A folder with links to the images to train and test on."""
    if options.per_class is None and options.imbalance is None:
        return options.data.resolve()
    classes = sorted(path.name for path in (options.data / "train").iterdir())
    for index, name in enumerate(classes):
        files = sorted((options.data / "train" / name).iterdir())
        count = options.per_class or len(files)
        if options.imbalance is not None:
            count = round(count * options.imbalance ** (-index / (len(classes) - 1)))
        (place / "train" / name).mkdir(parents=True)
        for file in sorted(random.Random(f"{seed} {name}").sample(files, count)):
            (place / "train" / name / file.name).symlink_to(file.resolve())
    (place / "test").symlink_to((options.data / "test").resolve())
    return place


def fastai(options, data, seed, place):
    import safetensors.torch
    import torch

    # torchvision takes the weights from here instead of downloading them.
    kept = place / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True)
    torch.save(safetensors.torch.load_file(options.weights), kept)
    answer = place / "answer.json"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", FASTAI, str(data), str(seed), str(answer)], check=True, cwd=place,
                   env=os.environ | {"TORCH_HOME": str(place)}, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    return json.loads(answer.read_text()), seconds


def retune(options, flags, data, seed, place):
    command = [options.retune, "train", str(data), "--weights", str(options.weights), "--seed", str(seed), "--out",
               str(place / "run"), *flags]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    rows = place / "rows.csv"
    subprocess.run([options.retune, "eval", str(place / "run" / "model.safetensors"), str(data), "--per-image", str(rows), "-q"],
                   check=True, stdout=subprocess.DEVNULL)
    with rows.open(newline="") as file:
        header, *lines = csv.reader(file)
    label, prediction = header.index("label"), header.index("predicted")
    return [[line[label] for line in lines], [line[prediction] for line in lines]], seconds


def measured(answer, seconds):
    targets, predictions = answer
    right = [target == prediction for target, prediction in zip(targets, predictions)]
    recalls = [statistics.mean(ok for ok, target in zip(right, targets) if target == name) for name in sorted(set(targets))]
    return {"accuracy": statistics.mean(right), "balanced": statistics.mean(recalls), "seconds": round(seconds, 1)}


def spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {deviation:.4f}"


def table(results):
    print(f"{'arm':24} seeds  accuracy           balanced           median seconds  balanced accuracy beside fastai, 95 %")
    reference = {result["seed"]: result for result in results if result["arm"] == "fastai"}
    for arm in dict.fromkeys(result["arm"] for result in results):
        mine = [result for result in results if result["arm"] == arm]
        pairs = [result["balanced"] - reference[result["seed"]]["balanced"] for result in mine if result["seed"] in reference]
        beside = ""
        if arm != "fastai" and pairs:
            beside = f"{statistics.mean(pairs):+.4f}"
            if len(pairs) - 1 in STUDENT:
                beside += f" +- {STUDENT[len(pairs) - 1] * statistics.stdev(pairs) / len(pairs) ** 0.5:.4f}"
        print(f"{arm:24} {len(mine):5}  {spread([r['accuracy'] for r in mine])}  {spread([r['balanced'] for r in mine])}  "
              f"{statistics.median(r['seconds'] for r in mine):14.0f}  {beside}")


def main():
    options = arguments()
    options.weights = options.weights.resolve()
    arms = {"fastai": None, "best": []}
    for arm in options.arm:
        name, _, flags = arm.partition("=")
        arms[name] = flags.split()
    chosen = set(options.only.split(",")) if options.only else set(arms)
    if unknown := chosen - set(arms):
        sys.exit(f"there is no arm {', '.join(sorted(unknown))}; there are {', '.join(arms)}")
    results = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    known = {(result["arm"], result["seed"]) for result in results}
    for seed in range(options.seeds):
        for arm in [arm for arm in arms if arm in chosen and (arm, seed) not in known]:
            with tempfile.TemporaryDirectory() as scratch:
                scratch = pathlib.Path(scratch)
                data = subset(options, seed, scratch / "data")
                answer = fastai(options, data, seed, scratch) if arm == "fastai" else retune(options, arms[arm], data, seed, scratch)
            result = {"arm": arm, "seed": seed, **measured(*answer)}
            results.append(result)
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{arm}, seed {seed}: accuracy {result['accuracy']:.4f}, {result['seconds']:.0f} s", file=sys.stderr)
    table(results)


if __name__ == "__main__":
    main()

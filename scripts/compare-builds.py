#!/usr/bin/env python3
"""Checks that two builds of retune train to the same bits.

    scripts/compare-builds.py OLD NEW
    scripts/compare-builds.py OLD NEW --only emulator --keep target/compare-builds
    scripts/compare-builds.py OLD OLD --expect-differences

OLD and NEW are retune programs built with `--features emulator`. OLD draws a small data set and trains the weights that
fine-tuning starts from. Then both builds perform every run of the list below, and `model.safetensors` and
`checkpoint.safetensors` must have the same bytes: the tensors, and the metadata with its recipe. NEW also resumes a
checkpoint that OLD wrote. The exit status is 1 if a file differs, and the output names the run, the file, and the metadata
keys and the first tensor that differ.

No hashes are stored, because other processors round differently: both builds must run on the same machine.

With --expect-differences NEW trains with another seed, and the exit status is 1 unless the tensors of both files of every
run differ. It shows that the comparison can fail.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

FILES = ("model.safetensors", "checkpoint.safetensors")

WEIGHTS = object()  # a placeholder for the weights that OLD writes

# Options of `train`. True stands for an option without a value.
TINY = {"image-size": 32, "batch-size": 8, "epochs": 2, "test-fraction": 0.25, "no-report": True}
SCRATCH = TINY | {"from-scratch": True, "width": 8, "lr": 2e-3}
FINE_TUNE = TINY | {"weights": WEIGHTS, "lr": 1e-3}
FROZEN = FINE_TUNE | {"freeze": "conv1,bn1,layer1"}
FROZEN_STATISTICS = FROZEN | {"freeze-batch-norm": True}
CLIPPED = FINE_TUNE | {"clip-gradient-norm": 0.5}
MOMENTUM = {"momentum": 0.9}

CPU = {"device": "cpu"}
FP32 = {"device": "emulator", "epochs": 1}
TF32 = FP32 | {"precision": "tf32"}
BF16 = FP32 | {"precision": "bf16"}

RUNS = {
    "cpu, from scratch": SCRATCH | CPU,
    "cpu, one worker": SCRATCH | CPU | {"workers": 1},
    "cpu, four workers, one thread": SCRATCH | CPU | {"workers": 4, "threads": 1},
    "cpu, portable instructions": SCRATCH | CPU,
    "cpu, resnet34, odd image size": SCRATCH | CPU | {"arch": "resnet34", "image-size": 45},
    "cpu, fine-tuned": FINE_TUNE | CPU,
    "cpu, frozen": FROZEN | CPU,
    "cpu, frozen with batch norm": FROZEN_STATISTICS | CPU,
    "cpu, head from rows": FINE_TUNE | CPU | {"head-from": "7,2"},
    "cpu, clipped": CLIPPED | CPU,
    "cpu, momentum, mean loss": FINE_TUNE | CPU | MOMENTUM | {"loss-reduction": "mean", "lr": 1e-2},
    "cpu, EXIF followed": SCRATCH | CPU | {"exif": True},
    "cpu, resumed within an epoch": SCRATCH | CPU | MOMENTUM,
    "emulator fp32, from scratch": SCRATCH | FP32,
    "emulator fp32, frozen with batch norm, momentum": FROZEN_STATISTICS | FP32 | MOMENTUM,
    "emulator fp32, images not kept on the device": SCRATCH | FP32 | {"image-memory": 0},
    "emulator tf32, clipped": CLIPPED | TF32,
    "emulator tf32, resnet34": SCRATCH | TF32 | {"arch": "resnet34"},
    "emulator bf16, frozen": FROZEN | BF16,
    "emulator bf16, resumed within an epoch": SCRATCH | BF16 | MOMENTUM,
}

# The options that a resumed run needs; the rest of the recipe comes from its checkpoint.
WHERE_TO_RUN = ("device", "test-fraction", "no-report")

ENVIRONMENT = {"cpu, portable instructions": {"RETUNE_CPU": "portable"}}

# The resumed state: after two steps of the first epoch, before any model was saved.
RESUMED_CHECKPOINT = "checkpoint-00000-000002.safetensors"


def command(program, *words, environment=None):
    """Runs a build. A failure ends the comparison with the build's error message."""
    words = [str(word) for word in (program, *words)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stderr.strip()}")


def orientation(value):
    """Returns a JPEG's APP1 segment with EXIF data whose only entry is the orientation."""
    tiff = b"II*\0" + (8).to_bytes(4, "little") + (1).to_bytes(2, "little")
    tiff += b"".join(part.to_bytes(size, "little") for part, size in ((0x112, 2), (3, 2), (1, 4), (value, 4), (0, 4)))
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def prepare(program, folder):
    """Draws the data, gives every second image an orientation, and trains the weights that fine-tuning starts from."""
    command(program, "demo", "--only-draw", "--source-per-class", 4, "--target-per-class", 24, "--out", folder / "drawn")
    images = folder / "drawn/pictures/target/train"
    for number, image in enumerate(sorted(images.rglob("*.jpg"))):
        if number % 2 == 1:
            encoded = image.read_bytes()
            image.write_bytes(encoded[:2] + orientation(2 + number // 2 % 7) + encoded[2:])
    source = folder / "drawn/pictures/source/train"
    settings = SCRATCH | CPU | {"epochs": 1, "seed": 7}
    command(program, "train", source, *options(settings), "--out", folder / "weights")
    return images, folder / "weights/model.safetensors"


def options(settings, weights=None):
    """Returns the words of a command line."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}"] if value is True else [f"--{name}", weights if value is WEIGHTS else value]
    return words


def train(program, name, data, weights, seed, out):
    """Performs one run of the list in `out`. For a resumed run, keeps its other states beside it."""
    words = ["train", data, *options(RUNS[name], weights), "--seed", seed]
    environment = ENVIRONMENT.get(name)
    if "resumed" not in name:
        command(program, *words, "--out", out, environment=environment)
        return
    whole, interrupted = out.with_name(out.name + "-whole"), out.with_name(out.name + "-interrupted")
    command(program, *words, "--checkpoint-every", 1, "--keep-checkpoints", 100, "--out", whole)
    shutil.copytree(whole, interrupted)
    (interrupted / RESUMED_CHECKPOINT).replace(interrupted / "checkpoint.safetensors")
    (interrupted / "model.safetensors").unlink()
    resume(program, name, data, interrupted, out)


def resume(program, name, data, interrupted, out):
    shutil.copytree(interrupted, out)
    settings = {key: value for key, value in RUNS[name].items() if key in WHERE_TO_RUN}
    command(program, "train", data, *options(settings), "--resume", "--out", out)


def header_and_tensors(path):
    encoded = path.read_bytes()
    length = int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    values = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values[name] = (entry["dtype"], entry["shape"], encoded[8 + length + begin : 8 + length + end])
    return metadata, values


def flattened(metadata):
    """Returns metadata with its JSON objects flattened, so that each key names one setting."""
    flat = {}
    for key, value in metadata.items():
        if value.startswith("{"):
            flat |= {f"{key}.{inner}": part for inner, part in json.loads(value).items()}
        else:
            flat[key] = value
    return flat


def differences(old, new):
    """Returns the metadata keys and the tensors in which two safetensors files differ."""
    (old_metadata, old_tensors), (new_metadata, new_tensors) = header_and_tensors(old), header_and_tensors(new)
    pairs = ((flattened(old_metadata), flattened(new_metadata)), (old_tensors, new_tensors))
    return [[key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)] for one, other in pairs]


def compare(old, new):
    """Returns a line for each file that differs between two runs, and the number of files with different tensors."""
    lines, files_with_other_tensors = [], 0
    for file in FILES:
        if missing := [str(run / file) for run in (old, new) if not (run / file).exists()]:
            lines.append(f"missing: {', '.join(missing)}")
            continue
        if (old / file).read_bytes() == (new / file).read_bytes():
            continue
        metadata, tensors = differences(old / file, new / file)
        files_with_other_tensors += bool(tensors)
        parts = [f"metadata {', '.join(metadata)}"] if metadata else []
        parts += [f"{len(tensors)} tensors, the first is {tensors[0]}"] if tensors else []
        lines.append(f"{file}: " + ("; ".join(parts) or "order or padding"))
    return lines, files_with_other_tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", type=pathlib.Path)
    parser.add_argument("new", metavar="NEW", type=pathlib.Path)
    parser.add_argument("--only", metavar="TEXT", default="", help="only the runs whose name contains TEXT")
    parser.add_argument("--keep", metavar="FOLDER", type=pathlib.Path, help="leave data and runs in this folder")
    parser.add_argument("--expect-differences", action="store_true",
                        help="train NEW with another seed, and fail unless every run differs")
    arguments = parser.parse_args()
    old, new = arguments.old.resolve(), arguments.new.resolve()
    names = [name for name in RUNS if arguments.only in name]
    if not names:
        sys.exit(f"no run has {arguments.only!r} in its name; the runs are: {'; '.join(RUNS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or pathlib.Path(scratch)
        if arguments.keep and folder.exists() and any(folder.iterdir()):
            sys.exit(f"{folder} is not empty")
        folder.mkdir(parents=True, exist_ok=True)
        failures = run_all(old, new, names, folder.resolve(), arguments.expect_differences)
    sys.exit(1 if failures else 0)


def run_all(old, new, names, folder, expect_differences):
    start = time.monotonic()
    data, weights = prepare(old, folder)
    failures = 0
    for number, name in enumerate(names, 1):
        begin = time.monotonic()
        runs = {build: folder / f"{number:02}-{build}" for build in ("old", "new")}
        train(old, name, data, weights, 1, runs["old"])
        train(new, name, data, weights, 2 if expect_differences else 1, runs["new"])
        found, files_with_other_tensors = compare(runs["old"], runs["new"])
        if "resumed" in name and not expect_differences:
            handed_over = folder / f"{number:02}-old-resumed-by-new"
            resume(new, name, data, folder / f"{number:02}-old-interrupted", handed_over)
            found += [f"OLD's checkpoint resumed by NEW: {line}" for line in compare(runs["old"], handed_over)[0]]
        failed = files_with_other_tensors < len(FILES) if expect_differences else bool(found)
        failures += failed
        print(f"{'FAIL' if failed else 'ok':4}  {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        for line in found or (["the same bytes"] if failed else []):
            print(f"      {line}", flush=True)
    verdict = "did not differ in all files" if expect_differences else "differ"
    print(f"{len(names)} runs, {failures} {verdict}, {time.monotonic() - start:.0f} s")
    return failures


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Checks that onnxruntime gives the logits of `retune predict` for the ONNX file that `retune convert` writes.

    scripts/check-onnx.py target/release/retune runs/1/model.safetensors one.png two.png
    scripts/check-onnx.py target/release/retune tests/fixtures/resnet50.safetensors

The model may also be a reference file, whose parameters become a model. Without images, the script uses noise. The onnx
package checks the ONNX file (it infers shapes and checks every operator). The preprocessing follows the file's
metadata. All images are evaluated as one batch and one by one. An image passes if no logit differs by more than 1e-4 of
the largest (--limit). Use PNG files whose shorter side is the model's resize: other images are scaled, and their pixels
may then differ by 1 of 255. Exits 1 if any image fails. Needs onnx, onnxruntime, numpy, safetensors and pillow.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
import onnxruntime
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file


def pixels(path, preprocessing):
    """Returns an image as [3, size, size], preprocessed as in torchvision with the settings in the metadata."""
    image = Image.open(path).convert("RGB")
    side, crop = preprocessing["resize"], preprocessing["center_crop"]
    width, height = image.size
    if min(width, height) != side:
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        image = image.resize(size, Image.BILINEAR)
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    values = numpy.asarray(image.crop((left, top, left + crop, top + crop)), dtype=numpy.float32) / 255
    mean, deviation = (numpy.array(preprocessing[name], dtype=numpy.float32) for name in ("mean", "std"))
    return ((values - mean) / deviation).transpose(2, 0, 1)


def model_of_reference(path, folder):
    """Writes a model file with the parameters of a reference file and returns its path; returns other paths unchanged."""
    with safe_open(path, "numpy") as file:
        if (file.metadata() or {}).get("format") != "retune-reference-1":
            return path
        names = [name for name in file.keys() if name.startswith("param/")]
        tensors = {name.removeprefix("param/"): file.get_tensor(name) for name in names}
    classes = [f"class {index}" for index in range(len(tensors["fc.bias"]))]
    metadata = {"format": "pt", "classes": json.dumps(classes), "transform": json.dumps({"center_crop": 48})}
    model = str(pathlib.Path(folder) / "model.safetensors")
    save_file(tensors, model, metadata)
    return model


def noise(folder, side, count=4):
    """Writes PNG files of random pixels whose shorter side is `side`, and returns their paths."""
    random = numpy.random.default_rng(0)
    paths = [str(pathlib.Path(folder) / f"{index}.png") for index in range(count)]
    for index, path in enumerate(paths):
        pixels = random.integers(0, 256, (side, side + 7 * index, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retune")
    parser.add_argument("model")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--limit", type=float, default=1e-4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check(arguments, folder)


def check(arguments, folder):
    source, path = model_of_reference(arguments.model, folder), str(pathlib.Path(folder) / "model.onnx")
    subprocess.run([arguments.retune, "convert", source, path, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    classes, preprocessing = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
    images = arguments.images or noise(folder, preprocessing["resize"])
    command = [arguments.retune, "predict", source, *images, "--json", "--logits", "--device", "cpu"]
    predictions = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    by_path = {prediction["path"]: numpy.array(prediction["logits"]) for prediction in predictions}
    inputs = numpy.stack([pixels(path, preprocessing) for path in images])
    together = session.run(["logits"], {"input": inputs})[0]
    failed = 0
    for index, path in enumerate(images):
        alone = session.run(["logits"], {"input": inputs[index : index + 1]})[0][0]
        ours = by_path[path]
        difference = max(abs(ours - alone).max(), abs(ours - together[index]).max()) / max(abs(alone).max(), 1e-6)
        passed = difference <= arguments.limit and len(classes) == len(ours)
        failed += not passed
        print(f"{path}: {classes[int(alone.argmax())]}, largest difference {difference:.1e}{'' if passed else '  TOO LARGE'}")
    producer = f"{model.producer_name} {model.producer_version}"
    print(f"{len(images) - failed} of {len(images)} agree; {producer}, opset {model.opset_import[0].version}")
    sys.exit(failed > 0)


main()

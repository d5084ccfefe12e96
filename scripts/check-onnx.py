#!/usr/bin/env python3
"""Checks that onnxruntime gives the logits of `retune predict` for what `retune convert` made of the same model.

    scripts/check-onnx.py target/release/retune runs/1/model.safetensors one.png two.png

The ONNX file is checked by onnx itself (shapes inferred, every operator checked), and is told by its own metadata how a picture
becomes its input. All pictures go through it at once as well as one by one. A picture passes if no logit differs by
more than 1e-4 of the largest (--limit). Use PNG whose shorter side is the model's resize: other pictures are scaled, and
may then differ by 1 of 255. Exits 1 if any picture fails. Needs onnx, onnxruntime, numpy and pillow.
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


def pixels(path, preprocessing):
    """[3, size, size] as the metadata says, in torchvision's semantics."""
    picture = Image.open(path).convert("RGB")
    side, crop = preprocessing["resize"], preprocessing["center_crop"]
    width, height = picture.size
    if min(width, height) != side:
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        picture = picture.resize(size, Image.BILINEAR)
    left, top = round((picture.width - crop) / 2), round((picture.height - crop) / 2)
    values = numpy.asarray(picture.crop((left, top, left + crop, top + crop)), dtype=numpy.float32) / 255
    mean, deviation = (numpy.array(preprocessing[name], dtype=numpy.float32) for name in ("mean", "std"))
    return ((values - mean) / deviation).transpose(2, 0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retune")
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--limit", type=float, default=1e-4)
    arguments = parser.parse_args()
    command = [arguments.retune, "predict", arguments.model, *arguments.images, "--json", "--logits", "--device", "cpu"]
    predictions = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    by_path = {prediction["path"]: numpy.array(prediction["logits"]) for prediction in predictions}
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.onnx")
        subprocess.run([arguments.retune, "convert", arguments.model, path, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    classes, preprocessing = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
    inputs = numpy.stack([pixels(path, preprocessing) for path in arguments.images])
    together = session.run(["logits"], {"input": inputs})[0]
    failed = 0
    for index, path in enumerate(arguments.images):
        alone = session.run(["logits"], {"input": inputs[index : index + 1]})[0][0]
        ours = by_path[path]
        difference = max(abs(ours - alone).max(), abs(ours - together[index]).max()) / max(abs(alone).max(), 1e-6)
        passed = difference <= arguments.limit and len(classes) == len(ours)
        failed += not passed
        print(f"{path}: {classes[int(alone.argmax())]}, largest difference {difference:.1e}{'' if passed else '  TOO LARGE'}")
    producer = f"{model.producer_name} {model.producer_version}"
    print(f"{len(arguments.images) - failed} of {len(arguments.images)} agree; {producer}, opset {model.opset_import[0].version}")
    sys.exit(failed > 0)


main()

#!/usr/bin/env python3
"""Writes the small files that fuzzing starts from to fuzz/seeds, one folder per target.

Needs only Python. The targets `pth` and `image` also start from the fixtures of the tests; these files add inputs
that fuzzing is unlikely to find by itself.
"""

import io
import json
import struct
import zipfile
from pathlib import Path

SEEDS = Path(__file__).resolve().parent.parent / "fuzz" / "seeds"
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


def safetensors(tensors, metadata=None):
    """`tensors` is {name: (type, shape, bytes or None for ones)}."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (kind, shape, content) in tensors.items():
        elements = 1
        for extent in shape:
            elements *= extent
        content = b"\1" * (elements * SIZES[kind]) if content is None else content
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def resnet_keys():
    """Returns the state dict of a network like ResNet-18 with a single channel and two classes: {name: shape}."""
    keys = {"conv1.weight": [1, 3, 7, 7]}

    def batch_norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            keys[f"{name}.{part}"] = [channels]
        keys[f"{name}.num_batches_tracked"] = []

    batch_norm("bn1", 1)
    channels = 1
    for stage in range(4):
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            inputs, channels = channels, 2**stage
            keys[f"{name}.conv1.weight"] = [channels, inputs, 3, 3]
            batch_norm(f"{name}.bn1", channels)
            keys[f"{name}.conv2.weight"] = [channels, channels, 3, 3]
            batch_norm(f"{name}.bn2", channels)
            if inputs != channels:
                keys[f"{name}.downsample.0.weight"] = [channels, inputs, 1, 1]
                batch_norm(f"{name}.downsample.1", channels)
    keys["fc.weight"], keys["fc.bias"] = [2, 8], [2]
    return keys


def resnet(prefix=""):
    kind = {True: "I64", False: "F32"}
    return {prefix + name: (kind[name.endswith("tracked")], shape, None) for name, shape in resnet_keys().items()}


RECIPE = {
    "architecture": "resnet18",
    "width": 1,
    "from_scratch": True,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.001,
    "head_lr_multiplier": 1.0,
    "weight_decay": 0.001,
    "momentum": 0.9,
    "loss_reduction": "sum",
    "clip_gradient_norm": 1.0,
    "freeze": ["conv1"],
    "freeze_batch_norm": False,
    "head_from": [0, 1],
    "image_size": 32,
    "exif": True,
    "test_fraction": 0.2,
    "seed": 7,
}


def reference(noise):
    tensors = {
        "input": ("F32", [1, 3, 2, 1], None),
        "target": ("I64", [1], struct.pack("<q", 1)),
        "logits": ("F32", [1, 2], None),
        "eval_logits": ("F32", [1, 2], None),
        "loss": ("F32", [], None),
        "param/conv1.weight": ("F32", [1, 1, 1, 1], None),
        "grad/conv1.weight": ("F32", [1, 1, 1, 1], None),
        "step1/conv1.weight": ("F32", [1, 1, 1, 1], None),
        "param/fc.weight": ("F16", [2, 1], None),
        "param/bn1.running_mean": ("F64", [1], None),
        "buffer/bn1.running_mean": ("F64", [1], None),
        "activation/relu": ("BF16", [1], None),
    }
    if noise:
        tensors["noise/loss"] = ("F32", [], None)
        tensors["noise_bf16/grad/conv1.weight"] = ("F32", [1], None)
    return safetensors(
        tensors,
        {
            "format": "retune-reference-1",
            "arch": "resnet18",
            "width": "1",
            "num_classes": "2",
            "loss_reduction": "sum",
            "lr": "0.01",
            "head_lr": "1e-1",
            "weight_decay": "0.001",
            "momentum": "0.9",
            "freeze": "conv1, bn1",
            "freeze_batch_norm": "true",
            "margin": "0.01",
            "source": "PyTorch",
        },
    )


def checkpoint():
    position = {
        "epoch": 1,
        "batch": 2,
        "loss_bits": 4607182418800017408,
        "correct": 3,
        "images": 16,
        "metrics_lines": 4,
        "best": [1, 4602678819172646912, 4607182418800017408],
    }
    metadata = {
        "format": "retune-checkpoint-1",
        "recipe": json.dumps(RECIPE),
        "classes": json.dumps(["blue", "red"]),
        "position": json.dumps(position),
        "precision": "fp32",
    }
    return safetensors({"param/fc.bias": ("F32", [2], None), "velocity/fc.bias": ("F32", [2], None)}, metadata)


def archive(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as output:
        for name, content in files:
            output.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def run(metrics):
    config = {
        "retune": "0.1.0",
        "data": "photos",
        "weights": None,
        "device": "cpu",
        "precision": "fp32",
        "classes": ["blue", "<b>red</b>"],
        "train_images": 16,
        "test_images": 4,
        "recipe": RECIPE,
    }
    lines = "".join(json.dumps(metric) + "\n" for metric in metrics)
    return json.dumps(config).encode() + b"\0" + lines.encode()


def epoch(number, loss):
    return {
        "kind": "epoch",
        "epoch": number,
        "train_loss": loss,
        "train_acc": 0.5,
        "test_loss": loss / 2,
        "test_acc": 0.75,
        "images_per_second": 12.5,
        "seconds": 1.5,
    }


def seeds():
    kinds = {kind: (kind, [2], None) for kind in SIZES}
    model = {
        "architecture": "resnet18",
        "width": "1",
        "classes": json.dumps(["blue", "red"]),
        "transform": json.dumps({"resize": 36, "center_crop": 32, "exif": True}),
        "recipe": json.dumps(RECIPE),
    }
    transformers = {
        "resnet.embedder.embedder.convolution.weight": ("F32", [1, 3, 1, 1], None),
        "classifier.1.weight": ("F32", [2, 1], None),
    }
    yield "safetensors/kinds", safetensors(kinds, {"note": "text"})
    yield "safetensors/empty", safetensors({"nothing": ("F32", [0, 3], None)})
    yield "safetensors/model", safetensors(resnet(), model)
    yield "safetensors/transformers", safetensors(transformers)
    yield "reference/plain", reference(noise=False)
    yield "reference/noise", reference(noise=True)
    yield "checkpoint/resumable", checkpoint()
    yield "archive/folders", archive([("top/", ""), ("top/a/1.png", b"\x89PNG"), ("top/b/2.jpg", b"x" * 500)])
    yield "archive/stored", archive([("1.png", b"one"), ("2.png", b"two")], zipfile.ZIP_STORED)
    yield "archive/hostile", archive([("../out.png", b"x"), ("/etc/x", b"y"), ("a\\b", b"z"), ("CON:", b"")])
    progress = {"kind": "progress", "epoch": 0.5, "train_loss": 2.5, "train_acc": 0.25}
    skipped = {"kind": "skipped", "path": "photos/<x>.png", "reason": "the file is empty"}
    yield "run/two-epochs", run([progress, skipped, epoch(1, 1.5), epoch(2, 0.5)])
    yield "run/not-one-epoch", run([progress])


def main():
    for name, content in seeds():
        path = SEEDS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()

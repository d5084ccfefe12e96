#!/usr/bin/env python3
"""Checks that `retune predict` and torchvision give the same logits for the same images and weights.

    scripts/check-against-torchvision.py target/release/retune resnet18.safetensors one.png two.png
    scripts/check-against-torchvision.py target/release/retune runs/hotdog/model.safetensors one.png
    scripts/check-against-torchvision.py target/release/retune resnet18.safetensors one.png --train DATA

The weights are loaded into torchvision's network with `strict=True`, so the second form also checks that retune
writes a torchvision state dict; the third trains for one epoch on DATA first and checks the result as well.

An image passes if ||ours - torchvision's|| <= --limit x ||torchvision's|| for the logits, no probability differs by more than
1e-4, and, if torchvision's two largest logits are further apart than the difference, the prediction is the same. Exits 1 if any image
fails. Needs torch, torchvision, safetensors and Pillow 13: earlier versions scale the rows of every image before its columns.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

PROBABILITY_LIMIT = 1e-4


def load_network(weights):
    """Returns torchvision's network with these weights, in evaluation mode and float64: the reference."""
    # Other programs write these counters with one element instead of as a scalar.
    state = {name: tensor.reshape(()) if name.endswith("num_batches_tracked") else tensor
             for name, tensor in load_file(weights).items()}
    classes = state["fc.weight"].shape[0]
    arch = architecture(state, classes)
    net = getattr(torchvision.models, arch)(num_classes=classes)
    net.load_state_dict(state, strict=True)
    return arch, net.double().eval()


def architecture(state, classes):
    """Returns the torchvision ResNet that has these keys and shapes."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    names = [name for name in torchvision.models.list_models(module=torchvision.models) if "resnet" in name]
    for name in names:
        with torch.device("meta"):
            net = getattr(torchvision.models, name)(num_classes=classes)
        if {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes:
            return name
    sys.exit(f"none of torchvision's {', '.join(names)} has these keys and shapes")


def torchvision_logits(net, image, resize, crop):
    transforms = torchvision.transforms
    transform = transforms.Compose([
        transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    with torch.inference_mode():
        return net(transform(image)[None].double())[0]


def retune_logits(retune, weights, paths):
    """Returns the logits of `retune predict`, in the order of `paths`."""
    command = [retune, "predict", weights, *paths, "--json", "--logits"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}")
    predictions = json.loads(result.stdout)
    if len(predictions) != len(paths):
        sys.exit(f"retune predicted {len(predictions)} of {len(paths)} images")
    by_path = {prediction["path"]: prediction["logits"] for prediction in predictions}
    if missing := [path for path in paths if path not in by_path]:
        sys.exit(f"retune predicted no {', '.join(missing)}")
    return [torch.tensor(by_path[path], dtype=torch.float64) for path in paths]


def check(arguments, weights):
    """Prints one row per image, and returns whether all are within their limit."""
    arch, net = load_network(weights)
    print(f"{weights}: {arch}, {net.fc.out_features} classes, loaded strictly")
    passed, worst = True, [0.0, 0.0]
    for path, ours in zip(arguments.images, retune_logits(arguments.retune, weights, arguments.images)):
        image = Image.open(path).convert("RGB")
        truth = torchvision_logits(net, image, arguments.resize, arguments.crop)
        if ours.shape != truth.shape:
            sys.exit(f"{path}: retune gave {len(ours)} logits, torchvision {len(truth)}")
        difference = ours - truth
        relative = float(difference.norm() / truth.norm())
        largest = truth.topk(min(2, len(truth))).values
        decided = len(largest) > 1 and float(largest[0] - largest[1]) > 2 * float(difference.abs().max())
        same_class = int(ours.argmax()) == int(truth.argmax())
        # Written so that NaN fails.
        probability = float((ours.softmax(0) - truth.softmax(0)).abs().max())
        good = relative <= arguments.limit and probability <= PROBABILITY_LIMIT and (same_class or not decided)
        passed = passed and good
        worst = [max(worst[0], relative), max(worst[1], probability)]
        classes = f"class {int(truth.argmax())}" + ("" if same_class else f" (retune: {int(ours.argmax())})")
        print(f"  {'ok  ' if good else 'FAIL'} {path}: relative {relative:.2e} of {arguments.limit:.0e}, "
              f"largest difference {float(difference.abs().max()):.2e}, of a probability {probability:.2e}, {classes}")
    print(f"  {len(arguments.images)} images: relative {worst[0]:.2e} at most, a probability by {worst[1]:.2e} at most")
    return passed


def train(arguments, folder):
    """Trains one short epoch from the given weights and returns the path of the model."""
    command = [arguments.retune, "train", arguments.train, "--weights", arguments.weights, "--epochs", "1",
               "--batch-size", "8", "--device", "cpu", "--out", folder]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return str(pathlib.Path(folder) / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retune")
    parser.add_argument("weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--train", metavar="DATA", help="also train on this folder and check what that writes")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--limit", type=float, default=1e-4, help="limit of the relative difference of logits")
    arguments = parser.parse_args()
    passed = check(arguments, arguments.weights)
    if arguments.train:
        with tempfile.TemporaryDirectory() as folder:
            passed = check(arguments, train(arguments, str(pathlib.Path(folder) / "run"))) and passed
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

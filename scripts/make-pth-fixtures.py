#!/usr/bin/env python3
"""Makes tests/fixtures/pth: PyTorch files in all their formats, and their contents as safetensors.

Needs torch, torchvision, numpy and safetensors. The same versions give the same bytes, except for the names inside zip archives.
"""

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import warnings

import numpy
import torch
import torchvision
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/pth"


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch hostile-was-run",))


class Whole(torch.nn.Module):
    """A whole model. Its source text becomes a part of an old file."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))


def tensors():
    generator = torch.Generator().manual_seed(7)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    return collections.OrderedDict(
        [
            ("conv1.weight", normal(4, 3, 7, 7)),
            ("bn1.weight", normal(4)),
            ("bn1.running_var", normal(4).abs()),
            ("bn1.num_batches_tracked", torch.tensor(123456789012)),
            ("fc.weight", normal(3, 32)),
            ("fc.bias", normal(3)),
        ]
    )


def network(seed):
    """A complete ResNet-18 of width 1, in half precision, all in one storage: the smallest that has every key."""
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=2)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    narrow = lambda shape: [extent // 64 if extent >= 64 else extent for extent in shape]
    shapes = {name: narrow(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    whole = torch.rand(sum(sizes), generator=generator).half()
    parts = whole.split(sizes)
    return collections.OrderedDict((name, part.view(shape)) for (name, shape), part in zip(shapes.items(), parts))


def save_as_tar(state, path):
    """Writes a tar archive as torch's first releases did. torch still reads these, but no longer writes them."""

    def dump(value, to):
        pickle.dump(value, to, protocol=2)

    objects, tensors, storages, system = (io.BytesIO() for _ in range(4))
    dump({"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, system)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return str(1 + list(state).index(value.name)) if isinstance(value, Name) else None

    Name = collections.namedtuple("Name", "name")
    Pickler(objects, protocol=2).dump(collections.OrderedDict((name, Name(name)) for name in state))
    dump(len(state), tensors)
    dump(len(state), storages)
    for key, tensor in enumerate(state.values(), 1):
        dump((key, 100 + key, torch.FloatTensor), tensors)
        tensors.write(struct.pack("<ii", tensor.dim(), 0))
        tensors.write(struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0))
        dump((100 + key, "cpu", torch.FloatStorage), storages)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    dump([], storages)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, member in [("sys_info", system), ("pickle", objects), ("tensors", tensors), ("storages", storages)]:
            properties = tarfile.TarInfo(name)
            properties.size = len(member.getvalue())
            archive.addfile(properties, io.BytesIO(member.getvalue()))
    read = torch.load(path, weights_only=False)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = tensors()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, FOLDER / "expected.safetensors")
    torch.save(state, FOLDER / "zip.pth")
    torch.save(state, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    parameters = collections.OrderedDict(
        (name, torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor) for name, tensor in state.items()
    )
    torch.save({"epoch": 3, "lr": 0.1, "note": "x", "state_dict": parameters}, FOLDER / "checkpoint.pth")
    torch.save({"model": state, "epoch": 3}, FOLDER / "checkpoint-legacy.pth", _use_new_zipfile_serialization=False)

    # The same numbers, but not in order: permuted, a part of another tensor, two views of one storage.
    whole = torch.cat([torch.zeros(5), state["fc.bias"], torch.zeros(2)])
    strided = collections.OrderedDict(state)
    strided["conv1.weight"] = state["conv1.weight"].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    strided["fc.weight"] = state["fc.weight"].t().contiguous().t()
    strided["fc.bias"] = whole[5:8]
    pair = torch.stack([state["bn1.weight"], state["bn1.running_var"]], dim=1)
    strided["bn1.weight"], strided["bn1.running_var"] = pair[:, 0], pair[:, 1]
    torch.save(strided, FOLDER / "strided.pth")
    torch.save(strided, FOLDER / "strided-legacy.pth", _use_new_zipfile_serialization=False)

    for name, dtype in [("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)]:
        torch.save({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}, FOLDER / f"{name}.pth")

    torch.save({"fc.bias": state["fc.bias"], "extra": Hostile()}, FOLDER / "hostile.pth")
    torch.save({"fc.bias": state["fc.bias"], "extra": Hostile()}, FOLDER / "hostile-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), FOLDER / "whole-model.pth")
    # The file names that of the class's source text, which is not to be one of this machine.
    os.chdir(FOLDER.parents[2])
    sys.modules["__main__"].__file__ = "scripts/make-pth-fixtures.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(Whole(), FOLDER / "whole-model-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3}, FOLDER / "no-tensors.pth")
    (FOLDER / "only-a-pickle.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))

    # What training scripts save beside the weights.
    numbers = {"best": numpy.float64(0.9), "epoch": numpy.int64(3), "losses": numpy.arange(3.0), "state_dict": state}
    torch.save(numbers, FOLDER / "numpy.pth")
    torch.save(numbers, FOLDER / "numpy-legacy.pth", _use_new_zipfile_serialization=False)
    arguments = argparse.Namespace(arch="resnet18", lr=0.1, milestones=[30, 60])
    torch.save({"args": arguments, "model": state}, FOLDER / "namespace.pth")
    torch.save({"args": arguments, "model": state}, FOLDER / "namespace-legacy.pth", _use_new_zipfile_serialization=False)
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    checkpoint = {"args": arguments, "state_dict_ema": network(1), "state_dict": network(2), "optimizer": momentum}
    torch.save(checkpoint, FOLDER / "average-first.pth", pickle_protocol=4)

    # The names in the archive begin with the file's. With 21 characters, the zip library once guessed wrongly where it begins.
    torch.save({"fc.bias": state["fc.bias"]}, FOLDER / "stem-of-21-characters.pth")
    save_as_tar({"fc.weight": state["fc.weight"], "fc.bias": state["fc.bias"]}, FOLDER / "tar.pth")


main()

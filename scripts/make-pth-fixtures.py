#!/usr/bin/env python3
"""Makes tests/fixtures/pth: PyTorch files in all their formats, and their contents as safetensors.

Needs torch, numpy and safetensors. The same versions give the same bytes, except for the names inside zip archives.
"""

import collections
import os
import pathlib
import pickle

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/pth"


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch hostile-was-run",))


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
    torch.save({"epoch": 3}, FOLDER / "no-tensors.pth")
    (FOLDER / "only-a-pickle.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))


main()

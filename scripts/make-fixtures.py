#!/usr/bin/env python3
"""Makes the reference files that `retune gradcheck` and the tests read. PyTorch in float64 is the reference.

    scripts/make-fixtures.py                          # writes every case of CASES to tests/fixtures/
    scripts/make-fixtures.py odd lesson               # only these
    scripts/make-fixtures.py --search 500 odd         # searches for a good seed, writes nothing
    scripts/make-fixtures.py --full-width full.safetensors
    scripts/make-fixtures.py --weights resnet18.safetensors --images images/ --batch 4 --classes 2 real.safetensors
    scripts/make-fixtures.py --add-noise any.safetensors # noise_tf32/ and noise_bf16/ for a file that has none

Needs torch, torchvision, safetensors, numpy (and pillow for --images). The network is torchvision's own, made narrower.

Two correct programs differ by rounding errors. If the input of a ReLU is within rounding of zero, or two pixels of a
max-pool window are within rounding of each other, the programs take different branches, and one such flip changes a
gradient by far more than rounding does. The margin of a file is the smallest distance from such a tie during all three
steps, relative to the root mean square of the layer's input. The seeds in CASES were found with --search so that no
margin is close to rounding errors.

noise/NAME is the error of PyTorch's float32 for a tensor, noise_bf16/NAME that of its autocast to bfloat16, and
noise_tf32/NAME that of its float32 with tf32 convolutions, as on a GPU. Autocast also runs on the CPU. A CPU has no
tf32, so the script emulates it: it rounds the operands of a convolution (input, weight, and in the backward pass the
output gradient) to ten bits of mantissa, to nearest, ties away from zero, and multiplies in float32. No margin is wide
enough for these two precisions: ReLUs flip by chance, and differently in each run. Their error is therefore the largest
over NEARBY inputs, which differ by no more than the resolution of bfloat16, each compared with its own float64 result.

Other processors add in a different order, so their noise/ tensors have different digits. The float64 results agree.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys

import numpy
import torch
import torch.nn.functional as functional
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torchvision.transforms import v2

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
EVERYTHING = ("",)
NEARBY = 32
LOWER_HALF = ("conv1", "bn1", "layer1", "layer2")


@dataclasses.dataclass(frozen=True)
class Case:
    """One reference file. `step1` and `step3` are prefixes of the names of the parameters that it contains;
    `activations` names the modules whose outputs it contains. `mixup` is the share of each image, and `cutmix` are top, left,
    bottom and right of the rectangle, of torchvision's transforms of these names. With `ema`, it is the decay of an average of
    the parameters, and `ema3` are prefixes of the names of its parameters and running statistics after three steps."""

    name: str
    seed: int
    arch: str = "resnet18"
    width: int = 2
    classes: int = 2
    batch: int = 2
    size: tuple = (64, 64)
    reduction: str = "sum"
    label_smoothing: float = 0.0
    class_weights: tuple = ()
    mixup: float = 0.0
    cutmix: tuple = ()
    lr: float = 1e-3
    head_lr: float = 1e-2
    weight_decay: float = 1e-3
    no_decay_norm_bias: bool = False
    optimizer: str = "sgd"
    momentum: float = 0.0
    betas: tuple = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: str = ""
    schedule_steps: int = 0
    layer_lr_decay: float = 1.0
    freeze: tuple = ()
    freeze_batch_norm: bool = False
    step1: tuple = EVERYTHING
    step3: tuple = EVERYTHING
    ema: float = 0.0
    ema3: tuple = ()
    activations: tuple = ()
    separated: bool = False


SOME_OF_EACH = ("conv1", "bn1", "layer1", "layer2.0.downsample", "layer3.0.bn", "layer4.1.bn", "fc")
SOME_OF_A_BOTTLENECK = ("conv1", "bn1", "layer1.0", "layer2.0.downsample", "layer3.0.bn", "layer4.2.bn", "fc")
BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))

CASES = [
    # The recipe of the lesson, with the outputs of every block, which show where a difference begins.
    Case("lesson", seed=428, width=4, lr=5e-5, head_lr=5e-4, step1=SOME_OF_EACH, step3=("bn1", "fc"),
         activations=("bn1", "maxpool", "layer1.0.conv1", *BLOCKS)),
    # Sizes and channel counts that are multiples of nothing, and momentum, which only affects the later steps.
    Case("odd", seed=274, width=3, classes=5, size=(97, 65), reduction="mean", lr=0.02, head_lr=0.2, momentum=0.9,
         step1=("bn1", "fc"), step3=(*SOME_OF_EACH, "layer3")),
    Case("frozen-lower-running-statistics", seed=316, classes=3, size=(64, 48), freeze=LOWER_HALF,
         freeze_batch_norm=True, step1=SOME_OF_EACH),
    Case("frozen-lower-batch-statistics", seed=388, classes=3, size=(48, 64), freeze=LOWER_HALF, step1=SOME_OF_EACH),
    # The gradient passes through frozen layers, here with running statistics, to reach those below.
    Case("frozen-middle", seed=315, size=(56, 48), freeze=("layer2",), freeze_batch_norm=True, step1=SOME_OF_EACH),
    Case("resnet34", seed=109, arch="resnet34", batch=3, size=(48, 56), step1=("bn1", "fc"),
         step3=(*SOME_OF_EACH, "layer3")),
    Case("tiny-image", seed=180, size=(33, 33), momentum=0.5, step1=SOME_OF_EACH),
    Case("single-image", seed=25, classes=3, batch=1, step1=SOME_OF_EACH),
    Case("head-only", seed=2, classes=3, size=(40, 40), step1=("bn1", "fc"), step3=("bn1", "fc"),
         freeze=("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), freeze_batch_norm=True),
    # 16, 32 and 64 channels in layers 2 to 4. layer4 contains three quarters of the numbers. It is frozen, so it needs no
    # parameter gradients, but it passes on the gradient of its input, with batch statistics.
    Case("wide", seed=1470, width=8, size=(72, 56), freeze=("layer4",), step1=("fc",),
         step3=("bn1", "fc", "layer3.0.conv1")),
    # No ReLU flips in any precision, so this file is a sharp test of gradients in tf32 and bf16. The seed is one of those
    # from 0 to 149 with little noise in bf16.
    Case("separated", seed=147, width=4, classes=3, batch=4, size=(48, 64), lr=1e-2, head_lr=2e-2, separated=True,
         step1=SOME_OF_EACH, step3=("bn1", "fc")),
    # Bottlenecks, with sizes and channel counts that are multiples of nothing, and the outputs of some convolutions.
    Case("resnet50", seed=0, arch="resnet50", width=3, classes=5, size=(57, 49), reduction="mean", lr=0.02, head_lr=0.2,
         momentum=0.9, separated=True, step1=("bn1", "fc"), step3=SOME_OF_A_BOTTLENECK,
         activations=("bn1", "maxpool", "layer1.0.bn1", "layer1.0.bn2", "layer1.0", "layer2.0.conv2", "layer4.2")),
    # Channel counts that tensor cores support. The gradient passes through layer4, which is frozen.
    Case("resnet50-frozen", seed=0, arch="resnet50", width=4, size=(48, 40), freeze=("conv1", "bn1", "layer1", "layer4"),
         freeze_batch_norm=True, separated=True, step1=("layer2.0", "fc"), step3=("layer2.0.bn3", "fc")),
    Case("wide-resnet50-2", seed=0, arch="wide_resnet50_2", width=2, classes=3, size=(48, 64), separated=True,
         step1=("bn1", "fc"), step3=SOME_OF_A_BOTTLENECK),
    # Other optimisers. AdamW divides by the size of a gradient, so a gradient that consists only of rounding errors would
    # cause a whole step; an epsilon above rounding errors prevents this.
    Case("nesterov", seed=3, size=(48, 40), lr=1e-2, head_lr=2e-2, separated=True, optimizer="nesterov", momentum=0.9,
         no_decay_norm_bias=True, weight_decay=0.1, step1=SOME_OF_EACH, step3=SOME_OF_EACH),
    Case("adamw", seed=2, size=(48, 40), lr=1e-3, head_lr=2e-3, separated=True, optimizer="adamw", betas=(0.8, 0.95),
         epsilon=2e-2, weight_decay=0.1, step1=SOME_OF_EACH, step3=SOME_OF_EACH),
    Case("adamw-no-decay", seed=11, size=(40, 48), lr=1e-3, head_lr=2e-3, separated=True, optimizer="adamw", epsilon=2e-2,
         weight_decay=0.1, no_decay_norm_bias=True, freeze=("conv1", "bn1"), step1=SOME_OF_EACH, step3=SOME_OF_EACH),
    # Schedules: the learning rate and the momentum, or AdamW's beta1, change from step to step. One cycle rises for three
    # steps of ten. A cosine of three steps falls at once.
    Case("one-cycle", seed=3, size=(48, 40), lr=0.2, head_lr=0.2, separated=True, optimizer="nesterov", momentum=0.95,
         schedule="one-cycle", schedule_steps=10, layer_lr_decay=0.8, no_decay_norm_bias=True, step1=SOME_OF_EACH,
         step3=SOME_OF_EACH),
    Case("one-cycle-adamw", seed=2, size=(48, 40), lr=2e-2, head_lr=2e-2, separated=True, optimizer="adamw",
         betas=(0.95, 0.99), epsilon=2e-2, schedule="one-cycle", schedule_steps=10, step1=("bn1", "fc"), step3=SOME_OF_EACH),
    Case("cosine", seed=3, size=(48, 40), lr=1e-2, head_lr=2e-2, separated=True, schedule="cosine", schedule_steps=3,
         step1=("bn1", "fc"), step3=SOME_OF_EACH),
    # Label smoothing and weights of classes. The mean is divided by the sum of the targets' weights.
    Case("smoothed-mean", seed=9, classes=3, batch=3, size=(40, 48), lr=1e-2, head_lr=2e-2, separated=True,
         reduction="mean", label_smoothing=0.1, class_weights=(0.5, 1.0, 2.5), step1=("bn1", "fc"), step3=("bn1", "fc")),
    Case("smoothed-sum", seed=11, classes=3, batch=3, size=(48, 40), lr=1e-2, head_lr=2e-2, separated=True,
         label_smoothing=0.2, class_weights=(2.0, 0.25, 1.0), step1=("bn1", "fc"), step3=("bn1", "fc")),
    # Mixed images. The mean is divided by the number of images, even with weights of classes.
    Case("mixup", seed=373, classes=3, batch=3, size=(40, 48), lr=1e-2, head_lr=2e-2, mixup=0.375,
         reduction="mean", label_smoothing=0.1, class_weights=(0.5, 1.0, 2.5), step1=("bn1", "fc"), step3=("bn1", "fc")),
    Case("cutmix", seed=141, classes=3, batch=3, size=(48, 40), lr=1e-2, head_lr=2e-2,
         cutmix=(5, 0, 29, 25), class_weights=(2.0, 0.25, 1.0), step1=("bn1", "fc"), step3=("bn1", "fc")),
    # The average of the parameters. Its decay is that of the warm-up in the second step, and its own in the third.
    Case("ema", seed=15, batch=4, size=(48, 40), lr=1e-2, head_lr=2e-2, separated=True, momentum=0.9, freeze=("layer2",),
         freeze_batch_norm=True, step1=("fc",), step3=("bn1", "fc"), ema=0.4, ema3=SOME_OF_EACH),
]

FULL_WIDTH = Case("full-width", seed=0, width=64, size=(224, 224), step1=SOME_OF_EACH, step3=SOME_OF_EACH,
                  separated=True)


def network(arch, width, classes):
    """Returns torchvision's network, scaled to `width` channels instead of 64."""
    with torch.device("meta"):
        net = getattr(torchvision.models, arch)(weights=None)
    scaled = lambda channels: channels if channels == 3 else channels * width // 64
    for name, old in list(net.named_modules()):
        if isinstance(old, nn.Conv2d):
            new = nn.Conv2d(scaled(old.in_channels), scaled(old.out_channels), old.kernel_size, old.stride, old.padding,
                            bias=False)
        elif isinstance(old, nn.BatchNorm2d):
            new = nn.BatchNorm2d(scaled(old.num_features))
        elif isinstance(old, nn.Linear):
            new = nn.Linear(scaled(old.in_features), classes)
        else:
            continue
        net.set_submodule(name, new)
    return net


def initialise(net, random):
    """Sets seeded values for every parameter and buffer. Batch norm gets no ones and zeros, which would hide swaps."""
    def fill(tensor, values):
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(numpy.asarray(values, dtype=numpy.float32)))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            fill(module.weight, random.standard_normal(module.weight.shape) * math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            ranges = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
            for name, (low, high) in ranges.items():
                fill(getattr(module, name), random.uniform(low, high, module.num_features))
        elif isinstance(module, nn.Linear):
            initialise_head(module, random, fill)


def initialise_head(head, random, fill):
    """Xavier-uniform weight, bias within 1/sqrt(inputs)."""
    bound = math.sqrt(6 / (head.in_features + head.out_features))
    fill(head.weight, random.uniform(-bound, bound, head.weight.shape))
    fill(head.bias, random.uniform(-1, 1, head.out_features) / math.sqrt(head.in_features))


def separate(net, random):
    """Makes every batch norm's bias outweigh its variation, so that a channel is entirely positive or entirely negative.

    For networks with so many ReLU inputs that every seed leaves some near zero. A residual has the same sign as the
    branch to which it is added; otherwise they would cancel.
    """
    def lean(batch_norm, signs):
        with torch.no_grad():
            count = batch_norm.num_features
            batch_norm.weight.copy_(torch.from_numpy(random.uniform(0.3, 0.55, count)))
            batch_norm.bias.copy_(torch.from_numpy(signs * random.uniform(2.5, 3.0, count)))

    def signs(batch_norm):
        return numpy.where(random.random(batch_norm.num_features) < 0.7, 1.0, -1.0)

    path = signs(net.bn1)
    lean(net.bn1, path)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            *inner, last = [module for name, module in block.named_children() if name.startswith("bn")]
            if block.downsample is not None:
                path = signs(last)
                lean(block.downsample[1], path)
            for batch_norm in inner:
                lean(batch_norm, signs(batch_norm))
            lean(last, path)


def belongs(name, modules):
    """Returns whether a parameter or module is one of these modules or inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


HEAD = 5


def stage_of(name):
    """Returns the number of the stage of a parameter: 0 for the stem, then those of `layer1` to `layer4`, and HEAD."""
    if name.startswith("fc."):
        return HEAD
    return int(name[5]) if name.startswith("layer") else 0


class Margin:
    """Records the smallest distance from a tie during a network's forward passes."""

    def __init__(self, net):
        self.relu = self.pool = math.inf
        self.hooks = []
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                self.hooks.append(module.register_forward_pre_hook(self.see_relu))
            elif isinstance(module, nn.MaxPool2d):
                self.hooks.append(module.register_forward_pre_hook(self.see_pool))

    @property
    def smallest(self):
        return min(self.relu, self.pool)

    @torch.no_grad()
    def see_relu(self, _module, inputs):
        values = inputs[0]
        self.relu = min(self.relu, float(values.abs().min() / values.square().mean().sqrt()))

    @torch.no_grad()
    def see_pool(self, module, inputs):
        values, edge = inputs[0], module.padding
        padded = functional.pad(values, (edge,) * 4, value=-math.inf)
        windows = padded.unfold(2, module.kernel_size, module.stride).unfold(3, module.kernel_size, module.stride)
        first, second = windows.flatten(-2).topk(2, dim=-1).values.unbind(-1)
        # If the largest value is zero, the ReLU before the pool stops the gradient, whichever pixel is selected.
        gaps = (first - second)[first > 0]
        if gaps.numel():
            self.pool = min(self.pool, float(gaps.min() / values.square().mean().sqrt()))

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def round_to_tf32(values):
    """Rounds float32 to ten bits of mantissa, to nearest, ties away from zero. Infinities and NaN stay."""
    bits = values.contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


class Tf32Convolution(torch.autograd.Function):
    """A convolution that multiplies tf32 numbers and adds in float32."""

    @staticmethod
    def forward(context, image, weight, stride, padding):
        image, weight = round_to_tf32(image), round_to_tf32(weight)
        context.save_for_backward(image, weight)
        context.geometry = stride, padding
        return functional.conv2d(image, weight, None, stride, padding)

    @staticmethod
    def backward(context, output_gradient):
        image, weight = context.saved_tensors
        output_gradient = round_to_tf32(output_gradient)
        inputs, weights, _, _ = context.needs_input_grad
        image_gradient = weight_gradient = None
        if inputs:
            image_gradient = nn.grad.conv2d_input(image.shape, weight, output_gradient, *context.geometry)
        if weights:
            weight_gradient = nn.grad.conv2d_weight(image, weight.shape, output_gradient, *context.geometry)
        return image_gradient, weight_gradient, None, None


def convolve_in_tf32(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = lambda image, conv=module: Tf32Convolution.apply(image, conv.weight, conv.stride,
                                                                              conv.padding)


class Experiment:
    """A network and a batch."""

    def __init__(self, case, state, images, target):
        self.case, self.state, self.images, self.target = case, state, images, target

    def nearby(self, index):
        """Returns the same experiment with an input that differs by less than bfloat16 resolves; itself for index 0."""
        if index == 0:
            return self
        random = numpy.random.Generator(numpy.random.PCG64([self.case.seed, index]))
        factors = torch.from_numpy(random.uniform(1 - 2**-9, 1 + 2**-9, self.images.shape).astype(numpy.float32))
        return Experiment(self.case, self.state, self.images * factors, self.target)

    def build(self, dtype, layout=torch.contiguous_format, arithmetic=None):
        case = self.case
        net = network(case.arch, case.width, case.classes)
        net.load_state_dict(self.state)
        net.to(dtype).to(memory_format=layout)
        if arithmetic == "tf32":
            convolve_in_tf32(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not belongs(name, case.freeze))
        return net

    def training_mode(self, net):
        net.train()
        if self.case.freeze_batch_norm:
            for name, module in net.named_modules():
                if isinstance(module, nn.BatchNorm2d) and belongs(name, self.case.freeze):
                    module.eval()

    def optimiser(self, net):
        case = self.case
        trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if stage_of(name) == stage and self.decays(p) == decays],
             "lr": case.head_lr if stage == HEAD else case.lr * case.layer_lr_decay ** (HEAD - 1 - stage),
             "weight_decay": case.weight_decay if decays else 0.0}
            for stage in range(HEAD + 1) for decays in (False, True)
        ]
        groups = [group for group in groups if group["params"]]
        if case.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=case.lr, betas=case.betas, eps=case.epsilon)
        return torch.optim.SGD(groups, lr=case.lr, momentum=case.momentum, nesterov=case.optimizer == "nesterov")

    def schedule(self, optimiser):
        case = self.case
        if case.schedule == "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=case.schedule_steps)
        if case.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, case.schedule_steps)
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)

    def decays(self, parameter):
        """Returns whether weight decay applies: to all parameters, or to all but one-dimensional ones (batch norms, biases)."""
        return not self.case.no_decay_norm_bias or parameter.dim() > 1

    def mix(self, images):
        """Returns the images and targets that the network is trained on."""
        case, size = self.case, self.case.size[0] * self.case.size[1]
        if case.mixup:
            transform, params = v2.MixUp(), {"lam": case.mixup}
        elif case.cutmix:
            top, left, bottom, right = case.cutmix
            params = {"box": (left, top, right, bottom), "lam_adjusted": 1 - (bottom - top) * (right - left) / size}
            transform = v2.CutMix()
        else:
            return images, self.target
        # The transform draws these numbers.
        transform.make_params = lambda _: params
        return transform(images, functional.one_hot(self.target, case.classes).to(images.dtype))

    def first_margin(self):
        """Returns the margin of the first forward pass, which is enough to reject most seeds."""
        net = self.build(torch.float64)
        margin = Margin(net)
        self.training_mode(net)
        with torch.no_grad():
            net(self.mix(self.images.double())[0])
        return margin.smallest

    def run(self, dtype, layout=torch.contiguous_format, arithmetic=None):
        """Returns all tensors of a reference file but its inputs, and the margin. `arithmetic` is "tf32" or "bf16" in
        precisions that the dtype, then float32, does not determine."""
        case, net, out = self.case, self.build(dtype, layout, arithmetic), {}
        images = self.images.to(dtype, memory_format=layout)
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "bf16")
        net.eval()
        with torch.no_grad(), autocast:
            out["eval_logits"] = net(images)
        images, target = self.mix(images)
        self.training_mode(net)
        optimiser, margin = self.optimiser(net), Margin(net)
        schedule = self.schedule(optimiser)
        watched = self.watch_activations(net, out)
        averaged = AveragedModel(net, avg_fn=self.average)
        for step in (1, 2, 3):
            optimiser.zero_grad()
            with autocast:
                logits = net(images)
                weights = torch.tensor(case.class_weights, dtype=logits.dtype) if case.class_weights else None
                loss = functional.cross_entropy(logits, target, weights, reduction=case.reduction,
                                                label_smoothing=case.label_smoothing)
            loss.backward()
            if step == 1:
                for hook in watched:
                    hook.remove()
                out["logits"], out["loss"] = logits.detach(), loss.detach()
                for name, parameter in net.named_parameters():
                    if parameter.grad is not None:
                        out[f"grad/{name}"] = parameter.grad.clone()
                out.update({f"buffer/{name}": buffer.clone() for name, buffer in net.named_buffers()})
            optimiser.step()
            schedule.step()
            averaged.update_parameters(net)
            kept = {1: case.step1, 2: (), 3: case.step3}[step]
            for name, parameter in net.named_parameters():
                if name.startswith(kept):
                    out[f"step{step}/{name}"] = parameter.detach().clone()
        if case.ema:
            out.update(self.averages(averaged, images, autocast))
        return out, margin

    def average(self, average, parameter, averaged):
        """Returns the next average, after `averaged` ones. AveragedModel makes the first one a copy."""
        decay = min(self.case.ema, 1 - (averaged + 1) ** (-2 / 3))
        return decay * average + (1 - decay) * parameter

    def averages(self, averaged, images, autocast):
        """Returns parameters of the averaged network, with the running statistics of two batches: the halves of the batch."""
        case, net = self.case, averaged.module
        frozen = {name: module for name, module in net.named_modules()
                  if isinstance(module, nn.BatchNorm2d) and case.freeze_batch_norm and belongs(name, case.freeze)}
        kept = {name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in frozen.items()}
        for module in frozen.values():
            # update_bn puts all of them into training mode; those that are frozen stay as they are.
            module.train = lambda mode=True, module=module: module
            module.reset_running_stats = lambda: None
        with autocast:
            update_bn(images.chunk(2), net)
        for name, module in frozen.items():
            assert all(torch.equal(value, kept[name][key]) for key, value in module.state_dict().items())
        values = [(name, value) for name, value in net.named_parameters() if value.requires_grad]
        values += [(name, value) for name, value in net.named_buffers() if not belongs(name, case.freeze)]
        return {f"ema3/{name}": value.detach().clone() for name, value in values
                if name.startswith(case.ema3) and value.is_floating_point()}

    def watch_activations(self, net, out):
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, torchvision.models.resnet.BasicBlock,
                 torchvision.models.resnet.Bottleneck)
        hooks = []
        for name, module in net.named_modules():
            if isinstance(module, kinds) and name in self.case.activations:
                def keep(_module, _inputs, output, name=name):
                    out[f"activation/{name}"] = output.detach().clone()
                hooks.append(module.register_forward_hook(keep))
        return hooks


def synthetic(case):
    """Returns the experiment for a case's seed."""
    random = numpy.random.Generator(numpy.random.PCG64(case.seed))
    net = network(case.arch, case.width, case.classes)
    initialise(net, random)
    if case.separated:
        separate(net, random)
    images = torch.from_numpy(random.standard_normal((case.batch, 3, *case.size), dtype=numpy.float32))
    target = torch.from_numpy(random.integers(0, case.classes, case.batch, dtype=numpy.int64))
    return Experiment(case, net.state_dict(), images, target)


def from_images(case, weights, folder):
    """Returns published weights with images: the first of each class folder in turn, with torchvision's test transform."""
    transforms = torchvision.transforms
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    images = torchvision.datasets.ImageFolder(folder, transform)
    by_class = [[] for _ in images.classes]
    for index, (_, label) in enumerate(images.samples):
        by_class[label].append(index)
    rounds = (group[i] for i in range(max(map(len, by_class))) for group in by_class if i < len(group))
    chosen = [images[index] for _, index in zip(range(case.batch), rounds)]

    state = load_file(weights)
    width, classes = state["conv1.weight"].shape[0], case.classes or state["fc.weight"].shape[0]
    if len(images.classes) > classes:
        sys.exit(f"{folder} has {len(images.classes)} classes, but the head has {classes}: set --classes")
    case = dataclasses.replace(case, width=width, classes=classes, batch=len(chosen))
    net = network(case.arch, width, classes)
    initialise(net, numpy.random.Generator(numpy.random.PCG64(case.seed)))
    own = net.state_dict()
    for name, tensor in state.items():
        if name in own and (own[name].shape == tensor.shape or not belongs(name, ["fc"])):
            own[name] = tensor.to(own[name].dtype)
    return Experiment(case, own, torch.stack([image for image, _ in chosen]), torch.tensor([c for _, c in chosen]))


def relative_noise(name, truth, attempts, state):
    """Returns the errors of PyTorch's float32. Errors of steps are relative to the update, which is far smaller than the
    parameter; no float32 program is closer to an updated parameter than half a unit in its last place."""
    is_step = name.startswith(("step", "ema3"))
    start = state[name.split("/", 1)[1]].double() if is_step else 0.0
    scale = (truth - start).norm()
    if scale == 0:
        return torch.zeros(())
    error = max((attempt[name].double() - truth).norm() for attempt in attempts)
    if is_step:
        spacing = numpy.spacing(numpy.abs(truth.float().numpy()))
        error = max(error, torch.from_numpy(spacing).double().norm() / 2)
    return (error / scale).float()


def noise_of_arithmetics(experiment):
    """Returns PyTorch's own error in tf32 and bf16 for every tensor of a file: `noise_tf32/NAME`, `noise_bf16/NAME`."""
    noise = {}
    for index in range(NEARBY):
        nearby = experiment.nearby(index)
        truth, _ = nearby.run(torch.float64)
        for arithmetic in ("tf32", "bf16"):
            attempt, _ = nearby.run(torch.float32, arithmetic=arithmetic)
            for name, value in truth.items():
                if value.is_floating_point():
                    error = relative_noise(name, value, [attempt], experiment.state)
                    name = f"noise_{arithmetic}/{name}"
                    noise[name] = torch.maximum(noise.get(name, error), error)
    return noise


def write(experiment, path, source):
    case = experiment.case
    truth, margin = experiment.run(torch.float64)
    attempts = [experiment.run(torch.float32, layout)[0] for layout in (torch.contiguous_format, torch.channels_last)]
    tensors = {"input": experiment.images, "target": experiment.target}
    tensors.update({f"param/{name}": value for name, value in experiment.state.items()})
    for name, value in truth.items():
        if value.is_floating_point():
            tensors[name] = value.float()
            tensors[f"noise/{name}"] = relative_noise(name, value, attempts, experiment.state)
        else:
            tensors[name] = value
    tensors.update(noise_of_arithmetics(experiment))
    metadata = {
        "format": "retune-reference-1", "arch": case.arch, "width": case.width, "num_classes": case.classes,
        "loss_reduction": case.reduction, "lr": case.lr, "head_lr": case.head_lr, "weight_decay": case.weight_decay,
        "momentum": case.momentum, "freeze": ",".join(case.freeze),
        "freeze_batch_norm": str(case.freeze_batch_norm).lower(), "margin": f"{margin.smallest:.1e}",
        "source": f"PyTorch {torch.__version__.split('+')[0]} float64, {source}",
    }
    if case.label_smoothing:
        metadata["label_smoothing"] = case.label_smoothing
    if case.class_weights:
        metadata["class_weights"] = ",".join(map(str, case.class_weights))
    if case.mixup:
        metadata["mixup"] = case.mixup
    if case.cutmix:
        metadata["cutmix"] = ",".join(map(str, case.cutmix))
    if case.no_decay_norm_bias:
        metadata["no_decay_norm_bias"] = "true"
    if case.optimizer != "sgd":
        metadata["optimizer"] = case.optimizer
    if case.optimizer == "adamw":
        metadata["beta1"], metadata["beta2"], metadata["epsilon"] = *case.betas, case.epsilon
    if case.schedule:
        metadata["schedule"], metadata["schedule_steps"] = case.schedule, case.schedule_steps
    if case.ema:
        metadata["ema"] = case.ema
    if case.layer_lr_decay != 1.0:
        metadata["layer_lr_decay"] = case.layer_lr_decay
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    # safetensors writes its metadata in no fixed order, but the same case must give the same bytes.
    save_sorted(tensors, path, {key: str(value) for key, value in metadata.items()})
    noise = max((float(value), name) for name, value in tensors.items() if name.startswith("noise/"))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, margin {margin.relu:.1e} (ReLU) {margin.pool:.1e} (pool), "
          f"loss {float(truth['loss']):.4f}, most noise {noise[0]:.1e} in {noise[1].removeprefix('noise/')}")


def save_sorted(tensors, path, metadata):
    """Writes a safetensors file whose header depends only on its contents."""
    save_file(tensors, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length:])


def from_file(path):
    """Returns the experiment of a reference file."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata.get("format") != "retune-reference-1":
        sys.exit(f"{path} is not a reference file")
    named = lambda prefix: tuple(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    case = Case(
        path.stem, seed=0, arch=metadata["arch"], width=int(metadata["width"]), classes=int(metadata["num_classes"]),
        batch=len(tensors["target"]), size=tuple(tensors["input"].shape[2:]), reduction=metadata["loss_reduction"],
        label_smoothing=float(metadata.get("label_smoothing", 0.0)),
        class_weights=tuple(map(float, filter(None, metadata.get("class_weights", "").split(",")))),
        mixup=float(metadata.get("mixup", 0.0)),
        cutmix=tuple(map(int, filter(None, metadata.get("cutmix", "").split(",")))),
        lr=float(metadata["lr"]), head_lr=float(metadata["head_lr"]), weight_decay=float(metadata["weight_decay"]),
        no_decay_norm_bias=metadata.get("no_decay_norm_bias") == "true", optimizer=metadata.get("optimizer", "sgd"),
        betas=(float(metadata.get("beta1", 0.9)), float(metadata.get("beta2", 0.999))),
        epsilon=float(metadata.get("epsilon", 1e-8)), schedule=metadata.get("schedule", ""),
        schedule_steps=int(metadata.get("schedule_steps", 0)), layer_lr_decay=float(metadata.get("layer_lr_decay", 1.0)),
        momentum=float(metadata["momentum"]), freeze=tuple(filter(None, metadata["freeze"].split(","))),
        freeze_batch_norm=metadata["freeze_batch_norm"] == "true", step1=named("step1/"), step3=named("step3/"),
        ema=float(metadata.get("ema", 0.0)), ema3=named("ema3/"), activations=named("activation/"))
    state = {name: tensors[f"param/{name}"] for name in named("param/")}
    return Experiment(case, state, tensors["input"], tensors["target"]), tensors, metadata


def add_noise(path):
    """Adds noise_tf32/ and noise_bf16/ to a reference file and leaves everything else unchanged, to the bit."""
    experiment, tensors, metadata = from_file(path)
    noise = noise_of_arithmetics(experiment)
    tensors.update((name, value) for name, value in noise.items() if name.split("/", 1)[1] in tensors)
    save_sorted({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    for kind in ("noise_tf32", "noise_bf16"):
        largest = max((float(value), name) for name, value in tensors.items() if name.startswith(f"{kind}/"))
        print(f"{path}: largest {kind} {largest[0]:.1e} in {largest[1].removeprefix(f'{kind}/')}", flush=True)


def search(case, seeds, least_margin):
    """Returns the best conditioned seed of those with a wide enough margin, and the seed with the widest margin. If a
    network's gradients are inaccurate in float32, its limits are loose, however wide its margin."""
    widest, steadiest = (0.0, 0), (math.inf, 0, 0.0)
    for seed in range(seeds):
        experiment = synthetic(dataclasses.replace(case, seed=seed))
        if experiment.first_margin() < least_margin:
            continue
        truth, margin = experiment.run(torch.float64)
        widest = max(widest, (margin.smallest, seed))
        if margin.smallest < least_margin:
            continue
        single = experiment.run(torch.float32)[0]
        noise = [float(relative_noise(name, truth[name], [single], experiment.state))
                 for name in truth if name.startswith("grad/")]
        steadiest = min(steadiest, (max(noise), seed, margin.smallest))
    print(f"{case.name}, {seeds} seeds: seed {steadiest[1]} has gradient noise {steadiest[0]:.1e} and margin "
          f"{steadiest[2]:.1e}; seed {widest[1]} has margin {widest[0]:.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="cases to make (all); with --weights: the output")
    parser.add_argument("--search", type=int, metavar="N", help="try N seeds for each case, print the best")
    parser.add_argument("--least-margin", type=float, default=5e-5, help="with --search: the smallest margin that a seed may have")
    parser.add_argument("--full-width", type=pathlib.Path, metavar="OUT", help="write a full-size ResNet-18 case")
    parser.add_argument("--add-noise", type=pathlib.Path, nargs="+", metavar="FILE",
                        help="add PyTorch's errors in tf32 and bf16 to reference files, change nothing else")
    parser.add_argument("--weights", help="parameters from this safetensors file, with torchvision's names")
    parser.add_argument("--images", help="with --weights: a folder of images, one folder per class")
    parser.add_argument("--batch", type=int, default=4, help="with --weights: number of images")
    parser.add_argument("--classes", type=int, help="with --weights: replace the head by one of this size (keep it)")
    parser.add_argument("--freeze", default="", help="with --weights: frozen modules, comma-separated")
    parser.add_argument("--freeze-batch-norm", action="store_true", help="with --freeze: they use running statistics")
    arguments = parser.parse_args()

    if arguments.add_noise:
        torch.set_num_threads(1)
        for path in arguments.add_noise:
            add_noise(path)
        return
    if arguments.weights:
        if not arguments.images or len(arguments.names) != 1:
            parser.error("--weights needs --images and one file to write")
        case = dataclasses.replace(FULL_WIDTH, batch=arguments.batch, classes=arguments.classes, lr=5e-5,
                                   head_lr=5e-4, freeze=tuple(filter(None, arguments.freeze.split(","))),
                                   separated=False,
                                   freeze_batch_norm=arguments.freeze_batch_norm)
        experiment = from_images(case, arguments.weights, arguments.images)
        write(experiment, pathlib.Path(arguments.names[0]), "given weights and images")
        return
    if not arguments.full_width:
        # The number of threads changes the order of float32 sums, and with it the noise in the files.
        torch.set_num_threads(1)
    cases = [FULL_WIDTH] if arguments.full_width else CASES
    if unknown := set(arguments.names) - {case.name for case in cases}:
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in cases)}")
    for case in cases:
        if arguments.names and case.name not in arguments.names:
            continue
        if arguments.search:
            search(case, arguments.search, arguments.least_margin)
        else:
            path = arguments.full_width or FIXTURES / f"{case.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(synthetic(case), path, f"seed {case.seed}")


if __name__ == "__main__":
    main()

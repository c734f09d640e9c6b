"""Writes tests/golden/activations: what PyTorch computes in float64 with weights.py.

Needs the extra [parity]: python -m tests.parity.make_golden
The modules are torchvision's and timm's own; the CIFAR nets, which neither has, are twins below.
Inference runs as published. Training runs with SiLU for ReLU: one ReLU whose input differs by
rounding switches, and moves the gradient by a hundredth; without such jumps gradients compare.
"""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import resnet_jax
from tests.parity.weights import (
    CLASSES,
    leaves,
    make_cotangent,
    make_images,
    make_weight,
    summary_of,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "activations"


class OptionA(nn.Module):
    """Every second pixel, and as many channels of zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.start, self.end = 0, after - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.start, self.end))


class OptionAMiddle(OptionA):
    """The same with half of the zeros before."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.start = self.end = (after - before) // 2


def projection(before: int, after: int) -> nn.Module:
    """Option B."""
    return nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))


class CifarNet(nn.Module):
    """The 6n + 2 net of He et al. 2015 out of torchvision's basic blocks.

    `shortcut` makes the module for where a stage begins, from the widths before and after.
    """

    def __init__(self, blocks: int, shortcut: Callable[[int, int], nn.Module] = OptionA) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        for stage, width in enumerate((16, 32, 64), start=1):
            before = width if stage == 1 else width // 2
            blocks = [
                BasicBlock(before, width, 2, shortcut(before, width))
                if before != width and i == 0
                else BasicBlock(width, width)
                for i in range(blocks)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


class PreActivationBlock(nn.Module):
    """Two or three convolutions, each after normalisation and ReLU."""

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        if bottleneck:  # the stride on the first 1×1, as in KaimingHe/resnet-1k-layers
            convs = [(1, before, width, stride), (3, width, width, 1), (1, width, out, 1)]
        else:
            convs = [(3, before, width, stride), (3, width, width, 1)]
        self.depth = len(convs)
        self.act = nn.ReLU()
        for i, (k, cin, cout, s) in enumerate(convs, start=1):
            setattr(self, f"bn{i}", nn.BatchNorm2d(cin))
            setattr(self, f"conv{i}", nn.Conv2d(cin, cout, k, s, k // 2, bias=False))
        self.downsample = None
        if stride != 1 or before != out:
            self.downsample = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = y = self.act(self.bn1(x))
        for i in range(1, self.depth + 1):
            if i > 1:
                y = self.act(getattr(self, f"bn{i}")(y))
            y = getattr(self, f"conv{i}")(y)
        return y + (x if self.downsample is None else self.downsample(start))


class PreActivationNet(nn.Module):
    """Wide ResNets and the CIFAR bottleneck nets; the stem is bare, as in the authors' code."""

    def __init__(self, blocks: int, width: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        before = 16
        for stage, w in enumerate((width, 2 * width, 4 * width), start=1):
            blocks = []
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(PreActivationBlock(before, w, stride, bottleneck=bottleneck))
                before = 4 * w if bottleneck else w
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn_final = nn.BatchNorm2d(before)
        self.act = nn.ReLU()
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.act(self.bn_final(x)).mean(dim=(2, 3)))


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=CLASSES)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES)


# Our name: (PyTorch's module, image size).
PEERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{f"resnet{depth}": (_torchvision(f"resnet{depth}"), 64) for depth in (18, 34, 50, 101)},
    # The deepest amplifies rounding; statistics over more places tame that.
    "resnet152": (_torchvision("resnet152"), 128),
    "wrn50_2": (_torchvision("wide_resnet50_2"), 64),
    "resnext50_32x4d": (_torchvision("resnext50_32x4d"), 64),
    "resnet26t": (_timm("resnet26t"), 64),
    "resnet50d": (_timm("resnet50d"), 64),
    "resnet50_gn": (_timm("resnet50_gn"), 64),
    "seresnet50": (_timm("seresnet50"), 64),
    "resnetrs50": (_timm("resnetrs50"), 64),
    "bit_r50x1": (_timm("resnetv2_50x1_bit"), 64),
    "resnet20": (lambda: CifarNet(3), 32),
    "resnet110": (lambda: CifarNet(18), 32),
    "preresnet164": (lambda: PreActivationNet(18, 16, bottleneck=True), 32),
    "wrn16_4": (lambda: PreActivationNet(2, 64, bottleneck=False), 32),
}

_RENAMED = (
    (r"layer(\d)_(\d+)/", r"layer\1.\2/"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"conv1_1", "conv1.0"),
    (r"bn1_1", "conv1.1"),
    (r"conv1_2", "conv1.3"),
    (r"bn1_2", "conv1.4"),
    (r"conv1_3", "conv1.6"),
    (r"pool_conv", "maxpool.0"),
    (r"pool_bn", "maxpool.1"),
)
_KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_key(name: str, path: str, state: dict[str, torch.Tensor]) -> str:
    """The key of one of our variables in a peer's state."""
    path = path.split("/", 1)[1]
    if name.startswith("bit"):
        path = re.sub(r"layer(\d)_(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.", path)
        path = re.sub(r"^conv1/", "stem.conv/", path).replace("bn_final", "norm")
        path = path.replace("downsample_conv", "downsample.conv").replace(".bn", ".norm")
        path = re.sub(r"^fc/", "head.fc/", path)
    elif name.startswith(("preresnet", "wrn16")) and path.startswith("bn1/"):
        path = path.replace("bn1/", "layer1_0/bn1/")  # the stem's is that of the first block
    for pattern, replacement in _RENAMED:
        path = re.sub(pattern, replacement, path)
    module, kind = path.rsplit("/", 1)
    key = f"{module.replace('/', '.')}.{_KINDS[kind]}"
    block, projection, _ = key.partition(".downsample.")
    if projection and f"{block}.downsample.2.weight" in state:
        # An average pooling comes before the projection.
        key = key.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1")
    return key


def load(name: str, module: nn.Module) -> dict[str, str]:
    """Give a module our weights; each of its parameters must get exactly one."""
    size = PEERS[name][1]
    model = resnet_jax.create_model(name, num_classes=CLASSES)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    state = module.state_dict()
    wanted = {key for key in state if not key.endswith("num_batches_tracked")}
    keys = {path: torch_key(name, path, state) for path, _ in leaves(shapes)}
    assert sorted(keys.values()) == sorted(wanted), set(keys.values()) ^ wanted
    for path, leaf in leaves(shapes):
        value = make_weight(path, leaf.shape)
        if path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[keys[path]] = torch.from_numpy(value.copy()).reshape(state[keys[path]].shape)
    module.load_state_dict(state)
    return keys


def smooth(module: nn.Module) -> None:
    """Put SiLU in the place of every ReLU, but for those of squeeze-and-excitation."""
    for path, part in module.named_modules():
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU) and not path.endswith(".se"):
                setattr(part, name, nn.SiLU())


def run(name: str, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Compute in PyTorch what `summary_of` keeps, variances made biased."""
    build, size = PEERS[name]
    torch.manual_seed(0)
    module = build()
    if hasattr(module, "drop_rate"):
        module.drop_rate = 0.0
    keys = load(name, module)
    module = module.to(dtype)
    counts: dict[str, int] = {}
    for path, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(
                lambda _, args, __, path=path: counts.__setitem__(
                    path, args[0].numel() // args[0].shape[1]
                )
            )
    images = torch.from_numpy(make_images(size).transpose(0, 3, 1, 2).copy())
    images = images.to(dtype).requires_grad_()
    with torch.no_grad():
        logits = module.eval()(images).numpy()
    smooth(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    train_logits = module.train()(images)
    train_logits.backward(torch.from_numpy(make_cotangent()).to(dtype))
    after = module.state_dict()
    statistics = {}
    for path, key in keys.items():
        if path.startswith("batch_stats/"):
            value = after[key]
            if path.endswith("var"):
                m = counts[key.rsplit(".", 1)[0]]
                value = 0.9 * before[key] + (value - 0.9 * before[key]) * (m - 1) / m
            statistics[path] = value.numpy()
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    return summary_of(logits, train_logits.detach().numpy(), gradient, statistics)


def main() -> None:
    """Write every file."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, (_, size) in PEERS.items():
        exact, single = run(name, torch.float64), run(name, torch.float32)
        # How far PyTorch's own float32 is from float64, relative to the largest value.
        noise = {
            f"noise_{key}": np.abs(single[key] - value).max() / np.abs(value).max()
            for key, value in exact.items()
            if value.size
        }
        values = {key: value.astype(np.float32) for key, value in exact.items() if value.size}
        np.savez_compressed(GOLDEN / f"{name}.npz", size=size, **values, **noise)


if __name__ == "__main__":
    main()

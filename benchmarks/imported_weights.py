"""Logits of other libraries' networks against ours, with weights imported from their files.

Each network gets random weights and running statistics, as each library makes it; its state is
written as a safetensors file and loaded by `load_weights`, which recognises the names. Logits are
compared with PyTorch's in float64, relative to the largest.

    python benchmarks/imported_weights.py --out benchmarks/results/imported_weights.json

Needs the extra [parity], and transformers.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from report import write_report
from torch import nn

import resnet_jax

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity.make_golden import CifarNet, OptionAMiddle, PreActivationNet, projection

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 2
_TV = "torchvision"
_HF = "transformers"
_CIFAR = "CIFAR code"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A network of another library, and what it is here."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    model: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 224
    folded: bool = False


def _torchvision(name: str, model: str, **more: Any) -> Peer:
    return Peer(_TV, name, getattr(torchvision.models, name), model, **more)


def _timm(name: str, model: str, **more: Any) -> Peer:
    return Peer("timm", name, lambda: timm.create_model(name), model, **more)


def _transformers(name: str, kind: str, model: str, **config: Any) -> Peer:
    def build() -> nn.Module:
        made = getattr(transformers, f"{kind}Config")(num_labels=1000, **config)
        return getattr(transformers, f"{kind}ForImageClassification")(made)

    return Peer(_HF, name, build, model)


def _cifar(name: str, build: Callable[[], nn.Module], model: str, **fields: Any) -> Peer:
    return Peer(_CIFAR, name, build, model, fields, size=32)


PEERS = [
    *(_torchvision(f"resnet{depth}", f"resnet{depth}") for depth in (18, 34, 50, 101, 152)),
    _torchvision("wide_resnet50_2", "wrn50_2"),
    _torchvision("resnext50_32x4d", "resnext50_32x4d"),
    _torchvision("resnet50", "resnet50", folded=True),
    _timm("resnet50d", "resnet50d"),
    _timm("seresnet50", "seresnet50"),
    _timm("resnet50_gn", "resnet50_gn"),
    _timm("resnetrs50", "resnetrs50"),
    _timm("resnetv2_50x1_bit", "bit_r50x1"),
    _transformers(
        "resnet-18",
        "ResNet",
        "resnet18",
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
    ),
    _transformers("resnet-50", "ResNet", "resnet50"),
    _transformers("bit-50", "Bit", "bit_r50x1"),
    *(
        _cifar(f"option A, {6 * n + 2} layers", lambda n=n: CifarNet(n), f"resnet{6 * n + 2}")
        for n in (3, 18)
    ),
    *(
        _cifar(
            f"option A, zeros on both sides, {6 * n + 2} layers",
            lambda n=n: CifarNet(n, OptionAMiddle),
            f"resnet{6 * n + 2}",
            shortcut="A_middle",
        )
        for n in (3, 9)
    ),
    *(
        _cifar(
            f"option B, {6 * n + 2} layers",
            lambda n=n: CifarNet(n, projection),
            f"resnet{6 * n + 2}",
            shortcut="B",
        )
        for n in (3, 18)
    ),
    _cifar("WRN-16-4", lambda: PreActivationNet(2, 64, bottleneck=False), "wrn16_4"),
    _cifar("WRN-28-10", lambda: PreActivationNet(4, 160, bottleneck=False), "wrn28_10"),
    _cifar("pre-activation, 164 layers", lambda: PreActivationNet(18, 16, bottleneck=True),
           "preresnet164"),
]  # fmt: skip


def randomise(module: nn.Module) -> None:
    """Give every parameter and running statistic a value that isn't its initial one."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(part.weight, 0.6, 0.1)
            nn.init.normal_(part.bias, 0.0, 0.1)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0.0, 0.1)
            nn.init.uniform_(part.running_var, 0.7, 1.6)
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0.0, 0.1)


def fold(module: nn.Module) -> nn.Module:
    """Merge batch normalisations into convolutions, as PyTorch does for inference."""
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")]
        for conv, norm in pairs:
            children = dict(part.named_children())
            if isinstance(children.get(conv), nn.Conv2d) and norm in children:
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(children[conv], children[norm])
                setattr(part, conv, fused)
                setattr(part, norm, nn.Identity())
    return module


def _logits(module: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        out = module(images)
    return getattr(out, "logits", out).double().numpy()


def compare(peer: Peer) -> dict[str, Any]:
    """How far our logits, and those of PyTorch's float32, are from its float64."""
    torch.manual_seed(0)
    module = peer.build().eval()
    randomise(module)
    images = torch.randn(IMAGES, 3, peer.size, peer.size)
    single = _logits(module, images)
    published = fold(module) if peer.folded else module
    state = {name: value.contiguous() for name, value in published.state_dict().items()}
    exact = _logits(module.double(), images.double())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        safetensors.torch.save_file({name: v.clone() for name, v in state.items()}, file)
        model = resnet_jax.create_model(peer.model, num_classes=exact.shape[1], **peer.fields)
        variables = resnet_jax.load_weights(model, file)
    ours = jax.jit(model.apply)(variables, images.permute(0, 2, 3, 1).numpy())
    largest = np.abs(exact).max()
    return {
        "library": peer.library,
        "name": peer.name + (", normalisations folded" if peer.folded else ""),
        "model": peer.model,
        "fields": peer.fields,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "image_size": peer.size,
        "error": float(np.abs(np.asarray(ours) - exact).max() / largest),
        "error_of_torch_float32": float(np.abs(single - exact).max() / largest),
    }


def main() -> int:
    """Compare all, write the results; exits with 1 if a network differs by more than 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/imported_weights.json"
    )
    out = parser.parse_args().out
    rows = []
    for peer in PEERS:
        rows.append(compare(peer))
        print(f"{peer.library} {rows[-1]['name']}: {rows[-1]['error']:.1e}", flush=True)
    libraries = (timm, torch, torchvision, transformers)
    versions = {library.__name__: library.__version__ for library in libraries}
    write_report(out, {"libraries": versions, "seed": 0, "images": IMAGES, "networks": rows})
    return 1 if any(row["error"] > 1e-5 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

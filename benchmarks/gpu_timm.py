"""timm's ResNet-50, trained as fast as PyTorch can, in a process of its own (gpu_speed.py)."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

_steps: dict[bool, Callable[[int], float]] = {}  # of this process: compiled or not


def missing() -> str | None:
    """What isn't installed."""
    packages = ("torch", "timm")
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def prepare(compiled: bool, toy: bool) -> int:
    """Make the network and its images; returns the images of a step.

    Channels last, bfloat16 by autocast, SGD with Nesterov's momentum, no augmentation.
    """
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, size, fields = (4, 32, {"layers": (1, 1, 1, 1)}) if toy else (256, 224, {})
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet50", **fields)
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    loss = torch.nn.CrossEntropyLoss()
    torch.backends.cudnn.benchmark = True

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = forward(images)
            loss(logits.float(), labels).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    _steps[compiled] = steps
    return batch


def take(compiled: bool, count: int) -> float:
    """Take that many steps; returns their seconds."""
    return _steps[compiled](count)


def peak_gib() -> float | None:
    """The most memory that this process has used on the GPU."""
    import torch  # noqa: PLC0415

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None

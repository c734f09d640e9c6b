"""timm's ResNet-50, trained as fast as PyTorch can, in a process of its own (gpu_speed.py)."""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from gpu_task import NO_TIME

_steps: dict[bool, Callable[[int], float]] = {}  # of this process: compiled or not


class Timm:
    """The process that trains timm's network.

    Attributes:
        toy: train at toy size.
    """

    def __init__(self, toy: bool) -> None:
        """Start no process yet; that begins with the first network."""
        self.toy = toy
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def prepare(self, compiled: bool, seconds: float) -> dict[str, Any] | str:
        """Make a network and take its first steps; returns what is known then, or why it failed.

        Args:
            compiled: by torch.compile.
            seconds: at most. Afterwards the process is lost to the network that took longer.
        """
        packages = ("torch", "timm")
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"{' and '.join(absent)} not installed"
        try:
            return self._process.submit(_prepare, compiled, self.toy).result(max(0, seconds))
        except TimeoutError:
            return NO_TIME
        except BrokenExecutor as error:
            return f"the process of timm ended: {error}"

    def take(self, compiled: bool, count: int) -> float:
        """Take that many steps; returns their seconds."""
        return self._process.submit(_take, compiled, count).result()

    def end(self) -> None:
        """End the process, as soon as its present work is over."""
        self._process.shutdown(wait=False, cancel_futures=True)


def _prepare(compiled: bool, toy: bool) -> dict[str, Any] | str:
    """In the process of timm."""
    began = time.perf_counter()
    try:
        images = _make(compiled, toy)
        _take(compiled, 3)
    except Exception as error:  # of any kind, such as no C compiler for what torch.compile writes
        return f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = round(time.perf_counter() - began, 1)
    return {"images": images, "compile_s": seconds, "peak_gib": _peak_gib()}


def _make(compiled: bool, toy: bool) -> int:
    """Make the network and its images; returns the images of a step.

    Channels last, bfloat16 by autocast, SGD with Nesterov's momentum, no augmentation.
    """
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, size, fields = (4, 32, {"layers": (1, 1, 1, 1)}) if toy else (256, 224, {})
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model: Any = timm.create_model("resnet50", **fields)
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True
    )
    loss = torch.nn.CrossEntropyLoss()

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


def _take(compiled: bool, count: int) -> float:
    return _steps[compiled](count)


def _peak_gib() -> float | None:
    """The most memory that this process has used on the GPU."""
    import torch  # noqa: PLC0415

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None

"""The contenders of vs_peers.py that are PyTorch's networks, also run by other programs.

This module is imported by a Python that has PyTorch, and needn't have JAX.
"""

import io
import os
from collections.abc import Callable
from typing import Any

Steps = Callable[[int], None]


def torch_contender(
    name: str, network: str, size: int, classes: int, batch: int, mode: str
) -> Steps:
    """PyTorch, eager or compiled, channels last, in float32 or with bfloat16 autocast."""
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _torch_network(network, classes).to(device, memory_format=torch.channels_last)
    images = torch.ones(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % classes
    half = "bfloat16" in name
    call = torch.compile(model) if "compile" in name else model

    def forward() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            return call(images)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if mode != "train":
        model.eval()

        def classify(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    forward()
            wait()

        return classify
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(forward().float(), labels).backward()
            optimizer.step()
        wait()

    return train


def _torch_network(network: str, classes: int) -> Any:
    """ResNet-20 of the CIFAR experiments, or torchvision's ResNet-50, as PyTorch's users write it.

    torchvision itself can't be imported where its kernels are for another build of PyTorch.
    """
    return (_resnet20 if network == "resnet20" else _resnet50)(classes)


def _resnet20(classes: int) -> Any:
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional as F  # noqa: N812, PLC0415

    class Basic(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.stride, self.added = stride, width - before

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            x = x[:, :, :: self.stride, :: self.stride]
            return F.relu(y + F.pad(x, (0, 0, 0, 0, 0, self.added)))

    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
    widths += [(32, 64, 2)] + [(64, 64, 1)] * 2
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return nn.Sequential(*stem, *(Basic(*shape) for shape in widths), *head)


def _resnet50(classes: int) -> Any:
    from torch import nn  # noqa: PLC0415

    class Bottleneck(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            after = 4 * width
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, after, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.bn3, self.relu = nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            self.downsample = nn.Identity()
            if before != after:
                projection = nn.Conv2d(before, after, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(after))

        def forward(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            y += self.downsample(x)
            return self.relu(y)

    blocks, before = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(before, width, 1 if number else stride))
            before = 4 * width
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)


def runtime_contender(name: str, network: str, size: int, classes: int, batch: int) -> Steps:
    """Inference of PyTorch's network, exported as ONNX, by ONNX Runtime or OpenVINO, float32."""
    import torch  # noqa: PLC0415

    model = _torch_network(network, classes).eval()
    images = torch.ones(batch, 3, size, size)
    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, input_names=["images"], dynamo=False)
    array = images.numpy()
    run = (_onnxruntime if name == "onnxruntime" else _openvino)(file.getvalue())

    def classify(count: int) -> None:
        for _ in range(count):
            run(array)

    return classify


def _onnxruntime(program: bytes) -> Callable[[Any], Any]:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"images": array})


def _openvino(program: bytes) -> Callable[[Any], Any]:
    import openvino  # noqa: PLC0415

    core = openvino.Core()
    model = core.read_model(io.BytesIO(program))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", hints)
    return compiled

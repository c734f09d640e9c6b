"""The names that publishers of weights use: each function renames variables of a network.

They are written from the publishers' code, each on its own, so that a rule of the package that is
wrong isn't also the test's.
"""

import re

TORCH = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _parts(leaf: str) -> tuple[str, str, str]:
    """Block as "stage.block" or "", module, kind of a variable's path."""
    path = leaf.split("/", 1)[1]
    module, kind = path.rsplit("/", 1)
    block = re.match(r"layer(\d+)_(\d+)/(.*)", module)
    return (f"{block[1]}.{block[2]}", block[3], kind) if block else ("", module, kind)


def torchvision(leaf: str) -> str:
    block, module, kind = _parts(leaf)
    module = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(
        module, module
    )
    return f"layer{block}.{module}.{TORCH[kind]}" if block else f"{module}.{TORCH[kind]}"


def parallel_cifar(leaf: str) -> str:
    """kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10, saved from DataParallel."""
    name = torchvision(leaf).replace("downsample", "shortcut")
    return "module." + re.sub(r"^fc\.", "linear.", name)


def sequential_cifar(leaf: str) -> str:
    """weiaicunzai/pytorch-cifar100: everything is a place in a Sequential."""
    block, module, kind = _parts(leaf)
    if not block:
        outside = {"conv1": "conv1.0", "bn1": "conv1.1", "fc": "fc"}[module]
        return f"{outside}.{TORCH[kind]}"
    stage, number = block.split(".")
    places = {
        "conv1": "residual_function.0",
        "bn1": "residual_function.1",
        "conv2": "residual_function.3",
        "bn2": "residual_function.4",
        "conv3": "residual_function.6",
        "bn3": "residual_function.7",
        "downsample_conv": "shortcut.0",
        "downsample_bn": "shortcut.1",
    }
    return f"conv{int(stage) + 1}_x.{number}.{places[module]}.{TORCH[kind]}"


def underscores(leaf: str) -> str:
    """EhanW/advrob-cifar10."""
    block, module, kind = _parts(leaf)
    module = re.sub(r"^(conv|bn)(\d)$", r"\1_\2", module)
    module = module.replace("downsample_conv", "shortcut.0").replace("downsample_bn", "shortcut.1")
    return f"stage_{block}.{module}.{TORCH[kind]}" if block else f"{module}.{TORCH[kind]}"


def transformers(leaf: str) -> str:
    """Hugging Face's ResNetForImageClassification."""
    block, module, kind = _parts(leaf)
    part = "normalization" if "bn" in module else "convolution"
    if module == "fc":
        return f"classifier.1.{kind.replace('kernel', 'weight')}"
    if not block:
        return f"resnet.embedder.embedder.{part}.{TORCH[kind]}"
    stage, number = block.split(".")
    place = f"resnet.encoder.stages.{int(stage) - 1}.layers.{number}"
    if module.startswith("downsample"):
        return f"{place}.shortcut.{part}.{TORCH[kind]}"
    return f"{place}.layer.{int(module[-1]) - 1}.{part}.{TORCH[kind]}"


def keras(leaf: str) -> str:
    """keras.applications' ResNet50, arrays by the paths that an .npz gets."""
    block, module, kind = _parts(leaf)
    kinds = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    kind = kinds.get(kind, kind) if "bn" in module else kind
    what = "bn" if "bn" in module else "conv"
    if module == "fc":
        layer = "predictions"
    elif not block:
        layer = f"conv1_{what}"
    else:
        stage, number = map(int, block.split("."))
        place = 0 if module.startswith("downsample") else int(module[-1])
        layer = f"conv{stage + 1}_block{number + 1}_{place}_{what}"
    return f"{layer}/{layer}/{kind}:0"


def wide(leaf: str) -> str:
    """xternalz/WideResNet-pytorch: bn1 of the first block is the stem's, bn1 is the last."""
    block, module, kind = _parts(leaf)
    if module == "bn_final":
        module = "bn1"
    elif not block and module == "bn1":
        block = "1.0"
    if not block:
        return f"{module}.{TORCH[kind]}"
    stage, number = block.split(".")
    module = module.replace("downsample_conv", "convShortcut")
    return f"block{stage}.layer.{number}.{module}.{TORCH[kind]}"


def wide_nblock(leaf: str) -> str:
    """Code derived from it that names a stage's blocks and the normalisations otherwise."""
    name = wide(leaf).replace(".layer.", ".nblockLayer.")
    return re.sub(r"\bbn(\d)\.", r"batch_norm\1.", name)


def wide_unnamed_shortcut(leaf: str) -> str:
    """Everything in a block is numbered, the shortcut too."""
    return wide(leaf).replace("convShortcut", "conv9")


def wide_functional(leaf: str) -> str:
    """szagoruyko/wide-residual-networks, the functional code: everything counts from zero."""
    block, module, kind = _parts(leaf)
    if module == "bn_final":
        return f"bn.{TORCH[kind]}"
    if not block and module == "bn1":
        block = "1.0"
    if not block:
        return f"{module.replace('conv1', 'conv0')}.{TORCH[kind]}"
    stage, number = block.split(".")
    module = re.sub(r"\d", lambda digit: str(int(digit[0]) - 1), module)
    module = module.replace("downsample_conv", "convdim")
    return f"group{int(stage) - 1}.block{number}.{module}.{TORCH[kind]}"


def big_transfer(leaf: str) -> str:
    """google-research/big_transfer's .npz files."""
    block, module, kind = _parts(leaf)
    kind = {"scale": "gamma", "bias": "beta"}.get(kind, kind) if "bn" in module else kind
    if module == "fc":
        return f"resnet/head/conv2d/{kind}"
    if module == "bn_final":
        return f"resnet/group_norm/{kind}"
    if not block:
        return f"resnet/root_block/standardized_conv2d/{kind}"
    stage, number = block.split(".")
    place = f"resnet/block{stage}/unit{int(number) + 1:02d}"
    if module.startswith("downsample"):
        return f"{place}/a/proj/standardized_conv2d/{kind}"
    part = "group_norm" if "bn" in module else "standardized_conv2d"
    return f"{place}/{'abc'[int(module[-1]) - 1]}/{part}/{kind}"

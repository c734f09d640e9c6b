"""Recognises the modules of a residual network in a weight file by names and shapes.

Every publisher has its own names: "layer1.0.conv1.weight", "stage_1.0.conv_1.weight",
"block1/unit01/a/standardized_conv2d/kernel", "conv2_block1_1_conv/kernel:0". All of them number
stages and blocks, and within a block the names sort in the order of computation. So names group and
order the modules, shapes distinguish convolutions from normalisations, and the position in the
order gives a module its path in this package, such as `layer1_0/conv2`. If two modules have the
same shape and their names don't tell their order, the file is refused.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from resnet_jax.weights.arrays import FormatError, quoted

# Names of kernels in TensorFlow and Flax, whose output channels are the last axis.
_CHANNELS_LAST = ("kernel", "w")
_KINDS = {  # by the last part of a name
    **dict.fromkeys(("weight", "kernel", "w", "scale", "gamma"), "weight"),
    **dict.fromkeys(("bias", "b", "beta"), "bias"),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), "mean"),
    **dict.fromkeys(("running_var", "moving_variance", "var"), "var"),
}
_NUMBER = re.compile(r"([0-9]+)")
# Counters of PyTorch's batch normalisation and of the profiler thop; they aren't weights.
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")

_STAGE = r"(?:layers?|stages?|blocks?|groups?|conv|res)[._]?(?P<stage>[0-9]{1,4})(?:_x)?"
_BLOCK = r"(?:[a-z_]*?(?:layers?|blocks?|units?)[._]?)?(?P<block>[0-9]{1,4})"
_IN_A_BLOCK = re.compile(rf"(?:.*?\.)?{_STAGE}[._]{_BLOCK}[._](?P<rest>.+)", re.I)
# Keras calls the shortcut of a block "0": conv2_block1_0_conv.
_SHORTCUT = re.compile(r"down_?sample|short_?cut|skip|proj|conv_?dim|identity|^0_(conv|bn)$", re.I)
_EXCITATION = re.compile(r"(^|[._])(se|se_module|squeeze\w*|excit\w*)([._]|$)", re.I)
_FINAL = re.compile(r"final|last|post", re.I)
_CLASSIFIER = re.compile(r"(^|[._])(fc|linear|classifier|head|logits|predictions|output)([._]|$)")


@dataclasses.dataclass
class Module:
    """A convolution, normalisation or fully connected layer of a file.

    Attributes:
        name: in the file.
        tensors: names of its arrays in the file, by "weight", "bias", "mean", "var".
        kind: "conv", "norm" or "dense".
        width: number of output channels.
        shape: of the kernel, [h, w, in, out] or [in, out]; or of a normalisation's scale.
        channels_last: the file's kernel has this shape too; otherwise it has PyTorch's shape,
            [out, in, h, w] or [out, in].
    """

    name: str
    tensors: dict[str, str]
    kind: str = ""
    width: int = 0
    shape: tuple[int, ...] = ()
    channels_last: bool = False


def find_modules(
    arrays: Mapping[str, np.ndarray],
    expected: Collection[str],
    kernels: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Module], list[str]]:
    """Find the modules of a residual network in a weight file.

    Args:
        arrays: of the file, by name.
        expected: paths of the network's modules, such as "layer1_0/conv1" and "fc". They decide
            whether the first normalisation of the first block belongs to the stem.
        kernels: shapes of the kernels of the network's modules.

    Returns:
        Modules by path, including unexpected modules; and the names of arrays without a path. If
        several modules have the same path, the arrays of all but the first have no path.

    Raises:
        FormatError: the order of modules of the same shape is ambiguous; or the first block's
            normalisation has another position than in the network.
    """
    modules, unknown = _group(arrays)
    blocks: dict[tuple[int, int], list[tuple[str, Module]]] = {}
    outside: list[Module] = []
    for module in modules:
        found = _IN_A_BLOCK.fullmatch(module.name)
        if found:
            place = int(found["stage"]), int(found["block"])
            blocks.setdefault(place, []).append((found["rest"], module))
        else:
            outside.append(module)
    placed: list[tuple[str, Module]] = []
    of_stem: list[Module] = []
    for stage, rank in _ranks(stage for stage, _ in blocks).items():
        for block, number in _ranks(block for s, block in blocks if s == stage).items():
            path = f"layer{rank + 1}_{number}"
            named = _name_block(blocks[stage, block], path, kernels)
            if (rank, number) == (0, 0):
                named, of_stem = _without_norm_of_stem(named, expected)
            placed += [(f"{path}/{name}", module) for name, module in named]
    width = placed[-1][1].width if placed else 0
    placed += [("bn1", module) for module in of_stem]
    placed += _name_outside(outside, expected, width, normalised=bool(of_stem))
    paths: dict[str, Module] = {}
    for path, module in placed:
        if path in paths:
            unknown += module.tensors.values()
        else:
            paths[path] = module
    return paths, unknown


def _group(arrays: Mapping[str, np.ndarray]) -> tuple[list[Module], list[str]]:
    """Modules in the natural order of their names, and names of arrays that belong to no module."""
    modules: dict[str, Module] = {}
    unknown = []
    for name in sorted(arrays, key=_natural):
        head, _, last = name.removesuffix(":0").replace("/", ".").rpartition(".")
        if is_counter(name):
            continue
        if last not in _KINDS or not head:
            unknown.append(name)
            continue
        head = re.sub(r"^(params|batch_stats)\.", "", head)  # Flax keeps statistics apart
        rest, _, layer = head.rpartition(".")
        if rest.rpartition(".")[2] == layer:  # Keras: conv1_conv/conv1_conv/kernel:0
            head = rest
        module = modules.setdefault(head, Module(head, {}))
        if _KINDS[last] in module.tensors:  # such as bn1.weight and bn1.gamma
            unknown.append(name)
            continue
        module.tensors[_KINDS[last]] = name
        module.channels_last |= last in _CHANNELS_LAST
    for module in modules.values():
        shape = arrays[module.tensors.get("weight", next(iter(module.tensors.values())))].shape
        if len(shape) not in (2, 4) or (len(shape) == 4 and math.prod(shape) == max(shape)):
            module.kind, module.shape = "norm", (max(shape, default=0),)
        else:
            module.kind = "dense" if len(shape) == 2 else "conv"
            theirs = shape if module.channels_last else (*shape[2:], *shape[1::-1])
            module.shape = tuple(theirs)
        module.width = module.shape[-1]
    return list(modules.values()), unknown


def is_counter(name: str) -> bool:
    """Whether an array of a file is a counter, not a weight."""
    return re.split("[./]", name)[-1] in _COUNTERS


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts "unit10" after "unit2"; numbers may have any length."""
    parts = [part.lstrip("0") if i % 2 else part for i, part in enumerate(_NUMBER.split(name))]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _ranks(numbers: Iterable[int]) -> dict[int, int]:
    return {number: rank for rank, number in enumerate(sorted(set(numbers)))}


def _name_block(
    modules: list[tuple[str, Module]], block: str, kernels: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, Module]]:
    """Name the modules of one block: branch, shortcut, squeeze and excitation."""
    roles: dict[str, list[tuple[str, Module]]] = {}
    named = []
    for rest, module in modules:
        kind = "bn" if module.kind == "norm" else "conv"
        if _SHORTCUT.search(rest):
            named.append((f"downsample_{kind}", module))
        else:
            role = "se/fc" if _EXCITATION.search(rest) else kind
            roles.setdefault(role, []).append((rest, module))
    if f"{block}/downsample_conv" in kernels and not named:
        named += _shortcut_by_shape(roles.get("conv", []), block, kernels)
    for role, members in roles.items():
        _check_order(members)
        named += [(f"{role}{number}", module) for number, (_, module) in enumerate(members, 1)]
    return named


def _shortcut_by_shape(
    convs: list[tuple[str, Module]], block: str, kernels: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, Module]]:
    """Find the convolution of the shortcut by its shape, and remove it from those of the block."""
    branch = [kernels[f"{block}/conv{i}"] for i in range(1, 4) if f"{block}/conv{i}" in kernels]
    if len(convs) != len(branch) + 1:
        return []
    fitting = []
    for place, (_, module) in enumerate(convs):
        others = [other.shape for _, other in convs[:place] + convs[place + 1 :]]
        if module.shape == kernels[f"{block}/downsample_conv"] and others == branch:
            fitting.append(place)
    if len(fitting) > 1:
        first, second = (convs[place][1].name for place in fitting[:2])
        raise _ambiguous(first, second)
    return [("downsample_conv", convs.pop(place)[1]) for place in fitting]


def _check_order(modules: list[tuple[str, Module]]) -> None:
    """Check that the names of modules of the same shape tell their order of computation."""
    alike: dict[tuple[int, ...], tuple[str, Module]] = {}
    for name, module in modules:
        if module.shape in alike:
            earlier, other = alike[module.shape]
            if not _tells_order(earlier, name):
                raise _ambiguous(other.name, module.name)
        alike[module.shape] = name, module


def _tells_order(first: str, second: str) -> bool:
    """Whether two names first differ in a number, in a single letter, or by an appended number."""
    parts = [re.findall(r"[0-9]+|[a-z]+", name, re.I) for name in (first, second)]
    one, other = next(
        ((a, b) for a, b in itertools.zip_longest(*parts, fillvalue="") if a != b), ("", "")
    )
    return (other.isdecimal() and (one.isdecimal() or not one)) or len(one) == len(other) == 1


def _ambiguous(first: str, second: str) -> FormatError:
    return FormatError(
        f"has {quoted(first)} and {quoted(second)} of one shape, and their names don't tell which"
        " of them is computed first. Number them in the order of computation."
    )


def _without_norm_of_stem(
    named: list[tuple[str, Module]], expected: Collection[str]
) -> tuple[list[tuple[str, Module]], list[Module]]:
    """Split the first block of a pre-activation network from the normalisation of the stem.

    Other packages put this normalisation into the first block. The result is the same if the
    shortcut has a projection, which takes the normalised input.
    """
    if "layer1_0/bn1" in expected or "layer1_0/bn2" not in expected:
        return named, []
    norms = [path for path, _ in named if path.startswith("bn")]
    convs = [path for path, _ in named if path.startswith("conv")]
    if not norms:
        return named, []
    if len(norms) < len(convs):  # the file has the stem's normalisation outside the block too
        return [
            (f"bn{int(path[2:]) + 1}" if path in norms else path, module) for path, module in named
        ], []
    if "layer1_0/downsample_conv" not in expected:
        name = next(module.name for path, module in named if path == "bn1")
        raise FormatError(
            f"has {quoted(name)} in its first block, whose shortcut then takes what comes before it"
            " (the model normalises before the block). Set model.stem_norm=False."
        )
    return [pair for pair in named if pair[0] != "bn1"], [m for path, m in named if path == "bn1"]


def _name_outside(
    modules: list[Module], expected: Collection[str], width: int, *, normalised: bool
) -> list[tuple[str, Module]]:
    """Name the modules outside the blocks: stem, last normalisation and classifier.

    Args:
        modules: outside the blocks.
        expected: paths of the network's modules.
        width: number of channels of the last block.
        normalised: the stem's normalisation was found in the first block.
    """
    named: list[tuple[str, Module]] = []
    convs: list[Module] = []
    norms: list[Module] = []
    for module in modules:
        if module.kind == "dense" or _CLASSIFIER.search(module.name):
            named.append(("fc", module))
        else:
            (norms if module.kind == "norm" else convs).append(module)
    if "bn_final" in expected and norms:
        last = _last_norm(norms, width)
        norms.remove(last)
        named.append(("bn_final", last))
    # In a deep stem, the last normalisation is called as in a simple stem: "conv1.1", "conv1.4",
    # "bn1".
    norms.sort(key=lambda norm: ("pool" in norm.name, -len(re.findall(r"\d+", norm.name))))
    convs.sort(key=lambda conv: "pool" in conv.name)
    deep = "conv1_1" in expected
    conv_paths = ["conv1_1", "conv1_2", "conv1_3"] if deep else ["conv1"]
    norm_paths = ["bn1_1", "bn1_2", "bn1"] if deep else ["bn1"]
    if normalised:
        norm_paths.remove("bn1")
    for modules_of, paths, more in (
        (convs, conv_paths, "pool_conv"),
        (norms, norm_paths, "pool_bn"),
    ):
        for number, module in enumerate(modules_of):
            path = paths[number] if number < len(paths) else more
            named.append((path, module))
    return named


def _last_norm(norms: list[Module], width: int) -> Module:
    """Find the normalisation after the last block by its width, its name or its number."""
    wide = [norm for norm in norms if norm.width == width] or norms
    final = [norm for norm in wide if _FINAL.search(norm.name)]
    if len(final) == 1:
        return final[0]
    _check_order([(norm.name, norm) for norm in wide])
    return wide[-1]

"""Export of a network as a program: a file that JAX runs without this package.

The file is StableHLO with the parameters as constants, written by `jax.export`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.errors import ConfigError, WriteError, did_you_mean
from resnet_jax.models.folding import fold_batch_norm
from resnet_jax.models.network import Network
from resnet_jax.train.evaluate import predict_logits
from resnet_jax.utils.files import replace_file

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""The platforms for which a program can be lowered on any host."""

_MAX_BYTES = 2**31 - 2**26
"""Limit of the parameters: a file of `jax.export` has less than 2 GiB, including the program."""

READABLE_LATER, READABLE_EARLIER = "6 months", "3 weeks"
"""How much newer or older the jaxlib that runs a program may be than the jaxlib that exported it.

These are the guarantees of `jax.export` ("Compatibility guarantees" in JAX's page on exporting).
They refer to the dates of the jaxlib releases, not to the day of the export.
"""

_PACKAGES = ("flax", "jax", "jaxlib")


@dataclasses.dataclass(frozen=True)
class Inference:
    """The inference of a network, ready to be traced.

    Attributes:
        apply: from variables and normalised images to logits.
        variables: on the host; batch normalisation is folded if the module is a `Network`.
        normalization: {"mean", "std"} in grey levels, or None, as in `export_program`.
        images: shape and type of the images.
    """

    apply: Callable[..., Any]
    variables: dict[str, Any]
    normalization: Mapping[str, Any] | None
    images: jax.ShapeDtypeStruct

    @classmethod
    def of(
        cls,
        model: nn.Module,
        variables: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        normalization: Mapping[str, Any] | None,
        batch_size: int | None,
    ) -> Self:
        """Prepare a network; arguments and errors as in `export_program`."""
        _check_sizes(image_shape, batch_size)
        _check_bytes(variables)
        statistics = None if normalization is None else jax.device_get(normalization)
        if statistics is not None:
            _check_statistics(statistics, image_shape)
        if isinstance(model, Network):
            variables = fold_batch_norm(model, variables, image_shape)
        n = batch_size or jax.export.symbolic_shape("n")[0]
        dtype = jnp.float32 if statistics is None else jnp.uint8
        images = jax.ShapeDtypeStruct((n, *image_shape), dtype)
        return cls(model.apply, jax.device_get(variables), statistics, images)

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """The logits of images; `variables` are like the attribute."""
        return predict_logits(self.apply, variables, images, self.normalization)


def export_program(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    normalization: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """Lower the inference of a network to a program from images to logits.

    Batch normalisation uses the running statistics, and that of a `Network` is folded into
    convolutions (`fold_batch_norm`). The program computes what `model.apply` computes up to
    rounding: in the model's `dtype`, with float32 logits.

    Args:
        model: a network, or any module of images [n, h, w, c] that gives logits [n, k].
        variables: the network's variables, which become constants.
        image_shape: (h, w, c).
        normalization: {"mean", "std"} in grey levels; the program then takes uint8 images as they
            are in files. None: the program takes normalised float32 images.
        batch_size: the batch size of the program; None for a program of any batch size.
        platforms: some of `PLATFORMS`; this host needs none of them.

    Returns:
        The program. `.call(images)` runs it; `write_program` writes it to a file.

    Raises:
        ConfigError: a platform is unknown, a size is invalid, the statistics don't fit the images,
            or the parameters are larger than the file format allows.
    """
    _check_platforms(platforms)
    inference = Inference.of(model, variables, image_shape, normalization, batch_size)
    program = jax.jit(functools.partial(inference.logits, inference.variables))
    with _without_source_lines():
        return jax.export.export(program, platforms=tuple(platforms))(inference.images)


def describe_program(program: jax.export.Exported) -> dict[str, Any]:
    """The interface of a program; "n" in a shape is any number of images."""
    (images,), (logits,) = program.in_avals, program.out_avals
    return {
        "images": _describe(images),
        "logits": _describe(logits),
        "platforms": list(program.platforms),
        "calling_convention_version": program.calling_convention_version,
        "versions": {package: version(package) for package in _PACKAGES},
    }


def write_program(
    path: str | os.PathLike[str],
    program: jax.export.Exported,
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a file that `jax.export.deserialize` reads, and its description to `path` + ".json".

    Args:
        path: a file on this machine; an existing file is replaced atomically.
        program: the program from `export_program`.
        notes: more entries of the description, such as "class_names"; JSON-like.

    Returns:
        The description, which has the file's SHA-256, so that a mismatch of program and
        description is detectable.

    Raises:
        WriteError: a file can't be written; an existing file is intact.
    """
    description = {**(notes or {}), **describe_program(program)}
    return write_described(Path(path), program.serialize(), description)


def write_described(
    path: Path, data: bytes | bytearray, description: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a file, and its description with "sha256" and "bytes" to `path` + ".json".

    Raises:
        WriteError: a file can't be written; an existing file is intact.
    """
    digest = hashlib.sha256(data).hexdigest()
    document = {**description, "sha256": digest, "bytes": len(data)}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    replace_program(path, data)
    replace_program(path.with_name(f"{path.name}.json"), f"{text}\n".encode())
    return document


def replace_program(path: Path, data: bytes | bytearray) -> None:
    """Write a file atomically.

    Raises:
        WriteError: the file can't be written; an existing file is intact.
    """
    try:
        replace_file(path, [memoryview(data)])
    except OSError as error:
        raise WriteError(
            f"{path} can't be written ({error.strerror or error}); what was there is intact."
            " Choose another place."
        ) from None


def _check_platforms(platforms: Sequence[str]) -> None:
    for platform in platforms:
        if platform not in PLATFORMS:
            hint = did_you_mean(platform, PLATFORMS)
            known = ", ".join(PLATFORMS)
            raise ConfigError(
                f"There is no platform {platform!r} for a program; it can be {known}.{hint}"
            )
    if not platforms or len(set(platforms)) < len(platforms):
        raise ConfigError(
            f"A program is for one or more platforms, each named once; given are"
            f" {', '.join(platforms) or 'none'}."
        )


def _check_sizes(image_shape: Sequence[int], batch_size: int | None) -> None:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(
            f"image_shape is {tuple(image_shape)}; it must be height, width and channels, each at"
            " least 1."
        )
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")


def _check_bytes(variables: Mapping[str, Any]) -> None:
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    if size > _MAX_BYTES:
        raise ConfigError(
            f"The network has {size / 2**30:.1f} GiB of parameters, which are part of the program,"
            " and a program's file holds less than 2 GiB. Keep them by save_weights instead."
        )


def _check_statistics(statistics: Mapping[str, Any], image_shape: Sequence[int]) -> None:
    for name in ("mean", "std"):
        shape = statistics[name].shape
        if shape not in ((), tuple(image_shape[-1:]), tuple(image_shape)):
            raise ConfigError(
                f"The normalisation's {name} is of shape {shape}, which doesn't fit images of"
                f" {tuple(image_shape)}."
            )


def _describe(array: jax.core.ShapedArray) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in array.shape]
    return {"shape": shape, "dtype": array.dtype.name}


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Lower programs without the paths of this machine's Python files.

    The same network then gives the same bytes on every machine.
    """
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)

"""The published networks, one table row each, and the functions that make a model from a name."""

import dataclasses
import fnmatch
import re
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.resnet import ResNet

# Depth: (branch, units per stage). Table 1 of He et al. 2015; 200 from He et al. 2016 (1603.05027).
_IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}

# 6n + 2 layers: the stem, three stages of n units with two convolutions, the classifier
# (section 4.2 of He et al. 2015).
_CIFAR = (20, 32, 44, 56, 110, 1202)


def _presets() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for depth, (branch, units) in _IMAGENET.items():
        for suffix, stride_on in (("", "3x3"), ("_v1", "1x1")):
            table[f"resnet{depth}{suffix}"] = {
                "stage_sizes": units,
                "branch": branch,
                "stride_on": stride_on,
            }
    for depth in _CIFAR:
        table[f"resnet{depth}"] = {
            "stage_sizes": ((depth - 2) // 6,) * 3,
            "num_classes": 10,
            "stem": "cifar",
            "width": 16,
            "shortcut": "A",
        }
    return table


PRESETS = _presets()
"""Name → fields of `ResNet` that differ from its defaults."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell-style pattern, by family then depth."""

    def family_and_depth(name: str) -> tuple[str, int, str]:
        found = re.match(r"(\D*)(\d*)(.*)", name)
        assert found  # every part may be empty
        return found[1], int(found[2] or 0), found[3]

    return sorted(fnmatch.filter(PRESETS, pattern), key=family_and_depth)


def create_model(name: str, **fields: Any) -> ResNet:
    """Make a linen module from a preset's name; any field of `ResNet` can be overridden.

    "resnet50" is v1.5 as in torchvision; "resnet50_v1" is the network of the paper.
    `dtype` and `param_dtype` may be given as strings, such as "bfloat16".

    Raises:
        ConfigError: unknown name or field, with the nearest known one.
    """
    if name not in PRESETS:
        hint = did_you_mean(str(name), PRESETS)
        raise ConfigError(
            f"There is no model {name!r}.{hint} resnet_jax.list_models() names all of them."
        )
    known = {field.name for field in dataclasses.fields(ResNet)} - {"parent", "name"}
    for field in fields:
        if field not in known:
            hint = did_you_mean(field, known)
            raise ConfigError(f"Model {name!r} has no field {field!r}.{hint}")
    for field in ("dtype", "param_dtype"):
        if field in fields:
            fields[field] = _float_type(field, fields[field])
    return ResNet(**{**PRESETS[name], **fields})


def _float_type(field: str, value: Any) -> jnp.dtype:
    for known in (jnp.float32, jnp.bfloat16):  # float16 would need loss scaling
        if value in (known, jnp.dtype(known), jnp.dtype(known).name):
            return jnp.dtype(known)
    raise ConfigError(f"model.{field} is {value!r}; it can be float32 or bfloat16.")


def init_variables(model: ResNet, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
    """Draw the initial variables without running the network.

    Args:
        model: a linen module.
        key: a JAX random key.
        image_shape: (h, w, c) of one image.

    Returns:
        {"params": …, "batch_stats": …}, equal to `model.init(key, images)`.
    """
    # Compiling `model.init` would compile every convolution only to learn shapes.
    return model.lazy_init(key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def usual_image_shape(model: ResNet) -> tuple[int, int, int]:
    """(h, w, c) of the images that a model's paper trained on."""
    return (32, 32, 3) if model.stem == "cifar" else (224, 224, 3)

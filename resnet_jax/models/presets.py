"""Networks by name: the published ones, and those that a user registers."""

import dataclasses
import fnmatch
import re
import sys
import typing
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.errors import ConfigError, did_you_mean
from resnet_jax.models.branches import BRANCHES, Branch, find_branch, with_branch, with_branch_name
from resnet_jax.models.families import PRESETS, Preset
from resnet_jax.models.fields import fields_of, values_of
from resnet_jax.models.lazy_initialization import initialize
from resnet_jax.models.network import Network
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import stack_units


def register_preset(name: str, preset: Preset) -> None:
    """Give a name to a network, for `create_model` and `model.name`.

    Args:
        name: an identifier. The same module may register it again, as when it is reloaded.
        preset: the network.

    Raises:
        ConfigError: the name isn't an identifier, or belongs to resnet_jax or to another module; or
            the network can't be built, or has a branch without a name.
    """
    _check_known(f"Preset {name!r}", preset.fields, preset.build, preset.fields.get("branch"))
    model_values(_build(preset, preset.fields))
    PRESETS.register(name, preset, module=sys._getframe(1).f_globals.get("__name__", "__main__"))


def find_preset(name: str) -> Preset:
    """The row of the table with that name.

    Raises:
        ConfigError: unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        hint = did_you_mean(str(name), PRESETS)
        raise ConfigError(
            f"There is no model {name!r}.{hint} resnet_jax.list_models() names all of them."
        )
    return PRESETS[name]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell-style pattern, by family then depth."""

    def family_and_depth(name: str) -> tuple[str, int, str]:
        found = re.match(r"(\D*)(\d*)(.*)", name)
        assert found  # every part may be empty
        return found[1], int(found[2] or 0), found[3]

    return sorted(fnmatch.filter(PRESETS, pattern), key=family_and_depth)


def create_model(name: str, **fields: Any) -> Network:
    """Make a linen module from a preset's name; any field of its class can be overridden.

    "resnet50" is v1.5 as in torchvision; "resnet50_v1" is the network of the paper.
    `dtype` and `param_dtype` may be given as strings, such as "bfloat16". The fields of a
    registered branch are given beside its name: `branch="eca_bottleneck", eca_kernel_size=5`.
    Another branch than the preset's doesn't take over fields that it hasn't.

    Raises:
        ConfigError: unknown name or field, with the nearest known one; or a value that the field
            can't have.
    """
    preset = find_preset(name)
    values = preset.fields
    branch = fields.get("branch", values.get("branch"))
    _check_known(f"Model {name!r}", fields, preset.build, branch)
    if "branch" in fields:
        values = _without_branch(preset, fields["branch"])
    values = values | fields
    for field in ("dtype", "param_dtype"):
        if field in fields:
            values[field] = _float_type(field, fields[field])
    return _build(preset, values)


def _check_known(
    what: str, names: Iterable[str], build: type[Network], branch: str | Branch | None
) -> None:
    """Check that the network has these fields."""
    known = model_fields(build, "basic" if branch is None else branch)
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} has no field {name!r}.{did_you_mean(name, known)}")


def _without_branch(preset: Preset, branch: str | Branch) -> dict[str, Any]:
    """The fields of a preset that hold for another branch.

    Of the fields of the preset's branch, these are the fields that a branch given by its name has
    too. A branch that is given as an object brings its own.
    """
    if "branch" not in preset.fields:
        return preset.fields
    values = with_branch_name(with_branch(preset.fields))
    dropped = set(fields_of(find_branch(values["branch"])))
    if not isinstance(branch, Branch):
        dropped -= set(fields_of(find_branch(branch)))
    return {name: value for name, value in values.items() if name not in dropped}


def _build(preset: Preset, values: dict[str, Any]) -> Network:
    own = issubclass(preset.build, ResNet) and "branch" in values
    return preset.build(**(with_branch(values) if own else values))


def _float_type(field: str, value: Any) -> jnp.dtype:
    for known in (jnp.float32, jnp.bfloat16):  # float16 would need loss scaling
        if value in (known, jnp.dtype(known), jnp.dtype(known).name):
            return jnp.dtype(known)
    raise ConfigError(f"model.{field} is {value!r}; it can be float32 or bfloat16.")


def model_fields(build: type[Network], branch: str | Branch) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a class of networks by name, those of a branch of its own among them."""
    own = fields_of(build)
    return own | fields_of(find_branch(branch)) if issubclass(build, ResNet) else own


def model_values(model: Network) -> dict[str, Any]:
    """The values of a network's fields by name, those of a branch of its own among them.

    Raises:
        ConfigError: the network has a branch without a name.
    """
    values = values_of(model)
    return with_branch_name(values) if isinstance(model, ResNet) else values


def preset_of(model: Network) -> tuple[str, dict[str, Any]]:
    """The preset that is nearest to a network, and the fields in which the network differs.

    Returns:
        Name and fields for `create_model`, which makes an equal network of them. No field is None.
    """
    values = model_values(model)

    def differences(preset: Preset) -> dict[str, Any]:
        theirs = model_values(_build(preset, preset.fields))
        return {k: v for k, v in values.items() if k not in theirs or v != theirs[k]}

    found = [
        (name, fields)
        for name, preset in PRESETS.items()
        if preset.build is type(model) and None not in (fields := differences(preset)).values()
    ]
    return min(found, key=lambda pair: len(pair[1]))


def config_types() -> dict[str, type]:
    """Every field that some network or registered branch has, with the type of its values.

    Types are those of a config: data types and choices are strings.
    """
    owners: list[Any] = [*{preset.build: None for preset in PRESETS.values()}, *BRANCHES.values()]
    found: dict[str, type] = {}
    for owner in owners:
        hints = typing.get_type_hints(owner)
        for name in fields_of(owner):
            found.setdefault(name, _value_type(hints[name]))
    return found


def _value_type(hint: Any) -> type:
    if hint is Any or get_origin(hint) is Literal:  # the first is a data type
        return str
    if get_origin(hint) is tuple:
        return tuple
    union = [arg for arg in get_args(hint) if arg not in (type(None), Branch)]
    return _value_type(union[0]) if union else hint


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
    """Draw the initial variables without running the network.

    A scanned network begins with the values of its unrolled twin.

    Args:
        model: a linen module.
        key: a JAX random key.
        image_shape: (h, w, c) of one image.

    Returns:
        {"params": …} and, if there are running statistics, "batch_stats"; equal to
        `model.init(key, images)` unless the network is scanned.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if not isinstance(model, ResNet):
        return initialize(model, key, image)
    variables = initialize(model.copy(scan=False, remat=False), key, image)
    return stack_units(variables) if model.scan else variables

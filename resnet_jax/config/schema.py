"""The config of a run: built from the table of fields, changed by name, and checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from resnet_jax.config.checks import check_finite, check_storable, show_value
from resnet_jax.config.combinations import check_combinations
from resnet_jax.config.extensions import import_extensions
from resnet_jax.config.field_names import unknown_field
from resnet_jax.config.fields import FIELDS
from resnet_jax.errors import ConfigError
from resnet_jax.models.branches import BRANCHES
from resnet_jax.models.families import PRESETS
from resnet_jax.models.fields import fields_of
from resnet_jax.models.presets import config_types


def default_config(extensions: Sequence[str] = ()) -> ConfigDict:
    """Return all fields with their defaults, as a locked ConfigDict.

    docs/config.md explains the fields. `duration`, `eval_every`, `checkpoint_every`, `keep_every`,
    `schedule.warmup`, `schedule.boundaries`, `data.size_boundaries` and `diagnostics.every` are in
    `duration_unit`: another batch size doesn't change their meaning.

    Args:
        extensions: the value of `config.extensions`; a string is a single module. The modules are
            imported first, because branches that they register bring fields of `config.model`.

    Raises:
        ConfigError: a module can't be imported.
    """
    if isinstance(extensions, str):  # a string is a sequence, too
        extensions = (extensions,)
    import_extensions(extensions)
    config = ConfigDict()
    for field in FIELDS:
        section, _, key = field.name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        node = config[section] if section else config
        node[key] = config_dict.placeholder(field.kind) if field.default is None else field.default
    for name, kind in config_types().items():
        if name != "num_classes":  # comes with the data
            config.model[name] = config_dict.placeholder(kind)
    config.extensions = tuple(extensions)
    return config.lock()


def builtin_model_fields() -> set[str]:
    """Names of the fields of `config.model` that every process has, whatever was registered."""
    owners = [*(preset.build for preset in PRESETS.values()), *BRANCHES.values()]
    own = [owner for owner in owners if owner.__module__.startswith("resnet_jax.")]
    names = {field.name.removeprefix("model.") for field in FIELDS}
    return names.union(*(fields_of(owner) for owner in own))


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of `config.model` that are set, without the name: for `create_model`."""
    return {k: v for k, v in config.model.items() if k != "name" and v is not None}


def check_complete(config: ConfigDict) -> None:
    """Check that no field was deleted.

    Raises:
        ConfigError: naming the field.
    """
    values = flatten(config)
    for field in FIELDS:
        if field.name not in values:
            raise ConfigError(
                f"The config has no field {field.name}; start from default_config() or a file in"
                " configs/, and delete no field."
            )


def validate(config: ConfigDict) -> None:
    """Import the config's extensions, and check what can be checked without data or devices.

    Raises:
        ConfigError: naming the field, its value and the accepted values.
    """
    check_complete(config)
    import_extensions(config.extensions or ())
    check_fields(config)


def check_fields(config: ConfigDict) -> None:
    """Check what can be checked without extensions, data or devices.

    Raises:
        ConfigError: as `validate`.
    """
    check_complete(config)
    values = flatten(config)
    for name, value in values.items():
        check_storable(name, value)
        check_finite(name, value)
    for field in FIELDS:
        value = values[field.name]
        if value is None and field.default is not None:
            raise ConfigError(f"{field.name} is None; it needs a value, such as {field.default!r}.")
        if value is not None and field.check:
            field.check(field.name, value)
    check_combinations(config)


def streams(config: ConfigDict) -> bool:
    """Whether training images are decoded each time they are needed."""
    return bool(config.data.random_crop_area)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted name → value, with tuples for sequences."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list | tuple) else value
    return flat


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set the field with a dotted name.

    Raises:
        ConfigError: there is no such field, or the value has another type.
    """
    known = flatten(config)
    if name not in known:
        raise unknown_field(name, known)
    *path, last = name.split(".")
    node = config
    for key in path:
        node = node[key]
    try:
        node[last] = value
    except (TypeError, ValueError, OverflowError):
        kind = node.get_type(last).__name__
        raise ConfigError(f"{name} can't be {show_value(value)}; it is of type {kind}.") from None

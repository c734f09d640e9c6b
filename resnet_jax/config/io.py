"""Configs as JSON text, as config.json of a run holds them."""

import json
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.checks import show_value
from resnet_jax.config.fields import FOLDERS, MAY_CHANGE
from resnet_jax.config.schema import builtin_model_fields, default_config, flatten, set_field
from resnet_jax.errors import ConfigError


def to_json(config: ConfigDict) -> str:
    """Return the config as a JSON document, with the fields in their order.

    Fields of registered networks and branches are left out if they aren't set: the document doesn't
    depend on what else this process has registered.
    """
    fields = config.to_dict()
    builtin = builtin_model_fields()
    model = fields.get("model", {}).items()
    fields["model"] = {k: v for k, v in model if v is not None or k in builtin}
    return json.dumps(fields, indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Rebuild a config that `to_json` wrote, of this version or an older one.

    Fields that the text lacks have their defaults. Modules of `extensions` are imported; see
    config/extensions.py for what is never imported.

    Raises:
        ConfigError: the text isn't a config, or has a field that this version doesn't know.
    """
    try:
        stored = flatten(json.loads(text))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"it isn't a config that this package wrote ({error}).") from None
    extensions = stored.get("extensions", ())
    if not isinstance(extensions, tuple):
        raise ConfigError(f"its extensions are {show_value(extensions)}, not a list of modules.")
    config = default_config(extensions)
    known = flatten(config)
    for name, value in stored.items():
        if name not in known:
            if name.startswith("model.") and value is None:
                continue  # of a branch that another run of the writing process had registered
            of_model = name.startswith("model.")
            hint = "; fields of your own need their module in `extensions`" if of_model else ""
            raise ConfigError(f"it has a field {name} that this version doesn't know{hint}.")
        if value is not None:
            set_field(config, name, value)
    return config


def bound_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields to which a run is bound, as in JSON, by dotted name."""
    return {k: v for k, v in _fields_as_in_json(config).items() if k not in MAY_CHANGE}


def free_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that may differ when a run is resumed, as in JSON, by dotted name.

    Fields that name folders of one machine are left out.
    """
    fields = _fields_as_in_json(config)
    return {k: v for k, v in fields.items() if k in MAY_CHANGE and k not in FOLDERS}


def _fields_as_in_json(config: ConfigDict) -> dict[str, Any]:
    fields = flatten(json.loads(to_json(config)))
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def describe_differences(old: str, new: str) -> list[str]:
    """Return lines `name: old → new` for the fields of two JSON configs that differ, but may not.

    Raises:
        ConfigError: this version can't read the old config.
    """
    before, after = flatten(from_json(old)), flatten(from_json(new))
    return [
        f"{name}: {before[name]!r} → {after[name]!r}"
        for name in before
        if name not in MAY_CHANGE and before[name] != after[name]
    ]

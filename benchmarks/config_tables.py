"""The tables of docs/config.md, from the table of config fields and the networks' docstrings."""

import inspect
import itertools
import re
import typing
from collections.abc import Iterable
from typing import Any, Literal

from resnet_jax.config.fields import FIELDS, MAY_CHANGE, Field
from resnet_jax.models.alphago import AlphaGoZero
from resnet_jax.models.block_config import BlockConfig
from resnet_jax.models.fields import fields_of
from resnet_jax.models.highway import HighwayNet
from resnet_jax.models.network import Network
from resnet_jax.models.presets import config_types
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG

_TITLES = {
    "": "Run",
    "model": "Model",
    "data": "Data",
    "nonfinite": "Losses and gradients that aren't finite",
    "optimizer": "Optimiser",
    "schedule": "Learning rate",
    "distill": "Distillation",
    "diagnostics": "Diagnostics",
    "mesh": "Devices",
}


def _section(field: Field) -> str:
    return field.name.rpartition(".")[0]


def _row(field: Field) -> str:
    kind = field.kind or type(field.default)
    default = "" if field.default is None else f"`{field.default!r}`"
    rule = f"{kind.__name__}; {field.check.rule}" if field.check else kind.__name__
    resumed = "yes" if field.name in MAY_CHANGE else ""
    return f"| `{field.name}` | {default} | {rule} | {resumed} | {field.doc} |"


def _table(fields: Iterable[Field]) -> list[str]:
    heading = "| field | default | values | may change on resume | meaning |"
    return [heading, "|---|---|---|---|---|", *map(_row, fields), ""]


def _described(owner: type) -> dict[str, str]:
    """Field → meaning, from the section "Attributes" of a docstring."""
    text = (inspect.getdoc(owner) or "").partition("Attributes:")[2].partition("\n\n")[0]
    entries = re.split(r"\n    (?=[a-z_]+(?:, [a-z_]+)*: )", text)
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries if entry.strip())
    return {
        name: meaning[0].upper() + meaning[1:]
        for names, _, meaning in pairs
        for name in names.split(", ")
    }


def _values(hint: Any, kind: type) -> str:
    """The accepted values of a field, as a config has them."""
    choices = [hint, *typing.get_args(hint)]
    named = [typing.get_args(choice) for choice in choices if typing.get_origin(choice) is Literal]
    return ", ".join(f"`{value}`" for value in named[0]) if named else kind.__name__


def _model_table() -> list[str]:
    """The fields of networks beside `num_classes`, which comes with the data."""
    networks = {ResNet: "ResNet", VGG: "VGG", HighwayNet: "highway", AlphaGoZero: "AlphaGo Zero"}
    hints = {
        n: hint for cls in reversed(networks) for n, hint in typing.get_type_hints(cls).items()
    }
    lines = [
        "The other fields of `model` are unset by default: the preset decides. A field that the"
        " network doesn't have, or that would have no effect, is refused.",
        "",
        "| field of `model` | values | networks | meaning |",
        "|---|---|---|---|",
    ]
    for name, kind in config_types().items():
        owners = [cls for cls in networks if name in fields_of(cls)]
        if name == "num_classes" or not owners:
            continue
        meanings: dict[str, str] = {}
        for cls in (ResNet, BlockConfig, Network, VGG, HighwayNet, AlphaGoZero):
            meaning = _described(cls).get(name)
            if meaning and "s in `ResNet`" not in meaning:
                meanings.setdefault(networks.get(cls, ""), meaning)
        text = " ".join(
            meaning if number == 0 else f"{label}: {meaning}"
            for number, (label, meaning) in enumerate(meanings.items())
        )
        owned = "all" if len(owners) == len(networks) else ", ".join(networks[c] for c in owners)
        lines.append(f"| `{name}` | {_values(hints[name], kind)} | {owned} | {text} |")
    return lines


def config_tables() -> str:
    """A table for each section, in alphabetical order after the fields without a section."""
    lines = []
    ordered = sorted(FIELDS, key=_section)
    for section, fields in itertools.groupby(ordered, key=_section):
        lines += [f"## {_TITLES[section]}", "", *_table(fields)]
        if section == "model":
            lines += [*_model_table(), ""]
    return "\n".join(lines[:-1])


TABLES = {"config": config_tables}

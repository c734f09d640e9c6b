"""The tables of docs/config.md, from the table of config fields."""

import itertools
from collections.abc import Iterable

from resnet_jax.config.fields import FIELDS, MAY_CHANGE, Field
from resnet_jax.config.schema import default_config

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


def config_tables() -> str:
    """A table for each section, in alphabetical order after the fields without a section."""
    lines = []
    ordered = sorted(FIELDS, key=_section)
    for section, fields in itertools.groupby(ordered, key=_section):
        lines += [f"## {_TITLES[section]}", "", *_table(fields)]
        if section == "model":
            model = default_config().model
            kinds = [f"`{name}` {model.get_type(name).__name__}" for name in model]
            lines += [
                "All other fields of `model` are unset by default: the preset decides."
                " [Models](models.md) explains them.",
                "",
                ", ".join(kind for kind in kinds if not kind.startswith("`name`")) + ".",
                "",
            ]
    return "\n".join(lines[:-1])


TABLES = {"config": config_tables}

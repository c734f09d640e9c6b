"""Sweeps: the runs of a config and its overrides, all checked before the first one starts."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.workdir import CONFIG, SUMMARY, check_config, read_config
from resnet_jax.config.io import describe_differences, to_json
from resnet_jax.config.schema import flatten, set_field, validate
from resnet_jax.errors import ConfigError, ResnetJaxError, WriteError
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.pretrained import name_model
from resnet_jax.utils.paths import bucket_errors

_LONGEST_NAME = 120  # characters; file systems allow 255 bytes
_SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*"
_BASE = "base"  # name of a run without overrides


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        name: the name of the run and of its folder.
        fields: the names of the fields that the run overrides.
        config: the config with the overrides.
        is_named: whether the sweep gives the name; otherwise it is derived from the overrides.
    """

    name: str
    fields: tuple[str, ...]
    config: ConfigDict
    is_named: bool

    def is_finished(self, workdir: epath.Path) -> bool:
        """Whether the sweep's directory has a finished run of this name and config.

        Raises:
            ConfigError: the config in the directory can't be read.
            WriteError: the directory can't be read.
        """
        folder = workdir / self.name
        try:
            with bucket_errors(folder):
                is_there = (folder / SUMMARY).exists() and (folder / CONFIG).exists()
        except OSError as error:
            raise WriteError(f"{folder} can't be read ({error.strerror or error}).") from None
        if not is_there:
            return False
        config, on_record = name_model(self.config, folder), read_config(folder)
        try:
            return not describe_differences(on_record, to_json(config))
        except ConfigError as error:
            raise ConfigError(f"{folder / CONFIG} can't be used: {error}") from None


def plan_runs(base: ConfigDict, sweep: Iterable[Any]) -> tuple[PlannedRun, ...]:
    """The runs of a sweep, in its order.

    The name of a run doesn't depend on the other runs, so that runs can be added to a sweep later.

    Args:
        base: the config that the runs override.
        sweep: dicts of dotted field → value; the key "name" names the run.

    Raises:
        ConfigError: an override isn't a dict, names an unknown field, or has a value of another
            type; or two runs have the same name or the same config.
    """
    runs: list[PlannedRun] = []
    for number, given in enumerate(sweep, start=1):
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"sweep() yields {given!r}; it must yield dicts such as"
                ' {"model.name": "resnet56"}.'
            )
        overrides = dict(given)
        is_named = overrides.get("name") is not None
        name = overrides.pop("name", None)
        config = base.copy_and_resolve_references()
        for field, value in overrides.items():
            try:
                set_field(config, field, value)
            except ConfigError as error:
                raise ConfigError(f"Run {number} of the sweep: {error}") from None
        name = default_name(overrides) if name is None else _checked_name(name)
        runs.append(PlannedRun(name, tuple(overrides), config, is_named))
    if not runs:
        raise ConfigError("sweep() yields no run.")
    _check_apart(runs)
    return tuple(runs)


def default_name(overrides: Mapping[str, Any]) -> str:
    """A name such as `model.name=resnet20,model.shortcut=A`, safe as a file name."""
    name = ",".join(f"{field}={_as_text(value)}" for field, value in overrides.items()) or _BASE
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def label_by_difference(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each config with the fields that differ, such as "shortcut=A, width=32".

    Args:
        values: for each config, dotted field → value, all with the same fields. The label of a
            single config has all fields.
    """
    alone = len(values) == 1
    differing = [name for name in values[0] if alone or len({repr(of[name]) for of in values}) > 1]
    last_parts = collections.Counter(name.rpartition(".")[2] for name in differing)
    short = {name: name.rpartition(".")[2] for name in differing}
    shown = {name: part if last_parts[part] == 1 else name for name, part in short.items()}
    return [
        ", ".join(f"{shown[name]}={_as_text(of[name])}" for name in differing) or _BASE
        for of in values
    ]


def labels_of(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Run's name → its label: the name if the sweep gives it, or else the fields that differ."""
    fields = dict.fromkeys(field for run in runs for field in run.fields)
    flat = [flatten(run.config) for run in runs]
    labels = label_by_difference([{field: of[field] for field in fields} for of in flat])
    return {
        run.name: run.name if run.is_named else label
        for run, label in zip(runs, labels, strict=True)
    }


def _as_text(value: Any) -> str:
    """The value as text: (2, 2) is "2-2", a path is its last part."""
    if isinstance(value, list | tuple):
        return "-".join(map(_as_text, value))
    text = str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(_SAFE_NAME, name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"sweep() names a run {name!r}; a name is of letters, digits and ._=,+- and begins with"
            f" a letter or digit, {_LONGEST_NAME} of them at most."
        )
    return name


def _check_apart(runs: Iterable[PlannedRun]) -> None:
    names: set[str] = set()
    configs: dict[str, str] = {}
    for run in runs:
        if run.name in names:
            raise ConfigError(
                f'Two runs of the sweep are named {run.name!r}; give them a key "name".'
            )
        names.add(run.name)
        other = configs.setdefault(to_json(run.config), run.name)
        if other != run.name:
            raise ConfigError(f"{other} and {run.name} of the sweep are one and the same run.")


def check_runs(runs: Iterable[PlannedRun], workdir: epath.Path) -> None:
    """Check all runs that aren't finished, without training.

    The check reads the data. It doesn't depend on the number of devices.

    Raises:
        ConfigError: a field of a run is wrong, or its directory holds another run.
        DataError: the data of a run are missing or damaged.
        WriteError: a directory can't be read.
    """
    for run in runs:
        try:
            if run.is_finished(workdir):
                continue
            validate(run.config)
            config = name_model(run.config, workdir / run.name)
            on_one_device = config.copy_and_resolve_references()
            on_one_device.mesh.data = on_one_device.mesh.fsdp = 1
            Experiment.make(on_one_device)
            check_config(workdir / run.name, to_json(config), describe_differences)
        except ResnetJaxError as error:
            raise type(error)(f"{run.name}: {error} No run was started.") from None


def overridden_fields(runs: Iterable[PlannedRun]) -> tuple[str, ...]:
    """The fields that a run overrides or `vary` names, except the seed."""
    fields: dict[str, None] = {}
    for run in runs:
        fields |= dict.fromkeys((*run.fields, *(name for name, _ in run.config.vary)))
    return tuple(field for field in fields if field not in ("seed", "seeds", "vary"))

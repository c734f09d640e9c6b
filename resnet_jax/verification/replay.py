"""Training from one checkpoint of a run to the next again, and comparing the bits."""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.workdir import CHECKPOINTS, CONFIG, METRICS, read_config
from resnet_jax.config.schema import set_field
from resnet_jax.errors import DataError, StoppedEarly, WriteError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.parallel.mesh import make_mesh
from resnet_jax.train.fit import fit
from resnet_jax.train.restore import environment_of
from resnet_jax.utils.files import temporary_folder
from resnet_jax.utils.paths import bucket_errors
from resnet_jax.verification.compare import (
    Difference,
    describe_other,
    first_array_difference,
    first_record_difference,
)
from resnet_jax.verification.run_record import RunRecord

_PIECE = 2**24  # bytes that are copied at a time


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of training a slice of a run again.

    Attributes:
        first, last: steps of the two checkpoints; 0 for the initial state.
        seconds: it took.
        differences: the first of the records, and the first of the arrays at `last`; () if all
            bits are equal.
        other: what else computes the replay than the run; "" if nothing.
    """

    first: int
    last: int
    seconds: float
    differences: tuple[Difference, ...]
    other: str


def unreplayable(run: RunRecord, first: int, last: int) -> str:
    """Say why a slice can't be trained again; "" if it can."""
    if first and first not in run.manifests:
        return f"checkpoint {first} is damaged"
    if last not in run.manifests:
        return f"checkpoint {last} is damaged"
    before = run.progress(first)["nonfinite"] if first else 0
    rolled_back = run.progress(last)["nonfinite"] > before
    settings = [entry["settings"] for entry in _environments(run, first, last)]
    policies = {fields["nonfinite.policy"] for fields in settings} or {run.config.nonfinite.policy}
    if rolled_back and "rollback" in policies:
        return "the run went back to a checkpoint that isn't kept"
    return ""


def replay(run: RunRecord, first: int, last: int, *, data_dir: str | None) -> Replay:
    """Train a slice of a run again, in a temporary folder. The run is only read.

    Args:
        run: the run.
        first, last: steps of two checkpoints of the run; 0 for the initial state.
        data_dir: folder of the data; None for the folder of the config.

    Raises:
        WriteError: the temporary folder can't be written.
        ResnetJaxError: as `fit`.
        StoppedEarly: a signal stopped the replay.
    """
    began = time.monotonic()
    # What computed the slice, each from its step on; None if that isn't on record.
    parts: list[tuple[int, dict[str, Any] | None]] = [
        (max(first, entry["step"]), entry) for entry in _environments(run, first, last)
    ]
    if not parts or parts[0][0] > first:
        parts.insert(0, (first, None))
    configs = [_config(run, entry, data_dir) for _, entry in parts]
    stops = [*(step for step, _ in parts[1:]), last]
    with _temporary_folder() as temporary:
        folder = temporary / "run"
        _copy_start(run, first, folder)
        for config, stop in zip(configs, stops, strict=True):
            _train(config, folder, stop)
        differences = tuple(_differences(run, first, last, folder))
    others = (
        describe_other(entry, _here(config), fixed_shards=config.mesh.shards > 0)
        for (_, entry), config in zip(parts, configs, strict=True)
    )
    return Replay(
        first, last, time.monotonic() - began, differences, next(filter(None, others), "")
    )


def _environments(run: RunRecord, first: int, last: int) -> Iterator[dict[str, Any]]:
    """What computed a slice: the environment at `first`, and those that began within the slice."""
    entries = run.progress(last).get("environments", [])
    at_first = [entry for entry in entries if entry["step"] <= first]
    yield from at_first[-1:]
    yield from (entry for entry in entries if first < entry["step"] < last)


def _config(run: RunRecord, entry: Mapping[str, Any] | None, data_dir: str | None) -> ConfigDict:
    """The run's config with the settings of an environment, and no more checkpoints than needed."""
    config = run.config.copy_and_resolve_references()
    if entry:
        for name, value in entry["settings"].items():
            if value is not None:
                set_field(config, name, tuple(value) if isinstance(value, list) else value)
        _arrange(config, entry["hardware"]["devices"])
    if data_dir:
        config.data.dir = data_dir
    config.prometheus_dir = ""  # its file is that of the run
    config.trackers = ()  # they show the run
    config.checkpoint_every, config.keep_every = config.duration, 0.0
    config.keep_checkpoints = 1
    return config


def _arrange(config: ConfigDict, devices: int) -> None:
    """Use as many devices as the run did, or else as many of this machine as split a batch."""
    if devices <= jax.device_count():
        config.mesh.data = devices // config.mesh.fsdp
        return
    parts = config.mesh.shards or config.batch_size // config.accumulate
    config.mesh.data, config.mesh.fsdp = math.gcd(parts, jax.device_count()), 1


def _here(config: ConfigDict) -> dict[str, Any]:
    """The environment of this process, which trains by `config`."""
    return environment_of(config, make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp))


def _copy_start(run: RunRecord, first: int, folder: epath.Path) -> None:
    """Copy to `folder` what `fit` needs to go on from a checkpoint.

    The best checkpoint so far is copied too: the test split is scored with it at the end.

    Raises:
        DataError: a file can't be read; a run that began meanwhile may have deleted it.
        OSError: `folder` can't be written.
    """
    if not first:
        return
    (folder / CHECKPOINTS).mkdir(parents=True)
    (folder / CONFIG).write_text(read_config(run.workdir))
    if run.records:  # `fit` drops the lines of later steps
        _copy(run.workdir / METRICS, folder / METRICS)
    best = (run.progress(first)["best"] or {}).get("step", first)
    for step in {first, best} & set(run.manifests):
        _copy(run.workdir / CHECKPOINTS / str(step), folder / CHECKPOINTS / str(step))


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copy a file or a folder. Reading and writing raise errors of their own, unlike in `shutil`.

    Raises:
        DataError: `source` can't be read.
        OSError: `target` can't be written.
    """
    with _read_errors(source):
        paths = list(source.iterdir()) if source.is_dir() else None
    if paths is None:
        with target.open("wb") as file:
            for piece in _pieces(source):
                file.write(piece)
        return
    target.mkdir()
    for path in paths:
        _copy(path, target / path.name)


def _pieces(source: epath.Path) -> Iterator[bytes]:
    with _read_errors(source), source.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


@contextlib.contextmanager
def _read_errors(path: epath.Path) -> Iterator[None]:
    try:
        with bucket_errors(path):
            yield
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}).") from None


@contextlib.contextmanager
def _temporary_folder() -> Iterator[epath.Path]:
    """Make a folder for the replay, and remove it at the end.

    Raises:
        WriteError: the folder can't be written.
    """
    try:
        with temporary_folder() as folder:
            yield epath.Path(folder)
    except WriteError as error:  # of `fit` too, whose advice is about the run
        raise WriteError(
            f"The replay failed: {error} The run is as it was; the replay needs room in the folder"
            " of TMPDIR."
        ) from None


def _train(config: ConfigDict, folder: epath.Path, stop: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        reached = int(np.max(jax.device_get(fit(config, folder, stop_at_step=stop).state.step)))
    if reached != stop:
        raise StoppedEarly(f"stopped at step {reached:,} of the replay; the run is as it was")


def _differences(run: RunRecord, first: int, last: int, folder: epath.Path) -> Iterator[Difference]:
    """Yield the first difference of the records, and the first difference of the arrays."""
    replayed = read_metrics(folder / METRICS)
    ends = run.summary is not None and run.summary["steps"] == last  # with scores of the test split
    records = [
        [r for r in of if first < r["step"] <= last and r["split"] != "test"]
        + [r for r in of if r["split"] == "test" and ends]
        for of in (run.records, replayed)
    ]
    if found := first_record_difference(*records):
        yield found
    names = run.manifests[last]["checksums"]
    states = [path / CHECKPOINTS / str(last) / "state" for path in (run.workdir, folder)]
    if found := first_array_difference(last, names, *states):
        yield found

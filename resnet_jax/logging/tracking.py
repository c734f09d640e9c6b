"""Opening the trackers of a run: those that `config.trackers` names."""

import importlib.util
import json
import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.workdir import TRACKERS, write_atomically
from resnet_jax.config.fields import FOLDERS
from resnet_jax.config.io import to_json
from resnet_jax.config.schema import flatten
from resnet_jax.errors import ConfigError, StoppedEarly
from resnet_jax.logging.mlflow_tracker import MlflowTracker
from resnet_jax.logging.tensorboard import TensorBoard
from resnet_jax.logging.trackers import Tracker, Trackers, Value, reason_of, warn_of_end
from resnet_jax.logging.wandb_tracker import WandbTracker
from resnet_jax.parallel.job.agreement import is_main
from resnet_jax.utils.distribution import install_hint
from resnet_jax.utils.paths import read_document

_log = logging.getLogger(__name__)

_SERVICES: dict[str, type[WandbTracker] | type[MlflowTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""By the name in `config.trackers`, which also names the extra and the client's package."""


def check_installed(config: ConfigDict) -> None:
    """Check that the clients of the config's trackers are installed.

    Raises:
        ConfigError: naming the extra that isn't.
    """
    for name in config.trackers:
        if name not in _SERVICES:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name is no package
            raise ConfigError(
                f"trackers names {name!r}, whose client isn't installed: {install_hint(name)}."
            )


def open_trackers(config: ConfigDict, workdir: epath.Path, *, start_step: int) -> Trackers:
    """Open the config's trackers, and show them the config; only the main process of a job tracks.

    A run that goes on goes on in the same runs of the services, whose names are in trackers.json.

    Args:
        config: of the run.
        workdir: of the run, which is locked.
        start_step: step of the checkpoint that the run goes on from, or 0.

    Raises:
        ConfigError: a service can't be used by a new run. For a run that goes on, this is a
            warning, as is an event file of TensorBoard that can't be written.
        StoppedEarly: a signal came meanwhile.
    """
    if not is_main():
        return Trackers()
    known = _read_ids(workdir) if start_step else {}
    opened: dict[str, Tracker] = {}
    ids: dict[str, str] = {}
    for name in dict.fromkeys(config.trackers):
        title = _SERVICES[name].title if name in _SERVICES else TensorBoard.title
        try:
            if name in _SERVICES:
                tracker = _SERVICES[name](workdir, run_id=known.get(name))
                ids[name], opened[name] = tracker.run_id, tracker
                _log.info("%s: %s", title, tracker.where)
            else:
                metrics = _metrics(config)
                opened[name] = TensorBoard(workdir, start_step=start_step, metrics=metrics)
        except StoppedEarly:
            with Trackers(opened):
                raise
        except Exception as error:  # of the client, the network or the disk
            if name in _SERVICES and not start_step:
                with Trackers(opened):
                    raise ConfigError(
                        f"{title} can't be used ({reason_of(error)}). Nothing was trained; log in"
                        f" or set its variables, or take {name!r} out of trackers."
                    ) from error
            warn_of_end(title, error)
    if known | ids != known:
        _write_ids(workdir, known | ids)
    trackers = Trackers(opened)
    trackers.hyperparameters(hyperparameters(config))
    return trackers


def hyperparameters(config: ConfigDict) -> dict[str, Value]:
    """Return the fields of the config that are set, by dotted name, without folders."""
    fields = flatten(json.loads(to_json(config)))
    return {
        name: str(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
        if value not in (None, "", ()) and name not in FOLDERS
    }


def _metrics(config: ConfigDict) -> list[str]:
    splits = [split for split in ("validation", "test") if config.data[split]]
    return [f"{split}_raw/{metric}" for split in splits for metric in ("top1", "loss")]


def _read_ids(workdir: epath.Path) -> dict[str, str]:
    """Return name of the tracker → id of its run; {} if the file is missing or damaged."""
    path = workdir / TRACKERS
    try:
        ids: Any = json.loads(read_document(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s can't be read (%s); new runs are begun.", path, error)
        return {}
    texts = isinstance(ids, dict) and all(isinstance(value, str) for value in ids.values())
    return ids if texts else {}


def _write_ids(workdir: epath.Path, ids: dict[str, str]) -> None:
    path = workdir / TRACKERS
    try:
        write_atomically(path, json.dumps(ids, indent=1) + "\n")
    except OSError as error:
        _log.warning("%s can't be written (%s).", path, error.strerror or error)

"""Restoring the trained network of a run from its directory."""

import contextlib
import logging

import jax
from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.checkpoint.run_config import config_of
from resnet_jax.checkpoint.workdir import CHECKPOINTS
from resnet_jax.config.extensions import describe_changes
from resnet_jax.config.io import bound_fields
from resnet_jax.config.schema import model_overrides
from resnet_jax.errors import ConfigError, DataError, UsageError
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.models.presets import create_model
from resnet_jax.train.multi_seed import single_configs
from resnet_jax.utils.paths import as_path

_log = logging.getLogger(__name__)


def seeds_of(workdir: epath.PathLike) -> tuple[int, ...]:
    """The seeds of a run; `restore_run` restores the network of one of them.

    Raises:
        UsageError: `workdir` isn't the name of a folder.
        ConfigError: `workdir` isn't a run.
    """
    return _seeds(config_of(workdir))


def restore_run(
    workdir: epath.PathLike,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    seed_index: int = 0,
) -> TrainedNetwork:
    """Restore a network that `fit` trained.

    Args:
        workdir: the run's directory.
        checkpoint: "last", "best" or a step. "best" is the checkpoint with the best scores on the
            validation split; of a run without such scores it is the last one.
        ema: return the moving averages of the variables.
        seed_index: the index of the seed in a run of several seeds, from 0.

    Raises:
        UsageError: `workdir` isn't the name of a folder, or the run has fewer seeds.
        ConfigError: `workdir` isn't a run, or has no moving averages.
        DataError: there is no such checkpoint, or it is damaged or can't be read.
    """
    workdir = as_path(workdir)
    config = config_of(workdir)
    if ema and not config.ema_decay:
        raise ConfigError(f"{workdir} has no moving averages: its ema_decay is 0.")
    seeds = _seeds(config)
    if not 0 <= seed_index < len(seeds):
        listed = ", ".join(map(str, seeds))
        raise UsageError(f"seed_index is {seed_index}; {workdir} has the seeds {listed}.")
    try:
        reader = CheckpointReader(workdir / CHECKPOINTS, run=bound_fields(config))
        with contextlib.closing(reader) as checkpoints:
            step = _find_step(checkpoints, checkpoint, workdir)
            state, progress = checkpoints.restore_on_one_device(step)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{workdir / CHECKPOINTS} can't be read ({reason}).") from None
    if changed := describe_changes(config.extensions, progress.get("extensions", {})):
        _log.warning("%s: %s.", workdir, changed)
    if config.seeds:
        state = jax.tree.map(lambda leaf: leaf[seed_index], state)
        config = single_configs(config)[seed_index]
    class_names = tuple(progress["class_names"])
    model = create_model(config.model.name, **model_overrides(config), num_classes=len(class_names))
    variables = {name: state[name] for name in ("params", "batch_stats")}
    return TrainedNetwork(
        config=config,
        step=step,
        model=model,
        variables=state["ema"] if ema else variables,
        normalization=state["normalization"],
        class_names=class_names,
        image_shape=tuple(progress["image_shape"]),
        source=str(workdir),
    )


def _seeds(config: ConfigDict) -> tuple[int, ...]:
    return tuple(config.seeds) or (config.seed,)


def _find_step(checkpoints: CheckpointReader, checkpoint: str | int, workdir: epath.Path) -> int:
    """The step of "last", "best" or a number."""
    checkpoint = str(checkpoint)
    steps = checkpoints.steps()
    if not steps:
        raise DataError(f"{workdir} has no finished checkpoint yet.")
    step = steps[-1]
    if checkpoint == "best":
        step = (checkpoints.progress(step)["best"] or {}).get("step", step)
    elif checkpoint != "last":
        step = int(checkpoint) if checkpoint.isdecimal() else -1
    if step not in steps:
        listed = ", ".join(map(str, steps))
        raise DataError(
            f"{workdir} has no checkpoint {checkpoint!r}; it has last, best and the steps {listed}."
        )
    return step

"""Where a run begins: the newest good checkpoint, or the initial state."""

import dataclasses
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.checkpoint.checkpointer import Checkpointer
from resnet_jax.config.extensions import describe_changes, extension_digests
from resnet_jax.config.io import free_fields
from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.errors import DataError
from resnet_jax.logging.provenance import environment
from resnet_jax.ops.native import library as native
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.multi_seed import SeedAxis
from resnet_jax.train.pretrained import check_unchanged
from resnet_jax.train.saving import RunFacts
from resnet_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Beginning:
    """Where a run begins, and what it has done before.

    Attributes:
        state, step: the state and its step.
        facts: recorded in each checkpoint.
        best: {"step", "top1", "loss"} of the best checkpoint, or None.
        nonfinite: how often the run has skipped a step or gone back.
        records: number of records in metrics.jsonl; None if the checkpoint doesn't say.
        wall_s: seconds that the run took so far.
        notices: lines about the run for the console.
        change: line about a change since the checkpoint; "" for none.
    """

    state: TrainState
    step: int
    facts: RunFacts
    best: dict[str, Any] | None = None
    nonfinite: int = 0
    records: int | None = None
    wall_s: float = 0.0
    notices: tuple[str, ...] = ()
    change: str = ""


def environment_of(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """The `environment` of this process, which trains by `config` on the devices of `mesh`."""
    devices = mesh.devices
    together = 1 if config.mesh.shards or SeedAxis.make(config, mesh).spread else devices.size
    return environment(devices.size, native.describe(devices.flat[0].platform, together))


def restore_or_begin(
    experiment: Experiment, checkpoints: Checkpointer, workdir: epath.Path
) -> Beginning:
    """Restore the newest good checkpoint of a run, or make its initial state.

    Raises:
        ConfigError: the initial weights or the teacher aren't those that the run began with.
        DataError: the data aren't those that the run began with, or no checkpoint is good.
    """
    spec, dataset, teacher = experiment.spec, experiment.dataset, experiment.teacher
    here = environment_of(spec.config, spec.mesh)
    convolutions, here = here["convolutions"], here | {"settings": free_fields(spec.config)}
    facts = RunFacts(
        class_names=dataset.class_names,
        image_shape=spec.evaluation_shape,
        fingerprint=dataset.fingerprint,
        init_from=None,
        convolutions=[convolutions],
        teacher=teacher.record() if teacher else None,
        extensions=extension_digests(spec.config.extensions),
        environments=({"step": 0} | here,),
    )
    notices = ("only the classifier is trained",) if spec.step.head_only else ()
    restored = checkpoints.restore_newest(spec.abstract_state)
    if restored is None:
        state, weights = experiment.initial_state(), experiment.pretrained
        if weights is None:
            return Beginning(state, 0, facts, notices=notices)
        facts = dataclasses.replace(facts, init_from=weights.record())
        announced = weights.announce(spec.config, spec.model.num_classes)
        return Beginning(state, 0, facts, notices=(announced, *notices))

    # Older versions didn't record "init_from", "records", "convolutions", "teacher", "extensions"
    # and "environments".
    step, state, progress = restored
    if progress["fingerprint"] != dataset.fingerprint:
        old = (
            "pass the old data" if dataset.name == FROM_PYTHON else "point data.dir at the old data"
        )
        raise DataError(
            f"The images or labels of {dataset.name}, or their order, aren't those that the run in"
            f" {workdir} began with (fingerprint {dataset.fingerprint}, was"
            f" {progress['fingerprint']}). Nothing was touched; {old}."
        )
    init_from = progress.get("init_from")
    check_unchanged(spec.config.init_from, init_from)
    if teacher:
        teacher.check(progress.get("teacher"))
    if changed := describe_changes(spec.config.extensions, progress.get("extensions", {})):
        notices = (*notices, changed)
    change, before = "", progress.get("convolutions", [convolutions])
    if before[-1] != convolutions:
        change = (
            f"convolutions were by {before[-1]} so far and are by {convolutions} from here on,"
            " which round differently: the run goes on, but not bit for bit as it would have"
        )
        before = [*before, convolutions]
    environments = tuple(progress.get("environments", ()))
    if not environments or environments[-1] | {"step": step} != {"step": step} | here:
        environments = (*environments, {"step": step} | here)
    return Beginning(
        state,
        step,
        dataclasses.replace(
            facts, init_from=init_from, convolutions=before, environments=environments
        ),
        best=progress["best"],
        nonfinite=progress["nonfinite"],
        records=progress.get("records"),
        wall_s=progress["wall_s"],
        notices=notices,
        change=change,
    )

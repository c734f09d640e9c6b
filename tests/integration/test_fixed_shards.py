"""`mesh.shards`: the same bits on any mesh, in one process or several, stopped and resumed."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.config.schema import set_field
from resnet_jax.errors import ConfigError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.profiling.collectives import find_collectives
from resnet_jax.profiling.hlo import Module
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment
from tests.conftest import make_tiny_config
from tests.runs import digest
from tests.train.test_jobs import run_job

_RANDOM = {
    "model.dropout": 0.1,
    "model.head_dropout": 0.1,
    "model.stochastic_depth": 0.3,
    "data.random_erasing": 0.3,
    "mixup": 0.2,
    "cutmix": 1.0,
}
_TIMES = ("img_per_s", "wall_s", "data_wait")


def _config(**fields) -> ConfigDict:
    """Eight shards of four digits, all kinds of randomness, and a clipped gradient."""
    config = make_tiny_config()
    net = {"model.stage_sizes": (1, 1), "model.width": 8, "model.bn_group_size": 2}
    named = {name.replace("__", "."): value for name, value in fields.items()}
    chosen = net | _RANDOM | {"mesh.shards": 8, "optimizer.clip_norm": 1.0} | named
    for name, value in chosen.items():
        set_field(config, name, value)
    return config


def _train(steps: int, **fields) -> list[np.ndarray]:
    """All arrays of the state after `steps` steps."""
    experiment = Experiment.make(_config(**fields))
    run, batches, state = make_train_steps(experiment.spec), experiment.loader(), None
    state = experiment.initial_state()
    for step in range(0, steps, 4):
        state = run(state, *batches.take(step), np.int32(min(4, steps - step)))
    return jax.tree.leaves_with_path(jax.device_get(state))


def _assert_same_bits(state, expected) -> None:
    for (path, leaf), (_, wanted) in zip(state, expected, strict=True):
        assert leaf.tobytes() == wanted.tobytes(), jax.tree_util.keystr(path)


_LONG = {"duration": 40 * 32.0}
_SMALL = _LONG | {"model__stage_sizes": (1,), "mixup": 0.0, "cutmix": 0.0}
_RECIPES = {
    "sgd": _SMALL,
    "lamb": _LONG | {"optimizer__name": "lamb", "optimizer__decay": "decoupled"},
    "sam": _SMALL | {"sam_radius": 0.05, "data__resident": False},
}
_MESHES = [(2, 1), (8, 1), (1, 8)]  # those of the other recipes are beside these


@functools.cache
def _forty_steps_on_one_device(recipe):
    return _train(40, **_RECIPES[recipe])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("recipe", "mesh"),
    [*(("sgd", mesh) for mesh in _MESHES), ("lamb", (2, 4)), ("sam", (4, 2))],
    ids=str,
)
def test_forty_steps_have_the_same_bits_on_every_mesh(recipe, mesh):
    """Parameters, statistics, optimiser, averages and metrics.

    With layer-wise rates, whose norms are of split kernels; with images that the host sends.
    """
    data, fsdp = mesh
    state = _train(40, mesh__data=data, mesh__fsdp=fsdp, **_RECIPES[recipe])
    _assert_same_bits(state, _forty_steps_on_one_device(recipe))


@pytest.fixture
def threads(monkeypatch):
    """Keep the variable that `fit` would set to this test."""
    monkeypatch.setenv("PJRT_NPROC", "8")


def _records(workdir) -> list[dict]:
    """All that a run has logged, but for the times."""
    summary = json.loads((workdir / "summary.json").read_text())
    return [
        {name: value for name, value in record.items() if name not in _TIMES}
        for record in [*read_metrics(workdir / "metrics.jsonl"), summary["final"]]
    ]


@pytest.mark.thorough
def test_a_run_stopped_on_eight_devices_and_resumed_on_two_then_four_is_the_run_on_one(
    threads, tmp_path
):
    """To the bit: the last checkpoint, every record, and the scores with precise statistics."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    # The sums of so small a network with CutMix once had other quotients on several devices.
    fields = {"precise_bn": 3, "eval_batch_size": 50, "model__stage_sizes": (1,), "mixup": 0.0}
    resnet_jax.fit(_config(**fields), whole)
    resnet_jax.fit(_config(mesh__data=8, **fields), moved, stop_at_step=4)
    resnet_jax.fit(_config(mesh__data=1, mesh__fsdp=2, **fields), moved, stop_at_step=7)
    resnet_jax.fit(_config(mesh__data=4, **fields), moved)
    assert _records(moved) == _records(whole)
    assert digest(moved) == digest(whole)


_SHARDED = (
    "--config.mesh.shards=8",
    "--config.model.bn_group_size=4",
    "--config.model.dropout=0.1",
    "--config.model.stochastic_depth=0.3",
)


@pytest.mark.thorough
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (4, 2)])
def test_a_job_has_the_bits_of_one_device(processes, devices, sharded, tmp_path):
    """Whole runs of train.py: records, scores and the last checkpoint; kernels split over two."""
    fields = (*_SHARDED, "--config.mesh.fsdp=2")
    job = run_job(tmp_path / "job", *fields, processes=processes, devices=devices)
    assert [ended.code for ended in job] == [0] * processes, job
    assert _records(tmp_path / "job") == _records(sharded)
    assert digest(tmp_path / "job") == digest(sharded)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Work directory of the run of `_SHARDED` on one device."""
    workdir = tmp_path_factory.mktemp("sharded") / "run"
    (ended,) = run_job(workdir, *_SHARDED, processes=1, devices=1)
    assert ended.code == 0, ended.said
    return workdir


@pytest.mark.thorough
def test_evaluating_the_run_gives_the_bits_of_its_own_scores(threads, tmp_path):
    """Of a run on two devices, here on all eight: last and averaged weights."""
    config = _config(mesh__data=2, model__stage_sizes=(1,), eval_batch_size=50)
    resnet_jax.fit(config, tmp_path)
    for ema, weights in ((False, "raw"), (True, "ema")):
        network = resnet_jax.restore_run(tmp_path, ema=ema)
        for split in ("validation", "test"):
            (record,) = [
                record
                for record in read_metrics(tmp_path / "metrics.jsonl")
                if (record["split"], record.get("weights")) == (split, weights)
                and record["step"] == network.step
            ]
            scores = network.evaluate(split).scalars()
            assert scores == {name: record[name] for name in scores}


@pytest.mark.thorough
def test_shards_train_like_a_batch_with_statistics_of_groups():
    """Without what is drawn by shard, up to rounding: gradients, statistics and metrics."""
    alike = {"model__dropout": 0.0, "model__head_dropout": 0.0, "model__stochastic_depth": 0.0}
    shards, batch = _train(4, **alike), _train(4, **alike, mesh__shards=0)
    for (path, leaf), (_, wanted) in zip(shards, batch, strict=True):
        np.testing.assert_allclose(
            leaf, wanted, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.thorough
def test_the_traffic_is_that_of_an_all_reduce():
    """One all-to-all and one all-gather of a part of the sums; nothing else is exchanged."""
    experiment = Experiment.make(_config(mesh__data=8, **_SMALL))
    shapes = experiment.spec.abstract_state, *experiment.spec.abstract_batches(), 1
    text = make_train_steps(experiment.spec).lower(*shapes).compile().as_text()
    found = find_collectives(Module.parse(text), devices=8)
    assert sorted(each.kind for each in found) == ["all-gather", "all-to-all"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh.shards": 6}, "mesh.shards is 6; it can be 0 or a power of two"),
        (
            {"mesh.data": 8, "mesh.shards": 4},
            "mesh.shards is 4, which isn't divisible by 8 devices",
        ),
        ({"batch_size": 36}, "batch_size is 36, which doesn't split into mesh.shards = 8 shards"),
        ({"model.bn_group_size": 8}, "shards of 4 examples don't split into groups of"),
        ({"model.bn_group_size": None}, "batch normalisation is over the whole batch; set"),
        ({"batch_size": 24, "model.bn_group_size": 3}, "pairs must be within a shard"),
        ({"batch_size": 8, "model.bn_group_size": 1}, "which gives shards of 1 example; mixup and"),
        ({"seeds": (0, 1)}, "mesh.shards is 8, which doesn't go with seeds"),
        ({"accumulate": 2}, "mesh.shards is 8, which doesn't go with accumulate"),
        ({"diagnostics.every": 32.0}, "mesh.shards is 8, which doesn't go with diagnostics.every"),
    ],
)
def test_what_does_not_go_with_shards_is_refused_in_one_line(fields, message, threads, tmp_path):
    with pytest.raises(ConfigError) as error:
        resnet_jax.fit(_config(**fields), tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)

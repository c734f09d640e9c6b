"""The same training on every mesh, and what it costs in communication."""

import math
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.config.schema import set_field
from resnet_jax.parallel.mesh import put_global, replicated
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.metrics import TrainMetrics
from tests.conftest import make_tiny_config

STEPS = 20


def _config(**fields) -> ConfigDict:
    """The tiny config, on a net of two stages, with other fields: "__" in a name is a dot.

    Its activation is smooth: rounding that moves one ReLU's input over zero changes a gradient by
    far more than rounding.
    """
    config = make_tiny_config()
    net = {"model__stage_sizes": (1, 1), "model__width": 8, "model__activation": "silu"}
    for name, value in (net | fields).items():
        set_field(config, name.replace("__", "."), value)
    return config


def _experiment(**fields) -> Experiment:
    return Experiment.make(_config(**fields))


def _compile(experiment: Experiment):
    batches = experiment.spec.abstract_batches()
    return (
        make_train_steps(experiment.spec)
        .lower(experiment.spec.abstract_state, *batches, 1)
        .compile()
    )


def _train(experiment: Experiment, steps: int = STEPS) -> tuple[np.ndarray, dict]:
    """The loss of each step, and parameters and statistics after the last."""
    run, batches, state = _compile(experiment), experiment.loader(), experiment.initial_state()
    losses = []
    for step in range(steps):
        empty = put_global(TrainMetrics.zero(), replicated(experiment.spec.mesh))
        state = state.replace(meter=empty)
        state = run(state, *batches.take(step), np.int32(1))
        losses.append(float(state.meter.loss))
    return np.array(losses), jax.device_get(state.variables())


def _assert_close(tree, expected, tolerance):
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, atol=tolerance * np.abs(wanted).max(), rtol=0)


def _collectives(experiment: Experiment) -> dict[str, list[str]]:
    """The instructions of the compiled step that communicate, by kind."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    lines = _compile(experiment).as_text().splitlines()
    found = {kind: [line for line in lines if f" {kind}(" in line] for kind in kinds}
    return {kind: lines for kind, lines in found.items() if lines}


@pytest.fixture(scope="module")
def one_device():
    return _train(_experiment())


_MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (1, 8)]


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [(2, 4), *_MESHES], ids=lambda mesh: f"{mesh[0]}x{mesh[1]}")
def test_twenty_steps_have_the_same_losses_on_every_mesh(mesh, one_device):
    """Float32, batch normalisation over the global batch, images sent from the host."""
    data, fsdp = mesh
    experiment = _experiment(mesh__data=data, mesh__fsdp=fsdp, data__resident=False)
    losses, variables = _train(experiment)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    _assert_close(variables, one_device[1], 1e-4)


@pytest.fixture(scope="module")
def groups():
    """Losses and variables of a few steps with statistics of groups of eight."""
    return _train(_experiment(model__bn_group_size=8), steps=6)


@pytest.mark.thorough
def test_accumulation_equals_the_large_batch_for_statistics_of_groups(groups):
    """Running statistics included, and on a mesh where each group is spread over two devices."""
    small = {"model__bn_group_size": 8, "accumulate": 2, "mesh__data": 2, "mesh__fsdp": 2}
    losses, variables = _train(_experiment(**small), steps=6)
    np.testing.assert_allclose(losses, groups[0], rtol=1e-5)
    _assert_close(variables, groups[1], 1e-4)


@pytest.mark.thorough
def test_accumulation_with_global_statistics_is_that_of_groups_as_large_as_a_micro_batch(groups):
    accumulated = _train(_experiment(accumulate=4), steps=6)
    np.testing.assert_allclose(accumulated[0], groups[0], rtol=1e-5)
    _assert_close(accumulated[1], groups[1], 1e-4)
    whole, _ = _train(_experiment(), steps=6)
    assert np.abs(accumulated[0] / whole - 1).max() > 1e-4  # and not that of the whole batch


def _waiting(**fields) -> int:
    """All-reduces whose result goes into the forward or backward pass of another layer."""
    experiment = _experiment(mesh__data=8, model__stage_sizes=(1,), **fields)
    inputs = jax.ShapeDtypeStruct((32, 8, 8, 1), np.float32)
    state = experiment.spec.abstract_state

    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        return experiment.spec.model.apply(variables, images, train=True, update_stats=False).sum()

    # Gradients of the inputs go through every layer and are sums over nothing.
    layout = jax.sharding.NamedSharding(
        experiment.spec.mesh, jax.sharding.PartitionSpec(("data", "fsdp"))
    )
    gradient = jax.jit(
        jax.grad(loss, argnums=2), in_shardings=(None, None, layout), out_shardings=layout
    )
    text = gradient.lower(state.params, state.batch_stats, inputs).compile().as_text()
    return len(re.findall(r" all-reduce(?:-start)?\(", text))


def test_groups_within_a_shard_are_normalised_without_communication():
    """What is left to reduce are sums over the batch: gradients, loss, running statistics.

    None of those is waited for by another layer, so that they may be one all-reduce at the end.
    """
    assert _waiting(model__bn_group_size=4) == 0
    assert _waiting(model__bn_group_size=2) == 0
    assert _waiting() > 0
    assert _waiting(model__bn_group_size=8) > 0  # such a group lies on two devices


def _participants(line: str) -> int:
    """How many devices an all-reduce sums over, from the ways in which XLA writes its groups."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # 'data':(2)4 is a part of an axis: 4 devices, of which 2 groups lie beside each other.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    return len(re.search(r"replica_groups=\{\{([\d,]+)\}", line)[1].split(","))


def test_groups_across_shards_are_reduced_within_the_group_only():
    """Statistics of 16 of 32 examples, on 8 devices: layer by layer, 4 devices take part."""
    lines = _collectives(_experiment(mesh__data=8, model__bn_group_size=16))["all-reduce"]
    of_statistics = [line for line in lines if re.search(r"f32\[1,\d+\].* all-reduce", line)]
    assert len(of_statistics) >= 5  # one for each normalisation
    assert {_participants(line) for line in of_statistics} <= {4, 2}


def test_frozen_statistics_need_no_communication_but_the_gradients():
    assert _waiting(model__bn_frozen=True) == 0


def test_sharded_kernels_are_gathered_and_the_batch_never_is():
    # The program of a test above, which is in the compilation cache.
    found = _collectives(_experiment(mesh__data=2, mesh__fsdp=4, data__resident=False))
    assert set(found) <= {"all-reduce", "all-gather", "reduce-scatter"}
    kernels = set()
    for leaf in jax.tree.leaves(_experiment().spec.abstract_state.params):
        kernels.add("f32[" + ",".join(map(str, leaf.shape)))
    for line in found["all-gather"]:
        for shape in re.findall(r"\w+\[[\d,]*", line.partition("=")[2].partition("all-gather")[0]):
            assert shape in kernels, line


def test_parameters_and_optimiser_state_take_the_memory_of_their_share():
    whole = _experiment(mesh__data=1).initial_state()
    split = _experiment(mesh__data=1, mesh__fsdp=4).initial_state()

    def on_first_device(state):
        arrays = jax.tree.leaves((state.params, state.opt_state, state.ema["params"]))
        return sum(array.addressable_shards[0].data.nbytes for array in arrays)

    vectors = sum(3 * p.nbytes for p in jax.tree.leaves(whole.params) if p.ndim < 2)
    kernels = on_first_device(whole) - vectors
    assert on_first_device(split) - vectors == pytest.approx(kernels / 4, rel=0.01)


@pytest.mark.thorough
def test_a_run_with_split_parameters_is_scored_saved_and_resumed(tmp_path):
    """To its end, with every kind of evaluation, as on one device."""
    rarely = {"eval_every": 6 * 32.0, "checkpoint_every": 6 * 32.0}
    whole = resnet_jax.fit(_config(**rarely), tmp_path / "whole")
    config = _config(**rarely, mesh__data=2, mesh__fsdp=4)
    resnet_jax.fit(config, tmp_path / "split", stop_at_step=7)
    split = resnet_jax.fit(config, tmp_path / "split")
    assert split.evaluation.keys() == whole.evaluation.keys()
    for name, scores in split.evaluation.items():
        assert scores.examples == whole.evaluation[name].examples
        assert scores.loss == pytest.approx(whole.evaluation[name].loss, rel=1e-4)

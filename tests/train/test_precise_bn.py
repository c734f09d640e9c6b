"""Running statistics that are measured anew before a network is scored."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import resnet_jax
from resnet_jax.train import multi_seed as seeds_module
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.precise_bn import PreciseStatistics, _population


@pytest.fixture
def config(tiny_config):
    """No augmentation, so that the batches can be put together here."""
    tiny_config.model.stage_sizes = (1,)
    tiny_config.data.crop_padding = 0
    tiny_config.data.flip = False
    tiny_config.precise_bn = 6
    return tiny_config


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_are_those_of_the_batches_of_the_last_steps(accumulate, config):
    """Those before the first normalisation, of 6 batches in dispatches of 4 and 2."""
    config.accumulate = accumulate
    experiment = Experiment.make(config)
    batches = experiment.loader()
    state = experiment.initial_state().moved_to(7)
    state = state.replace(ema=jax.tree.map(lambda leaf: 2 * leaf, state.ema))
    ids = experiment.spec.orders()[0].take(1, 6)[0].ravel()
    images = experiment.dataset.splits["train"].images[ids].astype(np.float32)
    x = (images - np.asarray(state.normalization["mean"])) / state.normalization["std"]

    after = PreciseStatistics(experiment.spec)(state, batches)

    for now, before in ((after.variables(), state), (after.variables(ema=True), None)):
        kernel = now["params"]["conv1"]["kernel"]
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        stats = now["batch_stats"]["bn1"]
        np.testing.assert_allclose(stats["mean"], y.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(stats["var"], y.var(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
        if before:
            for leaf, old in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True):
                np.testing.assert_array_equal(leaf, old)


@pytest.mark.thorough
@pytest.mark.parametrize(("devices", "one_by_one"), [(1, True), (1, False), (2, True)])
def test_each_of_several_seeds_has_the_statistics_that_it_would_have_alone(
    devices, one_by_one, config, monkeypatch
):
    """On two devices each has a seed of its own; accelerators measure all seeds together."""
    monkeypatch.setattr(seeds_module, "_one_by_one", lambda mesh: one_by_one)
    config.seeds, config.mesh.data = (0, 3), devices
    together = Experiment.make(config)
    assert together.spec.seeds.spread == (devices > 1)
    state = together.initial_state().moved_to(7)

    measured = PreciseStatistics(together.spec)(state, together.loader())

    for number, single in enumerate(together.spec.singles):
        config.seeds, config.mesh.data, config.seed = (), 1, single.config.seed
        alone = Experiment.make(config)
        state = alone.initial_state().moved_to(7)
        expected = PreciseStatistics(alone.spec)(state, alone.loader())
        for ema in (False, True):
            leaves = (tree.variables(ema=ema)["batch_stats"] for tree in (measured, expected))
            for leaf, wanted in zip(*map(jax.tree.leaves, leaves), strict=True):
                np.testing.assert_allclose(leaf[number], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_a_run_of_several_seeds_scores_them_by_precise_statistics(config, tmp_path):
    config.seeds, config.duration = (0, 3), 4 * 32.0
    result = resnet_jax.fit(config, tmp_path / "run")
    assert {len(r["seeds"]["top1"]) for r in result.history if r["split"] == "validation"} == {2}
    experiment = Experiment.make(config)
    measured = PreciseStatistics(experiment.spec)(result.state, experiment.loader())
    for leaf, wanted in zip(
        *map(jax.tree.leaves, (measured.batch_stats, result.state.batch_stats)), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)


def test_statistics_from_sums_have_the_same_bits_on_several_devices():
    """XLA divides by the reciprocal of a shared divisor in programs for several devices only."""
    rng = np.random.default_rng(0)
    moments = {name: rng.uniform(1.0, 2.0, (2, 8)).astype("f") for name in "abc"}
    sums = {name: {"mean": mean, "var": mean**2 + var} for name, (mean, var) in moments.items()}
    found = []
    for count in (1, 8):
        everywhere = NamedSharding(Mesh(np.array(jax.devices()[:count]), "d"), PartitionSpec())
        population = jax.jit(_population, out_shardings=everywhere)
        found.append(population(jax.device_put(sums, everywhere), np.float32(1) / np.float32(24)))
    for one, several in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, several)
    np.testing.assert_allclose(found[0]["a"]["mean"], sums["a"]["mean"] / 24, rtol=1e-6)


@pytest.mark.thorough
def test_a_run_measures_before_it_scores_and_goes_on_as_it_would(config, tmp_path):
    expected = resnet_jax.fit(config, tmp_path / "whole")
    resnet_jax.fit(config, tmp_path / "stopped", stop_at_step=7)
    result = resnet_jax.fit(config, tmp_path / "stopped")
    for leaf, wanted in zip(*map(jax.tree.leaves, (result.state, expected.state)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    measured = PreciseStatistics(Experiment.make(config).spec)(
        expected.state, Experiment.make(config).loader()
    )
    for leaf, wanted in zip(
        *map(jax.tree.leaves, (measured.batch_stats, expected.state.batch_stats)), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)


@pytest.mark.thorough
def test_validation_of_digits_falls_from_the_start(tmp_path):
    """By running averages the losses of these epochs are 3.1, 78 and 9.8, on the same weights."""
    path = Path(__file__).parents[2] / "configs" / "digits.py"
    config = runpy.run_path(str(path))["get_config"]()
    config.mesh.data = 1
    history = resnet_jax.fit(config, tmp_path, stop_at_step=61).history
    losses = [record["loss"] for record in history if record["split"] == "validation"]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < 2.3  # that of a guess, ln 10

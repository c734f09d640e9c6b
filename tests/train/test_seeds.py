"""Several seeds in one program: each is the run that it would be alone."""

import functools
import json

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError, NumericalError, UsageError
from resnet_jax.inference.restore import seeds_of
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.train import multi_seed as seeds_module
from resnet_jax.train.experiment import Experiment
from tests.cli.mistakes import assert_one_line
from tests.conftest import make_tiny_config

SEEDS = (0, 3)
VARY = (
    ("schedule.base_lr", (0.1, 0.05)),
    ("optimizer.weight_decay", (1e-4, 1e-2)),
    ("optimizer.momentum", (0.9, 0.5)),
    ("label_smoothing", (0.0, 0.1)),
)


def _config(**fields):
    config = make_tiny_config()
    config.model.stage_sizes = (1,)
    for name, value in fields.items():
        node, *path = config, *name.split("__")
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    return config


def _of_seed(number, **fields):
    """The config of a seed's run alone."""
    config = _config(seed=SEEDS[number], **fields)
    for name, values in VARY:
        resnet_jax.config.schema.set_field(config, name, values[number])
    return config


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A run of all seeds, and its directory."""
    workdir = tmp_path_factory.mktemp("many") / "run"
    return resnet_jax.fit(_config(seeds=SEEDS, vary=VARY), workdir), workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that trains a seed by itself, once."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda i: resnet_jax.fit(_of_seed(i), folder / str(i)))


def _assert_close(found, wanted):
    for leaf, expected in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        largest = np.abs(np.asarray(expected)).max()
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-5 * largest)


def _parts(state):
    return state.params, state.batch_stats, state.opt_state, state.ema


@pytest.mark.thorough
def test_each_seed_is_its_run_alone(many, alone):
    result, _ = many
    for number in range(len(SEEDS)):
        single = alone(number)
        ours = jax.tree.map(lambda leaf, i=number: leaf[i], _parts(result.state))
        _assert_close(ours, _parts(single.state))
        for split, scores in single.evaluation.items():
            if split != "test_best":  # all seeds have one best checkpoint, by their mean
                assert result.evaluation[split].seeds[number].top1 == scores.top1
        for record, of_single in zip(result.history, single.history, strict=False):
            for metric in {"loss", "top1", "grad_norm", "lr"} & set(of_single):
                values = record["seeds"][metric]
                np.testing.assert_allclose(values[number], of_single[metric], rtol=1e-4)


def test_records_have_each_seed_their_mean_and_their_deviation(many):
    result, workdir = many
    for record in read_metrics(workdir / "metrics.jsonl"):
        for metric, values in record["seeds"].items():
            assert len(values) == len(SEEDS)
            np.testing.assert_allclose(record[metric], np.mean(values), rtol=1e-12)
            np.testing.assert_allclose(record["std"][metric], np.std(values, ddof=1), rtol=1e-9)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["seeds"] == list(SEEDS)
    assert len(summary["final"]["test"]["seeds"]["top1"]) == len(SEEDS)
    assert (workdir / "curves.png").stat().st_size > 10_000
    assert result.best["top1"] == max(
        r["top1"] for r in result.history if r["split"] == "validation" and r["weights"] == "raw"
    )


def test_a_finished_run_started_again_has_the_scores_of_each_seed(many):
    result, workdir = many
    again = resnet_jax.fit(_config(seeds=SEEDS, vary=VARY), workdir)
    assert again.evaluation.keys() == result.evaluation.keys()
    for name, scores in result.evaluation.items():
        assert again.evaluation[name].scalars() == scores.scalars()
        assert [s.top1 for s in again.evaluation[name].seeds] == [s.top1 for s in scores.seeds]


@pytest.mark.thorough
def test_seeds_are_shared_out_to_devices_and_are_the_same(many, tmp_path):
    result, _ = many
    spread = resnet_jax.fit(_config(seeds=SEEDS, vary=VARY, mesh__data=2), tmp_path / "run")
    layout = spread.state.params["fc"]["kernel"].sharding
    assert not layout.is_fully_replicated
    assert spread.state.params["fc"]["kernel"].addressable_shards[0].data.shape[0] == 1
    _assert_close(_parts(spread.state), _parts(result.state))


@pytest.mark.thorough
def test_a_batch_is_shared_out_where_the_devices_are_no_divisor(tmp_path, alone):
    config = _config(seeds=SEEDS, vary=VARY, mesh__data=4, duration=4 * 32.0)
    experiment = Experiment.make(config)
    assert not experiment.spec.seeds.spread
    result = resnet_jax.fit(config, tmp_path / "run")
    [first] = [r for r in result.history if r["split"] == "validation" and r["weights"] == "raw"]
    for number, loss in enumerate(first["seeds"]["loss"]):
        np.testing.assert_allclose(loss, alone(number).history[0]["loss"], rtol=1e-4)


@pytest.mark.thorough
def test_seeds_trained_together_as_on_accelerators_are_the_same(many, monkeypatch, tmp_path):
    result, _ = many
    monkeypatch.setattr(seeds_module, "_one_by_one", lambda mesh: False)
    together = resnet_jax.fit(_config(seeds=SEEDS, vary=VARY), tmp_path / "run")
    _assert_close(_parts(together.state), _parts(result.state))


@pytest.mark.thorough
def test_a_stopped_run_goes_on_to_the_bit(many, tmp_path):
    config = _config(seeds=SEEDS, vary=VARY)
    assert resnet_jax.fit(config, tmp_path / "run", stop_at_step=7).stopped_early
    resumed = resnet_jax.fit(config, tmp_path / "run")
    for found, wanted in zip(*map(jax.tree.leaves, (resumed.state, many[0].state)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    timeless = [
        [{k: v for k, v in r.items() if k not in ("img_per_s", "wall_s")} for r in history]
        for history in (resumed.history, many[0].history)
    ]
    assert timeless[0] == timeless[1]


def test_gate_biases_vary_as_initial_values():
    biases = (-6.0, 2.0)
    config = _config(seeds=(1, 1), vary=(("model.gate_bias", biases),))
    config.model.merge, config.model.shortcut = "coupled_gates", "A"
    state = Experiment.make(config).initial_state()
    gate = state.params["layer1_0"]["gate"]["bias"]
    np.testing.assert_array_equal(gate[:, 0], biases)
    kernels = state.params["layer1_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernels[0], kernels[1])


@pytest.mark.thorough
def test_a_network_of_the_run_is_that_of_a_seed(many, alone):
    _, workdir = many
    assert seeds_of(workdir) == SEEDS
    network = resnet_jax.restore_run(workdir, seed_index=1)
    assert (network.config.seed, network.config.schedule.base_lr) == (3, 0.05)
    _assert_close(network.variables, alone(1).state.variables())
    assert network.evaluate("test").top1 == alone(1).evaluation["test"].top1
    with pytest.raises(UsageError, match="seed_index is 2; .* has the seeds 0, 3"):
        resnet_jax.restore_run(workdir, seed_index=2)


def test_eval_scores_all_seeds_or_one(many, capsys):
    from resnet_jax.cli.main import main

    result, workdir = many
    assert main(["eval", str(workdir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["top1"] == pytest.approx(result.evaluation["test"].top1)
    assert document["of_seeds"] == list(SEEDS)
    assert main(["eval", str(workdir), "--seed-index=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == result.evaluation["test"].seeds[1].top1
    assert_one_line(["mlperf", str(workdir), "--target=0.5"], 78, "of several seeds", capsys)


def test_a_seed_that_diverges_is_named(tmp_path):
    config = _config(seeds=(0, 4), vary=(("schedule.base_lr", (0.1, 1e30)),))
    with pytest.raises(NumericalError, match="of seed 4 stopped being finite"):
        resnet_jax.fit(config, tmp_path / "run")


@pytest.mark.thorough
def test_a_seed_that_is_skipped_leaves_the_other_alone(tmp_path, alone):
    config = _config(seeds=(0, 4), vary=(("schedule.base_lr", (0.1, 1e30)),))
    config.nonfinite.policy, config.nonfinite.limit = "skip", 100
    result = resnet_jax.fit(config, tmp_path / "run")
    lines = (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()
    assert {json.loads(line)["seed"] for line in lines} == {4}
    good = jax.tree.map(lambda leaf: leaf[0], result.state.params)
    _assert_close(good, alone(0).state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vary": VARY[:1]}, "vary gives values to the seeds of `seeds`, which is empty"),
        ({"seeds": (0, 0)}, r"seeds is (0, 0), of which seeds[1] is the run of an earlier seed"),
        ({"seeds": (0, -1)}, "seeds has -1; seeds are numbers from 0"),
        ({"seeds": (0, "one")}, "seeds has 'one'"),
        ({"seeds": (0, 1), "vary": (("batch_size", (1, 2)),)}, "vary names 'batch_size'"),
        (
            {"seeds": (0, 1), "vary": (("schedule.base_lr", (1.0,)),)},
            "vary gives schedule.base_lr (1.0,); it needs 2 values",
        ),
        ({"seeds": (0, 1), "vary": ("schedule.base_lr",)}, "it holds pairs of a field and values"),
        (
            {"seeds": (0, 1), "vary": (("schedule.base_lr", (0.1, -1.0)),)},
            "Of seeds[1]: schedule.base_lr is -1.0; it can't be negative",
        ),
        (
            {"seeds": (0, 1), "nonfinite__policy": "rollback"},
            "several seeds in one program have no nonfinite.policy='rollback'",
        ),
    ],
)
def test_seeds_that_cannot_be(fields, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        resnet_jax.fit(_config(**fields), tmp_path / "run")
    assert message in str(caught.value)

"""One table of metrics serves training, evaluation and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.checkpoint.integrity import named_leaves
from resnet_jax.train.metrics import (
    MAX_RECORDED_STEPS,
    METRICS,
    Metric,
    TrainMetrics,
    nonfinite_steps,
    rank,
)


def test_means_of_sums_that_overflow_are_the_largest_float32():
    """Each of two steps is finite; JSON, which the means go to, has no infinity."""
    metrics, finite = TrainMetrics.zero(), jnp.bool_(True)
    for step in range(2):
        huge, sums = jnp.float32(3e38), {"top1": jnp.float32(4)}
        metrics = metrics.add(
            jnp.int32(step), finite=finite, examples=8, loss=huge, grad_norm=huge, sums=sums
        )
    largest = float(np.finfo(np.float32).max)
    assert metrics.means() == {"loss": largest, "top1": 0.5, "grad_norm": largest}


def test_a_nonfinite_step_counts_by_its_number_alone():
    metrics, nan = TrainMetrics.zero(), jnp.float32(jnp.nan)
    for step in range(MAX_RECORDED_STEPS + 1):
        metrics = metrics.add(
            jnp.int32(step), finite=jnp.isfinite(nan), examples=8, loss=nan, grad_norm=nan,
            sums={"top1": nan},
        )  # fmt: skip
    assert int(metrics.nonfinite) == MAX_RECORDED_STEPS + 1
    assert nonfinite_steps([metrics]) == [(0, step) for step in range(MAX_RECORDED_STEPS)]
    assert float(metrics.examples) == float(metrics.loss) == float(metrics.sums["top1"]) == 0


def test_checkpoints_hold_the_sums_under_the_names_of_older_versions():
    names = ["examples", "grad_norm", "loss", "nonfinite", "nonfinite_steps", "steps", "top1"]
    assert sorted(named_leaves(TrainMetrics.zero())) == names
    metrics = TrainMetrics.zero()
    again = jax.tree.map(lambda leaf: leaf + 1, metrics)
    assert int(again.nonfinite) == float(again.sums["top1"]) == float(again.steps) == 1


def test_equal_logits_are_ranked_as_by_argmax():
    logits = jnp.array([[1.0, 2.0, 2.0, 0.0]] * 4)
    np.testing.assert_array_equal(rank(logits, jnp.arange(4)), [2, 0, 1, 3])
    np.testing.assert_array_equal(rank(logits.at[:, 0].set(jnp.nan), jnp.arange(4)), [5] * 4)


@pytest.mark.thorough
@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_a_metric_of_the_table_is_in_all_records(seeds, tiny_config, tmp_path, monkeypatch):
    def confidence(logits, labels):
        return jax.nn.softmax(logits).max(axis=-1)

    monkeypatch.setitem(METRICS, "confidence", Metric(confidence))
    tiny_config.seeds = seeds
    result = resnet_jax.fit(tiny_config, tmp_path / "run")
    for record in result.history:
        assert 0 < record["confidence"] <= 1
        assert len(record.get("seeds", {}).get("confidence", ())) == len(seeds)
    network = resnet_jax.restore_run(tmp_path / "run", seed_index=len(seeds) // 2)
    of_run = result.evaluation["test"]
    single = of_run.seeds[1] if seeds else of_run
    assert network.evaluate("test").metrics["confidence"] == pytest.approx(
        single.metrics["confidence"]
    )
    # Read from summary.json.
    again = resnet_jax.fit(tiny_config, tmp_path / "run")
    assert again.evaluation["test"].metrics == of_run.metrics

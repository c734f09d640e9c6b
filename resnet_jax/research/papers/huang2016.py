"""Huang et al. 2016: blocks are dropped at random in training, deeper blocks more often."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.presets import create_model
from resnet_jax.models.resnet import ResNet
from resnet_jax.research.configs import cifar10, digits
from resnet_jax.research.figures import journal_style, new_panels
from resnet_jax.research.reports import difference
from resnet_jax.research.reproduction import Report, Reproduction, Row, Within
from resnet_jax.research.runner import Runner, TrainedRun
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment

_SOURCE = "Huang et al. 2016, 1603.09382"
_PAIRS, _STEPS = 7, 20
_DROPPED = {"model.stochastic_depth": 0.5}


def survivals(model: ResNet, image_shape: tuple[int, int, int]) -> Float[Array, " blocks"]:
    """The probability that each block of a network is kept, in the order of computation."""
    found: list[Any] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, ResidualBlock) and context.method_name == "__call__":
            found.append(args[1])
        return call(*args, **kwargs)

    def trace(key: Array) -> Array:
        with nn.intercept_methods(record):
            model.init(key, jnp.zeros((1, *image_shape)))
        return jnp.stack(found)

    return jax.jit(trace)(jax.random.key(0))


class _Steps:
    """The compiled training steps of a config, for timing."""

    def __init__(self, config: ConfigDict, seed: int) -> None:
        config = config.copy_and_resolve_references()
        config.seed, config.steps_per_dispatch = seed, _STEPS
        experiment = Experiment.make(config)
        self._state, self._batches = experiment.initial_state(), experiment.loader().take(0)
        shapes = (*experiment.spec.abstract_batches(), 1)
        self._run = make_train_steps(experiment.spec).lower(self._state, *shapes).compile()
        self.seconds()  # the first time is slower

    def seconds(self) -> float:
        began = time.perf_counter()
        self._state = jax.block_until_ready(self._run(self._state, *self._batches, _STEPS))
        return time.perf_counter() - began


def _survival_rows(probabilities: Float[Array, " blocks"]) -> tuple[Row, ...]:
    blocks = len(probabilities)
    rule = 1 - jnp.arange(1, blocks + 1) / blocks * 0.5
    return (
        Row(
            what="probabilities to survive: largest difference from 1 - l / 2L",
            published="1 - l / L · (1 - p_L), p_L = 0.5",
            source=_SOURCE,
            data="arithmetic",
            measured=(float(jnp.abs(probabilities - rule).max()),),
            accepts=Within(high=1e-6),
            exact=True,
        ),
        Row(
            what=f"units that are active on average, of {blocks}",
            published=40.0,
            source=_SOURCE,
            data="arithmetic",
            measured=(float(probabilities.sum()),),
            accepts=Within(39.5, 40.5),
            exact=True,
        ),
    )


def _report(row: Row, data: dict[str, Any]) -> Report:
    """The rule of the paper's network, and a measurement, with its values by label."""
    model = create_model("resnet110_sd")
    assert isinstance(model, ResNet)
    probabilities = survivals(model, (32, 32, 3))
    with journal_style():
        figure, (kept, shown) = new_panels(2)
        numbers = range(1, len(probabilities) + 1)
        kept.plot(numbers, probabilities)
        kept.set(xlabel="block", ylabel="probability to survive", ylim=(0, 1))
        for number, values in enumerate(data.values()):
            shown.plot([number] * len(values), values, "o", alpha=0.6)
            shown.plot([number - 0.2, number + 0.2], [statistics.fmean(values)] * 2, color="C6")
        shown.set_xticks(range(len(data)), list(data))
        shown.set(xlim=(-0.5, max(len(data), 1) - 0.5))
    rows = (*_survival_rows(probabilities), row)
    return Report(rows, figure, {"survival": probabilities.tolist(), **data})


def run_small(runner: Runner) -> Report:
    """The rule, and the time of training steps of 110 layers on digits with and without it."""
    whole, dropped = (
        digits("resnet110", {"model.scan": True, **fields}) for fields in ({}, _DROPPED)
    )
    ratios = []
    for seed in runner.seeds:
        whole_steps, dropped_steps = _Steps(whole, seed), _Steps(dropped, seed)
        pairs = [(whole_steps.seconds(), dropped_steps.seconds()) for _ in range(_PAIRS)]
        ratios.append(statistics.median(b / a for a, b in pairs))
    row = Row(
        what=f"time of a training step with / without: medians of {_PAIRS} pairs",
        published=0.8,
        source="the authors' code (75 s and 60 s an epoch)",
        data="digits",
        measured=tuple(ratios),
        accepts=Within(0.75, 0.85),
        ratio=True,
    )
    return _report(row, {"time, with / without": ratios})


def run_paper(runner: Runner) -> Report:
    """110 layers on CIFAR-10, with a quarter of the steps of He et al. 2015."""
    trained = runner.train(
        {
            "huang2016-whole": cifar10("resnet110", {"model.shortcut": "A_pool"}, share=0.25),
            "huang2016-dropped": cifar10("resnet110_sd", share=0.25),
        }
    )
    errors = {name: list(run.test_errors()) for name, run in trained.items()}
    gains = difference(
        trained.get("huang2016-dropped"), trained.get("huang2016-whole"), TrainedRun.test_errors
    )
    row = Row(
        what="ResNet-110: test error with less that without, points",
        published=round(5.25 - 6.41, 2),
        source=_SOURCE,
        data="CIFAR-10",
        measured=gains,
        accepts=Within(high=0.3),
    )
    return _report(row, errors)


REPRODUCTION = Reproduction(
    name="huang2016",
    title="stochastic depth",
    paper="Huang et al. 2016, 1603.09382",
    claim="Dropping units at random during training saves a fifth of the time.",
    runs={"cpu": run_small, "full": run_paper},
)

"""Diagnostics of a network on the probe batch of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from resnet_jax.data.datasets import ImageSet
from resnet_jax.data.images.normalization import normalize
from resnet_jax.errors import ConfigError
from resnet_jax.models.surgery import unstack_units
from resnet_jax.train.diagnostics.curvature import extreme_eigenvalues
from resnet_jax.train.diagnostics.measures import (
    MEASURES,
    Diagnosed,
    probe_twin,
    similarities,
    take_pass,
)
from resnet_jax.train.losses import LOSSES
from resnet_jax.train.metrics import finite_or_largest
from resnet_jax.train.state import TrainState

_LANCZOS_ITERATIONS = 16


class Measured(NamedTuple):
    """Values by name, and the similarities of blocks if "cka" was asked for."""

    scalars: dict[str, float]
    similarities: Float[np.ndarray, "blocks blocks"] | None


class Probe:
    """Measures the state of a single seed: `probe(state, varied)`."""

    def __init__(
        self,
        model: Any,
        optimizer: Callable[[Mapping[str, jax.Array]], optax.GradientTransformation],
        data: ImageSet,
        *,
        what: Sequence[str],
        examples: int,
    ) -> None:
        """Compile nothing yet.

        Args:
            model: the network.
            optimizer: returns the optax transformation of a seed, given its values of
                `SeedAxis.varied`, which may be traced.
            data: training images. The first `examples` images are the probe, without augmentation.
            what: names in `MEASURES`, and "sharpness".
            examples: number of examples of the probe.

        Raises:
            ConfigError: the network is of a kind without diagnostics.
        """
        if not isinstance(model, Diagnosed):
            raise ConfigError(
                f"diagnostics are of ResNets and highway networks, not of a {type(model).__name__};"
                " set diagnostics.every to 0."
            )
        self._images = jnp.asarray(data.images[:examples])
        self._labels = jnp.asarray(data.labels[:examples])
        self._what, self._model, self._optimizer = tuple(what), model, optimizer
        self._measure = jax.jit(self._measured)
        self._curvature = jax.jit(self._sharpness)

    def __call__(self, state: TrainState, varied: Mapping[str, Any]) -> Measured:
        """Measure a state; values that overflow are the largest float32.

        Args:
            state: of one seed.
            varied: the seed's values of `SeedAxis.varied`, by name.
        """
        scalars, matrix = jax.device_get(self._measure(state, dict(varied)))
        if "sharpness" in self._what:
            scalars |= jax.device_get(self._curvature(state))
        values = {name: finite_or_largest(float(value)) for name, value in scalars.items()}
        return Measured(values, matrix)

    def _measured(
        self, state: TrainState, varied: dict[str, jax.Array]
    ) -> tuple[dict[str, Any], Any]:
        passed = take_pass(
            self._model,
            state.variables(),
            normalize(self._images, state.normalization),
            self._labels,
            optimizer=self._optimizer(varied),
            opt_state=state.opt_state,
        )
        scalars: dict[str, Any] = {}
        for name, measure in MEASURES.items():
            if name in self._what:
                scalars |= measure(passed)
        return scalars, similarities(passed) if "cka" in self._what else None

    def _sharpness(self, state: TrainState) -> dict[str, Any]:
        twin, variables = probe_twin(self._model), state.variables()
        inputs = normalize(self._images, state.normalization)

        def loss(params: Any) -> jax.Array:
            whole = unstack_units({**variables, "params": params})
            logits: Any = twin.apply(whole, inputs, train=True, update_stats=False)
            return LOSSES["softmax"](logits, jax.nn.one_hot(self._labels, logits.shape[-1])).mean()

        lowest, highest = extreme_eigenvalues(
            loss, state.params, key=jax.random.key(0), iterations=_LANCZOS_ITERATIONS
        )
        return {"sharpness": highest, "lowest_curvature": lowest}

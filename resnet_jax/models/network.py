"""What the package asks of every network: a ResNet, a VGG, a highway network, or your own."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.fields import check_fields, setting


class Normalization(NamedTuple):
    """How a network normalises.

    Attributes:
        kind: "batch", or another one, which has no running statistics.
        momentum: share of the running statistics that a step keeps; the field `bn_momentum`.
        frozen: training uses the running statistics and leaves them alone.
    """

    kind: str
    momentum: float = 0.0
    frozen: bool = False


class Network(nn.Module, kw_only=True):
    """A classifier of images whose fields `create_model` and configs can set.

    A subclass defines `features`, and `check` if fields depend on one another. Its fields are
    declared as `fields.setting` describes.

    Attributes:
        num_classes: number of logits.
        dtype: type of the computation.
        param_dtype: type of the parameters; float32 in training.
    """

    num_classes: int = setting(1000, "shapes")
    dtype: Any = setting(jnp.float32, "compilation")
    param_dtype: Any = setting(jnp.float32, "compilation")

    def __post_init__(self) -> None:
        """Check each field by itself, then all of them.

        Raises:
            ConfigError: naming the field, its value, and what it can be or what it needs.
        """
        check_fields(self)
        self.check()
        super().__post_init__()

    @nn.nowrap
    def check(self) -> None:
        """Refuse a network that can't be built, or a field that would have no effect.

        Raises:
            ConfigError: naming the field, its value, and what it can be or what it needs.
        """

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> Float[Array, "n k"]:
        """Return float32 logits; see `features` for the arguments."""
        return self.features(images, train=train, update_stats=update_stats)["logits"]

    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return activations by name, among them "logits" [n, k], float32.

        Args:
            images: normalised images, NHWC.
            train: normalise by the statistics of this batch, not by the running ones, and drop
                what is to be dropped; the latter needs `rngs={"dropout": key}`.
            update_stats: with `train`, also update the running statistics; the collection
                "batch_stats" must then be mutable. Ignored without `train`.
        """
        raise NotImplementedError

    @nn.nowrap
    def normalization(self) -> Normalization:
        """How the network normalises."""
        return Normalization("none")

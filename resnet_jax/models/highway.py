"""Highway networks for CIFAR (Srivastava et al. 2015, 1507.06228) out of the residual grammar.

A highway layer is a unit of one convolution whose two paths are gated: T · relu(W x + b) + (1-T) x.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models import checks
from resnet_jax.models.block import Merge, ResidualUnit, Shortcut
from resnet_jax.models.layers import Classifier, Conv


class HighwayNet(nn.Module):
    """Stages of a plain convolution and highway layers, with maximum pooling between them.

    As in the authors' released network there is no normalisation, each convolution has a bias,
    a 1×1 convolution comes before the average pooling, and dropout follows each pooling.

    Attributes:
        stage_sizes: highway layers per stage, each stage having one plain convolution before.
        stage_widths: channels per stage.
        num_classes: number of logits.
        last_width: channels of the 1×1 convolution.
        merge, shortcut: as in `ResNet`; shortcut="none" with merge="add" is the plain twin.
        gate_bias, carry_bias: initial biases of the gates, as in `ResNet`.
        head_dropout: of the images, and after each pooling, in training.
        dtype, param_dtype: as in `ResNet`.
    """

    stage_sizes: tuple[int, ...]
    stage_widths: tuple[int, ...]
    num_classes: int = 10
    last_width: int = 100
    merge: Merge = "coupled_gates"
    shortcut: Shortcut = "A"
    gate_bias: float = -2.0
    carry_bias: float | None = None
    head_dropout: float = 0.2
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse what can't be built."""
        checks.check_highway(self)
        super().__post_init__()

    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> Float[Array, "n k"]:
        """Return float32 logits; see `ResNet.features` for the arguments."""
        return self.features(images, train=train, update_stats=update_stats)["logits"]

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return "stage1", … (before the pooling), "pooled" (n, c) and float32 "logits"."""
        del update_stats  # there are no statistics
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        taps: dict[str, Array] = {}
        x = nn.Dropout(self.head_dropout, deterministic=not train)(images)
        for stage, (units, width) in enumerate(
            zip(self.stage_sizes, self.stage_widths, strict=True), start=1
        ):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
                x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
            x = nn.relu(Conv(width, 3, use_bias=True, name=f"conv{stage}", **kinds)(x))
            for i in range(units):
                x = ResidualUnit(
                    branch="single",
                    order="relu_before_add",
                    shortcut=self.shortcut,
                    merge=self.merge,
                    gate_kernel_size=3,
                    gate_bias=self.gate_bias,
                    carry_bias=self.carry_bias,
                    norm="none",
                    width=width,
                    train=train,
                    name=f"layer{stage}_{i}",
                    **kinds,
                )(x)
            taps[f"stage{stage}"] = x
        x = nn.relu(Conv(self.last_width, 1, use_bias=True, name="conv_last", **kinds)(x))
        taps["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
        taps["logits"] = Classifier(self.num_classes, name="fc", **kinds)(x)
        return taps

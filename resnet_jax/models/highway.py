"""Highway networks for CIFAR (Srivastava et al. 2015, 1507.06228) of residual blocks.

A highway layer is a block of one convolution with gates on both paths:
T · relu(W x + b) + (1 - T) x.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.models.block import ResidualBlock
from resnet_jax.models.block_config import BlockConfig, Merge, Shortcut
from resnet_jax.models.fields import Need, check_needs, setting
from resnet_jax.models.layers import Classifier, Conv
from resnet_jax.models.network import Network

_NEEDS: tuple[Need, ...] = (
    (("gate_bias",), lambda m: m.merge != "add", "a merge with gates"),
    (("carry_bias",), lambda m: m.merge == "independent_gates", "merge='independent_gates'"),
)


class HighwayNet(Network, kw_only=True):
    """Stages of a plain convolution and highway layers, with maximum pooling between them.

    As in the authors' released network there is no normalisation, each convolution has a bias,
    a 1×1 convolution comes before the average pooling, and dropout follows each pooling. Initial
    values are the authors', too: kernels have a standard deviation of √(2 / fan-in), except 1 in
    the first convolution and 0.05 in the classifier. Gates that begin closed pass a tenth of a
    gradient on to their layers, and smaller values there make the first steps slower still.

    Attributes:
        stage_sizes: highway layers per stage, each stage having one plain convolution before.
        stage_widths: channels per stage.
        last_width: channels of the 1×1 convolution.
        merge, shortcut: as in `ResNet`; shortcut="none" with merge="add" is the plain twin.
        gate_bias, carry_bias: initial biases of the gates, as in `ResNet`.
        head_dropout: of the images, and after each pooling, in training.
    """

    stage_sizes: tuple[int, ...]
    stage_widths: tuple[int, ...]
    num_classes: int = setting(10, "shapes")
    last_width: int = setting(100, "shapes")
    merge: Merge = "coupled_gates"
    shortcut: Shortcut = "A"
    gate_bias: float = setting(-2.0, "training")
    carry_bias: float | None = setting(None, "training")
    head_dropout: float = setting(0.2, "training", below=1)

    @nn.nowrap
    def check(self) -> None:
        """Check the stages, then the fields that need others; see `Network.check`."""
        if len(self.stage_widths) != len(self.stage_sizes):
            raise ConfigError(
                f"model.stage_widths is {self.stage_widths}; it takes one for each of the"
                f" {len(self.stage_sizes)} stages."
            )
        if self.merge != "add" and self.shortcut == "none":
            raise ConfigError(f"model.merge is {self.merge!r}, which needs a shortcut.")
        check_needs(self, _NEEDS)

    @nn.compact
    def features(
        self, images: Float[Array, "n h w c"], *, train: bool = False, update_stats: bool = True
    ) -> dict[str, Array]:
        """Return "stage1", … (before the pooling), "pooled" (n, c) and float32 "logits".

        Raises:
            ConfigError: the images are too small to be halved between stages.
        """
        del update_stats  # there are no statistics
        smallest, (height, width) = 2 ** (len(self.stage_sizes) - 1), images.shape[1:3]
        if min(height, width) < smallest:
            raise ConfigError(
                f"Images of {height}×{width} are too small for a highway network of"
                f" {len(self.stage_sizes)} stages, which halves them {len(self.stage_sizes) - 1}"
                f" times; it takes {smallest}×{smallest} or larger."
            )

        def conv(width: int, kernel_size: int, channels: int, name: str) -> Conv:
            std = math.sqrt(2 / (kernel_size**2 * channels)) if name != "conv1" else 1.0
            return Conv(
                width,
                kernel_size,
                use_bias=True,
                gain=std / math.sqrt(2 / (kernel_size**2 * width)),  # `Conv` counts outputs
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        config = BlockConfig(
            branch="single",
            order="relu_before_add",
            shortcut=self.shortcut,
            merge=self.merge,
            gate_kernel_size=3 if self.merge != "add" else 1,
            gate_bias=self.gate_bias,
            carry_bias=self.carry_bias,
            norm="none",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        taps: dict[str, Array] = {}
        x = nn.Dropout(self.head_dropout, deterministic=not train)(images)
        for stage, (layers, width) in enumerate(
            zip(self.stage_sizes, self.stage_widths, strict=True), start=1
        ):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
                x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
            x = nn.relu(conv(width, 3, x.shape[-1], f"conv{stage}")(x))
            for i in range(layers):
                x = ResidualBlock(config, width=width, train=train, name=f"layer{stage}_{i}")(x)
            taps[f"stage{stage}"] = x
        x = nn.relu(conv(self.last_width, 1, x.shape[-1], "conv_last")(x))
        taps["pooled"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
        kinds = self.dtype, self.param_dtype
        taps["logits"] = Classifier(self.num_classes, False, *kinds, 0.05, name="fc")(x)
        return taps

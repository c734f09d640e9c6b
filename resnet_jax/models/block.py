"""The residual block, y = merge(shortcut(x), branch(x)), with an order of activation around it.

`BlockConfig` has a field for everything that the papers vary; `ResidualBlock` reads them in the
order of the computation. A plain network has no shortcut, a highway network gates both paths.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.models.block_config import ORDERS, BlockConfig
from resnet_jax.models.block_layers import Layers
from resnet_jax.models.branches import Geometry, Layer, convolutions, find_branch
from resnet_jax.models.layers import SqueezeExcite
from resnet_jax.ops.pooling import average_pool


class ResidualBlock(nn.Module):
    """One block; children are named as in torchvision: conv1, bn1, …, downsample_conv.

    Attributes:
        config: what the blocks of the network have in common.
        width: output channels / the branch's expansion.
        inner: channels of a bottleneck's 3×3 convolution.
        stride, dilation: of the branch's 3×3 convolutions, except that the first one of a block
            may have `first_dilation`.
        activated: the input has been normalised and activated, so that a pre-activation block
            doesn't begin with these steps again.
        depth: blocks in the whole network, which Fixup's initial values depend on.
        train, update_stats: as in `ResNet.features`.
    """

    config: BlockConfig
    width: int = 64
    inner: int = 64
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    activated: bool = False
    depth: int = 1
    train: bool = False
    update_stats: bool = False

    @property
    def make(self) -> Layers:
        """The layers of the block."""
        return Layers(self.config, self.train, self.update_stats)

    @property
    def geometry(self) -> Geometry:
        """Sizes of the block."""
        groups, stride_on = self.config.groups, self.config.stride_on
        return Geometry(self.width, self.inner, groups, self.stride, stride_on)

    @property
    def features(self) -> int:
        """Output channels."""
        return self.width * find_branch(self.config.branch).expansion

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], survival: Float[Array, ""] | float | None = None
    ) -> Float[Array, "n h2 w2 f"]:
        """Return the block's output, of type `config.dtype`.

        Args:
            x: input.
            survival: probability with which the branch is kept; None is 1.
        """
        config, make = self.config, self.make
        steps = ORDERS[config.order]
        changes_shape = self.stride != 1 or x.shape[-1] != self.features

        # The first steps of the branch stand before the split where the shortcut is projected (He
        # et al. 2016, section 4.1), as does Fixup's first bias where the shape changes.
        start = x if self.activated else make.apply(steps.before, x, "bn1")
        if config.norm == "fixup":
            start = make.scale_bias("shift1")(x)

        f = self._branch_with_stochastic_depth(start, survival)
        last_norm = f"bn{convolutions(config.branch)}"
        if config.shortcut == "none":
            return make.apply(steps.merged, f, last_norm)

        projects = config.shortcut == "C" or (changes_shape and config.shortcut in ("B", "D"))
        shares_start = projects or (changes_shape and config.norm == "fixup")
        s = start if shares_start else x
        if projects:
            s = self._projection(s)
        elif changes_shape:
            s = self._identity(s)
        s = s.astype(f.dtype)
        s = nn.Dropout(config.shortcut_dropout, deterministic=not self.train)(s)
        s, f = config.shortcut_scale * s, config.branch_scale * f
        return make.apply(steps.merged, self.merge(x, s, f), last_norm)

    def convolve(
        self, x: Float[Array, "n h w c"], layers: Sequence[Layer]
    ) -> Float[Array, "n h2 w2 f"]:
        """Convolve `x`, which is ready for the first convolution, and apply the steps between."""
        config, make = self.config, self.make
        steps = ORDERS[config.order]
        # Fixup: with m convolutions in each of L branches, all but the last are scaled so that
        # one step of SGD changes the network's output by Θ(learning rate).
        fixup_gain = self.depth ** (-1 / (2 * len(layers) - 2)) if len(layers) > 1 else 1.0
        dilation = self.first_dilation
        for i, layer in enumerate(layers, start=1):
            is_last = i == len(layers)
            if i > 1:
                x = make.apply(steps.before, x, f"bn{i}")
                if config.norm == "fixup":
                    x = make.scale_bias(f"shift{i}")(x)
            if i == 2:
                x = nn.Dropout(config.dropout, deterministic=not self.train)(x)
            conv = make.conv(
                layer.features,
                layer.kernel_size,
                layer.stride,
                groups=layer.groups,
                dilation=dilation if layer.kernel_size > 1 else 1,
                gain=(0.0 if is_last else fixup_gain) if config.norm == "fixup" else 1.0,
                name=f"conv{i}",
            )
            if layer.kernel_size > 1:
                dilation = self.dilation
            if is_last and config.norm == "fixup":
                x = make.scale_bias(f"bn{i}", initial_scale=1.0)(conv(x))
            else:
                after = steps.last if is_last else steps.between
                zero = is_last and config.zero_init_scale
                x = make.convolve(conv, x, after, f"bn{i}", zero_init_scale=zero)
        return x

    def _branch(self, x: Array) -> Array:
        """The branch, with the layers that may end any branch."""
        config = self.config
        y = find_branch(config.branch)(x, self)
        if config.se_ratio:
            y = SqueezeExcite(config.se_ratio, config.dtype, config.param_dtype, name="se")(y)
        if config.norm == "skipinit":
            y = self.make.scale_bias("skip_gain", initial_scale=0.0, use_bias=False)(y)
        return y

    def _branch_with_stochastic_depth(
        self, start: Array, survival: Float[Array, ""] | float | None
    ) -> Array:
        if survival is None or self.is_initializing():
            return self._branch(start)
        by_example = self.config.stochastic_depth_mode == "example"
        if not self.train:
            f = self._branch(start)
            return f if by_example else f * jnp.asarray(survival, f.dtype)
        key = self.make_rng("dropout")
        if by_example:
            f = self._branch(start)
            kept = jax.random.bernoulli(key, survival, (len(f), 1, 1, 1))
            return f * (kept / survival).astype(f.dtype)
        n, h, w, _ = start.shape
        shape = n, -(-h // self.stride), -(-w // self.stride), self.features
        return nn.cond(
            jax.random.bernoulli(key, survival),
            lambda block, y: block._branch(y),
            lambda block, y: jnp.zeros(shape, self.config.dtype),
            self,
            start,
        )

    def _projection(self, x: Array) -> Array:
        """The shortcut by a 1×1 convolution."""
        config, stride = self.config, self.stride
        if config.shortcut == "D":
            x, stride = average_pool(x, stride), 1
        conv = self.make.conv(self.features, 1, stride, name="downsample_conv")
        # Normalised where the last convolution of the branch is; Fixup has no bias here.
        normalised = "norm" in ORDERS[config.order].last and config.norm != "fixup"
        steps = ("norm",) if normalised else ()
        return self.make.convolve(conv, x, steps, "downsample_bn")

    def _identity(self, x: Array) -> Array:
        """The shortcut of a block that changes the shape, without parameters."""
        if self.config.shortcut == "A_pool":
            return pad_channels(average_pool(x, self.stride), self.features)
        middle = self.config.shortcut == "A_middle"
        before = (self.features - x.shape[-1]) // 2 if middle else 0
        # Indices would become a gather in programs of any batch size (`inference.export`).
        x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
        return pad_channels(x, self.features, before=before)

    def merge(self, x: Array, s: Array, f: Array) -> Array:
        """Combine the shortcut `s` and the branch `f`; the gates see the block's input `x`."""
        config = self.config
        if config.merge == "add":
            return s + f

        def gate(name: str, bias: float) -> Array:
            size = config.gate_kernel_size
            conv = self.make.conv(f.shape[-1], size, self.stride, gate_bias=bias, name=name)
            return nn.sigmoid(conv(x))

        transform = gate("gate", config.gate_bias)
        if config.merge == "shortcut_gate":
            return (1 - transform) * s + f
        if config.merge == "coupled_gates":
            return (1 - transform) * s + transform * f
        carry_bias = -config.gate_bias if config.carry_bias is None else config.carry_bias
        return gate("carry_gate", carry_bias) * s + transform * f


def pad_channels(
    x: Float[Array, "n h w c"], features: int, *, before: int = 0
) -> Float[Array, "n h w f"]:
    """Put `before` channels of zeros before the channels of `x`, and append the rest."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - x.shape[-1] - before)))

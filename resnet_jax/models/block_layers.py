"""The layers that a `BlockConfig` stands for: convolution, normalisation, activation."""

import dataclasses
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.block_config import BlockConfig
from resnet_jax.models.layers import Conv
from resnet_jax.models.norms import BatchNorm, GroupNorm, ScaleBias
from resnet_jax.ops.activation import relu
from resnet_jax.ops.batch_norm import Maps

_ACTIVATIONS: dict[str, Any] = {"relu": relu, "silu": nn.silu, "gelu": nn.gelu}


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of a network, within a compact method of a linen module.

    Attributes:
        config: what the blocks of the network have in common.
        train, update_stats: as in `Network.features`.
    """

    config: BlockConfig
    train: bool
    update_stats: bool

    def conv(
        self,
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        name: str,
        groups: int = 1,
        dilation: int = 1,
        gate_bias: float | None = None,
        gain: float = 1.0,
        kind: type[Conv] = Conv,
    ) -> Conv:
        """A convolution; with a bias if no normalisation brings one, or if it is a gate's."""
        config = self.config
        return kind(
            features,
            kernel_size,
            stride,
            groups=groups,
            dilation=dilation,
            use_bias=config.norm in ("none", "skipinit") or gate_bias is not None,
            initial_bias=gate_bias or 0.0,
            gain=gain,
            weight_standardized=config.weight_standardized,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            name=name,
        )

    def scale_bias(
        self, name: str, *, initial_scale: float | None = None, use_bias: bool = True
    ) -> ScaleBias:
        """A scale and a bias of Fixup or SkipInit."""
        kinds = self.config.dtype, self.config.param_dtype
        return ScaleBias(initial_scale, use_bias, *kinds, name=name)

    @property
    def use_batch_statistics(self) -> bool:
        """Whether normalisation is by the statistics of the batch."""
        return self.config.norm == "batch" and self.train and not self.config.bn_frozen

    def apply(
        self, steps: tuple[str, ...], x: Maps, name: str, *, zero_init_scale: bool = False
    ) -> Float[Array, "n h w c"]:
        """Apply "norm" (the module `name`) and "act" in the order of `steps`."""
        y: Any = x
        for step in steps:
            if step == "act":
                y = _ACTIVATIONS[self.config.activation](y)
            else:
                y = self._normalise(y, name, zero_init_scale=zero_init_scale)
        return y

    def convolve(
        self,
        conv: Conv,
        x: Float[Array, "n h w c"],
        steps: tuple[str, ...],
        name: str,
        *,
        zero_init_scale: bool = False,
    ) -> Float[Array, "n h2 w2 f"]:
        """Apply a convolution and the steps after it."""
        by_batch = self.use_batch_statistics and not conv.is_initializing()
        y = conv.before_norm(x) if by_batch and steps[:1] == ("norm",) else conv(x)
        return self.apply(steps, y, name, zero_init_scale=zero_init_scale)

    def _normalise(self, x: Any, name: str, *, zero_init_scale: bool) -> Array:
        config = self.config
        if config.norm == "batch":
            return BatchNorm(
                train=self.use_batch_statistics,
                update_stats=self.update_stats,
                group_size=config.bn_group_size,
                momentum=config.bn_momentum,
                epsilon=config.norm_epsilon,
                zero_init_scale=zero_init_scale,
                dtype=config.dtype,
                param_dtype=config.param_dtype,
                name=name,
            )(x)
        if config.norm in ("group", "layer"):
            return GroupNorm(
                groups=config.norm_groups if config.norm == "group" else 1,
                epsilon=config.norm_epsilon,
                zero_init_scale=zero_init_scale,
                dtype=config.dtype,
                param_dtype=config.param_dtype,
                name=name,
            )(x)
        return self.scale_bias(name)(x) if config.norm == "fixup" else x

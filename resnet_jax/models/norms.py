"""Normalisations, and the scale and bias that stand in their place in networks without any.

Statistics and scales are float32 whatever the compute `dtype` is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.ops.batch_norm import Maps, batch_normalise, maps_of, normalise


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, 1502.03167) over the batch or over groups of it.

    `group_size=None` normalises over the whole batch, however it is sharded. With `group_size=n`
    every n consecutive examples of the batch are normalised on their own: the recipe of a paper
    that trained with n images per device, reproduced on any device mesh. Running statistics are
    those of the whole batch in both cases (law of total variance), so evaluation does not depend
    on the grouping either. The running variance is the biased one, as in Flax; PyTorch's is not.

    Attributes:
        train: normalise by the statistics of the batch; otherwise by the running ones.
        update_stats: with `train`, move the running statistics towards those of the batch.
            The collection "batch_stats" must be mutable then.
        group_size: examples in a group.
        momentum: share of the running statistics that is kept; PyTorch writes 0.9 as 0.1.
        epsilon: added to variances.
        zero_init_scale: the scale begins at 0, not 1.
        dtype, param_dtype: of the result and of the parameters.
    """

    train: bool = False
    update_stats: bool = False
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    zero_init_scale: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> Float[Array, "n h w c"]:
        """Return the normalised maps `x` [n, h, w, c], of type `dtype`.

        If `fold_batch_norm` folded the normalisation into the convolution before it, there is the
        parameter "folded" alone: maps are returned as they are.

        Raises:
            ConfigError: with `train`, the normalisation was folded.
            ValueError: the batch doesn't split into groups of `group_size`.
        """
        n, c = x.shape[0], x.shape[-1]
        if self.has_variable("params", "folded"):
            if self.train:
                raise ConfigError(
                    f"{'/'.join(self.path)} can't be trained: fold_batch_norm folded it. Train the"
                    " variables from before the folding."
                )
            return maps_of(x).astype(self.dtype)
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        dtype = jnp.dtype(self.dtype)

        if not self.train:
            statistics = running_mean.value, running_var.value
            return normalise(maps_of(x), *statistics, scale, bias, self.epsilon, dtype)

        size = self.group_size or n
        if n % size and not self.is_initializing():
            raise ValueError(f"a batch of {n} doesn't split into groups of {size} (bn_group_size)")
        groups = 1 if self.is_initializing() else n // size
        y, mean, var = batch_normalise(
            x, scale, bias, groups=groups, epsilon=self.epsilon, dtype=dtype
        )

        if self.update_stats and not self.is_initializing():
            batch_mean = mean.mean(axis=0)
            # From second moments, so that nothing waits for the mean over devices: the sums of
            # all layers can then be one exchange at the end of the step.
            second = (var + jnp.square(mean)).mean(axis=0)
            batch_var = jnp.maximum(second - jnp.square(batch_mean), 0.0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * batch_mean
            running_var.value = keep * running_var.value + (1 - keep) * batch_var

        return y


class GroupNorm(nn.Module):
    """Normalise each image over groups of channels (Wu & He 2018, 1803.08494).

    One group for all channels is layer normalisation as that paper defines it for images.

    Attributes:
        groups: number of groups.
        epsilon, zero_init_scale, dtype, param_dtype: as in `BatchNorm`.
    """

    groups: int
    epsilon: float = 1e-5
    zero_init_scale: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return the normalised `x`, of type `dtype`.

        Raises:
            ConfigError: the channels don't split into that many groups.
        """
        n, h, w, c = x.shape
        if c % self.groups:
            raise ConfigError(
                f"{c} channels don't split into {self.groups} groups (model.norm_groups)."
            )
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        x32 = x.astype(jnp.float32).reshape(n, h * w, self.groups, c // self.groups)
        mean = x32.mean(axis=(1, 3), keepdims=True)
        x32 -= mean
        var = jnp.square(x32).mean(axis=(1, 3), keepdims=True)
        y = (x32 * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(self.dtype)


class ScaleBias(nn.Module):
    """One scale and one bias for all channels: the parameters of Fixup and of SkipInit.

    Attributes:
        initial_scale: of the scale; None for no scale.
        use_bias: whether there is a bias, which begins at 0.
        dtype, param_dtype: of the result and of the parameters.
    """

    initial_scale: float | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return scale · x + bias, of type `dtype`."""
        y = x.astype(self.dtype)
        if self.initial_scale is not None:
            init = nn.initializers.constant(self.initial_scale)
            y = y * self.param("scale", init, (1,), self.param_dtype).astype(y.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (1,), self.param_dtype)
            y = y + bias.astype(y.dtype)
        return y

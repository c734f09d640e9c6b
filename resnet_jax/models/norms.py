"""What stands after (or before) each convolution: normalisations, or Fixup's scalars.

Statistics and scales are float32 whatever the compute `dtype` is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError


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
        group_size, momentum, epsilon: see above; momentum is what is kept.
        zero_init_scale: the scale begins at 0, not 1.
        dtype, param_dtype: of the result and of the parameters.
    """

    train: bool = False
    update_stats: bool = False
    group_size: int | None = None
    momentum: float = 0.9  # PyTorch writes the same thing as 0.1
    epsilon: float = 1e-5
    zero_init_scale: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return the normalised `x`, of type `dtype`.

        Raises:
            ValueError: the batch doesn't split into groups of `group_size`.
        """
        n, c = x.shape[0], x.shape[-1]
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)

        if not self.train:
            moments = running_mean.value, running_var.value
            return _normalise(x, *moments, scale, bias, self.epsilon, jnp.dtype(self.dtype))

        size = self.group_size or n
        if n % size and not self.is_initializing():
            raise ValueError(f"a batch of {n} doesn't split into groups of {size} (bn_group_size)")
        groups = 1 if self.is_initializing() else n // size
        xg = x.reshape(groups, n // groups, *x.shape[1:])
        y, mean, var = _normalise_batch(xg, scale, bias, self.epsilon, jnp.dtype(self.dtype))

        if self.update_stats and not self.is_initializing():
            batch_mean = mean.mean(axis=0)
            # From second moments, so that nothing waits for the mean over devices: the sums of
            # all layers can then be one exchange at the end of the step.
            second = (var + jnp.square(mean)).mean(axis=0)
            batch_var = jnp.maximum(second - jnp.square(batch_mean), 0.0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * batch_mean
            running_var.value = keep * running_var.value + (1 - keep) * batch_var

        return y.reshape(x.shape)


# Jitted only so that a network of a thousand layers traces each once for each shape.
@functools.partial(jax.jit, static_argnums=(5, 6), inline=True)
def _normalise(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> Array:
    factor = jax.lax.rsqrt(var + epsilon) * scale.astype(jnp.float32)
    # Not (x − mean) · factor, which has to be kept where the backward pass needs x − mean too.
    y = x.astype(jnp.float32) * factor + (bias.astype(jnp.float32) - mean * factor)
    return y.astype(dtype)


def _by_group(moments: Array) -> Array:
    """[groups, c] → [groups, 1, 1, 1, c]."""
    return moments[:, None, None, None]


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """Groups [g, n, h, w, c] → the same, normalised; mean and variance [g, c], float32."""
    x32 = x.astype(jnp.float32)
    # E[x²] − E[x]² reads the activations once; float32 sums keep it exact enough.
    mean = x32.mean(axis=(1, 2, 3))
    var = jnp.maximum(jnp.square(x32).mean(axis=(1, 2, 3)) - jnp.square(mean), 0.0)
    y = _normalise(x, _by_group(mean), _by_group(var), scale, bias, epsilon, dtype)
    return y, mean, var


# By a rule of its own: what JAX derives keeps x and x − mean for the backward pass, and sums twice.
_differentiable = jax.custom_vjp(_forward, nondiff_argnums=(3, 4))
_normalise_batch = jax.jit(_differentiable, static_argnums=(3, 4), inline=True)


def _batch_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = _forward(x, scale, bias, epsilon, dtype)
    return (y, mean, var), (x, scale, bias, mean, var)


def _batch_bwd(
    epsilon: float, _: Any, kept: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """The gradients of `x`, `scale` and `bias` (Ioffe & Szegedy 2015, section 3)."""
    x, scale, bias, mean, var = kept
    dy, dmean, dvar = grads
    x32, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    size = x.size // mean.size
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(jnp.float32)
    sum_dy = dy.sum(axis=(1, 2, 3))
    # Σ dy · (x − mean), as the variance is: without x − mean, which XLA on CPU would write down.
    sum_product = (dy * x32).sum(axis=(1, 2, 3)) - mean * sum_dy
    slope = (2 * dvar - factor * jnp.square(inverse) * sum_product) / size
    offset = (dmean - factor * sum_dy) / size - mean * slope
    dx = dy * _by_group(factor) + x32 * _by_group(slope) + _by_group(offset)
    dscale = (sum_product * inverse).sum(axis=0)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), sum_dy.sum(axis=0).astype(bias.dtype)


_differentiable.defvjp(_batch_fwd, _batch_bwd)


class GroupNorm(nn.Module):
    """Normalise each image over groups of channels (Wu & He 2018, 1803.08494).

    One group for all channels is layer normalisation as that paper defines it for images.
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


class Scalars(nn.Module):
    """One multiplier and one bias for all channels: Fixup's and SkipInit's parameters.

    Attributes:
        initial_scale: of the multiplier; None for no multiplier.
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

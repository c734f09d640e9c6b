"""What stands after (or before) each convolution: normalisations, or Fixup's scalars.

Statistics and scales are float32 whatever the compute `dtype` is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.derivatives import differentiable
from resnet_jax.ops.projection import project_and_normalise


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
    def __call__(
        self,
        x: Float[Array, "n h w a"],
        *,
        kernel: Float[Array, "a b"] | None = None,
        pool: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "n h2 w2 c"]:
        """Return the normalised `x`, of type `dtype`.

        Args:
            x: maps.
            kernel: normalise `x` · `kernel` instead, which isn't kept. Only with `train`.
            pool: maximum over windows, taken of the normalised maps. Only with `train`.

        Raises:
            ValueError: the batch doesn't split into groups of `group_size`.
        """
        n, c = x.shape[0], x.shape[-1] if kernel is None else kernel.shape[-1]
        scale_init = nn.initializers.zeros if self.zero_init_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        kinds = self.epsilon, jnp.dtype(self.dtype)

        if not self.train:
            return _normalise(x, running_mean.value, running_var.value, scale, bias, *kinds)

        size = self.group_size or n
        if n % size and not self.is_initializing():
            raise ValueError(f"a batch of {n} doesn't split into groups of {size} (bn_group_size)")
        groups = 1 if self.is_initializing() else n // size
        xg = x.reshape(groups, n // groups, *x.shape[1:])
        if kernel is not None:
            y, mean, var = _normalise_projected(xg, kernel, scale, bias, *kinds)
        elif pool:
            y, mean, var = _normalise_pooled(xg, pool, scale, bias, *kinds)
        else:
            y, mean, var = _normalise_batch(xg, None, scale, bias, *kinds)

        if self.update_stats and not self.is_initializing():
            batch_mean = mean.mean(axis=0)
            # From second moments, so that nothing waits for the mean over devices: the sums of
            # all layers can then be one exchange at the end of the step.
            second = (var + jnp.square(mean)).mean(axis=0)
            batch_var = jnp.maximum(second - jnp.square(batch_mean), 0.0)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * batch_mean
            running_var.value = keep * running_var.value + (1 - keep) * batch_var

        return y.reshape(n, *y.shape[-3:])


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


def _moments(x: Array) -> tuple[Array, Array]:
    """Of groups [g, n, h, w, c]: means and variances [g, c], float32."""
    x = x.astype(jnp.float32)
    # E[x²] − E[x]² reads the activations once; float32 sums keep it exact enough.
    mean = x.mean(axis=(1, 2, 3))
    return mean, jnp.maximum(jnp.square(x).mean(axis=(1, 2, 3)) - jnp.square(mean), 0.0)


def _forward(
    x: Array, pooled: Array | None, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """Normalise groups [g, n, h, w, c], or what they were pooled to, by the moments of groups."""
    mean, var = _moments(x)
    moments = _by_group(mean), _by_group(var)
    values = x if pooled is None else pooled
    return _normalise(values, *moments, scale, bias, epsilon, dtype), mean, var


def _batch_fwd(
    x: Array, pooled: Array | None, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array | None, ...]]:
    y, mean, var = _forward(x, pooled, scale, bias, epsilon, dtype)
    return (y, mean, var), (x, pooled, scale, bias, mean, var)


def _batch_bwd(
    epsilon: float, _: Any, kept: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array | None, Array, Array]:
    """The gradients of `x`, `pooled`, `scale` and `bias` (Ioffe & Szegedy 2015, section 3)."""
    x, pooled, scale, bias, mean, var = kept
    dy, dmean, dvar = grads
    x32, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    values = x32 if pooled is None else pooled.astype(jnp.float32)
    size = x.size // mean.size
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse * scale.astype(jnp.float32)
    sum_dy = dy.sum(axis=(1, 2, 3))
    # Σ dy · (x − mean), as the variance is: without x − mean, which XLA on CPU would write down.
    sum_product = (dy * values).sum(axis=(1, 2, 3)) - mean * sum_dy
    slope = (2 * dvar - factor * jnp.square(inverse) * sum_product) / size
    offset = (dmean - factor * sum_dy) / size - mean * slope
    dx, dvalues = x32 * _by_group(slope) + _by_group(offset), dy * _by_group(factor)
    dscale, dbias = (sum_product * inverse).sum(axis=0), sum_dy.sum(axis=0)
    of_parameters = dscale.astype(scale.dtype), dbias.astype(bias.dtype)
    if pooled is None:
        return (dx + dvalues).astype(x.dtype), None, *of_parameters
    return dx.astype(x.dtype), dvalues.astype(pooled.dtype), *of_parameters


# By a rule of its own: what JAX derives keeps x and x − mean for the backward pass, and sums twice.
_normalise_batch = jax.jit(
    differentiable(_forward, _batch_fwd, _batch_bwd, static=2), static_argnums=(4, 5), inline=True
)


def _normalise_pooled(
    x: Array, pool: Callable[[Array], Array], scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """The maximum of normalised groups over windows, normalised only after it was taken.

    Normalisation keeps the order of values, or with a negative scale reverses it. So the normalised
    maps, four times as large, need be neither written nor read, forward or backward.
    """
    sign = jnp.where(scale < 0, -1, 1)
    x = x * sign.astype(x.dtype)
    pooled = pool(x.reshape(-1, *x.shape[2:]))
    pooled = pooled.reshape(*x.shape[:2], *pooled.shape[1:])
    y, mean, var = _normalise_batch(x, pooled, scale * sign, bias, epsilon, dtype)
    return y, mean * sign, var


def _normalise_projected(
    x: Array, kernel: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, Array, Array]:
    """Normalise groups of x · kernel.

    In one where that was found to pay. XLA on CPU writes the product all the same.
    """

    def plain(x: Array, kernel: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        z = conv2d(x, kernel[None, None], padding=((0, 0), (0, 0)))
        groups = z.reshape(*shape, *z.shape[1:])
        y, mean, var = _normalise_batch(groups, None, scale, bias, epsilon, dtype)
        return y.reshape(z.shape), mean, var

    def tpu(x: Array, kernel: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        return project_and_normalise(x, kernel, scale, bias, shape[0], epsilon, dtype)

    shape, images = x.shape[:2], x.reshape(-1, *x.shape[2:])
    return jax.lax.platform_dependent(images, kernel, scale, bias, tpu=tpu, default=plain)


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

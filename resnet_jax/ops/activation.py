"""ReLU, differentiated on GPUs by its result."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_jvp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The maximum of `x` and 0, whose derivative at 0 is 0, as `jax.nn.relu`.

    On a GPU the derivative is read off the result, which the next layer keeps anyway. Then a
    convolution of cuDNN can end with the ReLU, and its argument is never written.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    (x,), (tangent,) = primals, tangents
    # Behind a barrier, or else XLA would compute the result a second time from the argument.
    y = lax.platform_dependent(relu(x), cuda=lax.optimization_barrier, default=lambda y: y)
    positive = lax.platform_dependent(x, y, cuda=lambda _, y: y > 0, default=lambda x, _: x > 0)
    return y, lax.select(positive, tangent, jnp.zeros_like(tangent))

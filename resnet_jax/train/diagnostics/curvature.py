"""Extreme eigenvalues of the Hessian of a loss, by the Lanczos method."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


def extreme_eigenvalues(
    loss: Callable[[Any], Array], params: Any, *, key: Array, iterations: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the smallest and the largest eigenvalue of the Hessian of `loss` at `params`.

    The Lanczos method from a random vector. Each new vector is orthogonalised twice against all
    earlier vectors, because of rounding. The Hessian is never formed: its product with a vector is
    the derivative of the gradient along the vector (Pearlmutter 1994). Needs the memory of
    `iterations` copies of the parameters, and the time of 2 × `iterations` forward and backward
    passes.

    Args:
        loss: scalar function of the parameters.
        params: the parameters, float32.
        key: key of the random vector.
        iterations: Lanczos iterations; the largest eigenvalue needs ten to twenty.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda point: loss(unravel(point)))

    def product(vector: Array) -> Array:
        return jax.jvp(gradient, (flat,), (vector,))[1]

    def step(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        basis, diagonal, beside, vector = carry
        basis = basis.at[i].set(vector)
        image = product(vector)
        size = jnp.linalg.norm(image)
        # If the basis spans the whole space the vector is 0; any value within the spectrum will do.
        diagonal = diagonal.at[i].set(jnp.where(vector.any(), image @ vector, diagonal[0]))
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        length = jnp.linalg.norm(image)
        length = jnp.where(length > 1e-5 * size, length, 0.0)  # smaller lengths are rounding errors
        following = jnp.where(length > 0, image / jnp.maximum(length, 1e-30), 0.0)
        return basis, diagonal, beside.at[i].set(length), following

    start = jax.random.normal(key, flat.shape)
    zeros = jnp.zeros(iterations)
    carry = (jnp.zeros((iterations, flat.size)), zeros, zeros, start / jnp.linalg.norm(start))
    _, diagonal, beside, _ = jax.lax.fori_loop(0, iterations, step, carry)
    off = beside[:-1]
    values = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
    return values[0], values[-1]

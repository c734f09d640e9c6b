"""Gradient norms against the gradient of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.research.gradients import gradient_norms
from resnet_jax.train.losses import cross_entropy
from tests.research.tiny import make_tiny_network


@pytest.mark.thorough
def test_gradient_norms_are_those_of_the_loss():
    model, _ = make_tiny_network((2, 1), scan=True)
    norms = gradient_norms(model, (3,))
    assert norms.shape == (1, 6)
    of_network, of_data = jax.random.split(jax.random.key(3))
    unrolled = model.copy(scan=False)
    variables = resnet_jax.init_variables(unrolled, of_network, (32, 32, 3))
    of_images, of_labels = jax.random.split(of_data)
    inputs = jax.random.normal(of_images, (32, 32, 32, 3))
    labels = jax.random.randint(of_labels, (32,), 0, 10)

    def loss(params):
        logits, _ = unrolled.apply(
            {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    names = [f"layer{block}" for block in ("1_0", "1_1", "2_0")]
    wanted = [
        float(jnp.linalg.norm(gradients[name][f"conv{i}"]["kernel"]))
        for name in names
        for i in (1, 2)
    ]
    np.testing.assert_allclose(norms[0], wanted, rtol=1e-4)

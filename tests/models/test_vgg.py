"""VGG's images."""

import jax
import jax.numpy as jnp
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError


def test_a_vgg_refuses_images_that_it_cannot_halve_so_often():
    model = resnet_jax.create_model("vgg11", width=4, hidden=8)
    assert jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ConfigError, match="31×40 are too small for a VGG of 5 stages.* 32×32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 31, 40, 3)))


@pytest.mark.parametrize(
    ("field", "value"), [("bn_group_size", 4), ("bn_momentum", 0.3), ("norm_epsilon", 0.1)]
)
def test_fields_of_a_normalisation_need_one(field, value):
    resnet_jax.create_model("vgg11_bn", **{field: value})
    with pytest.raises(ConfigError, match=f"model.{field} is {value}, which needs norm='batch'"):
        resnet_jax.create_model("vgg11", **{field: value})

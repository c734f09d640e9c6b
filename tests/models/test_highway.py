"""Highway networks begin as the authors' released network does."""

import jax
import numpy as np
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.models.presets import create_model, init_variables


@pytest.mark.parametrize(
    ("path", "std"),
    [
        ("conv1", 1.0),
        ("layer1_0/conv1", (2 / (9 * 32)) ** 0.5),
        ("layer1_0/gate", (2 / (9 * 32)) ** 0.5),
        ("conv2", (2 / (9 * 32)) ** 0.5),  # 32 channels to 80: inputs count
        ("layer2_4/conv1", (2 / (9 * 80)) ** 0.5),
        ("conv_last", (2 / 128) ** 0.5),
        ("fc", 0.05),
    ],
)
def test_initial_values_of_highway19_are_the_released_ones(path, std, params):
    """examples/highways/cifar10-19layers of flukeskywalker/highway-networks.

    Its filler "xavier" is a Gaussian of √(2 / fan-in). Its first convolution names no standard
    deviation, for which Caffe takes 1.
    """
    module = params
    for name in path.split("/"):
        module = module[name]
    kernel = np.asarray(module["kernel"])
    assert kernel.std() == pytest.approx(std, rel=4 / (2 * kernel.size) ** 0.5)
    bias = -2.0 if path.endswith("gate") else 0.0
    np.testing.assert_array_equal(module["bias"], np.full(kernel.shape[-1], bias, np.float32))


@pytest.fixture(scope="module")
def params():
    return init_variables(create_model("highway19"), jax.random.key(0), (32, 32, 3))["params"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge": "add", "gate_bias": -3.0}, "gate_bias is -3.0, which needs a merge with gates"),
        ({"carry_bias": 1.0}, "carry_bias is 1.0, which needs merge='independent_gates'"),
        ({"shortcut": "none"}, "merge is 'coupled_gates', which needs a shortcut"),
    ],
)
def test_a_field_without_effect_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        create_model("highway19", **fields)


def test_images_that_pooling_would_make_empty_are_refused():
    model = create_model("highway19", stage_sizes=(1,) * 5, stage_widths=(4,) * 5)
    with pytest.raises(ConfigError, match="8×8 are too small .* it takes 16×16 or larger"):
        init_variables(model, jax.random.key(0), (8, 8, 1))
    init_variables(model, jax.random.key(0), (16, 16, 1))

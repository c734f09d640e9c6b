"""Each primitive by ONNX Runtime, in functions of maps that a branch or a module may have."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from resnet_jax.errors import ConfigError
from resnet_jax.inference.onnx import export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SHAPE = (6, 8, 4)
_KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)


class _Function(nn.Module):
    """A function of images as a network."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, images):
        return self.function(images)


def _conv(x, **options):
    return lax.conv_general_dilated(x, _KERNEL, **options)


FUNCTIONS = {
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "mish": jax.nn.mish,
    "softmax over channels": lambda x: jax.nn.softmax(x, axis=-1),
    "relu of channels first": lambda x: jnp.maximum(0, x.transpose(0, 3, 1, 2)),
    "clip and sign": lambda x: jnp.clip(x, -0.5, 0.5) * jnp.sign(x) / 3,
    "powers": lambda x: jnp.abs(x) ** 1.5 + x**3 - lax.rsqrt(1 + x * x),
    "trigonometry": lambda x: jnp.sin(x) + jnp.cos(x) * jnp.floor(x) - jnp.ceil(x),
    "log": lambda x: jnp.log(jnp.square(x) + 1),
    "comparisons": lambda x: jnp.where(x >= 0.5, 1.0, 2.0) + jnp.where(x <= 0, x, -x),
    "concatenation": lambda x: jnp.concatenate([x, 2 * x.mean(axis=(1, 2), keepdims=True) + 0 * x]),
    "slices of maps": lambda x: lax.slice(x, (0, 1, 0, 1), x.shape, (1, 2, 1, 3)),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 3)), constant_values=7.0),
    "reductions": lambda x: x.max(axis=1) + x.min(axis=1) - x.sum(axis=1) + x.prod(axis=1),
    "reduction of maps": lambda x: nn.max_pool(x, (1, 1)).sum(axis=(1, 3)),
    "squeeze": lambda x: x.mean(axis=1, keepdims=True).squeeze(1),
    "maximum pooling": lambda x: nn.max_pool(x, (3, 2), (2, 2), ((1, 1), (0, 0))),
    "average pooling": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "average of what there is": lambda x: nn.avg_pool(
        x, (3, 3), (2, 2), "SAME", count_include_pad=False
    ),
    "convolution of NHWC": lambda x: _conv(
        x, window_strides=(2, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "convolution to NCHW": lambda x: _conv(
        x,
        window_strides=(1, 1),
        padding=((2, 1), (0, 3)),
        rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "NCHW"),
    ),
    "maps by maps": lambda x: jnp.einsum("nhwc,nhwd->ncd", x, x),
    "channels by a matrix": lambda x: x @ _KERNEL[0, 0],
    "rows by rows": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x),
    "heads": lambda x: x.reshape(x.shape[0], 48, 2, 2).transpose(0, 2, 1, 3),
    "images and pixels": lambda x: x.reshape(-1, 4).sum(axis=1),
    "parameters repeated": lambda x: x[..., None] * jnp.broadcast_to(_KERNEL[0, 0], (8, 4, 2)),
    "integers": lambda x: (x.astype(jnp.int32) * 2).astype(jnp.float32),
    "jit": jax.jit(lambda x: x + 1),
    "loop": lambda x: lax.scan(lambda y, k: (y * k + x, None), x, jnp.arange(1.0, 4.0))[0],
    "reversed loop": lambda x: lax.scan(
        lambda y, k: (y * k + x, None), x, jnp.arange(1.0, 4.0), reverse=True
    )[0],
    "repeated for each image": lambda x: jnp.concatenate([x, jnp.ones((x.shape[0], 1, 8, 4))], 1),
    "nothing": lambda x: x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_maps(name):
    model = _Function(FUNCTIONS[name])
    images = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    graph = export_onnx(model, {}, SHAPE)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (result,) = session.run(None, {"images": images})
    np.testing.assert_allclose(result, model.apply({}, images), rtol=2e-5, atol=2e-6)


UNSUPPORTED = {
    "sort": (lambda x: jnp.sort(x, axis=1), r"its operation 'sort' with the result float32\[n,6,8"),
    "scan": (
        lambda x: lax.scan(lambda y, z: (y + z, y), x.sum(1), x.swapaxes(0, 1))[1],
        "a loop over arrays that aren't",
    ),
    "conv_general_dilated": (
        lambda x: _conv(
            x,
            window_strides=(1, 1),
            padding=((0, 0), (0, 0)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        "transposed, or with groups of images",
    ),
    "reduce_window_max": (lambda x: nn.max_pool(x[..., None], (2, 2, 2)), "of other axes than"),
    "pad": (
        lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]),
        "between elements",
    ),
    "broadcast_in_dim": (lambda x: jnp.ones((2 * x.shape[0], 3)), "other than the batch size"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_operation_without_a_counterpart_is_named(name):
    function, message = UNSUPPORTED[name]
    with pytest.raises(ConfigError, match=message) as error:
        export_onnx(_Function(function), {}, SHAPE)
    assert f"its operation {name!r}" in str(error.value)

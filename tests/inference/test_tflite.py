"""A network for LiteRT: its interpreter computes the logits of the network."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import resnet_jax
from resnet_jax.data.images.normalization import normalize
from resnet_jax.errors import ConfigError
from resnet_jax.inference.tflite import convert_to_tflite, tflite_program, write_tflite


def _program(name, shape, *, normalization=None, **fields):
    model = resnet_jax.create_model(name, **fields)
    variables = resnet_jax.init_variables(model, jax.random.key(0), shape)
    variables = jax.tree.map(lambda leaf: leaf + 0.05, variables)
    program = tflite_program(model, variables, shape, normalization=normalization, batch_size=2)
    return model, variables, program


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("resnet20", 8, {}),
        ("resnet18", 32, {}),
        ("preresnet20", 8, {}),
        ("resnet20", 8, {"stage_sizes": (3, 2), "scan": True}),
        ("resnext29_8x64d", 8, {"group_width": 2}),
        ("bit_r50x1", 32, {"width": 32}),
        ("resnetrs50", 33, {}),
        ("vgg11_bn", 12, {"hidden": 8}),
        ("highway19", 8, {"stage_widths": (4, 6), "width": None}),
    ],
)
def test_logits_of_each_family(name, size, fields):
    pytest.importorskip("litert_converter")
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    shape = (size, size, 3)
    given = {"stage_sizes": (1, 1), "width": 8, "num_classes": 5} | fields
    given = {k: v for k, v in given.items() if v is not None}
    model, variables, program = _program(name, shape, **given)
    interpreter = interpreters.Interpreter(model_content=convert_to_tflite(program))
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    logits = interpreter.get_signature_runner()(images=images)["logits"]
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_images_as_they_are_in_files_and_the_description(tmp_path):
    pytest.importorskip("litert_converter")
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    shape, path = (8, 8, 3), tmp_path / "net.tflite"
    statistics = {"mean": np.full(shape, 110, np.float32), "std": np.float32(60)}
    fields = {"stage_sizes": (1,), "width": 4, "num_classes": 5}
    model, variables, program = _program("resnet20", shape, normalization=statistics, **fields)
    document = write_tflite(path, program, notes={"model": "mine"})
    assert document["images"] == {"shape": [2, 8, 8, 3], "dtype": "uint8"}
    assert document["bytes"] == path.stat().st_size
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    runner = interpreters.Interpreter(model_path=str(path)).get_signature_runner()
    expected = model.apply(variables, normalize(images, statistics))
    np.testing.assert_allclose(runner(images=images)["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("compute", "operation"),
    [
        (lambda x: jnp.fft.fft2(x).real, "fft"),
        (lambda x: jax.random.normal(jax.random.key(0), x.shape) * x, r"tfl\.mul"),
    ],
)
def test_an_operation_without_a_counterpart_is_named_in_one_line(compute, operation):
    pytest.importorskip("litert_converter")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return compute(images.mean(axis=-1)).reshape(len(images), -1)

    program = tflite_program(Net(), {}, (8, 8, 3))
    with pytest.raises(ConfigError, match=rf"no counterpart for {operation}\. Export") as raised:
        convert_to_tflite(program)
    assert "\n" not in str(raised.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_converter", None)
    _, _, program = _program("resnet20", (8, 8, 3), stage_sizes=(1,), width=4)
    with pytest.raises(ConfigError, match=r"the extra \[tflite\]: .*pip install"):
        convert_to_tflite(program)

"""A network as ONNX: ONNX Runtime computes the logits of the network, for any number of images."""

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.data.images.normalization import normalize
from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.inference.onnx import export_onnx, write_onnx
from resnet_jax.models.presets import find_preset

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def _run(graph, images):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(["logits"], {"images": images})[0]


def _network(name, image_shape, **fields):
    """A network whose logits depend on each of its arrays."""
    model = resnet_jax.create_model(name, **fields)
    rng = np.random.default_rng(1)

    def values(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[-4:-1]) ** -0.5, leaf.shape)
        return (
            rng.uniform(0.5, 1, leaf.shape)
            if path[-1].key in ("scale", "var")
            else (rng.uniform(-0.1, 0.1, leaf.shape))
        )

    shapes = jax.eval_shape(
        lambda key: resnet_jax.init_variables(model, key, image_shape), jax.random.key(0)
    )
    return model, jax.tree.map_with_path(
        lambda path, leaf: values(path, leaf).astype(np.float32), shapes
    )


def _images(n, image_shape):
    return np.random.default_rng(n).normal(size=(n, *image_shape)).astype(np.float32)


def _difference(model, variables, graph, images):
    """The largest difference of the logits, relative to the largest logit."""
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    assert np.ptp(expected) > 0.1 * np.abs(expected).max()  # they aren't all alike
    return np.abs(_run(graph, images) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("resnet18", 32, {"stage_sizes": (1, 1)}),
        ("resnet20", 8, {"stage_sizes": (3, 2), "scan": True}),
        ("resnet110_sd", 9, {"stage_sizes": (1, 1)}),
        ("fixup_resnet20", 8, {"stage_sizes": (1, 1)}),
        ("resnext29_8x64d", 8, {"stage_sizes": (1, 1), "group_width": 2}),
        ("vgg11_bn", 12, {"stage_sizes": (1, 1), "hidden": 8}),
        ("highway19", 8, {"stage_sizes": (1, 1), "stage_widths": (4, 6), "width": None}),
        ("alphagozero19", 19, {"units": 1, "hidden": 8}),
        *(
            pytest.param(*row, marks=pytest.mark.thorough)
            for row in [
                ("resnet18", 33, {"stage_sizes": (1, 1), "stem": "space_to_depth"}),
                ("resnet50_v1", 32, {"stage_sizes": (1, 1), "activation": "silu"}),
                ("resnet50", 32, {"stage_sizes": (1, 1, 1), "output_stride": 8}),
                ("resnet20", 8, {"stage_sizes": (2, 1), "remat": True, "shortcut": "A_middle"}),
                ("resnet110_sd", 8, {"stage_sizes": (3, 2), "scan": True}),
                ("preresnet20", 8, {"stage_sizes": (1, 1)}),
                ("plain20", 8, {"stage_sizes": (1, 1), "activation": "gelu"}),
                ("resnet20", 8, {"stage_sizes": (1, 1), "norm": "skipinit"}),
                ("resnet20", 8, {"stage_sizes": (1, 1), "norm": "layer"}),
                ("wrn16_1", 8, {"stage_sizes": (1, 1)}),
                ("seresnet50", 32, {"stage_sizes": (1, 1)}),
                ("bit_r50x1", 32, {"stage_sizes": (1, 1), "width": 32}),
                ("resnetrs50", 33, {"stage_sizes": (1, 1)}),
                (
                    *("highway19", 8),
                    {"stage_sizes": (1,), "stage_widths": (4,), "merge": "independent_gates"}
                    | {"width": None},
                ),
            ]
        ),
    ],
)
def test_a_small_network(name, size, fields):
    given = {"width": 8, "num_classes": 5} | fields
    shape = (size, size, find_preset(name).image_shape[-1])
    network = _network(name, shape, **{k: v for k, v in given.items() if v is not None})
    graph = export_onnx(*network, shape)
    onnx.checker.check_model(graph, full_check=True)
    assert _difference(*network, graph, _images(3, shape)) < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 64),
        ("resnet50_v1", 64),
        ("resnet50d", 64),
        ("plain34", 64),
        ("resnet50_gn", 64),
        ("resnet110", 32),
        ("resnet110_sd", 32),
        ("preresnet50", 64),
        ("preresnet164", 32),
        ("wrn28_2", 32),
        ("wrn50_2", 64),
        ("resnext50_32x4d", 64),
        ("seresnet50", 64),
        ("bit_r50x1", 64),
        ("resnetrs50", 64),
        ("fixup_resnet50", 64),
        ("vgg11", 64),
        ("vgg11_bn", 64),
        ("highway19", 32),
        ("highway32", 32),
        ("alphagozero19", 19),
    ],
)
def test_a_preset_of_each_family(name, size):
    shape = (size, size, find_preset(name).image_shape[-1])
    network = _network(name, shape)
    graph = export_onnx(*network, shape)
    # Float32 itself rounds a BiT of random kernels so: float64 differs from either by 1.3e-5.
    limit = 3e-5 if name == "bit_r50x1" else 1e-5
    assert _difference(*network, graph, _images(2, shape)) < limit


def test_images_as_they_are_in_files():
    shape = (8, 8, 3)
    model, variables = _network("resnet20", shape, stage_sizes=(1,), width=4, num_classes=5)
    mean_image = np.random.default_rng(0).uniform(90, 130, shape).astype(np.float32)
    statistics = {"mean": mean_image, "std": np.float32(60)}
    graph = export_onnx(model, variables, shape, normalization=statistics)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    expected = model.apply(variables, normalize(images, statistics))
    np.testing.assert_allclose(_run(graph, images), expected, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_network_is_written_in_float32():
    shape = (8, 8, 3)
    fields = {"stage_sizes": (1,), "width": 4, "num_classes": 5}
    model, variables = _network("resnet20", shape, dtype="bfloat16", **fields)
    graph = export_onnx(model, variables, shape)
    wide = resnet_jax.create_model("resnet20", **fields)
    assert _difference(wide, variables, graph, _images(2, shape)) < 1e-5


def test_the_graph_has_no_more_than_the_network():
    """Maps aren't transposed, and biases are the convolutions' own."""
    shape = (32, 32, 3)
    model, variables = _network("resnet18", shape, stage_sizes=(2, 2), width=8, num_classes=5)
    for scan in (False, True):
        given = resnet_jax.stack_units(variables) if scan else variables
        graph = export_onnx(model.copy(scan=scan), given, shape)
        operators = Counter(node.op_type for node in graph.graph.node)
        assert operators == {
            "Transpose": 1,  # the images
            "Conv": 10,
            "Relu": 9,
            "MaxPool": 1,
            "Add": 5,  # four shortcuts, and the classifier's bias
            "ReduceSum": 1,
            "Div": 1,
            "MatMul": 1,
        }
    names = {array.name for array in graph.graph.initializer}
    assert {"params/conv1/kernel", "params/layer1_0/conv1/folded_bias", "params/fc/bias"} <= names


def test_any_number_of_images():
    shape, images = (8, 8, 3), _images(8, (8, 8, 3))
    graph = export_onnx(
        *_network("resnet20", shape, stage_sizes=(1,), width=4, num_classes=5), shape
    )
    for n in (1, 5):
        np.testing.assert_allclose(
            _run(graph, images[:n]), _run(graph, images)[:n], rtol=1e-5, atol=1e-6
        )


def test_a_fixed_batch_size():
    shape = (8, 8, 3)
    network = _network("resnet20", shape, stage_sizes=(1,), width=4, num_classes=5)
    graph = export_onnx(*network, shape, batch_size=2)
    assert [size.dim_value for size in graph.graph.output[0].type.tensor_type.shape.dim] == [2, 5]


def test_the_metadata_are_the_description(tmp_path):
    shape, path = (8, 8, 3), tmp_path / "net.onnx"
    network = _network("resnet20", shape, stage_sizes=(1,), width=4, num_classes=2)
    graph = export_onnx(*network, shape)
    document = write_onnx(path, graph, notes={"model": "mine", "class_names": ["cat", "ñandú"]})
    assert document["images"] == {"shape": ["n", 8, 8, 3], "dtype": "float32"}
    assert document["logits"] == {"shape": ["n", 2], "dtype": "float32"}
    assert document["bytes"] == path.stat().st_size
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata.pop("model") == document.pop("model") == "mine"
    read = {name: json.loads(text) for name, text in metadata.items()}
    assert read == {k: v for k, v in document.items() if k not in ("sha256", "bytes")}
    assert read["versions"]["jax"] == jax.__version__


def test_what_is_in_the_way_stays_intact(tmp_path):
    network = _network("resnet20", (8, 8, 3), stage_sizes=(1,), width=4)
    graph = export_onnx(*network, (8, 8, 3))
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="can't be written"):
        write_onnx(tmp_path / "folder", graph)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = resnet_jax.create_model("resnet20")
    with pytest.raises(ConfigError, match=r"the extra \[onnx\]: .*pip install"):
        export_onnx(model, {"params": {"x": jnp.zeros(1)}}, (8, 8, 3))

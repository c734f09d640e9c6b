"""A network as a program: the same logits in a process that has neither this package nor Flax."""

import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import resnet_jax
from resnet_jax.data.images.normalization import normalize
from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.inference.export import export_program, write_program

SHAPE = (8, 8, 3)
NORMALIZATION = {
    "mean": np.array([120.0, 110.0, 100.0], np.float32),
    "std": np.array([60.0, 50.0, 40.0], np.float32),
}
# Runs programs in a process that can't import what they were made with.
_ELSEWHERE = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("resnet_jax", "flax"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())

import jax
import numpy as np

results = {}
for name in sys.argv[1:]:
    program = jax.export.deserialize(bytearray(open(f"{name}.stablehlo", "rb").read()))
    for n, images in np.load(f"{name}.npz").items():
        results[f"{name} {n}"] = program.call(images)
np.savez("results.npz", **results)
"""


def _network(name="resnet20", **fields):
    """A small network with running statistics and logits that aren't those it begins with."""
    model = resnet_jax.create_model(
        name, **{"stage_sizes": (1, 1, 1), "width": 4, "num_classes": 5} | fields
    )
    variables = resnet_jax.init_variables(model, jax.random.key(0), SHAPE)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    stats = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape), variables["batch_stats"]
    )
    params = dict(variables["params"])
    params["fc"] = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(next(keys), leaf.shape), params["fc"]
    )
    return model, {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def network():
    return _network()


@pytest.fixture(scope="module")
def program(network):
    return export_program(*network, SHAPE, normalization=NORMALIZATION)


@pytest.mark.thorough
def test_a_process_without_the_package_computes_the_same_logits(network, program, tmp_path):
    model, variables = network
    rng = np.random.default_rng(0)
    raw = {str(n): rng.integers(0, 256, (n, *SHAPE), np.uint8) for n in (1, 3, 8)}
    ready = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    write_program(tmp_path / "raw.stablehlo", program)
    np.savez(tmp_path / "raw.npz", **raw)
    write_program(
        tmp_path / "ready.stablehlo", export_program(model, variables, SHAPE, batch_size=2)
    )
    np.savez(tmp_path / "ready.npz", **{"2": ready})
    command = [sys.executable, "-c", _ELSEWHERE, "raw", "ready"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(tmp_path / "results.npz")
    expected = {f"raw {n}": normalize(images, NORMALIZATION) for n, images in raw.items()}
    for name, images in (expected | {"ready 2": ready}).items():
        logits = model.apply(variables, images)
        assert np.abs(logits).max() > 0.1
        np.testing.assert_allclose(results[name], logits, rtol=1e-5, atol=1e-5, err_msg=name)


def test_other_platforms_than_this_one_are_lowered_for(network, program):
    assert program.platforms == ("cpu", "cuda", "tpu")
    tpu = export_program(*network, SHAPE, platforms=["tpu"])
    again = jax.export.deserialize(tpu.serialize())
    assert again.platforms == ("tpu",)
    with pytest.raises(ValueError, match="tpu"):
        again.call(jnp.zeros((1, *SHAPE)))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet20", {"scan": True, "remat": True, "dtype": "bfloat16", "stage_sizes": (2, 2)}),
        ("resnetrs50", {"stage_sizes": (1, 1), "width": 8}),
        ("resnext29_8x64d", {"group_width": 2}),
        ("bit_r50x1", {"stage_sizes": (1, 1), "width": 32}),
        ("vgg11_bn", {"stage_sizes": (1, 1), "hidden": 8}),
        ("highway19", {"stage_sizes": (1, 1), "stage_widths": (4, 4), "width": None}),
        ("alphagozero19", {"units": 1, "hidden": 8, "stage_sizes": None}),
    ],
)
def test_every_family_takes_any_number_of_images(name, fields):
    given = {"stage_sizes": (1, 1, 1), "width": 4, "num_classes": 5} | fields
    model = resnet_jax.create_model(name, **{k: v for k, v in given.items() if v is not None})
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda key: resnet_jax.init_variables(model, key, SHAPE), jax.random.key(0)),
    )
    program = export_program(model, variables, SHAPE)
    assert str(program.out_avals[0]) == "float32[n,5]"


class _Plain(nn.Module):
    """A network of another library: it has no `features`."""

    @nn.compact
    def __call__(self, images):
        maps = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(images))
        return nn.Dense(5)(nn.relu(maps).mean(axis=(1, 2)))


def test_any_module_can_be_exported():
    model, images = _Plain(), jnp.ones((2, *SHAPE))
    variables = model.init(jax.random.key(0), images)
    program = export_program(model, variables, SHAPE, platforms=["cpu"])
    wanted = model.apply(variables, images)
    np.testing.assert_allclose(program.call(images), wanted, rtol=1e-5, atol=1e-6)


def test_the_description_tells_what_a_caller_needs(program, tmp_path):
    path = tmp_path / "net.stablehlo"
    returned = write_program(path, program, notes={"class_names": ["cat", "ñandú"]})
    document = json.loads((tmp_path / "net.stablehlo.json").read_text(encoding="utf-8"))
    assert document == returned
    assert document["class_names"] == ["cat", "ñandú"]
    assert document["images"] == {"shape": ["n", 8, 8, 3], "dtype": "uint8"}
    assert document["logits"] == {"shape": ["n", 5], "dtype": "float32"}
    assert document["platforms"] == ["cpu", "cuda", "tpu"]
    assert document["versions"]["jax"] == jax.__version__
    assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["bytes"] == path.stat().st_size


def test_a_program_holds_no_path_of_this_machine(program):
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    assert b".py" not in program.serialize()
    assert limit > 0  # as it was before


def test_what_is_in_the_way_stays_intact(program, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    for path in (tmp_path / "folder", tmp_path / "none" / "net.stablehlo"):
        with pytest.raises(WriteError, match="can't be written"):
            write_program(path, program)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"platforms": ["cpu", "gpu"]}, "no platform 'gpu' for a program; it can be cpu, cuda"),
        ({"platforms": []}, "one or more platforms"),
        ({"platforms": ["cpu", "cpu"]}, "each named once; given are cpu, cpu"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_shape": (0, 8, 3)}, r"image_shape is \(0, 8, 3\)"),
        ({"image_shape": (8, 8, 1), "normalization": NORMALIZATION}, "doesn't fit images of"),
    ],
)
def test_what_cannot_be_exported_is_refused(arguments, message, network):
    with pytest.raises(ConfigError, match=message):
        export_program(*network, **({"image_shape": SHAPE} | arguments))


def test_more_parameters_than_a_file_holds_are_refused_before_anything_is_done():
    model = resnet_jax.create_model("bit_r152x4")
    shapes = jax.eval_shape(
        lambda key: resnet_jax.init_variables(model, key, (32, 32, 3)), jax.random.key(0)
    )
    with pytest.raises(ConfigError, match=r"3\.5 GiB of parameters.*less than 2 GiB"):
        export_program(model, shapes, (32, 32, 3))

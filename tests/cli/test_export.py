"""resnet-jax export: programs and weights of runs and of weight files, and what is refused."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import ConfigError
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.weights.files import read_weights
from tests.cli.mistakes import assert_one_line


def _export(capsys, *arguments):
    assert main(["export", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _call(path, images):
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))


def test_the_program_of_a_run_takes_images_as_they_are_in_files(whole, tmp_path, capsys):
    network = resnet_jax.restore_run(whole, checkpoint="best", ema=True)
    out = tmp_path / "digits.stablehlo"
    document = _export(capsys, whole, out, "--checkpoint", "best", "--ema")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    probabilities = jax.nn.softmax(_call(out, images))
    np.testing.assert_allclose(probabilities, network.predict(list(images)), atol=1e-5)
    plain = resnet_jax.restore_run(whole).predict(list(images))
    assert np.abs(probabilities - plain).max() > 1e-3  # it's the checkpoint that was asked for
    beside = json.loads((tmp_path / "digits.stablehlo.json").read_text())
    assert document == {"output": str(out), "format": "stablehlo"} | beside
    assert beside["class_names"] == list(network.class_names)
    assert beside["step"] == network.step
    assert beside["ema"] is True
    assert beside["model"] == network.config.model.name
    assert beside["crop"] is None


def test_the_program_of_a_weight_file_takes_images_of_the_size_that_the_file_says(tmp_path, capsys):
    out = tmp_path / "digits.stablehlo"
    document = _export(capsys, "--weights", "resnet20.digits", out)
    assert document["weights"] == "resnet20.digits"
    network = resnet_jax.pretrained("resnet20.digits")
    assert tuple(document["class_names"]) == network.class_names
    assert tuple(document["std"]) == network.preprocessing.std
    assert document["mean_image"] == network.preprocessing.mean_image
    images = np.random.default_rng(0).normal(size=(2, *network.preprocessing.shape))
    images = images.astype(np.float32)
    logits = network.model.apply(network.variables, images)
    np.testing.assert_allclose(_call(out, images), logits, rtol=1e-4, atol=1e-4)


def test_a_run_becomes_an_onnx_file(whole, tmp_path, capsys):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    network = resnet_jax.restore_run(whole)
    out = tmp_path / "digits.onnx"
    document = _export(capsys, whole, out, "--format=onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (logits,) = onnxruntime.InferenceSession(out).run(None, {"images": images})
    np.testing.assert_allclose(jax.nn.softmax(logits), network.predict(list(images)), atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert metadata["model"] == document["model"] == network.config.model.name
    assert json.loads(metadata["class_names"]) == list(network.class_names)
    assert json.loads(metadata["step"]) == network.step
    assert document["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert main(["export", str(whole), str(out), "--format=onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("bytes, for ONNX's operators of version 17")
    assert lines[1] == (
        "takes uint8 images of n×8×8×1, as in files; returns float32 logits of n×10"
    )


def test_a_run_becomes_a_tflite_file(whole, tmp_path, capsys):
    pytest.importorskip("litert_converter")
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    network = resnet_jax.restore_run(whole)
    out = tmp_path / "digits.tflite"
    document = _export(capsys, whole, out, "--format=tflite", "--batch=3")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    run = interpreters.Interpreter(model_path=str(out)).get_signature_runner()
    probabilities = jax.nn.softmax(run(images=images)["logits"])
    np.testing.assert_allclose(probabilities, network.predict(list(images)), atol=1e-5)
    beside = json.loads((tmp_path / "digits.tflite.json").read_text())
    assert document == {"output": str(out), "format": "tflite"} | beside
    assert beside["class_names"] == list(network.class_names)
    assert beside["images"] == {"shape": [3, 8, 8, 1], "dtype": "uint8"}


def test_without_the_extra_the_command_says_what_to_install(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    arguments = ["export", str(whole), str(tmp_path / "out.onnx"), "--format=onnx"]
    assert_one_line(arguments, 78, "the extra [onnx]: in a checkout, pip install -e", capsys)


def test_weights_of_a_run_have_pytorchs_names_and_layout(whole, tmp_path, capsys):
    network = resnet_jax.restore_run(whole)
    out = tmp_path / "digits.safetensors"
    document = _export(capsys, whole, out, "--format=safetensors")
    assert document["bytes"] == out.stat().st_size
    arrays = read_weights(out)
    assert {"conv1.weight", "layer2.0.bn1.running_var", "fc.bias"} <= set(arrays)
    assert len(arrays) == len(jax.tree.leaves(network.variables))
    kernel = network.variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(arrays["conv1.weight"], kernel.transpose(3, 2, 0, 1))


@pytest.mark.thorough
def test_the_program_of_a_weight_file(tmp_path, capsys):
    """Float images, or raw ones with the mean and deviation that are given."""
    model = resnet_jax.create_model("resnet20", num_classes=3)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (32, 32, 3))
    weights, out = tmp_path / "net.safetensors", tmp_path / "net.stablehlo"
    resnet_jax.save_weights(weights, model, variables)
    source = ["--weights", weights, "--model", "resnet20", "--field", "num_classes=3"]
    source += ["--image-size", "8"]
    ready = _export(capsys, *source, out, "--batch", "2", "--platforms", "cpu,tpu")
    assert ready["images"] == {"shape": [2, 8, 8, 3], "dtype": "float32"}
    assert ready["platforms"] == ["cpu", "tpu"]
    assert ready["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    raw = _export(capsys, *source, "--mean", "0.5,0.4,0.3", "--std", "0.3,0.2,0.1", out)
    assert raw["images"] == {"shape": ["n", 8, 8, 3], "dtype": "uint8"}
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    normalized = (images / 255 - [0.5, 0.4, 0.3]) / [0.3, 0.2, 0.1]
    logits = model.apply(variables, normalized.astype(np.float32))
    np.testing.assert_allclose(_call(out, images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_the_program_of_a_grey_network_takes_grey_images(tmp_path, capsys):
    model = resnet_jax.create_model("resnet20", num_classes=3)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 1))
    weights, out = tmp_path / "net.safetensors", tmp_path / "net.stablehlo"
    resnet_jax.save_weights(weights, model, variables)
    written = _export(capsys, "--weights", weights, out, "--image-size", "8")
    assert written["images"]["shape"] == ["n", 8, 8, 1]


def test_a_program_needs_no_preprocessing_that_weights_could_hold(
    whole, tmp_path, monkeypatch, capsys
):
    """Images may be larger than those that a weight file can describe."""

    def refuse(network):
        raise ConfigError("size is 2049")

    monkeypatch.setattr(TrainedNetwork, "preprocessing", refuse)
    _export(capsys, whole, tmp_path / "net.stablehlo")
    message = "size is 2049"
    assert_one_line(
        ["export", str(whole), str(tmp_path / "net.safetensors"), "--format=safetensors"],
        78,
        message,
        capsys,
    )


@pytest.mark.parametrize(
    ("flags", "line", "crop"),
    [
        (
            [],
            "takes float32 images of n×8×8×3, scaled until they cover 10×10 (bilinear), cropped and"
            " normalised; returns float32 logits of n×3",
            [8, 8],
        ),
        (["--image-size=16"], "takes float32 images of n×16×16×3, normalised; returns", None),
        (
            ["--mean=0.5,0.5,0.5", "--std=0.2,0.2,0.2"],
            "takes uint8 images of n×8×8×3, scaled until they cover 10×10 (bilinear) and cropped;",
            [8, 8],
        ),
    ],
)
def test_what_is_said_of_images_holds_for_the_program(flags, line, crop, tmp_path, capsys):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1,), width=4, num_classes=3)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))
    note = Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 8, 10).metadata()
    weights, out = tmp_path / "net.safetensors", tmp_path / "net.stablehlo"
    resnet_jax.save_weights(weights, model, variables, metadata=note)
    assert main(["export", "--weights", str(weights), str(out), *flags]) == 0
    assert line in capsys.readouterr().out
    document = json.loads(Path(f"{out}.json").read_text())
    assert (document["crop"] or {}).get("size") == crop
    assert ("mean" in document) == (document["images"]["dtype"] == "float32")


def test_people_read_what_was_written(whole, tmp_path, capsys):
    out = tmp_path / "digits.stablehlo"
    assert main(["export", str(whole), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("bytes, for cpu, cuda, tpu")
    assert lines[1] == (
        "takes uint8 images of n×8×8×1, as in files; returns float32 logits of n×10"
    )
    (life,) = lines[2:-1]
    assert life.startswith(f"jaxlib {version('jaxlib')} wrote it; a jaxlib up to 6 months newer")
    assert lines[-1].startswith(f"{out}.json: ")


_FILE = ["--weights", "net.npz", "--model", "resnet20"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 64, "the following arguments are required: OUT"),
        (["out"], 64, "give either a run's directory or --weights"),
        (["run", "out", *_FILE], 64, "give either a run's directory or --weights"),
        (["no-such-run", "out"], 78, "no-such-run isn't the directory of a run"),
        (["out", "--weights", "net.npz"], 65, "net.npz can't be read: No such file"),
        (["out", *_FILE], 65, "net.npz can't be read: No such file"),
        (
            ["out", "--weights", "net.npz", "--model", "resnet21"],
            78,
            "There is no model 'resnet21'",
        ),
        (["out", *_FILE, "--ema"], 64, "--ema is for a network of a run"),
        (["run", "out", "--image-size", "8"], 64, "--image-size is for a network of a weight file"),
        (["out", *_FILE, "--mean", "0.5"], 64, "--mean and --std go together"),
        (["out", *_FILE, "--mean", "120"], 64, "--mean: '120' isn't numbers in 0…1"),
        (["out", *_FILE, "--mean", "0", "--std", "0"], 64, "--std has a 0"),
        (["run", "out", "--batch", "0"], 64, "--batch is 0; it must be at least 1"),
        (["run", "out.safetensors"], 64, "--format=stablehlo don't go together"),
        (["run", "out.onnx"], 64, "a name in .onnx is for --format=onnx, and for it only"),
        (["run", "out", "--format=onnx"], 64, "out and --format=onnx don't go together"),
        (["run", "out.onnx", "--format=onnx", "--platforms=cpu"], 64, "not for --format=onnx"),
        (["run", "out.tflite"], 64, "a name in .tflite is for --format=tflite, and for it only"),
        (
            ["run", "out.keras"],
            64,
            "named as a file of TensorFlow, and a program is StableHLO; name it out.s",
        ),
        (["run", "out.PTH"], 64, "named as a file of PyTorch"),
        (["run", "out", "--format=safetensors"], 64, "--format=safetensors don't go together"),
        (
            ["run", "out.safetensors", "--format=safetensors", "--platforms=cpu"],
            64,
            "--platforms is for programs",
        ),
        (
            [
                "--weights=a.safetensors",
                "--model=resnet20",
                "a.safetensors",
                "--format=safetensors",
            ],
            64,
            "a.safetensors is what is to be exported",
        ),
        (["run", "none/out"], 73, "none/out can't be written: its folder doesn't exist"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_one_line(["export", *arguments], code, message, capsys)
    assert not list(tmp_path.iterdir())


def test_an_unknown_platform_is_one_line(whole, tmp_path, capsys):
    arguments = ["export", str(whole), str(tmp_path / "out"), "--platforms=gpu"]
    assert_one_line(arguments, 78, "There is no platform 'gpu'", capsys)


def test_networks_without_such_weights_are_one_line(tmp_path, capsys):
    np.savez(tmp_path / "net.npz", w=np.zeros(1))
    arguments = ["export", str(tmp_path / "out"), "--weights", str(tmp_path / "net.npz")]
    assert_one_line(arguments, 64, "net.npz doesn't say which network it's of", capsys)
    assert_one_line([*arguments, "--model=vgg11"], 78, "into a ResNet, not into VGG", capsys)
    assert_one_line([*arguments, "--model=resnet20"], 65, "doesn't fit the model", capsys)

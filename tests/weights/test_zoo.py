"""The weights that come with the package are what their model cards say."""

import hashlib
import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import sklearn

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.errors import DataError
from resnet_jax.weights import zoo
from resnet_jax.weights.files import read_weights
from resnet_jax.weights.hub import local_file
from resnet_jax.weights.zoo import find_weights, list_weights
from tests.cli.mistakes import assert_one_line

ROOT = Path(__file__).parents[2]
CIFAR = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / "cifar10"
NAMES = [own.name for own in list_weights()]
RIGHT_OF_FIRST_500 = {
    "resnet20.cifar10_full": 456,
    "resnet20.cifar10_eighth": 440,
    "plain20.cifar10_eighth": 430,
    "plain56.cifar10_eighth": 321,
    "resnet56.cifar10_eighth": 436,
}


def _json(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_list_has_cifar10_and_digits():
    assert {"resnet20.cifar10_eighth", "resnet20.digits"} <= set(NAMES)
    assert sum(own.path.stat().st_size for own in list_weights()) < 12e6
    assert [own.name for own in list_weights("*.digits")] == ["resnet20.digits"]
    for own in list_weights():
        assert own.name.startswith(f"{own.model}.{own.data}")
        assert 0.6 < own.top1 <= 1  # plain56 is as poor as that
        assert own.licence == "Apache-2.0"
        assert own.preprocessing
        assert own.recipe
    assert "eighth" in find_weights("resnet20.cifar10_eighth").card["note"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_agrees_with_its_run_and_file(name):
    card, own = find_weights(name).card, find_weights(name)
    log = ROOT / card["log"]
    assert hashlib.sha256((log / "metrics.jsonl").read_bytes()).hexdigest() == card["log_sha256"]
    summary = json.loads((log / "summary.json").read_text())
    test = summary["final"]["test"]
    assert card["scores"]["examples"] == test["examples"]
    assert card["scores"]["correct"] == round(test["top1"] * test["examples"])
    assert card["scores"]["loss"] == pytest.approx(test["loss"], rel=1e-3)
    assert 0 < card["scores"]["calibration_error"] < 0.2
    for key in ("command", "commit"):
        assert card["trained_by"][key] == summary[key]
        assert card["published_by"][key]
    assert (card["seed"], card["steps"]) == (summary["seed"], summary["steps"])
    assert hashlib.sha256(own.path.read_bytes()).hexdigest() == own.sha256
    kernels = {k: v for k, v in read_weights(own.path).items() if "running" not in k}
    assert sum(array.size for array in kernels.values()) == own.params


def test_every_file_goes_into_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["resnet_jax.weights"]
    folder = ROOT / "resnet_jax" / "weights"
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == set(zoo.FILES.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_loaded_by_name(name):
    own = find_weights(name)
    network = resnet_jax.pretrained(name)
    assert network.class_names == tuple(own.card["data"]["classes"])
    assert network.name == name
    model = resnet_jax.create_model(own.model, num_classes=len(own.card["data"]["classes"]))
    variables = resnet_jax.load_weights(model, name)
    np.testing.assert_array_equal(
        variables["params"]["fc"]["kernel"], read_weights(own.path)["fc.weight"].T
    )
    size, _, channels = network.preprocessing.shape
    crop = np.random.default_rng(0).integers(0, 255, (size, size, channels), np.uint8)
    logits = model.apply(variables, network.preprocessing.normalize(crop[None]))
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(network.predict([crop]), expected, rtol=1e-3, atol=1e-5)


def test_the_digits_are_scored_to_the_image(capsys):
    scores = _json(capsys, "eval", "--weights", "resnet20.digits", "--data", "digits")
    card = find_weights("resnet20.digits").card
    assert scores["examples"] == 360
    assert round(360 * scores["top1"]) == card["scores"]["correct"]
    assert scores["loss"] == pytest.approx(card["scores"]["loss"], rel=1e-4)


@pytest.mark.thorough
@pytest.mark.skipif(not CIFAR.exists(), reason="CIFAR-10 isn't prepared in $TFDS_DATA_DIR")
@pytest.mark.parametrize("name", RIGHT_OF_FIRST_500)
def test_part_of_cifar10_is_scored_to_the_image(name, capsys):
    scores = _json(capsys, "eval", "--weights", name, "--data", "cifar10", "--split", "test[:500]")
    assert scores["examples"] == 500
    assert round(500 * scores["top1"]) == RIGHT_OF_FIRST_500[name]


def test_a_photograph_is_classified_without_another_flag(capsys):
    photo = Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg"
    document = _json(capsys, "predict", "--weights", "resnet20.cifar10", str(photo))
    [prediction] = document["predictions"]
    assert prediction["top"][0]["class"] in find_weights("resnet20.cifar10").card["data"]["classes"]
    assert document["weights"] == find_weights("resnet20.cifar10").name != "resnet20.cifar10"
    assert document["preprocessing"]["resize"] == 32
    assert document["preprocessing"]["mean_image"] is True
    digits = _json(capsys, "predict", "--weights", "resnet20.digits", str(photo))
    assert digits["predictions"][0]["top"][0]["class"] in "0123456789"


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """A copy of the files, which a test may change."""
    folder = shutil.copytree(zoo.FILES, tmp_path / "files")
    monkeypatch.setattr(zoo, "FILES", folder)
    zoo._all.cache_clear()
    yield folder
    zoo._all.cache_clear()


def test_a_name_without_a_tag_is_the_most_accurate(collection):
    card = json.loads((collection / "resnet20.digits.json").read_text())
    for tag, top1 in (("worse", 0.5), ("better", 0.999)):
        card |= {"name": f"plain20.digits_{tag}", "model": "plain20"}
        card |= {"scores": card["scores"] | {"top1": top1}}
        (collection / f"plain20.digits_{tag}.json").write_text(json.dumps(card))
    assert find_weights("plain20.digits").name == "plain20.digits_better"
    assert find_weights("plain20.digits_worse").top1 == 0.5
    assert find_weights("plain20") is None
    both = ["plain20.digits_better", "plain20.digits_worse"]
    assert [own.name for own in list_weights("plain20.digits")] == both
    shutil.copy(collection / "resnet20.digits.safetensors", collection / f"{both[0]}.safetensors")
    assert resnet_jax.pretrained("plain20.digits").name == both[0]


def test_the_data_set_is_that_of_the_card(collection):
    card = json.loads((collection / "resnet20.digits.json").read_text())
    card |= {"name": "resnet20.fashion_mnist", "data": card["data"] | {"name": "fashion_mnist"}}
    (collection / "resnet20.fashion_mnist.json").write_text(json.dumps(card))
    assert find_weights("resnet20.fashion_mnist").data == "fashion_mnist"
    assert find_weights("resnet20.fashion") is None


def test_commands_report_the_full_name(collection, tmp_path, capsys):
    card = json.loads((collection / "resnet20.digits.json").read_text())
    card |= {"name": "resnet20.digits_best", "scores": card["scores"] | {"top1": 0.9999}}
    (collection / "resnet20.digits.json").unlink()
    (collection / "resnet20.digits_best.json").write_text(json.dumps(card))
    (collection / "resnet20.digits.safetensors").rename(
        collection / "resnet20.digits_best.safetensors"
    )
    scores = _json(capsys, "eval", "--weights", "resnet20.digits", "--data", "digits")
    assert scores["weights"] == "resnet20.digits_best"
    arguments = ["--format=safetensors", str(tmp_path / "copy.safetensors")]
    exported = _json(capsys, "export", "--weights", "resnet20.digits", *arguments)
    assert exported["weights"] == "resnet20.digits_best"


def test_a_changed_file_is_refused(collection):
    path = collection / "resnet20.digits.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"isn't the published resnet20.digits \(SHA-256"):
        resnet_jax.pretrained("resnet20.digits")


def test_a_file_takes_precedence_and_a_misspelt_name_gets_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such weights .* Did you mean 'resnet20.digits'"):
        local_file("resnet20.digit")
    Path("resnet20.digits").write_bytes(b"")
    assert local_file("resnet20.digits") == "resnet20.digits"
    assert_one_line(["list", "--weights", "resnet20.digit"], 64, "Did you mean", capsys)


def test_a_folder_does_not_hide_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet20.digits").mkdir()
    assert resnet_jax.pretrained("resnet20.digits").name == "resnet20.digits"
    Path("runs").mkdir()
    assert local_file("runs") == "runs"
    Path("owner/name").mkdir(parents=True)  # not a model on the Hub
    assert local_file("owner/name") == "owner/name"


def test_the_command_lists_them(capsys):
    assert main(["list", "--weights"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    cards = _json(capsys, "list", "--weights", "*digits")["weights"]
    assert [card["name"] for card in cards] == ["resnet20.digits"]


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_computes_the_same_logits(name, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = tmp_path / "exported.safetensors"
    arguments = ["export", "--weights", name, "--format=safetensors", str(path)]
    assert main(arguments) == 0
    capsys.readouterr()
    tensors = load_file(path)
    functional = torch.nn.functional

    def norm(x, prefix):
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{prefix}.{n}"] for n in names))

    def block(x, prefix, stride, residual):
        y = functional.conv2d(x, tensors[f"{prefix}.conv1.weight"], stride=stride, padding=1)
        y = functional.relu(norm(y, f"{prefix}.bn1"))
        y = norm(
            functional.conv2d(y, tensors[f"{prefix}.conv2.weight"], padding=1), f"{prefix}.bn2"
        )
        if residual:
            x = x[:, :, ::stride, ::stride]
            y = y + functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return functional.relu(y)

    own = find_weights(name)
    network = resnet_jax.pretrained(name)
    x = np.random.default_rng(1).normal(size=(4, *network.preprocessing.shape)).astype(np.float32)
    y = torch.from_numpy(x.transpose(0, 3, 1, 2))
    y = functional.relu(norm(functional.conv2d(y, tensors["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for number in range((int(own.model[-2:]) - 2) // 6):
            stride = 2 if stage > 1 and number == 0 else 1
            y = block(y, f"layer{stage}.{number}", stride, own.model.startswith("resnet"))
    y = functional.linear(y.mean(dim=(2, 3)), tensors["fc.weight"], tensors["fc.bias"])
    expected = network.model.apply(network.variables, x)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-3, atol=1e-4)

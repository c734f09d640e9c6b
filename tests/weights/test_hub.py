"""Models on the Hugging Face Hub; a local server answers like the Hub."""

import json
import logging
import os
import shutil

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights.hub import full_name, is_reference, local_file
from resnet_jax.weights.preprocessing import read_preprocessing
from tests.fake_hub import COMMIT, serve

constants = pytest.importorskip("huggingface_hub.constants")

NAME = "someone/resnet8.digits"
TIMM = {
    "architecture": "resnet8",
    "pretrained_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "input_size": [3, 32, 32],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    },
}


@pytest.fixture(scope="module")
def network():
    model = resnet_jax.create_model("resnet20", stage_sizes=(1,), width=4)
    return model, resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 3))


@pytest.fixture
def models(network, tmp_path, monkeypatch):
    """The folder of a Hub that holds the network under `NAME`; the cache is empty."""
    folder = tmp_path / "hub"
    (folder / NAME).mkdir(parents=True)
    resnet_jax.save_weights(folder / NAME / "model.safetensors", *network)
    (folder / NAME / "config.json").write_text(json.dumps(TIMM))
    server = serve(folder, hidden=frozenset({"someone/gated"}))
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        *(constants, "HUGGINGFACE_CO_URL_TEMPLATE"),
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield folder
    server.shutdown()


@pytest.fixture
def offline(models, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_weights_and_preprocessing_come_together(models, network, caplog):
    caplog.set_level(logging.INFO, "resnet_jax")
    model, variables = network
    loaded = resnet_jax.load_weights(model, NAME)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert f"{NAME}@{COMMIT} pins it" in caplog.text
    prepare = read_preprocessing(NAME)
    assert (prepare.mean, prepare.size, prepare.resize) == ((0.5, 0.4, 0.3), 32, 36)


@pytest.mark.parametrize("reference", [NAME, f"{NAME}@{COMMIT}"])
def test_what_was_downloaded_needs_no_connection(models, reference, request):
    (models / NAME / "config.json").unlink()  # so that both files beside it are missing
    first = local_file(reference)
    request.getfixturevalue("offline")
    assert local_file(reference) == first
    assert os.path.basename(first) == "model.safetensors"


def test_a_file_here_comes_first(models, tmp_path):
    shutil.copytree(models / "someone", tmp_path / "someone")
    assert local_file(NAME) == NAME
    assert local_file(tmp_path / NAME) == str(tmp_path / NAME)


def test_a_file_may_lie_in_the_users_home(network, tmp_path, monkeypatch):
    """Shells leave ~ alone in --config.init_from=~/own.safetensors."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model, variables = network
    resnet_jax.save_weights(tmp_path / "own.safetensors", model, variables)
    loaded = resnet_jax.load_weights(model, "~/own.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert full_name("~/own.safetensors") == str(tmp_path / "own.safetensors")
    assert not is_reference("~/own.safetensors")


@pytest.mark.parametrize("path", ["a/b.safetensors", "a/b.NPZ", "a/b/c", "/a/b", "file"])
def test_the_name_of_a_file_is_never_looked_up(models, path):
    assert local_file(path) == path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("someone/nothing", "no such model on the Hub"),
        ("someone/gated", "accepted its terms"),
        (f"{NAME}@v2", "no revision 'v2'"),
        ("someone/empty", "no model.safetensors"),
    ],
)
def test_what_the_hub_refuses_is_one_line(models, reference, message):
    (models / "someone/empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        local_file(reference)
    assert "\n" not in str(caught.value)


def test_without_a_connection_it_says_what_to_do(offline):
    with pytest.raises(DataError, match=r"can't be reached\. Connect once, or fetch"):
        local_file(NAME)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_cache_is_noticed(models, name):
    path = os.path.join(os.path.dirname(local_file(NAME)), name)
    with open(os.path.realpath(path), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(DataError, match=r"isn't what someone/resnet8.digits has.*Remove"):
        local_file(NAME)


def test_without_the_extra_it_says_so(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        local_file(NAME)

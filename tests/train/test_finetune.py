"""Runs that begin with the weights of a file: what is taken, what is trained, and how fast."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.schema import set_field
from resnet_jax.data.images.preprocessing import Preprocessing, encode_mean_image
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.train.experiment import Experiment
from resnet_jax.weights.files import read_weights, write_weights
from tests.data.readers.test_folders import write
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache"]

CLASSES = {"cat": 40, "dog": 40, "owl": 24}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"), CLASSES, shape=(8, 8))


def _model(num_classes):
    return resnet_jax.create_model(
        "resnet20", stage_sizes=(1, 1), width=4, shortcut="B", num_classes=num_classes
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a trained network of ten classes: no value in it is an initial one."""
    path = tmp_path_factory.mktemp("weights") / "ten.safetensors"
    model = _model(10)
    variables = resnet_jax.init_variables(model, jax.random.key(7), (8, 8, 3))
    trained = jax.tree.map(lambda leaf: leaf + 0.25, variables)
    resnet_jax.save_weights(path, model, trained)
    return path


@pytest.fixture
def config(tiny_config, images, weights):
    """Twelve steps of 16 on a folder, from those weights, with a new classifier."""
    config = tiny_config
    config.model.stage_sizes = (1, 1)
    config.model.shortcut = "B"
    config.data.name, config.data.dir = "folder", str(images)
    config.data.train, config.data.validation = "train[:80%]", "train[80%:90%]"
    config.data.test = "train[90%:]"
    config.batch_size = 16
    config.duration = 12 * 16.0
    config.eval_every = config.checkpoint_every = 6 * 16.0
    config.schedule.warmup = 0.0
    config.init_from = str(weights)
    config.new_head = True
    return config


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def _file(weights, num_classes=0):
    return _flat(resnet_jax.load_weights(_model(num_classes), weights))


# --- what a run begins with -----------------------------------------------------------------------


def test_a_run_begins_with_the_file_and_a_classifier_of_its_own(config, weights):
    config.ema_decay = 0.9
    state = Experiment.make(config).initial_state()
    config.init_from, config.new_head = "", False
    drawn = Experiment.make(config).initial_state()
    found, of_file = _flat(state.variables()), _file(weights)
    for name, leaf in _flat(drawn.variables()).items():
        head = name.startswith("params/fc")
        np.testing.assert_array_equal(found[name], leaf if head else of_file[name], name)
        assert head or not np.array_equal(of_file[name], leaf)
    for name, leaf in _flat(state.variables(ema=True)).items():
        np.testing.assert_array_equal(leaf, found[name], name)
    assert jax.tree.structure(state) == jax.tree.structure(drawn)


def test_a_new_classifier_without_weights_is_refused(config):
    """As with configs/finetune.py, if the weights are forgotten."""
    config.init_from = ""
    with pytest.raises(ConfigError, match="new_head is True, and init_from is empty"):
        Experiment.make(config)


def test_the_classifier_of_the_file_is_taken_if_it_is_to_be(config, tmp_path):
    model = _model(3)
    variables = resnet_jax.init_variables(model, jax.random.key(1), (8, 8, 3))
    variables = jax.tree.map(lambda leaf: leaf - 0.5, variables)
    resnet_jax.save_weights(tmp_path / "three.safetensors", model, variables)
    config.init_from, config.new_head = str(tmp_path / "three.safetensors"), False
    found, of_file = _flat(Experiment.make(config).initial_state().variables()), _flat(variables)
    assert found.keys() == of_file.keys()
    for name, leaf in of_file.items():
        np.testing.assert_array_equal(found[name], leaf, name)


NOTES = Preprocessing(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.1), size=8, class_names=("owl", "dog", "cat")
)


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """A file of weights for three classes that says which, and how images are normalised."""
    path = tmp_path_factory.mktemp("noted") / "three.safetensors"
    variables = resnet_jax.init_variables(_model(3), jax.random.key(1), (8, 8, 3))
    resnet_jax.save_weights(path, _model(3), variables, metadata=NOTES.metadata())
    return path


@pytest.mark.parametrize("source", ["config", "file", "images"])
def test_images_are_normalised_as_told_or_as_the_weights_are_used_to(config, noted, source):
    measured = Experiment.make(config).normalization
    expected = measured["mean"], measured["std"]
    if source != "images":
        config.init_from = str(noted)
        expected = 255 * np.array(NOTES.mean), 255 * np.array(NOTES.std)
    if source == "config":
        config.data.mean, config.data.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        expected = 255 * np.array(config.data.mean), 255 * np.array(config.data.std)
    experiment = Experiment.make(config)
    found = experiment.initial_state().normalization
    np.testing.assert_allclose(found["mean"], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found["std"], expected[1], rtol=1e-6)
    said = {"config": "as data.mean and data.std say", "file": "as it says", "images": "names none"}
    assert experiment.pretrained.announce(config, 3).endswith(said[source])


@pytest.fixture(scope="module")
def of_mean_image(tmp_path_factory):
    """A file of weights for three classes that were trained with a mean image."""
    path = tmp_path_factory.mktemp("mean_image") / "three.safetensors"
    variables = resnet_jax.init_variables(_model(3), jax.random.key(1), (8, 8, 3))
    image = encode_mean_image(np.full((8, 8, 3), 127.0, np.float32))
    notes = dataclasses.replace(NOTES, mean_image=image)
    resnet_jax.save_weights(path, _model(3), variables, metadata=notes.metadata())
    return path


def test_images_of_another_size_take_the_means_of_a_mean_image(config, of_mean_image):
    config.init_from = str(of_mean_image)
    experiment = Experiment.make(config)
    found = experiment.initial_state().normalization
    np.testing.assert_allclose(found["mean"], 255 * np.array(NOTES.mean), rtol=1e-6)
    line = experiment.pretrained.announce(config, 3)
    assert line.endswith("normalised by the channels' means of its mean image")
    config.data.mean, config.data.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    experiment = Experiment.make(config)
    found = experiment.initial_state().normalization
    np.testing.assert_allclose(found["mean"], 255 * np.array(config.data.mean), rtol=1e-6)
    assert experiment.pretrained.announce(config, 3).endswith("as data.mean and data.std say")


def test_a_mean_image_is_that_of_the_run(config, of_mean_image, weights):
    config.data.normalize = "pixel_mean"
    for path in (of_mean_image, weights):
        config.init_from = str(path)
        experiment = Experiment.make(config)
        found = experiment.initial_state().normalization
        np.testing.assert_array_equal(found["mean"], experiment.normalization["mean"])
        assert found["mean"].shape == (8, 8, 3)
        line = experiment.pretrained.announce(config, 3)
        assert line.endswith("normalised by their own mean image and deviation")


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_frozen_network_stays_as_it_is_to_the_bit_while_the_classifier_moves(
    config, weights, tmp_path, capsys
):
    """With parameters split over two devices, weight decay and clipping."""
    config.optimizer.trainable = "head"
    config.optimizer.clip_norm = 1.0
    config.mesh.fsdp = 2
    before = _flat(Experiment.make(config).initial_state().variables())
    result = resnet_jax.fit(config, tmp_path / "run")
    of_file = _file(weights)
    for name, leaf in _flat(result.state.variables()).items():
        if name.startswith("params/fc"):
            assert not np.array_equal(leaf, before[name])
        else:
            np.testing.assert_array_equal(leaf, of_file[name], name)
    kept = [name for name, leaf in _flat(result.state.opt_state).items() if leaf.ndim]
    assert len(kept) == 2  # a velocity of the kernel, and one of the bias
    assert all("/fc/" in name for name in kept)
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("begins with"))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"{weights} (SHA-256 {sha256[:16]}…) and a new classifier of 3 classes" in line
    assert "normalised by their own mean and deviation, as it names none" in line
    assert "only the classifier is trained\n" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["init_from"] == {"file": "ten.safetensors", "sha256": sha256}


@pytest.mark.thorough
def test_the_classifier_moves_as_if_all_were_trained(config, tmp_path):
    """Its first step, that is: the gradient is the same, and ends there."""
    config.data.flip, config.data.crop_padding = False, 0
    config.model.bn_frozen = True  # as it is without asking where the classifier is trained alone
    heads, norms = [], []
    for trainable in ("all", "head"):
        config.optimizer.trainable = trainable
        result = resnet_jax.fit(config, tmp_path / trainable, stop_at_step=1)
        heads.append(_flat(result.state.params["fc"]))
        norms.append(float(result.state.meter.grad_norm))
    for name, leaf in heads[0].items():
        np.testing.assert_allclose(heads[1][name], leaf, rtol=1e-5, atol=1e-7)
    assert 0 < norms[1] < norms[0]


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_run_goes_on_without_the_file_but_not_with_another(config, weights, tmp_path):
    config.optimizer.trainable = "head"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    config.init_from = str(copy)
    whole = resnet_jax.fit(config, tmp_path / "whole")
    assert resnet_jax.fit(config, tmp_path / "run", stop_at_step=5).stopped_early

    resnet_jax.save_weights(
        copy, _model(10), resnet_jax.init_variables(_model(10), jax.random.key(0), (8, 8, 3))
    )
    with pytest.raises(ConfigError, match="isn't the file that the run began with") as error:
        resnet_jax.fit(config, tmp_path / "run")
    assert "\n" not in str(error.value)

    copy.unlink()
    result = resnet_jax.fit(config, tmp_path / "run")
    for name, leaf in _flat(whole.state).items():
        np.testing.assert_array_equal(_flat(result.state)[name], leaf, name)
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "run")
    ]
    assert summaries[0]["init_from"] == summaries[1]["init_from"]
    assert summaries[0]["init_from"]["file"] == "copy.safetensors"
    network = resnet_jax.restore_run(tmp_path / "run")
    np.testing.assert_array_equal(
        network.variables["params"]["fc"]["bias"], whole.state.params["fc"]["bias"]
    )


@pytest.mark.thorough
def test_the_file_says_which_network_a_run_has(config, weights, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    config.init_from = str(copy)
    resnet_jax.fit(config, tmp_path / "named", stop_at_step=1)
    for name in ("name", "stage_sizes", "shortcut", "width"):
        config.model[name] = "" if name == "name" else None
    config.model.head_dropout = 0.5
    resnet_jax.fit(config, tmp_path / "run", stop_at_step=1)
    models = [
        resnet_jax.restore_run(tmp_path / run).model.copy(head_dropout=0.0)
        for run in ("run", "named")
    ]
    assert models[0] == models[1]
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["head_dropout"] == 0.5
    copy.unlink()
    resnet_jax.fit(config, tmp_path / "run", stop_at_step=2)
    with pytest.raises(DataError, match=r"copy.safetensors can't be read"):
        resnet_jax.fit(config, tmp_path / "other")
    write_weights(copy, read_weights(weights))
    with pytest.raises(DataError, match="doesn't say which network it's of"):
        resnet_jax.fit(config, tmp_path / "other")
    config.init_from = ""
    with pytest.raises(ConfigError, match="model.name is empty; name a preset, or let init_from"):
        resnet_jax.fit(config, tmp_path / "other")


# --- what is refused ------------------------------------------------------------------------------

VGG = {"model.name": "vgg11"} | dict.fromkeys(
    ("model.stage_sizes", "model.shortcut", "model.width")
)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"init_from": "missing.safetensors"}, DataError, "missing.safetensors"),
        ({"new_head": False}, DataError, "isn't one of 3 classes.*new_head=True"),
        ({"model.width": 8}, DataError, "doesn't fit the model"),
        (VGG, ConfigError, "init_from is for ResNets, and model.name is 'vgg11', a VGG"),
        ({"optimizer.trainable": "heads"}, ConfigError, "Did you mean 'head'"),
        ({"optimizer.layer_decay": 0.0}, ConfigError, "greater than 0 and at most 1"),
        ({"optimizer.layer_decay": 1.5}, ConfigError, "greater than 0 and at most 1"),
        ({"optimizer.layer_decay": 0.5, "optimizer.trainable": "head"}, ConfigError, "set one of"),
        ({"precise_bn": 2, "optimizer.trainable": "head"}, ConfigError, "keeps its running stat"),
        ({"data.mean": (0.5,), "data.std": (0.5,)}, ConfigError, "1 values, but the images 3"),
        ({"data.mean": (0.5, 0.5, 0.5)}, ConfigError, "both have a value per channel"),
        ({"data.mean": (127.0,) * 3, "data.std": (60.0,) * 3}, ConfigError, "values in 0…1"),
        ({"data.mean": (0.5,) * 3, "data.std": (0.0,) * 3}, ConfigError, "no deviation is 0"),
        ({"data.mean": ("a",) * 3, "data.std": (0.5,) * 3}, ConfigError, "a tuple of numbers"),
        (
            {"data.mean": (0.5,) * 3, "data.std": (0.5,) * 3, "data.normalize": "pixel_mean"},
            ConfigError,
            "data.mean and data.std are for 'channel'",
        ),
        ({"data.image_size": 0}, ConfigError, "data.image_size is 0; it must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(config, tmp_path, fields, error, message):
    for name, value in fields.items():
        set_field(config, name, value)
    with pytest.raises(error, match=message) as caught:
        resnet_jax.fit(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_weights_of_colour_images_are_not_for_grey_ones(config, tmp_path):
    config.data.name = "digits"
    with pytest.raises(DataError, match=r"conv1/kernel is \(3, 3, 3, 4\) .*\(3, 3, 1, 4\)"):
        resnet_jax.fit(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.normalize", "pixel_mean", "names the mean and deviation .* with 'channel'"),
        ("new_head", False, "the classes of .* aren't the data's .'owl' and 'cat'.; set new_head"),
    ],
)
def test_what_the_file_says_is_compared(config, noted, tmp_path, field, value, message):
    config.init_from = str(noted)
    set_field(config, field, value)
    with pytest.raises(ConfigError, match=message):
        resnet_jax.fit(config, tmp_path / "run")

"""resnet-jax eval --weights: the network of a weight file scored on a data set."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.data.dataset_info import KNOWN_SETS, KnownSet
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.data.prepare.prepare import Options, prepare
from tests.cli import mistakes

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
NAMES = ("cat", "dog", "owl")
PREPROCESSING = Preprocessing(MEAN, STD, 16, 20, "bicubic", NAMES)
FIELDS = ["--field", "stage_sizes=(1, 1)", "--field", "width=4", "--field", "num_classes=3"]
COUNTS = (14, 9, 6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs of three animals, weight files, and the logits of every photograph by class."""
    root = tmp_path_factory.mktemp("eval")
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=3)
    variables = resnet_jax.init_variables(model, jax.random.key(2), (16, 16, 3))
    for name, metadata in (
        ("told", PREPROCESSING.metadata()),
        ("silent", None),
        ("turned", Preprocessing(MEAN, STD, 16, 20, "bicubic", NAMES[::-1]).metadata()),
    ):
        resnet_jax.save_weights(root / f"{name}.safetensors", model, variables, metadata=metadata)
    huge = jax.tree.map(lambda leaf: leaf * 1e38, variables)
    resnet_jax.save_weights(root / "huge.safetensors", model, huge)
    rng = np.random.default_rng(0)
    logits = []
    for name, count in zip(NAMES, COUNTS, strict=True):
        (root / "animals" / name).mkdir(parents=True)
        crops = []
        for number in range(count):
            shape = rng.integers(18, 40, 2)
            image = rng.integers(0, rng.integers(2, 256), (*shape, 3), np.uint8)
            Image.fromarray(image).save(root / "animals" / name / f"{number}.png")
            crops.append((PREPROCESSING.apply(image) / 255 - MEAN) / STD)
        logits.append(np.asarray(model.apply(variables, np.float32(crops))))
    return root, logits


def _arguments(root, file, *more):
    arguments = ["eval", "--weights", str(root / file), "--model", "resnet20", *FIELDS]
    return [*arguments, "--data=folder", f"--data-dir={root / 'animals'}", *more]


def _assert_refused(arguments, code, message, capsys):
    """One line of error, perhaps after a line on what is being done."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def _run(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_of_this_package_needs_no_flags(place, capsys):
    root, _ = place
    with_flags = _run(capsys, *_arguments(root, "told.safetensors", "--split=train"))
    arguments = ["eval", "--weights", str(root / "told.safetensors"), "--split=train"]
    document = _run(capsys, *arguments, "--data=folder", f"--data-dir={root / 'animals'}")
    assert document == with_flags


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """A prepared data set of twenty images of 32×32 in ten classes."""
    root = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for name in "abcdefghij":
        (root / "images/test" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            image.save(root / "images/test" / name / f"{number}.png")
    prepare(root / "images", root / "data", "my_cifar", Options(), workers=1)
    return root / "data"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(KNOWN_SETS, "my_cifar", KnownSet((32, 32, 3), 10, {"test": 20}))


def test_images_of_the_networks_size_need_no_flags_on_size(small_cifar, tmp_path, capsys):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4)
    variables = resnet_jax.init_variables(model, jax.random.key(2), (32, 32, 3))
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    arguments = ["eval", "--weights", str(tmp_path / "w.safetensors"), "--data=my_cifar"]
    arguments += [f"--data-dir={small_cifar}"]
    _assert_refused(arguments, 64, "prepared for its network; give --mean, --std, as", capsys)
    statistics = ["--mean=0.5,0.4,0.3", "--std=0.3,0.2,0.1"]
    document = _run(capsys, *arguments, *statistics)
    assert document["examples"] == 20
    assert document["preprocessing"]["size"] == 32
    assert document["preprocessing"]["resize"] is None
    by_hand = ["--size=32", "--resize=none"]
    assert _run(capsys, *arguments, *statistics, *by_hand) == document
    scaled = _run(capsys, *arguments, *statistics, "--resize=40", "--interpolation=bicubic")
    assert scaled["loss"] != document["loss"]


def test_a_network_of_another_size_is_not_given_the_images_as_they_are(
    small_cifar, tmp_path, capsys
):
    model = resnet_jax.create_model("resnet18", stage_sizes=(1, 1), width=4, num_classes=10)
    variables = resnet_jax.init_variables(model, jax.random.key(2), (32, 32, 3))
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    arguments = ["eval", "--weights", str(tmp_path / "w.safetensors"), "--data=my_cifar"]
    arguments += [f"--data-dir={small_cifar}", "--mean=0.5,0.4,0.3", "--std=0.3,0.2,0.1"]
    _assert_refused(arguments, 64, "give --size, --resize, --interpolation, as its", capsys)


FLAGS = ["--mean=0.5,0.4,0.3", "--std=0.3,0.2,0.1", "--size=16"]
FLAGS += ["--resize=20", "--interpolation=bicubic"]


@pytest.mark.parametrize(("file", "flags"), [("told", []), ("silent", FLAGS)])
def test_scores_are_those_of_the_same_logits_without_the_command(file, flags, place, capsys):
    root, logits = place
    arguments = _arguments(root, f"{file}.safetensors", "--split=train", "--per-class", *flags)
    document = _run(capsys, *arguments)
    assert document["examples"] == sum(COUNTS)
    right = [int((one.argmax(axis=1) == label).sum()) for label, one in enumerate(logits)]
    assert 0 < sum(right) < sum(COUNTS)
    assert document["top1"] == pytest.approx(sum(right) / sum(COUNTS))
    assert [row["correct"] for row in document["classes"]] == right
    assert [row["class"] for row in document["classes"]] == list(NAMES)
    losses = [np.log(np.exp(one - one[:, [label]]).sum(axis=1)) for label, one in enumerate(logits)]
    assert document["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
    assert document["preprocessing"]["resize"] == 20


def test_a_grey_network_scores_colour_files_in_grey(place, tmp_path, capsys):
    root, _ = place
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=3)
    variables = resnet_jax.init_variables(model, jax.random.key(2), (16, 16, 1))
    note = Preprocessing((0.5,), (0.3,), 16, 16, "bilinear", NAMES).metadata()
    resnet_jax.save_weights(tmp_path / "grey.safetensors", model, variables, metadata=note)
    arguments = ["eval", "--weights", str(tmp_path / "grey.safetensors"), "--split=train"]
    document = _run(capsys, *arguments, "--data=folder", f"--data-dir={root / 'animals'}")
    assert document["examples"] == sum(COUNTS)


def test_colour_networks_and_grey_images_do_not_go_together(tmp_path, capsys):
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4)
    variables = resnet_jax.init_variables(model, jax.random.key(2), (8, 8, 3))
    note = Preprocessing(MEAN, STD, 8).metadata()
    resnet_jax.save_weights(tmp_path / "rgb.safetensors", model, variables, metadata=note)
    arguments = ["eval", "--weights", str(tmp_path / "rgb.safetensors"), "--data=digits"]
    message = "images of digits are 8×8×1 (height×width×channels), but the network of"
    _assert_refused(arguments, 65, message, capsys)


def test_mirror_images_are_scored_by_name(place, capsys):
    root, _ = place
    arguments = _arguments(root, "told.safetensors", "--split=train")
    plain, both = _run(capsys, *arguments), _run(capsys, *arguments, "--mirrored")
    assert (plain["mirrored"], both["mirrored"]) == (False, True)
    assert plain["loss"] != both["loss"]


def test_a_part_of_a_split_is_scored_and_told_to_people(place, capsys):
    root, _ = place
    assert main(_arguments(root, "told.safetensors", "--split=train[:10]")) == 0
    out = capsys.readouterr().out
    assert "told.safetensors on folder, train[:10]: top-1 " in out
    assert "(10 images)" in out


@pytest.mark.parametrize(
    ("file", "more", "code", "message"),
    [
        ("told", ["--split=tset"], 78, "there is no split 'tset'; the splits are train"),
        ("told", ["--data=digits"], 78, "digits come as they are"),
        ("told", ["--data="], 64, "--data is missing"),
        ("told", ["--ema"], 64, "--ema is for a network of a run"),
        ("told", ["runs/digits"], 64, "give either a run's directory or --weights"),
        ("silent", [], 64, "give --mean, --std, --size, --resize, --interpolation"),
        ("turned", ["--split=train"], 65, "in another order: number 0 is 'cat' there and 'owl'"),
        ("silent", [*FLAGS, "--mean=0.5", "--std=0.5"], 78, "takes images of 3 channels, but"),
        ("silent", [*FLAGS, "--split=train", "--data=cifar10", "--data-dir=none"], 65, "none"),
        ("huge", [*FLAGS, "--split=train"], 70, "logits aren't finite on train"),
    ],
)
def test_mistakes_are_one_line(file, more, code, message, place, capsys):
    root, _ = place
    _assert_refused(_arguments(root, f"{file}.safetensors", *more), code, message, capsys)


def test_another_number_of_classes_is_one_line(place, capsys):
    root, _ = place
    for name in ("cat", "dog"):
        (root / "fewer" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "fewer" / name / "a.png")
    arguments = _arguments(root, "told.safetensors", f"--data-dir={root / 'fewer'}")
    _assert_refused([*arguments, "--split=train"], 65, "2 classes, but the network", capsys)


def test_flags_of_weight_files_are_refused_for_runs(capsys):
    for flag in ("--data=cifar10", "--resize=none", "--size=32", "--classes=names.txt"):
        message = f"{flag.partition('=')[0]} is for a network of a weight file"
        mistakes.assert_one_line(["eval", "runs/digits", flag], 64, message, capsys)

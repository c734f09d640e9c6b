"""resnet-jax predict --weights: any number of image files through the network of a weight file."""

import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.cli import classify as classify_module
from resnet_jax.cli.main import main
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.inference import predictor
from tests.cli.mistakes import assert_one_line

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
NAMES = ("plane", "car", "bird", "[bold]cat[/bold]", "deer")
FIELDS = ["--field", "stage_sizes=(1, 1)", "--field", "width=4", "--field", "num_classes=5"]
FLAGS = ["--mean", "0.5,0.4,0.3", "--std", "0.3,0.2,0.1", "--size", "16"]
FLAGS += ["--resize", "20", "--interpolation", "bicubic"]
PREPROCESSING = Preprocessing(MEAN, STD, 16, 20, "bicubic", NAMES)


@pytest.fixture(scope="module")
def network():
    """A CIFAR net of two blocks."""
    model = resnet_jax.create_model("resnet20", stage_sizes=(1, 1), width=4, num_classes=5)
    return model, resnet_jax.init_variables(model, jax.random.key(0), (16, 16, 3))


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A file with its preprocessing, and one without."""
    folder = tmp_path_factory.mktemp("weights")
    for name, metadata in (("told", PREPROCESSING.metadata()), ("silent", None)):
        resnet_jax.save_weights(folder / f"{name}.safetensors", *network, metadata=metadata)
    return folder


def _noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _run(capsys, code, *arguments):
    assert main(["predict", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def _assert_right(predictions, network, images, top=5):
    """The probabilities of the same network without the command, image by image."""
    model, variables = network
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in images]
    for prediction, image in zip(predictions, images.values(), strict=True):
        crop = PREPROCESSING.apply(np.asarray(image))
        logits = model.apply(variables, ((crop / 255 - MEAN) / STD)[None].astype(np.float32))[0]
        expected = np.exp(logits) / np.exp(logits).sum()
        indices = [one["index"] for one in prediction["top"]]
        assert len(indices) == top
        np.testing.assert_allclose(
            [one["probability"] for one in prediction["top"]], expected[indices], atol=1e-5
        )
        assert sorted(expected[indices], reverse=True) == list(expected[indices])
        assert [one["class"] for one in prediction["top"]] == [NAMES[i] for i in indices]


@pytest.fixture
def folder(tmp_path):
    """20 good files at three depths, 5 bad ones, and what isn't looked at; the good ones' RGB."""
    root = tmp_path / "photos"
    (root / "a" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    images = {}
    for number in range(20):
        place = (root, root / "a", root / "a" / "deep")[number % 3]
        image = Image.fromarray(_noise(18 + 3 * number, 60 - number, number))
        path = place / f"{number:02}.png"
        image.save(path)
        images[path] = image
    for number, mode in ((0, "L"), (1, "RGBA"), (2, "P")):
        path = next(path for path in images if path.stem == f"{number:02}")
        images[path].convert(mode).save(path)
        images[path] = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    for stem, mode, options in (("03", "CMYK", {}), ("04", "RGB", {"exif": exif})):
        old = next(path for path in images if path.stem == stem)
        path = old.with_suffix(".JPG")
        images[old].convert(mode).save(path, "JPEG", **options)
        old.unlink()
        del images[old]
        turned = Image.ROTATE_180 if options else None
        image = Image.open(path).convert("RGB")
        images[path] = image.transpose(turned) if options else image
    (root / "bad_empty.png").touch()
    (root / "bad_text.jpg").write_text("no image")
    good = (root / "00.png").read_bytes()
    (root / "a" / "bad_torn.png").write_bytes(good[: len(good) // 2])
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(root / "bad_deep.png")
    Image.new("1", (6000, 6000)).save(root / "bad_huge.png")
    (root / "notes.txt").write_text("not looked at")
    (root / ".hidden" / "bad.png").write_text("nor this")
    os.symlink(root, root / "a" / "loop")  # nor this a second time
    order = [path for path in _walk_in_order(root) if path in images]
    return root, {path: images[path] for path in order}


def _walk_in_order(root):
    """Files of a folder before those of its folders, each by name."""
    for entry in sorted(root.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk_in_order(entry)
        else:
            yield entry


def test_a_folder_with_bad_images(folder, network, weights, capsys, monkeypatch):
    """Good ones are classified in batches of one shape, bad ones listed."""
    monkeypatch.setattr(predictor, "_MAX_BATCH", 8)
    traced = []
    counting = _counting(resnet_jax.ResNet.__call__, traced)
    monkeypatch.setattr(resnet_jax.ResNet, "__call__", counting)
    root, images = folder
    told = weights / "told.safetensors"
    document = _run(capsys, 65, "--weights", told, "--model", "resnet20", *FIELDS, root)
    assert [shape for shape in traced if shape[1] == 16] == [(8, 16, 16, 3)]
    monkeypatch.undo()
    _assert_right(document["predictions"], network, images)
    reasons = {
        "bad_deep.png": "it has 16 bits per channel, not 8",
        "bad_empty.png": "it is empty",
        "bad_huge.png": "it has 6000×6000 pixels, too many",
        "bad_text.jpg": "it isn't a PNG or JPEG image",
        "a/bad_torn.png": "it ends too early",
    }
    assert document["unreadable"] == [
        {"image": str(root / name), "error": f"{root / name} can't be read: {reason}."}
        for name, reason in reasons.items()
    ]
    assert document["exit_code"] == 65
    assert document["preprocessing"]["resize"] == 20


def _counting(call, shapes):
    def counting(self, images, **options):
        shapes.append(images.shape)
        return call(self, images, **options)

    return counting


def test_people_read_lines_and_the_bad_ones_at_the_end(folder, weights, capsys):
    root, images = folder
    arguments = ["--weights", weights / "told.safetensors", "--model", "resnet20", *FIELDS]
    assert main(["predict", *map(str, arguments), "--top", "2", str(root)]) == 65
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in images]
    assert all(line.count("%") == 2 for line in lines)
    assert "[bold]cat[/bold]" in captured.out
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5
    assert "\x1b" not in captured.err  # no bar where there is no terminal


def test_flags_say_what_the_file_does_not(folder, network, weights, capsys, tmp_path):
    _, images = folder
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES) + "\n\n", encoding="utf-8-sig")
    arguments = ["--weights", weights / "silent.safetensors", "--model", "resnet20", *FIELDS]
    some = dict(list(images.items())[:2])
    document = _run(capsys, 0, *arguments, *FLAGS, "--classes", names, *some)
    _assert_right(document["predictions"], network, some)
    unnamed = _run(capsys, 0, *arguments, *FLAGS, "--top", 1, *some)["predictions"]
    for nameless, named in zip(unnamed, document["predictions"], strict=True):
        assert nameless["top"] == [named["top"][0] | {"class": None}]
    assert main(["predict", *map(str, arguments), *FLAGS, *map(str, some)]) == 0
    best = unnamed[0]["top"][0]
    line = f"{next(iter(some))}: {best['index']} {best['probability']:.1%}, "
    assert capsys.readouterr().out.startswith(line)


def test_a_file_of_this_package_needs_no_flags(network, weights, capsys, tmp_path):
    image = _noise(30, 24)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = ["--weights", weights / "told.safetensors", tmp_path / "a.png"]
    document = _run(capsys, 0, *arguments)
    _assert_right(document["predictions"], network, {tmp_path / "a.png": image})
    assert document["model"] == "resnet20"
    half = _run(capsys, 0, *arguments, "--field", "dtype=bfloat16")
    top = [one["predictions"][0]["top"] for one in (document, half)]
    assert top[0] != top[1]


def test_flags_come_before_what_the_file_says(weights, capsys, tmp_path):
    Image.fromarray(_noise(24, 24)).save(tmp_path / "a.png")
    arguments = ["--weights", weights / "told.safetensors", "--model", "resnet20", *FIELDS]
    document = _run(capsys, 0, *arguments, tmp_path, "--resize", 24, "--size", 24)
    assert document["preprocessing"] == {
        "mean": list(MEAN), "std": list(STD), "size": 24, "resize": 24, "interpolation": "bicubic"
    }  # fmt: skip
    assert document["predictions"][0]["top"][0]["class"] in NAMES


def test_without_a_resize_images_must_fit(weights, capsys, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(_noise(16, 16)).save(good)
    Image.fromarray(_noise(16, 17)).save(bad)
    arguments = ["--weights", weights / "silent.safetensors", "--model", "resnet20", *FIELDS]
    arguments += [*FLAGS[:6], "--resize", "none"]
    document = _run(capsys, 65, *arguments, good, bad)
    assert [prediction["image"] for prediction in document["predictions"]] == [str(good)]
    assert "16×17 (height×width), not 16×16; --resize 16" in document["unreadable"][0]["error"]


def test_no_more_than_two_batches_wait_in_memory(tmp_path):
    """However many files there are, and even if the network is slow."""
    begun, taken = [], []

    def read(path):
        begun.append(path)
        return np.zeros((4, 4, 3), np.uint8)

    for _ in classify_module._read_ahead(read, [tmp_path] * 100, ahead=10):
        taken.append(len(begun))
    assert len(begun) == 100
    assert all(started <= number + 1 + 10 for number, started in enumerate(taken))


def test_networks_that_give_no_numbers_are_refused(network, tmp_path, capsys):
    model, variables = network
    variables = jax.tree.map(lambda leaf: leaf * 1e38, variables)
    resnet_jax.save_weights(
        tmp_path / "w.safetensors", model, variables, metadata=PREPROCESSING.metadata()
    )
    Image.fromarray(_noise(24, 24)).save(tmp_path / "a.png")
    arguments = ["predict", "--weights", tmp_path / "w.safetensors", "--model", "resnet20"]
    assert main([*map(str, arguments), *FIELDS, str(tmp_path / "a.png")]) == 70
    assert "error: The network's logits aren't finite" in capsys.readouterr().err


SILENT = ["predict", "--weights", "silent.safetensors", "--model", "resnet20", *FIELDS, "a.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (SILENT, 64, "give --mean, --std, --size, --resize, --interpolation, as its publisher"),
        ([*SILENT, *FLAGS[:6]], 64, "give --resize, --interpolation, as"),
        ([*SILENT, *FLAGS, "--classes", "three.txt"], 78,
         "has 5 classes, but --classes three.txt has 3 names"),
        ([*SILENT, *FLAGS, "--classes", "gap.txt"], 65, "--classes gap.txt: line 2 is empty"),
        ([*SILENT, *FLAGS, "--classes", "none.txt"], 65, "none.txt can't be read: No such file"),
        ([*SILENT, *FLAGS, "--classes", "a.png"], 65, "isn't text in UTF-8"),
        ([*SILENT, *FLAGS, "--mean", "124,116,104"], 64, "not grey levels"),
        ([*SILENT, *FLAGS, "--mean", "0.5"], 64, "each is three numbers"),
        ([*SILENT, *FLAGS, "--mean", "a,b,c"], 64, "'a,b,c' isn't numbers"),
        ([*SILENT, *FLAGS, "--mean", "0.5", "--std", "0.5"], 78,
         "takes images of 3 channels, but the mean and deviation for them are of 1"),
        ([*SILENT, *FLAGS, "--size", "21"], 64, "resize is 20; it must be size, 21, to 2048"),
        ([*SILENT, "--resize"], 64, "--resize needs a number of pixels"),
        ([*SILENT[:-1], "--resize", "a.png"], 64, "'a.png' isn't a number of pixels"),
        ([*SILENT, "--field", "wdth=4"], 78, "no field 'wdth'. Did you mean 'width'"),
        ([*SILENT, "--field", "width=wide"], 78, "width"),
        ([*SILENT, "--field", "shortcut"], 64, "'shortcut' isn't NAME=VALUE"),
        ([*SILENT, *FLAGS, "--field", "num_classes=3"], 65, "It has 5 classes"),
        ([*SILENT, *FLAGS, "--field", "num_classes=0"], 78, "has no classifier"),
        ([*SILENT, "--ema"], 64, "--ema is for a network of a run"),
        ([*SILENT, "--top", "0"], 64, "--top is 0"),
        (["predict", "--weights", "other.npz", "a.png"], 64,
         "--model is missing: other.npz doesn't say which network it's of"),
        ([*SILENT, *FLAGS, "--field", "shortcut=A_pool"], 65, "with shortcut 'A', and the model"),
        ([*SILENT[:3], "--field", "norm_epsilon=0.1", *FLAGS, "a.png"], 65, "with norm_epsilon 1e"),
        ([*SILENT[:3], "--field", "wdth=4", "a.png"], 78, "no field 'wdth'"),
        (["predict", "--weights", "none.safetensors", *SILENT[3:]], 65, "No such file"),
        ([*SILENT[:-1], "empty"], 65, "no images (.jpeg, .jpg, .png) in empty"),
        (["predict", "run"], 64, "give a run's directory and images"),
        (["predict", "run", "a.png", "--mean", "0,0,0"], 64, "--mean is for a network of a weight"),
        (["predict", "run", "a.png", "--resize", "256"], 64, "put --resize last, alone"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, code, message, weights, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(weights / "silent.safetensors", "silent.safetensors")
    np.savez("other.npz", conv1=np.ones(3))
    Image.fromarray(_noise(24, 24)).save("a.png")
    (tmp_path / "three.txt").write_text("one\ntwo\r\nthree\n")
    (tmp_path / "gap.txt").write_text("one\n\nthree")
    (tmp_path / "empty").mkdir()
    assert_one_line(arguments, code, message, capsys)


def test_a_sidecar_that_cannot_be_used_can_be_done_without(weights, capsys, tmp_path):
    os.symlink(weights / "silent.safetensors", tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    Image.fromarray(_noise(24, 24)).save(tmp_path / "a.png")
    arguments = ["predict", "--weights", tmp_path / "w.safetensors", "--model", "resnet20"]
    arguments = [*map(str, arguments), *FIELDS, str(tmp_path / "a.png"), *FLAGS]
    assert_one_line(arguments, 65, "If all of --mean, --std, --size, --resize, --interp", capsys)
    assert main([*arguments, "--classes", str(tmp_path / "names.txt")]) == 0

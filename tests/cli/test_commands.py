"""resnet-jax summary, eval and predict on a run that was really trained."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.cli.main import _GROUPS, main
from resnet_jax.config.recipes import RECIPES
from resnet_jax.data.dataset_info import KNOWN_SETS
from resnet_jax.data.datasets import load_dataset
from resnet_jax.errors import ResnetJaxError, StoppedEarly
from tests.cli.mistakes import assert_one_line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small network, trained until it is clearly better than chance."""
    from tests.conftest import make_tiny_config

    config = make_tiny_config()
    config.duration = 90 * 32.0
    config.eval_every = config.checkpoint_every = 30 * 32.0
    config.model.width = 8
    config.schedule.base_lr = 0.4
    config.eval_batch_size = 100
    workdir = tmp_path_factory.mktemp("run")
    return workdir, resnet_jax.fit(config, workdir)


def _json(capsys, *arguments: str):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_eval_repeats_the_scores_of_training(run, capsys):
    workdir, result = run
    last = _json(capsys, "eval", str(workdir))
    assert last["top1"] == result.evaluation["test"].top1 > 0.5
    assert last["loss"] == pytest.approx(result.evaluation["test"].loss, rel=1e-5)
    assert last["examples"] == 100
    ema = _json(capsys, "eval", str(workdir), "--ema", "--split", "validation")
    assert ema["top1"] == result.evaluation["validation_ema"].top1
    assert ema["examples"] == 64
    best = _json(capsys, "eval", str(workdir), "--checkpoint", "best")
    assert best["step"] == result.best["step"]
    assert best["top1"] == result.evaluation["test_best"].top1


def test_eval_shows_each_class_and_draws_the_confusion(run, capsys, tmp_path):
    workdir, result = run
    picture = tmp_path / "confusion.png"
    document = _json(capsys, "eval", str(workdir), "--per-class", "--confusion", str(picture))
    confusion = result.evaluation["test"].confusion
    assert [row["class"] for row in document["classes"]] == [str(i) for i in range(10)]
    assert [row["correct"] for row in document["classes"]] == np.diag(confusion).tolist()
    assert sum(row["examples"] for row in document["classes"]) == 100
    recalls = [row["recall"] for row in document["classes"]]
    np.testing.assert_allclose(recalls, np.diag(confusion) / confusion.sum(axis=1))
    assert Image.open(picture).size[0] > 500


def test_an_impossible_picture_is_noticed_before_scoring(run, capsys, tmp_path):
    workdir, _ = run
    for picture, code in ((tmp_path / "none" / "c.png", 73), (tmp_path / "c.xyz", 64)):
        assert main(["eval", str(workdir), "--confusion", str(picture)]) == code
        assert "--confusion" in capsys.readouterr().err


def test_a_restored_network_predicts_from_python(run):
    workdir, result = run
    network = resnet_jax.restore_run(workdir, checkpoint="best")
    test = load_dataset("digits", splits={"test": "test[:100]"}).splits["test"]
    right = network.predict(list(test.images)).argmax(axis=1) == test.labels
    assert right.mean() == result.evaluation["test_best"].top1


def test_predict_agrees_with_evaluation(run, capsys, tmp_path):
    """The same images as files: as many are right as evaluation counted."""
    workdir, result = run
    test = load_dataset("digits", splits={"test": "test[:100]"}).splits["test"]
    paths = []
    for i, image in enumerate(test.images):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image[:, :, 0]).save(paths[-1])
    document = _json(capsys, "predict", str(workdir), *paths, "--top", "3")
    first = [prediction["top"][0] for prediction in document["predictions"]]
    right = sum(top["index"] == label for top, label in zip(first, test.labels, strict=True))
    assert right / 100 == result.evaluation["test"].top1
    for prediction in document["predictions"]:
        probabilities = [top["probability"] for top in prediction["top"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6


def test_predict_refuses_what_does_not_fit_or_makes_it_fit(run, capsys, tmp_path):
    workdir, _ = run
    photo, text, torn = tmp_path / "photo.png", tmp_path / "text.png", tmp_path / "torn.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(photo)
    text.write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(noise).save(torn)
    torn.write_bytes(torn.read_bytes()[:-40])
    messages = {
        photo: "it is RGB, not L; --resize makes images fit",
        text: "isn't a PNG or JPEG image",
        torn: "can't be read",
        tmp_path / "none.png": "No such file",
    }
    for path, message in messages.items():
        assert main(["predict", str(workdir), str(path)]) == 65
        error = capsys.readouterr().err
        assert message in error
        assert str(path) in error
    assert main(["predict", str(workdir), str(photo), "--resize"]) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: ")


def test_tables_for_people(run, capsys):
    workdir, _ = run
    assert main(["eval", str(workdir), "--per-class"]) == 0
    assert "recall" in capsys.readouterr().out
    assert main(["summary", "resnet20"]) == 0
    out = capsys.readouterr().out
    assert "layer3_2/conv2" in out
    assert "269,722" in out
    assert "40,551,040" in out


def test_summary_as_json(capsys):
    document = _json(capsys, "summary", "resnet50", "--image-size", "64", "--num-classes", "7")
    assert document["params"] == 25_557_032 - 993 * 2049
    assert document["layers"][-1]["output_shape"] == [7]
    assert sum(layer["macs"] for layer in document["layers"]) == document["macs"]
    half = _json(capsys, "summary", "resnet20", "--dtype", "bfloat16")
    whole = _json(capsys, "summary", "resnet20")
    assert half["activation_bytes"] == pytest.approx(whole["activation_bytes"] / 2, rel=1e-3)


def test_models_are_listed_with_sizes_and_what_was_published(capsys):
    rows = _json(capsys, "list")["models"]
    assert [row["model"] for row in rows] == resnet_jax.list_models()
    (row,) = _json(capsys, "list", "resnet5?")["models"][1:]
    assert (row["model"], row["params"], row["image_shape"]) == ("resnet56", 853_018, [32, 32, 3])
    assert row["published"]["top1_error_percent"] == 6.97
    assert row["published"]["url"].startswith("https://")
    assert _json(capsys, "list", "plain20")["models"][0]["published"] is None
    assert main(["list", "seres*"]) == 0
    out = capsys.readouterr().out
    assert "seresnext101_32x4d" in out
    assert "48,955,416" in out
    with pytest.raises(SystemExit):
        main(["list", "--help"])
    assert "example: resnet-jax list 'resnet5*'" in capsys.readouterr().out


def test_data_sets_are_listed_with_their_origin(capsys):
    rows = _json(capsys, "list", "--data")["data"]
    assert [row["data"] for row in rows] == list(KNOWN_SETS)
    assert all(row["origin"] for row in rows)
    (row,) = _json(capsys, "list", "--data", "fashion*")["data"]
    assert row["examples"] == {"train": 60_000, "test": 10_000}
    assert main(["list", "--data", "imagenet*"]) == 0
    assert "train 1,281,167, validation 50,000" in capsys.readouterr().out


def test_recipes_are_listed_with_their_source(capsys):
    rows = {row["recipe"]: row for row in _json(capsys, "list", "--recipes")["recipes"]}
    assert list(rows) == list(RECIPES)
    assert rows["rsb_a2"]["epochs"] == 300
    assert rows["rsb_a2"]["optimizer"] == "lamb"
    assert rows["mlperf_lars"]["batch_size"] == 3200
    assert rows["wide_resnet"]["data"] == "cifar10"
    assert all(row["source"] for row in rows.values())
    assert main(["list", "--recipes", "rsb_a2"]) == 0
    assert "2110.00476" in capsys.readouterr().out


def test_help_lists_every_subcommand_under_its_task(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for title, group in _GROUPS.items():
        part = text[text.index(f"\n{title}:\n") :].split("\n\n")[0]
        assert re.findall(r"\n  ([a-z]+) ", part) == list(group)
    assert max(map(len, text.splitlines())) <= 80
    codes = re.findall(r" (\d\d) ", text[text.index("exit codes") :])
    errors = (*ResnetJaxError.__subclasses__(), StoppedEarly)
    assert {int(code) for code in codes} == {error.exit_code for error in errors}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "--data", "cifar1"], 64, "No data set's name matches 'cifar1'. Did you mean"),
        (["list", "--recipes", "rsb"], 64, "No recipe's name matches 'rsb'. Did you mean 'rsb_a"),
        (["list", "--data", "--weights"], 64, "not allowed with"),
        (["list", "resnt50"], 64, "No model's name matches 'resnt50'. Did you mean 'resnet50'?"),
        (["summary", "resnet51"], 78, "Did you mean 'resnet56'"),
        (["summary", "resnet50", "--image-size", "0"], 64, "--image-size is 0"),
        (["eval", "no-such-run"], 78, "no-such-run isn't the directory of a run"),
        (["evaluate", "x"], 64, "invalid choice: 'evaluate'"),
        (["doctr"], 64, "Did you mean 'doctor'? (resnet-jax --help explains)"),
        (["completion", "fsh"], 64, "Did you mean 'fish'? (resnet-jax completion --help explains)"),
        (["summary"], 64, "give either a model's name or --config"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, capsys):
    assert_one_line(arguments, code, message, capsys)


def test_eval_names_the_checkpoints_there_are(run, capsys):
    workdir, _ = run
    assert main(["eval", str(workdir), "--checkpoint", "7"]) == 65
    assert "no checkpoint '7'; it has last, best and the steps" in capsys.readouterr().err

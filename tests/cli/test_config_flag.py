"""A config on the command line of resnet-jax: the same as in train.py, mistakes included."""

import argparse
import json

import pytest

from resnet_jax.cli.config_flag import add_config_argument, load_config, take_overrides
from resnet_jax.cli.main import main


def _load(*arguments: str):
    parser = argparse.ArgumentParser()
    add_config_argument(parser)
    args, unknown = parser.parse_known_args(arguments)
    args.subcommand = "summary"
    assert take_overrides(args, unknown) == []
    return load_config(args)


def test_overrides_of_each_type():
    config = _load(
        "--config=configs/cifar10.py:resnet56",
        "--config.model.shortcut=B",
        "--config.batch_size=64",
        "--config.schedule.boundaries=(1.0,2.0)",
        "--noconfig.data.flip",
    )
    assert config.model.name == "resnet56"
    assert config.model.shortcut == "B"
    assert config.batch_size == 64
    assert config.schedule.boundaries == (1.0, 2.0)
    assert config.data.flip is False
    # A second one starts afresh.
    assert _load("--config", "configs/cifar10.py:resnet56").data.flip is True


def test_arguments_that_are_no_overrides_are_left():
    args = argparse.Namespace(config_overrides=[])
    left = take_overrides(args, ["--config.seed=1", "--confg.seed=1", "7", "--noconfig.data.flip"])
    assert left == ["--confg.seed=1", "7"]
    assert args.config_overrides == ["--config.seed=1", "--noconfig.data.flip"]
    assert take_overrides(argparse.Namespace(), ["--config.seed=1"]) == ["--config.seed=1"]


def test_summary_of_a_config(capsys):
    command = ["summary", "--config=configs/cifar10.py:resnet20", "--config.model.shortcut=B"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    # Two projections of 1×1 and their normalisation more than option A.
    assert document["params"] == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert document["image_shape"] == [32, 32, 3]
    assert main(["summary", "--config=configs/imagenet.py:resnet50", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["params"] == 25_557_032
    assert document["dtype"] == "bfloat16"
    assert main(["summary", "--config=configs/digits.py", "--num-classes", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["image_shape"] == [8, 8, 1]
    assert document["layers"][-1]["output_shape"] == [7]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config=configs/digits.py", "--config.modle.name=x"], 78, "Did you mean 'model.name'"),
        (["--config=configs/digits.py", "--config.lr=1"], 78, "mean 'schedule.base_lr'?"),
        (["--config=configs/digits.py", "--config.batch_size=many"], 78, "batch_size=many"),
        (["--config=configs/digits.py", "--config.model=x"], 78, "model is a section"),
        (["--config=configs/cfar.py"], 78, "there is no file configs/cfar.py"),
        (["--config=configs/cifar10.py:resnet20,gpu"], 78, "There is no recipe 'gpu'"),
        (["--config=configs/imagenet.py:resnet50,hole"], 78, "There is no recipe 'hole'"),
        (["--config.seed=1"], 64, "--config is missing (resnet-jax summary --help"),
        (["--config=configs/digits.py", "--confg.seed=1"], 64, "unrecognized arguments: --confg"),
        (["resnet20", "--config=configs/digits.py"], 64, "either a model's name or --config"),
        ([], 64, "either a model's name or --config"),
        (["--config={tmp_path}/typo.py"], 78, "typo.py, line 5: "),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, tmp_path, capsys):
    (tmp_path / "typo.py").write_text(
        "from resnet_jax.train.config import default_config\n\ndef get_config():\n"
        "    config = default_config()\n    config.batchsize = 3\n    return config\n"
    )
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    try:
        returned = main(["summary", *arguments])
    except SystemExit as error:  # the parser's own
        returned = error.code
    captured = capsys.readouterr()
    assert returned == code
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_another_subcommand_takes_no_overrides(capsys):
    with pytest.raises(SystemExit) as done:
        main(["eval", "runs/x", "--config.seed=1"])
    assert done.value.code == 64
    assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err

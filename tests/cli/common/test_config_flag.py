"""A config on the command line of resnet-jax: the same as in train.py, mistakes included."""

import argparse
import json
import sys

import absl.flags
import pytest
from ml_collections import config_flags

from resnet_jax.cli.common.config_flag import (
    add_config_argument,
    load_config,
    parse_flags,
    take_overrides,
)
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


@pytest.mark.parametrize("separate", [False, True])
def test_the_last_override_of_a_field_counts(separate, monkeypatch):
    """absl would join the values of a tuple."""
    values = absl.flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    fields = ("model.stage_sizes", "(1,1)"), ("seed", "-1"), ("model.stage_sizes", "(0,1)")
    overrides = [f"--config.{name}={value}" for name, value in (*fields, ("seed", "3"))]
    if not separate:
        config = _load("--config=configs/digits.py", *overrides)
        assert (tuple(config.model.stage_sizes), config.seed) == ((0, 1), 3)
    else:
        overrides = [word for override in overrides for word in override.split("=")]
    argv = ["train.py", "--config=configs/digits.py", "--noconfig.data.flip", *overrides]
    monkeypatch.setattr(sys, "argv", argv)
    parse_flags(argv, values)
    assert tuple(values.config.model.stage_sizes) == (0, 1)
    assert (values.config.seed, values.config.data.flip) == (3, False)


@pytest.mark.parametrize("field", ["batch_size", "data.train", "data", "extensions"])
def test_a_config_that_lacks_a_field_is_one_line(field, tmp_path, capsys):
    section, _, key = field.rpartition(".")
    file = tmp_path / "config.py"
    file.write_text(
        "from resnet_jax.config.schema import default_config\n\ndef get_config():\n"
        f"    config = default_config().unlock()\n    del config{section and '.' + section}.{key}\n"
        "    return config.lock()\n"
    )
    named = "data.name" if field == "data" else field
    assert main(["summary", f"--config={file}"]) == 78
    said = capsys.readouterr().err
    assert said.startswith(f"error: The config has no field {named}; ")
    assert said.count("\n") == 1


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
        (["--config=configs/digits.py", "--config.schedule.scales=(1.0,"], 78, "schedule.scales"),
        (["--config=configs/digits.py", "--config.model=x"], 78, "model is a section"),
        (["--config=configs/cfar.py"], 78, "there is no file configs/cfar.py"),
        (["--config=configs/cifar10.py:resnet20,gpu"], 78, "There is no recipe 'gpu'"),
        (["--config=configs/imagenet.py:resnet50,hole"], 78, "There is no recipe 'hole'"),
        (
            ["--config=configs/imagenet.py:resnet50,rsb_a3,rsb_a2"],
            78,
            "takes resnet50 and one recipe",
        ),
        (["--config=configs/cifar10.py:resnet20,rsb_a2,cpu"], 78, "takes resnet20 and one recipe"),
        (["--config.seed=1"], 64, "--config is missing (resnet-jax summary --help"),
        (["--config=configs/digits.py", "--confg.seed=1"], 64, "unrecognized arguments: --confg"),
        (["resnet20", "--config=configs/digits.py"], 64, "either a model's name or --config"),
        ([], 64, "either a model's name or --config"),
        (["--config={tmp_path}/typo.py"], 78, "typo.py, line 5: "),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, tmp_path, capsys):
    (tmp_path / "typo.py").write_text(
        "from resnet_jax.config.schema import default_config\n\ndef get_config():\n"
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


_FILES = {
    "exits": "import sys\nsys.exit(0)",
    "exits_late": "def get_config():\n    raise SystemExit",
    "empty": "",
    "syntax": "x = 1\ndef get_config(:",
    "binary": "\0",
    "makes_none": "def get_config(): pass",
    "makes_a_dict": "def get_config(): return {}",
    "needs_more": "def get_config(name): return name",
    "imports": "import no_such_module",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exits", "exits.py, line 2: SystemExit: 0\n"),
        ("exits_late", "exits_late.py, line 2: SystemExit\n"),
        ("empty", "empty.py has no function get_config(), which makes the config.\n"),
        ("syntax", "syntax.py, line 2: SyntaxError: invalid syntax\n"),
        ("binary", "binary.py, line 1: SyntaxError: source code string cannot contain null"),
        ("makes_none", "makes_none.py: get_config() returns "),
        ("makes_a_dict", "makes_a_dict.py: get_config() returns a dict, not a ConfigDict.\n"),
        ("needs_more", "needs_more.py: TypeError: get_config() missing 1 required positional"),
        ("imports", "imports.py, line 1: ModuleNotFoundError: No module named 'no_such_module'\n"),
        ("folder", "folder.py is a folder, not a file.\n"),
    ],
)
def test_a_file_that_makes_no_config_is_one_line(name, message, tmp_path, capsys, monkeypatch):
    """On the command line of subcommands, and of train.py, which has flags of its own."""
    path = tmp_path / f"{name}.py"
    path.write_text(_FILES[name]) if name in _FILES else path.mkdir()
    argv = ["train.py", f"--config={path}", f"--workdir={tmp_path}"]
    # ml_collections loads each file into the module of the one before.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    assert main(["summary", argv[1]]) == 78
    train_flags = absl.flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=train_flags, sys_argv=argv)
    absl.flags.DEFINE_string("workdir", None, "", flag_values=train_flags)
    absl.flags.mark_flags_as_required(["config", "workdir"], train_flags)
    with pytest.raises(SystemExit) as ended:
        parse_flags(argv, train_flags)
    assert ended.value.code == 78
    told = capsys.readouterr().err.splitlines(keepends=True)
    assert len(told) == 2
    assert all(line.startswith("error: ") and message in line for line in told), told


def test_another_subcommand_takes_no_overrides(capsys):
    with pytest.raises(SystemExit) as done:
        main(["eval", "runs/x", "--config.seed=1"])
    assert done.value.code == 64
    assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err

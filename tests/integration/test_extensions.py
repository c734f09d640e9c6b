"""Blocks, losses, optimisers, augmentations and metrics of a user's own module, in whole runs.

The module is made of the examples of docs/extend.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.io import from_json, to_json
from resnet_jax.data.augment.config import AUGMENTATIONS
from resnet_jax.errors import ConfigError, NumericalError
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.models.branches import BRANCHES
from resnet_jax.train.losses import LOSSES
from resnet_jax.train.metrics import REGISTERED
from resnet_jax.train.optimizer import OPTIMIZERS

ROOT = Path(__file__).parents[2]
TABLES = (LOSSES, OPTIMIZERS, AUGMENTATIONS, REGISTERED, BRANCHES)
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL)
MODULE = "my_research"


@pytest.fixture
def forget():
    """A function that forgets the user's module and what it has registered, as a new process."""
    before = [dict(table) for table in TABLES]

    def forget():
        sys.modules.pop(MODULE, None)
        for table, content in zip(TABLES, before, strict=True):
            for name in set(table) - set(content):
                del table[name]

    yield forget
    forget()


@pytest.fixture
def here(tmp_path, monkeypatch, forget):
    """The current directory, with the user's module; it isn't on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / f"{MODULE}.py").write_text("\n".join(BLOCKS))
    return tmp_path


@pytest.fixture
def config(tiny_config):
    """The tiny config with all that the module registers."""
    fields = {
        "extensions": (MODULE,),
        "loss": "focal",
        "optimizer": {"name": "lion", "weight_decay": 0.01},
        "data": {"augmentations": ("noise",)},
        "metrics": ("brier",),
        "model": {"branch": "scaled_basic"},
        "schedule": {"base_lr": 0.003},
    }
    tiny_config.update(fields)
    return tiny_config


def test_the_examples_compute_what_they_say(here):
    names = {"__name__": MODULE}
    exec("\n".join(BLOCKS), names)
    logits = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
    targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    plain = names["focal"](logits, targets, gamma=0.0)
    np.testing.assert_allclose(plain, optax.softmax_cross_entropy(logits, targets), rtol=1e-6)
    assert (names["focal"](logits, targets) < plain).all()
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = ((p - np.eye(3)[[0, 2]]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(names["brier"](logits, jnp.array([0, 2])), expected, rtol=1e-5)
    config = names["get_config"]()
    assert (config.extensions, config.model.layer_scale) == ((MODULE,), 0.01)


@pytest.mark.thorough
def test_a_run_with_all_of_them_is_trained_resumed_and_scored(config, here, forget, caplog, capsys):
    whole = resnet_jax.fit(config, here / "whole")
    forget()
    assert resnet_jax.fit(config, here / "run", stop_at_step=6).stopped_early
    forget()
    resumed = resnet_jax.fit(config, here / "run")
    assert resumed.history[-1]["loss"] == whole.history[-1]["loss"]
    assert resumed.evaluation["test"].metrics == whole.evaluation["test"].metrics
    assert 0 < resumed.evaluation["test"].metrics["brier"] < 2
    assert all(("brier" in record) == (record["split"] != "train") for record in resumed.history)
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert len(summary["extensions"][MODULE]) == 64
    assert summary["final"]["test"]["brier"] == resumed.evaluation["test"].metrics["brier"]
    assert "source of" not in caplog.text

    forget()
    capsys.readouterr()
    assert main(["eval", str(here / "run"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["brier"] == pytest.approx(summary["final"]["test"]["brier"], rel=1e-4)
    forget()
    network = resnet_jax.restore_run(here / "run")
    assert network.predict([np.zeros((8, 8, 1), np.uint8)]).shape == (1, 10)
    assert "source of" not in caplog.text


@pytest.mark.thorough
def test_a_metric_that_is_not_a_number_is_a_numerical_failure(config, here, capsys):
    """Of the run that scores it, and of `eval` on the run's checkpoint, but not of training."""
    (here / f"{MODULE}.py").write_text(
        "\n".join(BLOCKS) + "\nresnet_jax.register_metric('undefined', lambda logits, labels:"
        " jax.numpy.where(labels == 3, jax.numpy.nan, 0.0), in_training=True)\n"
    )
    config.metrics, config.checkpoint_every = ("undefined",), 32.0
    with pytest.raises(NumericalError, match="The undefined on .* stopped being finite"):
        resnet_jax.fit(config, here / "run")
    records = read_metrics(here / "run" / "metrics.jsonl")
    assert all(record["undefined"] > 1e38 for record in records if record["split"] == "train")
    capsys.readouterr()
    assert main(["eval", str(here / "run"), "--json"]) == 70
    assert capsys.readouterr().err == "error: The metric undefined isn't finite on test.\n"


@pytest.mark.thorough
def test_another_source_is_said_in_a_line_and_the_run_goes_on(config, here, forget, caplog, capsys):
    resnet_jax.fit(config, here / "run", stop_at_step=6)
    with (here / f"{MODULE}.py").open("a") as file:
        file.write("# a comment\n")
    forget()
    assert resnet_jax.fit(config, here / "run", stop_at_step=7).stopped_early
    said = capsys.readouterr()
    assert (said.out + said.err + caplog.text).count(f"the source of {MODULE} (SHA-256") == 1
    caplog.clear()
    shutil.copy(here / f"{MODULE}.py", here / "other.py")
    (here / f"{MODULE}.py").write_text("\n".join(BLOCKS))
    forget()
    resnet_jax.restore_run(here / "run")
    assert caplog.text.count(f"the source of {MODULE} (SHA-256") == 1


@pytest.mark.thorough
def test_augmentations_change_training_and_only_where_they_are_named(config, here):
    config.loss, config.optimizer.name, config.model.branch = "softmax", "sgd", None
    with_noise = resnet_jax.fit(config, here / "noise", stop_at_step=5).history
    config.data.augmentations, config.metrics = (), ()
    without = resnet_jax.fit(config, here / "none", stop_at_step=5).history
    config.extensions = ()
    plain = resnet_jax.fit(config, here / "plain", stop_at_step=5).history
    assert with_noise[0]["loss"] != without[0]["loss"] == plain[0]["loss"]
    assert "brier" in str(with_noise)
    assert "brier" not in str(without)


@pytest.mark.thorough
def test_several_seeds_have_means_and_deviations(config, here):
    config.seeds = (0, 1)
    result = resnet_jax.fit(config, here / "run")
    records = [record for record in result.history if record["split"] == "test"]
    assert len(records[0]["seeds"]["brier"]) == 2
    assert records[0]["std"]["brier"] >= 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "fokal"}, "loss is 'fokal'; it can be softmax, .* Did you mean 'focal'"),
        ({"optimizer": {"name": "lino"}}, "optimizer.name is 'lino'; .* Did you mean 'lion'"),
        ({"data": {"augmentations": ("nose",)}}, "data.augmentations names 'nose'; .* 'noise'"),
        ({"metrics": ("briar",)}, "metrics names 'briar'; .* Did you mean 'brier'"),
        ({"extensions": ("my_reserch",)}, "there is no module my_reserch; put my_reserch.py"),
    ],
)
def test_a_misspelt_name_is_refused_before_data_are_read(fields, message, config, here):
    config.update(fields)
    config.data.name, config.data.dir = "mnist", "nowhere"
    with pytest.raises(ConfigError, match=message):
        resnet_jax.fit(config, here / "run")


@pytest.mark.thorough
def test_without_its_module_a_run_says_how_to_find_it(config, here, forget, monkeypatch, capsys):
    resnet_jax.fit(config, here / "run", stop_at_step=2)
    forget()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(here)])
    assert main(["eval", str(here / "run")]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert f"there is no module {MODULE}; put {MODULE}.py into the current directory" in said
    shutil.copy(here / f"{MODULE}.py", here / "run")
    monkeypatch.chdir(here / "run")
    assert main(["eval", "."]) == ConfigError.exit_code
    assert "in the directory of a run" in capsys.readouterr().err


def test_names_of_resnet_jax_are_not_replaced(here):
    for register, name in (
        (resnet_jax.register_loss, "softmax"),
        (resnet_jax.register_optimizer, "sgd"),
        (resnet_jax.register_metric, "top1"),
        (resnet_jax.register_metric, "lr"),
    ):
        with pytest.raises(ConfigError, match=f"{name!r}, whose name belongs to resnet_jax"):
            register(name, lambda *arguments: arguments[0])


def test_a_config_file_that_registers_names_itself_still_works(config, here, forget):
    """The module is imported by the user, and `extensions` is empty."""
    exec("\n".join(BLOCKS[:4]), {"__name__": "config_config"})
    config.extensions, config.model.branch = (), None
    assert resnet_jax.fit(config, here / "run", stop_at_step=2).stopped_early
    assert from_json(to_json(config)).extensions == ()


@pytest.mark.thorough
def test_the_command_line_of_the_page(here):
    """In processes of their own, whose current directory isn't on the import path."""
    page = (ROOT / "docs" / "extend.md").read_text()
    command = re.search(r"```\npython (train.py.*?)```", page, re.DOTALL)[1]
    command = command.replace("train.py", str(ROOT / "train.py"), 1)
    command = command.replace("configs/digits.py", str(ROOT / "configs/digits.py"))
    tiny = "--config.model.stage_sizes='(1,)' --config.model.width=4"
    tiny += " --config.duration=1 --config.schedule.warmup=0"
    done = subprocess.run(
        f"{sys.executable} -P {command.strip()} {tiny}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-P", "-m", "resnet_jax", "eval", "runs/mine", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["brier"] < 2

"""Runs whose data are passed in Python: `fit(config, workdir, datasets=…)`."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import portpicker
import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.io import from_json
from resnet_jax.data.datasets import open_source
from resnet_jax.errors import ConfigError, DataError, UsageError
from resnet_jax.logging.metrics_log import read_metrics
from tests.conftest import make_tiny_config
from tests.data.tiny_dataset import encode

ROOT = Path(__file__).parents[2]
NAMES = tuple("0123456789")


def _digits():
    source = open_source("digits", None)
    return {split: source.read(split)[:2] for split in source.lengths}


def _untimed(records):
    return [{k: v for k, v in r.items() if k not in ("img_per_s", "wall_s")} for r in records]


def _assert_same(found, expected):
    assert _untimed(found.history) == _untimed(expected.history)
    for one, other in zip(*map(jax.tree.leaves, (found.state, expected.state)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run on digits as arrays, resumed after 5 of its 12 steps; its result."""
    workdir = tmp_path_factory.mktemp("arrays") / "run"
    config = make_tiny_config()
    stopped = resnet_jax.fit(config, workdir, datasets=_digits(), stop_at_step=5)
    assert stopped.stopped_early
    assert config.data.name == "digits"  # the caller's config stays as it is
    return workdir, resnet_jax.fit(config, workdir, datasets=_digits())


def test_a_resumed_run_on_arrays_is_the_run_on_the_same_files_to_the_bit(run, tmp_path):
    workdir, result = run
    assert from_json((workdir / "config.json").read_text()).data.name == "arrays"
    _assert_same(result, resnet_jax.fit(make_tiny_config(), tmp_path / "run"))


def test_other_data_are_refused(run, tmp_path):
    workdir, _ = run
    before = sorted(path.name for path in workdir.iterdir())
    data = _digits()
    data["train"][0][3, 2, 1, 0] ^= 1
    with pytest.raises(DataError, match=r"aren't those that the run .*pass the old data"):
        resnet_jax.fit(make_tiny_config(), workdir, datasets=data)
    with pytest.raises(ConfigError, match="data.name: 'arrays' → 'digits'"):
        resnet_jax.fit(make_tiny_config(), workdir)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_commands_use_the_run_or_say_how_its_data_are_passed(run, tmp_path, capsys):
    workdir, result = run
    image = _digits()["test"][0][5, ..., 0]
    (tmp_path / "digit.png").write_bytes(encode(image))
    assert main(["status", str(workdir)]) == 0
    assert "resnet20 on data passed in Python, finished" in capsys.readouterr().out
    assert main(["predict", str(workdir), str(tmp_path / "digit.png"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    network = resnet_jax.restore_run(workdir)
    assert found["top"][0]["class"] == NAMES[int(network.predict([image[..., None]])[0].argmax())]
    export = ["export", str(workdir), str(tmp_path / "digits.safetensors")]
    assert main([*export, "--format=safetensors"]) == 0
    capsys.readouterr()

    assert main(["eval", str(workdir)]) == ConfigError.exit_code
    (error,) = capsys.readouterr().err.splitlines()
    call = f"resnet_jax.restore_run({str(workdir)!r}).evaluate('test', datasets="
    assert call in error
    again = tmp_path / "again.py"
    again.write_text(
        "from resnet_jax.config.io import from_json\n"
        f"get_config = lambda: from_json(open({str(workdir / 'config.json')!r}).read())\n"
        "sweep = lambda: [{'seed': 1}]\n"
    )
    sweep = ["sweep", f"--config={again}", f"--workdir={tmp_path / 'sweep'}"]
    for command in (["verify", str(workdir), "--slices=0"], sweep):
        assert main(command) == ConfigError.exit_code
        assert "passed in Python" in capsys.readouterr().err.splitlines()[-1]

    # Where eval can't read the test split, Python can.
    scores = network.evaluate("test", datasets=_digits())
    assert (scores.top1, scores.examples) == (result.evaluation["test"].top1, 100)
    held_out = network.evaluate("validation", datasets={"train": _digits()["train"]})
    assert held_out.examples == 64


def test_a_network_is_scored_on_any_data_of_its_classes(run):
    network = resnet_jax.restore_run(run[0])
    images, labels = _digits()["test"]
    everything = network.evaluate("more", datasets={"more": list(zip(images, labels, strict=True))})
    assert everything.examples == 360
    with pytest.raises(DataError, match="images of 'test' are 8×8×3; the network takes 8×8×1"):
        network.evaluate("test", datasets={"test": (images.repeat(3, axis=-1), labels)})
    with pytest.raises(DataError, match="has label 13, which is not in 0 … 9"):
        network.evaluate("more", datasets={"more": (images, labels + 10)})


def _short(**fields):
    """A config with the default splits, which trains for two steps."""
    config = make_tiny_config()
    defaults = resnet_jax.default_config().data
    config.data.update({role: defaults[role] for role in ("train", "validation", "test")})
    config.duration, config.ema_decay, config.schedule.warmup = 64.0, 0.0, 0.0
    config.update(fields)
    return config


def _data(**sizes):
    images, labels = _digits()["train"]
    ends = np.cumsum(list(sizes.values()))
    return {
        role: (images[end - n : end], labels[end - n : end])
        for (role, n), end in zip(sizes.items(), ends, strict=True)
    }


def test_roles_take_the_splits_of_their_names(tmp_path):
    data = _data(train=200, validation=50)
    result = resnet_jax.fit(_short(), tmp_path / "run", datasets=data, class_names=NAMES)
    assert set(result.evaluation) == {"validation"}  # there is no test split, and none is missed
    config = from_json((tmp_path / "run" / "config.json").read_text())
    assert (config.data.train, config.data.validation, config.data.test) == (
        "train",
        "validation",
        "",
    )


def test_splits_that_are_missing_or_not_used_are_refused(tmp_path):
    def fit(**fields):
        data = _data(train=200, validation=50) | fields.pop("more", {})
        resnet_jax.fit(_short(**fields), tmp_path / "run", datasets=data, class_names=NAMES)

    with pytest.raises(ConfigError, match="datasets has 'extra', which the config doesn't use"):
        fit(more={"extra": _data(train=3)["train"]})
    with pytest.raises(ConfigError, match="'test\\[:5\\]' of 'arrays': there is no split 'test'"):
        fit(data={"test": "test[:5]"})
    with pytest.raises(ConfigError, match="both hold examples 0 to 9 of train"):
        fit(data={"test": "train[:10]"})
    with pytest.raises(UsageError, match="class_names is for datasets"):
        resnet_jax.fit(_short(), tmp_path / "run", class_names=NAMES)


@pytest.mark.thorough
def test_seeds_augmentations_and_metrics_of_ones_own_are_as_with_other_data(tmp_path, monkeypatch):
    """Several seeds with the user's parts, on a source, equal the same run on the files' arrays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts_of_test.py").write_text(
        "import jax.numpy as jnp, resnet_jax\n"
        "def inverted(image, key):\n"
        "    return 255 - image\n"
        "def confident(logits, labels):\n"
        "    return jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1)\n"
        "resnet_jax.register_augmentation('inverted', inverted)\n"
        "resnet_jax.register_metric('confident', confident)\n"
    )
    results = []
    passed = {s: list(zip(*arrays, strict=True)) for s, arrays in _digits().items()}
    for number, datasets in enumerate((None, passed)):
        config = make_tiny_config()
        config.seeds, config.extensions = (0, 1), ("parts_of_test",)
        config.data.augmentations, config.metrics = ("inverted",), ("confident",)
        config.duration, config.data.resident = 4 * 32.0, False
        results.append(resnet_jax.fit(config, tmp_path / str(number), datasets=datasets))
    assert "confident" in results[1].evaluation["test"].metrics
    _assert_same(results[1], results[0])


def test_class_names_may_be_an_array(tiny_config, tmp_path):
    """As the target_names of scikit-learn's data sets."""
    names = np.array(["cat", "cat"])
    with pytest.raises(UsageError, match="class_names has the same name twice"):
        resnet_jax.fit(tiny_config, tmp_path, datasets=_digits(), class_names=names)
    with pytest.raises(UsageError, match="class_names is for datasets"):
        resnet_jax.fit(tiny_config, tmp_path, class_names=names)


_JOB = """
import os
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)

import resnet_jax
from resnet_jax.parallel.job.cluster import connected, detect_cluster
from tests.conftest import make_tiny_config
from tests.integration.test_python_data import _digits

jax.config.update("jax_num_cpu_devices", 1)  # tests.conftest has set another number
port, number, workdir, stop, different = sys.argv[1:]
config, data = make_tiny_config(), _digits()
config.mesh.data, config.data.resident = -1, False
data["train"][1][0] = (data["train"][1][0] + int(number) * int(different)) % 10
job = detect_cluster(coordinator=f"127.0.0.1:{port}", processes=2, process=int(number))
with connected(job, timeout_s=300, end=lambda message: os._exit(71)):
    resnet_jax.fit(config, workdir, datasets=data, stop_at_step=int(stop) or None)
"""


def _job(workdir, *, stop=0, different=0):
    """What two processes say, together, and their exit codes."""
    command = [sys.executable, "-c", _JOB, str(portpicker.pick_unused_port())]
    job = [
        subprocess.Popen(
            [*command, str(number), str(workdir), str(stop), str(different)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = "".join(process.communicate(timeout=600)[0] for process in job)
        return said, [process.returncode for process in job]
    finally:
        for process in job:
            process.kill()


@pytest.mark.thorough
def test_two_processes_train_on_the_data_that_each_passes(run, tmp_path):
    for stop in (5, 0):
        said, codes = _job(tmp_path / "run", stop=stop)
        assert codes == [0, 0], said
    losses, expected = (
        [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "run", run[0])
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    said, codes = _job(tmp_path / "other", stop=5, different=1)
    assert 0 not in codes
    assert "the data's fingerprint" in said

"""What `fit` refuses, before it compiles anything and without touching what is there."""

import json
import os
from typing import ClassVar

import jax
import numpy as np
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.lock import locked
from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.config.io import to_json
from resnet_jax.config.schema import set_field, validate
from resnet_jax.data import datasets as sources
from resnet_jax.data.datasets import Dataset, ImageSet
from resnet_jax.data.readers.digits import Digits
from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError, NumericalError, UsageError, WriteError
from resnet_jax.logging.metrics_log import MetricsLog


@pytest.fixture
def never_compile(monkeypatch):
    from resnet_jax.train.experiment import Experiment

    def fail(self):
        raise AssertionError("went on to the initial state")

    monkeypatch.setattr(Experiment, "initial_state", fail)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.name", "resnet21", "no model 'resnet21'. Did you mean 'resnet"),
        ("model.shortcut", "Z", "model.shortcut is 'Z'; it can be none, A, A_middle, A_pool, B"),
        ("model.bn_group_size", 5, "doesn't split into groups of model.bn_group_size = 5"),
        ("batch_size", 30, "batch_size is 30, which isn't divisible by 8 devices; use 24 or 32"),
        ("mesh.data", 9, "mesh.data is 9, but the number of devices is 8"),
        ("batch_size", 512, "256 examples, which is less than one batch of 512"),
        ("duration", 0.0, "duration is 0.0; it must be greater than 0"),
        ("duration", 3.0, "which is 0 steps of 32 examples"),
        ("duration_unit", "steps", "it can be epochs, examples"),
        ("label_smoothing", 1.0, "must be at least 0 and less than 1"),
        ("optimizer.momentum", float("nan"), "it must be finite"),
        ("optimizer.weight_decay", -1e-4, "it can't be negative"),
        ("schedule.boundaries", ("soon",), "it must be a tuple of numbers"),
        ("data.name", "digit", "Did you mean 'digits'"),
        ("data.train", "trian", "Did you mean 'train'"),
        ("data.validation", "train[200:300]", "both hold examples 200 to 255 of train"),
        ("data.validation", "test[:50]", "both hold examples 0 to 49 of test"),
        ("data.train", "", "data.train is empty"),
        ("model.width", 0, "model.width is 0; it takes integers from 1 up"),
        ("model.stage_sizes", (1, -1), "model.stage_sizes is (1, -1); it takes integers from 1 up"),
        ("model.stage_sizes", (1, "a"), "it takes integers from 1 up"),
        ("model.bn_group_size", -32, "model.bn_group_size is -32; it takes integers from 1 up"),
        ("model.bn_momentum", 2.0, "it must be in [0, 1)"),
        ("model.dtype", "float8_e4m3fn", "it can be float32 or bfloat16"),
        ("schedule.scales", (float("nan"),), "it must be finite"),
        ("seed", 2**40, "it must be less than 2**32"),
        ("schedule.base_lr", 1e40, "a learning rate of 2.5e+39 isn't a float32"),
        ("schedule.warmup", 12 * 32.0, "as long as the whole run"),
        ("schedule.name", "linaer", "Did you mean 'linear'"),
        ("schedule.power", 0.0, "schedule.power is 0.0; it must be greater than 0"),
        ("schedule.final", 1.5, "schedule.final is 1.5; it must be at least 0 and less than 1"),
        ("optimizer.name", "adam", "Did you mean 'adamw'"),
        ("optimizer.name", "adamw", "optimizer.decay is 'l2'; that of adamw is 'decoupled'"),
        ("loss", "hinge", "loss is 'hinge'; it can be softmax, bce"),
        ("bce_threshold", 0.2, "bce_threshold is 0.2, and loss is 'softmax'"),
        ("optimizer.scalar_rate", 0.0, "optimizer.scalar_rate is 0.0; it must be greater than 0"),
        ("data.interpolation", "nonsense", "it can be bilinear, bicubic"),
        ("data.interpolation", "bicubic", "nothing is scaled; it goes with data.image_size"),
        ("ema_every", 0, "ema_every is 0; it must be greater than 0"),
        ("sam_radius", -0.1, "sam_radius is -0.1; it can't be negative"),
        ("duration", 1e300, "it must be less than 2**31 steps"),
        ("data.crop_padding", 8, "data.crop_padding is 8, as much as the 8×8 images"),
        ("data.normalize", "mean", "data.normalize is 'mean'"),
    ],
)
def test_an_impossible_config_is_refused(
    field, value, message, tiny_config, tmp_path, never_compile
):
    tiny_config.mesh.data = 8
    set_field(tiny_config, field, value)
    with pytest.raises(ConfigError) as error:
        resnet_jax.fit(tiny_config, tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("resnet20", {"norm": "group", "norm_groups": 4}, "its norm is 'group'"),
        ("resnet20", {"norm": "none"}, "its norm is 'none'"),
        ("fixup_resnet20", {}, "its norm is 'fixup'"),
        ("vgg11", {}, "its norm is 'none'"),
        ("resnet20", {"bn_frozen": True}, "keeps its running statistics: model.bn_frozen is True"),
        ("highway19", {}, "its norm is 'none'"),
    ],
)
@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_precise_statistics_that_would_have_no_effect_are_refused(
    seeds, name, fields, reason, tiny_config, tmp_path, never_compile
):
    tiny_config.precise_bn, tiny_config.seeds = 4, seeds
    tiny_config.model.stage_sizes = tiny_config.model.width = None
    tiny_config.model.update(name=name, **fields)
    with pytest.raises(ConfigError, match=f"^precise_bn is 4, and {name} .*{reason}") as error:
        resnet_jax.fit(tiny_config, tmp_path / "run")
    assert "set precise_bn to 0" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_data_are_named_with_the_remedy(tiny_config, tmp_path, never_compile):
    tiny_config.data.name = "mnist"
    tiny_config.data.dir = str(tmp_path / "nothing")
    with pytest.raises(DataError, match="nothing doesn't exist"):
        resnet_jax.fit(tiny_config, tmp_path / "run")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"mnist.*nothing.*download_and_prepare"):
        resnet_jax.fit(tiny_config, tmp_path / "run")


def test_a_workdir_that_cannot_be_written_is_refused_first(tiny_config, tmp_path, never_compile):
    (tmp_path / "file").write_text("")
    tiny_config.model.name = "also wrong"
    with pytest.raises(WriteError, match="can't be written"):
        resnet_jax.fit(tiny_config, tmp_path / "file")


def test_the_workdir_of_another_config_is_refused_with_a_diff(tiny_config, tmp_path, never_compile):
    before = to_json(tiny_config)
    (tmp_path / "config.json").write_text(before)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    tiny_config.schedule.base_lr = 0.3
    tiny_config.model.width = 8
    tiny_config.log_every = 1  # may change
    with pytest.raises(ConfigError) as error:
        resnet_jax.fit(tiny_config, tmp_path)
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        "model.width: 4 → 8",
        "schedule.base_lr: 0.1 → 0.3",
    ]
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"no_such_field": 1}'])
def test_a_damaged_config_is_refused(text, tiny_config, tmp_path, never_compile):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="config.json"):
        resnet_jax.fit(tiny_config, tmp_path)
    assert (tmp_path / "config.json").read_text() == text


def test_the_results_of_a_run_without_checkpoints_are_not_overwritten(
    tiny_config, tmp_path, never_compile
):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="finished run, whose checkpoints are gone"):
        resnet_jax.fit(tiny_config, tmp_path)


def test_another_directory_is_noticed_before_data_are_read(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(to_json(tiny_config))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    tiny_config.data.name = "mnist"
    tiny_config.data.dir = "nowhere"
    with pytest.raises(ConfigError, match="data.name: 'digits' → 'mnist'"):
        resnet_jax.fit(tiny_config, tmp_path)


def test_checkpoints_without_a_config_are_not_touched(tiny_config, tmp_path, never_compile):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds checkpoints but no config.json"):
        resnet_jax.fit(tiny_config, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [1, 12])  # with 1, the loss is finite and the parameters aren't
def test_what_is_not_finite_ends_the_run_and_is_never_saved(steps, tiny_config, tmp_path):
    tiny_config.model.stage_sizes = (1,)
    tiny_config.duration, tiny_config.checkpoint_every = steps * 32.0, 32.0
    tiny_config.schedule.base_lr = 3e38
    tiny_config.schedule.reference_batch = 32
    tiny_config.optimizer.weight_decay = 1e3  # each parameter × 3e41
    tiny_config.schedule.warmup = 0.0
    with pytest.raises(NumericalError, match="finite"):
        resnet_jax.fit(tiny_config, tmp_path)
    checkpoints = CheckpointReader(tmp_path / "checkpoints")
    for step in checkpoints.steps():
        state, _ = checkpoints.restore_on_one_device(step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert np.isfinite(json.loads(line)["loss"])

    # Nothing was saved, so the same directory takes the mended config.
    if not checkpoints.steps():
        tiny_config.schedule.base_lr = 0.1
        tiny_config.optimizer.weight_decay = 1e-4
        assert not resnet_jax.fit(tiny_config, tmp_path).stopped_early
    else:
        assert steps > 1


def test_changed_data_are_noticed_when_a_run_goes_on(tiny_config, tmp_path, monkeypatch):
    resnet_jax.fit(tiny_config, tmp_path, stop_at_step=2)
    original = Digits.read

    def inverted(self, split, **options):
        decoded = original(self, split, **options)
        return decoded._replace(images=255 - decoded.images)

    monkeypatch.setattr(Digits, "read", inverted)
    with pytest.raises(DataError, match="aren't those that the run in .* began with"):
        resnet_jax.fit(tiny_config, tmp_path)


@pytest.mark.parametrize("step", [0, -1])
def test_stopping_before_the_first_step_is_refused(step, tiny_config, tmp_path, never_compile):
    with pytest.raises(UsageError, match=f"stop_at_step is {step}; it must be at least 1"):
        resnet_jax.fit(tiny_config, tmp_path, stop_at_step=step)


@pytest.mark.thorough
def test_a_checkpoint_that_fails_names_what_is_intact(tiny_config, tmp_path, monkeypatch):
    """The second save fails in the background, as on a full disk."""
    resnet_jax.fit(tiny_config, tmp_path, stop_at_step=1)
    tiny_config.save_attempts = 1
    import orbax.checkpoint as ocp

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(WriteError, match="No space left on device.*checkpoints 1 are intact"):
        resnet_jax.fit(tiny_config, tmp_path)


@pytest.mark.thorough
def test_a_damaged_record_is_named_with_its_line(tiny_config, tmp_path):
    resnet_jax.fit(tiny_config, tmp_path, stop_at_step=6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "@@@\n" + "".join(lines[1:]))
    with pytest.raises(DataError, match="Line 2 of .*metrics.jsonl is damaged"):
        resnet_jax.fit(tiny_config, tmp_path)


def test_a_label_out_of_range_is_never_trained_on(tiny_config, tmp_path, monkeypatch):
    class Mislabelled:
        lengths: ClassVar = {"train": 400, "test": 100}
        image_shape = (8, 8, 1)
        class_names = tuple("0123456789")
        fingerprint = "made up"

        def read(self, split, *, skip_corrupt):
            n = self.lengths[split]
            labels = np.arange(n, dtype=np.int32) % 10
            if split == "train":
                labels[123] = 10
            return DecodedSplit(np.zeros((n, 8, 8, 1), np.uint8), labels)

    monkeypatch.setattr(sources, "open_source", lambda *_, **__: Mislabelled())
    with pytest.raises(DataError, match=r"example 123 of split 'train'.* has label 10"):
        resnet_jax.fit(tiny_config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("file", ["digits", "cifar10"])
def test_the_configs_in_the_repository_are_valid(file):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "configs" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(file, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    validate(module.get_config())
    if file == "cifar10":
        validate(module.get_config("resnet110,cpu"))
        paper = module.get_config("resnet110")
        assert paper.duration == 64_000 * 128
        assert paper.schedule.scales == (0.1, 1.0, 0.1, 0.01)


def test_a_dataset_is_what_the_tests_think():
    """Guards the stand-in above against a change of the interface."""
    assert {"name", "splits", "class_names", "fingerprint"} <= set(Dataset.__dataclass_fields__)
    assert set(ImageSet.__dataclass_fields__) == {"images", "labels"}


def test_a_directory_in_use_is_refused(tiny_config, tmp_path, never_compile):
    with (
        locked(epath.Path(tmp_path)),
        pytest.raises(WriteError, match=f"in use by process {os.getpid()} on"),
    ):
        resnet_jax.fit(tiny_config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_an_error_lets_the_save_under_way_reach_the_disk(tiny_config, tmp_path, monkeypatch):
    """The record can't be written at the second save, while the first may still be under way."""
    calls = []

    def full(self):
        calls.append(self)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "sync", full)
    tiny_config.checkpoint_every = 32.0
    with pytest.raises(WriteError, match="No space left on device"):
        resnet_jax.fit(tiny_config, tmp_path)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["1"]  # finished, and no temporary one beside it

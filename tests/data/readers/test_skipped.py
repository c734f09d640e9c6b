"""Damaged examples that are left out: which, how many, and the positions of the others."""

import json
import logging
import shutil

import numpy as np
import pytest

import resnet_jax
from resnet_jax.config.io import from_json, to_json
from resnet_jax.config.schema import default_config, validate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.readers import decoding
from resnet_jax.data.readers.skipped import most_skipped
from resnet_jax.errors import ConfigError, DataError
from tests.data.tiny_dataset import (
    encode,
    own_cache,
    pixels_of,
    tiny,
    tiny_original,
    write_tfds,
)

__all__ = ["own_cache", "tiny", "tiny_original"]
RECORDS = "tiny-train.array_record-00000-of-00001"


@pytest.fixture
def allow(monkeypatch):
    """Let more of a tiny split be skipped than 0.1 %."""
    return lambda most: monkeypatch.setattr(
        "resnet_jax.data.readers.skipped.most_skipped", lambda examples: most
    )


def load(data_dir, corrupt="skip", **splits):
    return load_dataset(
        "tiny", splits=splits or {"train": "train"}, data_dir=str(data_dir), corrupt=corrupt
    )


def decay(data_dir, image):
    """Flip a bit inside the record of an image."""
    path = data_dir / "tiny" / "1.0.0" / RECORDS
    content = bytearray(path.read_bytes())
    content[content.index(encode(image)) + 50] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_example_is_left_out_counted_and_named(tiny, caplog):
    whole = load(tiny, "stop")
    decay(tiny, whole.splits["train"].images[13])
    with caplog.at_level(logging.WARNING, "resnet_jax"):
        data = load(tiny)
    np.testing.assert_array_equal(
        data.splits["train"].images, np.delete(whole.splits["train"].images, 13, axis=0)
    )
    np.testing.assert_array_equal(
        data.splits["train"].labels, np.delete(whole.splits["train"].labels, 13)
    )
    (skipped,) = data.skipped
    assert (skipped.split, skipped.index) == ("train", 13)
    assert skipped.reason
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    (line,) = (record.getMessage() for record in warnings)
    assert "1 of 20 examples of split 'train' of 'tiny'" in line
    assert f"left out: 13 ({skipped.reason})" in line
    assert "\n" not in line


def test_a_damaged_image_in_a_sound_record_is_left_out_too(tmp_path):
    def cut(split, index, example):
        if (split, index) == ("train", 11):
            example["image"] = example["image"][:-40]
        return example

    folder = write_tfds(tmp_path / "tfds", edit=cut).parents[1]
    data = load(folder)
    (skipped,) = data.skipped
    assert len(data.splits["train"]) == 19
    assert not (data.splits["train"].images == pixels_of("train", 11)).all((1, 2, 3)).any()
    with pytest.raises(DataError, match=f"example {skipped.index} of split 'train'"):
        load(folder, "stop")


@pytest.mark.parametrize("blocks", [3, 256])
def test_split_expressions_count_what_is_skipped(tiny, allow, monkeypatch, blocks):
    """No example changes its role because another one is damaged."""
    monkeypatch.setattr(decoding, "_BLOCK_EXAMPLES", blocks)
    allow(5)
    roles = {"train": "train[:10]", "validation": "train[10:15]", "test": "train[15:]"}
    whole = load(tiny, "stop", **roles)
    for role, row in (("train", 0), ("train", 9), ("validation", 0), ("test", 4)):
        decay(tiny, whole.splits[role].images[row])
    data = load(tiny, **roles)
    assert [one.index for one in data.skipped] == [0, 9, 10, 19]
    for role, rows in (("train", [0, 9]), ("validation", [0]), ("test", [4])):
        for field in ("images", "labels"):
            expected = np.delete(getattr(whole.splits[role], field), rows, axis=0)
            np.testing.assert_array_equal(getattr(data.splits[role], field), expected)


def test_intact_data_are_the_same_under_either_policy(tiny):
    stop, skip = load(tiny, "stop"), load(tiny, "skip")
    assert stop.fingerprint == skip.fingerprint
    assert skip.skipped == ()


def test_what_is_skipped_and_where_is_part_of_the_fingerprint(tiny, tmp_path):
    whole = load(tiny, "stop")
    prints = {whole.fingerprint}
    for index in (3, 13):
        folder = tmp_path / str(index)
        shutil.copytree(tiny, folder)
        decay(folder, whole.splits["train"].images[index])
        prints.add(load(folder).fingerprint)
        assert load(folder).fingerprint in prints  # the same each time
    assert len(prints) == 3


def test_the_place_alone_tells_skipped_examples_apart(tmp_path):
    """The first or the second of two equal neighbours is damaged."""
    prints = []
    for damaged in range(2):
        folder = write_tfds(tmp_path / str(damaged), edit=lambda *_: {"image": SAME, "label": 0})
        records = folder / RECORDS
        content = bytearray(records.read_bytes())
        first = content.index(SAME)
        content[(first if damaged == 0 else content.index(SAME, first + 1)) + 50] ^= 0xFF
        records.write_bytes(content)
        prints.append(load(folder.parents[1]).fingerprint)
    assert prints[0] != prints[1]


SAME = encode(pixels_of("train", 0))


def test_a_skipped_split_is_never_served_to_a_run_that_stops(tiny, own_cache):
    image = load(tiny, "stop").splits["train"].images[13]
    decay(tiny, image)
    shutil.rmtree(own_cache)
    for _ in range(2):
        assert len(load(tiny).splits["train"]) == 19
        assert not list(own_cache.rglob("train*"))
        with pytest.raises(DataError, match="example 13 of split 'train'"):
            load(tiny, "stop")


def test_more_than_the_limit_ends_the_run_all_the_same(tiny):
    images = load(tiny, "stop").splits["train"].images
    decay(tiny, images[4])
    decay(tiny, images[13])
    with pytest.raises(DataError) as caught:
        load(tiny)
    message = str(caught.value)
    assert "2 of the first 20 examples of split 'train' of 'tiny'" in message
    assert "the first is example 4" in message
    assert "leaves out at most 1 of 20" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("examples", "most"), [(1, 1), (999, 1), (1999, 1), (2000, 2), (50_000, 50), (1_281_167, 1281)]
)
def test_at_most_one_example_in_a_thousand_is_skipped(examples, most):
    assert most_skipped(examples) == most


def test_a_role_without_examples_is_refused(tiny):
    decay(tiny, load(tiny, "stop").splits["train"].images[0])
    with pytest.raises(DataError, match=r"all examples of 'train\[:1\]' of 'tiny' are damaged"):
        load(tiny, validation="train[:1]", train="train[1:]")


def test_a_wrong_label_is_named_by_its_place_before_skipping(tmp_path):
    folder = write_tfds(
        tmp_path / "tfds",
        edit=lambda split, index, example: (
            example | {"label": -1} if (split, index) == ("train", 11) else example
        ),
    )
    test = load(folder.parents[1], "skip", test="test")
    assert len(test.splits["test"]) == 6
    with pytest.raises(DataError) as caught:
        load(folder.parents[1])
    (place,) = (i for i in range(20) if f"example {i} of split 'train'" in str(caught.value))
    assert place > 0
    rest = load(folder.parents[1], "stop", train=f"train[:{place}]+train[{place + 1}:]")
    decay(folder.parents[1], rest.splits["train"].images[0])
    with pytest.raises(DataError, match=f"example {place} of split 'train' .* has label -1"):
        load(folder.parents[1])


def test_a_label_beyond_32_bits_is_not_cut(tiny, monkeypatch):
    """It would silently become another class."""
    import tensorflow_datasets as tfds

    real = tfds.features.ClassLabel.decode_example_np
    monkeypatch.setattr(
        tfds.features.ClassLabel,
        "decode_example_np",
        lambda self, label: np.int64(2**32 + int(real(self, label))),
        raising=False,
    )
    with pytest.raises(DataError, match="example 0 of split 'train'.*out of bounds"):
        load(tiny, "stop")


def test_the_policy_is_a_field_of_the_config():
    config = default_config()
    assert config.data.corrupt == "stop"
    config.data.corrupt = "skipp"
    with pytest.raises(ConfigError, match="data.corrupt is 'skipp'.*Did you mean 'skip'"):
        validate(config)
    with pytest.raises(ConfigError, match="data.corrupt is 'skipp'"):
        load_dataset("digits", splits={"train": "train"}, corrupt="skipp")
    old = json.loads(to_json(default_config()))
    del old["data"]["corrupt"]
    assert from_json(json.dumps(old)).data.corrupt == "stop"


# --- a whole run: on record, and noticed when data change between runs ----------------------------


@pytest.fixture
def tiny_run(tiny, tiny_config, tmp_path):
    """A config that trains on the tiny set, and a directory for it."""
    tiny_config.data.name, tiny_config.data.dir = "tiny", str(tiny)
    tiny_config.data.train, tiny_config.data.validation = "train", ""
    tiny_config.data.test = "test"
    tiny_config.batch_size = 4
    tiny_config.model.stage_sizes = (1,)
    tiny_config.duration = 4 * 4.0
    tiny_config.schedule.warmup = 0.0
    return tiny_config, tmp_path / "run"


@pytest.mark.thorough
def test_what_was_skipped_is_on_record_and_the_run_goes_on(tiny, tiny_run):
    config, workdir = tiny_run
    decay(tiny, load(tiny, "stop").splits["train"].images[13])
    with pytest.raises(DataError, match="example 13"):
        resnet_jax.fit(config, workdir)
    config.data.corrupt = "skip"
    resnet_jax.fit(config, workdir, stop_at_step=2)
    resnet_jax.fit(config, workdir)
    data = json.loads((workdir / "summary.json").read_text())["data"]
    assert data["examples"] == {"train": 19, "test": 6}
    (skipped,) = data["skipped"]
    assert (skipped["split"], skipped["index"]) == ("train", 13)
    assert skipped["reason"]
    config.data.corrupt = "stop"
    with pytest.raises(DataError, match="example 13"):
        resnet_jax.fit(config, workdir)


def _prepare_again(tiny, edit=None):
    shutil.rmtree(tiny / "tiny")
    write_tfds(tiny, edit=edit)


def _remove_last(tiny):
    _prepare_with(tiny, 19)


def _add_one(tiny):
    _prepare_with(tiny, 21)


def _prepare_with(tiny, count):
    from tests.data import tiny_dataset

    before = dict(tiny_dataset.COUNTS)
    tiny_dataset.COUNTS["train"] = count
    try:
        _prepare_again(tiny)
    finally:
        tiny_dataset.COUNTS.update(before)


def _edit_image(tiny):
    _prepare_again(
        tiny,
        lambda split, index, example: (
            example | {"image": encode(pixels_of(split, index) ^ 1)}
            if (split, index) == ("train", 7)
            else example
        ),
    )


def _edit_label(tiny):
    _prepare_again(
        tiny,
        lambda split, index, example: (
            example | {"label": 1} if (split, index) == ("test", 5) else example
        ),
    )


def _rename_class(tiny):
    (tiny / "tiny" / "1.0.0" / "label.labels.txt").write_text("cat\ndog\nowlet\n")


def _swap_classes(tiny):
    (tiny / "tiny" / "1.0.0" / "label.labels.txt").write_text("dog\ncat\nowl\n")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [_add_one, _remove_last, _edit_image, _edit_label, _rename_class, _swap_classes],
)
def test_data_that_change_between_runs_are_noticed(tiny, tiny_run, change):
    config, workdir = tiny_run
    resnet_jax.fit(config, workdir, stop_at_step=1)
    change(tiny)
    with pytest.raises(DataError, match="aren't those that the run"):
        resnet_jax.fit(config, workdir)
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()] == ["1"]


@pytest.mark.thorough
def test_decay_between_runs_is_noticed_under_either_policy(tiny, tiny_run):
    config, workdir = tiny_run
    resnet_jax.fit(config, workdir, stop_at_step=1)
    decay(tiny, load(tiny, "stop").splits["train"].images[13])
    with pytest.raises(DataError, match="example 13"):
        resnet_jax.fit(config, workdir)
    config.data.corrupt = "skip"
    with pytest.raises(DataError, match="aren't those that the run"):
        resnet_jax.fit(config, workdir)


@pytest.mark.parametrize("file", [RECORDS, "features.json", "dataset_info.json"])
def test_a_file_removed_between_runs_is_noticed(tiny, tiny_run, file):
    config, workdir = tiny_run
    resnet_jax.fit(config, workdir, stop_at_step=1)
    (tiny / "tiny" / "1.0.0" / file).unlink()
    with pytest.raises((DataError, ConfigError), match="tiny"):
        resnet_jax.fit(config, workdir)


def test_prepared_again_from_the_same_images_the_run_goes_on(tiny, tiny_run):
    """Other files beside the data are ignored."""
    config, workdir = tiny_run
    resnet_jax.fit(config, workdir, stop_at_step=1)
    _prepare_again(tiny)
    (tiny / "tiny" / "1.0.0" / "notes.txt").write_text("mine")
    assert int(resnet_jax.fit(config, workdir).state.step) == 4

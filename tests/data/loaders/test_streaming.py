"""Streamed batches: the same examples and pixels for any workers, devices and first step."""

import contextlib
import os
import resource
import shutil
import signal
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.loaders.crop_sizes import CropSizes
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.data.loaders.streaming import StreamingLoader
from resnet_jax.errors import ConfigError, DataError, PeerError
from resnet_jax.parallel.mesh import make_mesh
from tests.data.photos import AREA, SIZE, photos
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache", "photos"]


@contextlib.contextmanager
def _batches(
    photos, *, workers, devices=1, shape=(1, 2, 8), step=0, repeats=1, total_steps=20, sizes=None
):
    data = load_dataset(
        "folder", splits={"train": "train"}, data_dir=str(photos), streamed=["train"]
    )
    examples = data.streamed["train"]
    batches = StreamingLoader(
        examples,
        IndexSampler(3, len(examples), shape[1] * shape[2], repeats),
        shape=shape,
        mesh=make_mesh(data=devices),
        area=AREA,
        sizes=sizes or CropSizes((SIZE,)),
        total_steps=total_steps,
        workers=workers,
    )
    with contextlib.closing(batches):
        batches.start(step)
        yield batches


def _take(photos, steps, **kwargs):
    with _batches(photos, step=steps[0], **kwargs) as batches:
        return [jax.device_get(batches.take(step)) for step in steps]


def _assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def expected(photos):
    return _take(photos, range(8), workers=0)


def test_batches_are_those_of_the_stream(photos, expected):
    ids, epochs = IndexSampler(3, 60, 16).take(0, 8)
    for step, batch in enumerate(expected):
        assert batch.images.shape == (1, 2, 8, SIZE, SIZE, 3)
        assert batch.images.dtype == np.uint8
        np.testing.assert_array_equal(batch.ids.reshape(-1), ids[step])
        np.testing.assert_array_equal(batch.epochs.reshape(-1), epochs[step])
    # An example has one label, and in another epoch another crop.
    seen = {}
    for batch in expected:
        rows = zip(
            batch.ids.reshape(-1),
            batch.labels.reshape(-1),
            batch.images.reshape(-1, SIZE, SIZE, 3),
            strict=True,
        )
        for index, label, image in rows:
            seen.setdefault(int(index), []).append((int(label), image))
    assert sorted(seen) == list(range(60))
    assert all(len({label for label, _ in found}) == 1 for found in seen.values())
    again = [found for found in seen.values() if len(found) > 1]
    assert again
    assert all(np.any(found[0][1] != found[1][1]) for found in again)


def test_any_number_of_processes_and_any_first_step_give_the_same(photos, expected):
    _assert_equal(_take(photos, range(8), workers=3), expected)
    _assert_equal(_take(photos, range(5, 8), workers=1), expected[5:])


def test_any_number_of_devices_gives_the_same(photos, expected):
    _assert_equal(_take(photos, range(2), workers=0, devices=8), expected[:2])


def test_a_step_out_of_turn_is_read_anew(photos, expected):
    """As after going back to a checkpoint."""
    with _batches(photos, workers=0) as batches:
        found = [jax.device_get(batches.take(step)) for step in (0, 1, 5, 6, 0)]
    _assert_equal(found, [expected[step] for step in (0, 1, 5, 6, 0)])


def test_nothing_is_read_past_the_end(photos):
    found = _take(photos, range(3), workers=0, total_steps=3)
    assert len(found) == 3


def test_repeats_are_the_same_images_cropped_otherwise(photos):
    (batch,) = _take(photos, [0], workers=0, repeats=2)
    first, second = batch.ids[0]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(batch.labels[0, 0], batch.labels[0, 1])
    assert np.any(batch.images[0, 0] != batch.images[0, 1], axis=(1, 2, 3)).all()
    ids, epochs = IndexSampler(3, 60, 16, repeats=2).take(0, 15)
    pairs = set(zip(ids.reshape(-1).tolist(), epochs.reshape(-1).tolist(), strict=True))
    assert len(pairs) == ids.size  # no augmentation is drawn twice
    counts = np.bincount(ids.reshape(-1), minlength=60)
    assert counts.tolist() == [4] * 60


def test_images_grow_in_the_course_of_a_run(photos, expected):
    sizes = CropSizes((8, 10, SIZE), (1.5, 4.0))
    assert [sizes.at(step) for step in range(6)] == [8, 8, 10, 10, SIZE, SIZE]
    found = _take(photos, range(8), workers=0, sizes=sizes)
    assert [batch.images.shape[-2] for batch in found] == [8, 8, 10, 10, *[SIZE] * 4]
    _assert_equal(found[4:], expected[4:])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_damaged_image_is_named(workers, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    torn = tmp_path / "photos" / "dog" / "4.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"example \d+ of split 'train'.*'dog/4.png'.*early"):
        _take(tmp_path / "photos", range(8), workers=workers)


def _children():
    """Process ids of this process's children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == os.getpid():
                    found.append(int(name))
    return found


def test_too_few_open_files_are_named_before_anything_is_compiled(photos, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"data\.workers=2 needs 128 open files.* have 64 here"):
        _take(photos, [0], workers=2)
    assert _take(photos, [0], workers=0)


@pytest.mark.thorough
def test_a_process_that_dies_is_noticed_at_once(photos):
    before = set(_children())
    with _batches(photos, workers=1, total_steps=10_000) as batches:
        batches.take(0)
        (worker,) = [
            pid
            for pid in set(_children()) - before
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(PeerError, match="process that decodes images has died"):
            deque(map(batches.take, range(1, 10_000)), maxlen=0)
    assert time.monotonic() - began < 60

"""Runs whose images are decoded as they're needed: the same order and pixels, whoever decodes."""

import contextlib
import os
import resource
import signal
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.schema import validate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.image_files import decode_upright
from resnet_jax.data.loaders.in_memory import CropSizes, ExampleStream
from resnet_jax.data.loaders.streaming import StreamedBatches
from resnet_jax.errors import ConfigError, DataError, PeerError
from resnet_jax.parallel.mesh import make_mesh
from tests.data.hostile_images import pixels, save
from tests.data.test_datasets import own_cache
from tests.runs import digest

__all__ = ["own_cache"]

SIZE, AREA = 12, (0.25, 1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of JPEG and PNG files of many sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        (root / name).mkdir()
        for number in range(20):
            kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[number % 2]
            shape = rng.integers(14, 50, 2).tolist()
            data = save(pixels(*shape, seed=100 * label + number), kind)
            (root / name / f"{number}.{suffix}").write_bytes(data)
    return root


@contextlib.contextmanager
def _batches(
    photos, *, workers, devices=1, shape=(1, 2, 8), step=0, repeats=1, total_steps=20, sizes=None
):
    data = load_dataset(
        "folder", splits={"train": "train"}, data_dir=str(photos), streamed=["train"]
    )
    examples = data.streamed["train"]
    batches = StreamedBatches(
        examples,
        ExampleStream(3, len(examples), shape[1] * shape[2], repeats),
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
    ids, epochs = ExampleStream(3, 60, 16).take(0, 8)
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
    ids, epochs = ExampleStream(3, 60, 16, repeats=2).take(0, 15)
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


def test_a_damaged_image_is_named(photos, tmp_path):
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    torn = tmp_path / "photos" / "dog" / "4.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    for workers in (0, 1):
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
    assert time.monotonic() - began < 20


@pytest.fixture
def config(tiny_config, photos):
    config = tiny_config
    config.data.name, config.data.dir = "folder", str(photos)
    config.data.random_crop_area, config.data.image_size = AREA, SIZE
    config.data.eval_size, config.data.eval_resize = 14, 16
    config.data.mean, config.data.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    config.data.train, config.data.validation, config.data.test = "train[:40]", "", "train[40:]"
    config.data.crop_padding, config.data.workers = 0, 0
    config.batch_size = 8
    config.duration, config.log_every = 10 * 8.0, 2
    config.checkpoint_every = config.eval_every = 5 * 8.0
    config.schedule.warmup = 0.0
    return config


@pytest.mark.thorough
def test_a_run_goes_on_in_the_middle_of_an_epoch(config, tmp_path, capsys, photos):
    whole = resnet_jax.fit(config, tmp_path / "whole")
    config.data.workers = 2
    stopped = resnet_jax.fit(config, tmp_path / "cut", stop_at_step=3)
    assert stopped.stopped_early
    config.data.workers = 0
    resnet_jax.fit(config, tmp_path / "cut")
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    records = [r for r in whole.history if r["split"] == "train"]
    assert [r["step"] for r in records] == [2, 4, 6, 8, 10]
    assert all(0 <= r["data_wait"] <= 1 for r in records)

    # It is scored as its config says, and so are single files.
    network = resnet_jax.restore_run(tmp_path / "whole")
    assert network.image_shape == (14, 14, 3)
    prepared = network.preprocessing()
    assert (prepared.size, prepared.resize) == (14, 16)
    again = network.evaluate("test")
    assert again.top1 == whole.evaluation["test"].top1
    assert network.preprocessing().crop == network.image_fit.crop
    test = load_dataset(
        "folder", splits={"test": "train[40:]"}, data_dir=str(photos), streamed=["test"]
    ).streamed["test"]
    records = dict(test.fetch(range(len(test))))
    images = [decode_upright(records[i].image) for i in range(len(test))]
    labels = [records[i].label for i in range(len(test))]
    right = network.predict(images).argmax(axis=1) == labels
    assert right.mean() == pytest.approx(again.top1)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "whole"), str(photos / "cat"), "--json"]) == 0
    with pytest.raises(ConfigError, match="decoded as needed, not scored"):
        network.evaluate("train")


@pytest.mark.thorough
def test_images_that_are_read_again_for_statistics_keep_no_step_waiting(
    config, tmp_path, monkeypatch
):
    """A minute for each of the last three steps at steps 5 and 10, and no time for training."""
    config.precise_bn = 3
    take, taken = StreamedBatches.take, []

    def timed(self, step):
        batch = take(self, step)
        self.waited_s = 60.0 * (len(taken) + 1 - len({*taken, step}))
        taken.append(step)
        return batch

    monkeypatch.setattr(StreamedBatches, "take", timed)
    result = resnet_jax.fit(config, tmp_path / "run")
    again = [step for number, step in enumerate(taken) if step in taken[:number]]
    assert again == 2 * [2, 3, 4] + 2 * [7, 8, 9]  # the moving averages have some of their own
    assert [r["data_wait"] for r in result.history if r["split"] == "train"] == [0.0] * 5


@pytest.mark.thorough
def test_a_run_of_growing_images_goes_on_in_either_size(config, tmp_path):
    config.data.early_sizes, config.data.size_boundaries = (8,), (4 * 8.0,)
    resnet_jax.fit(config, tmp_path / "whole")
    resnet_jax.fit(config, tmp_path / "cut", stop_at_step=2)
    resnet_jax.fit(config, tmp_path / "cut", stop_at_step=6)
    resnet_jax.fit(config, tmp_path / "cut")
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.early_sizes": (8,)}, r"early_sizes is \(8,\) and data.size_boundaries \(\)"),
        (
            {"data.early_sizes": (8, 10), "data.size_boundaries": (5.0, 5.0)},
            "which rises",
        ),
        ({"data.random_crop_area": (0.5,)}, r"random_crop_area is \(0.5,\)"),
        ({"data.random_crop_area": (0.5, 0.1)}, "smallest and a largest share"),
        ({"data.random_crop_area": (0, 1.0)}, "smallest and a largest share"),
        ({"data.image_size": None}, "needs data.image_size, and data.mean"),
        ({"data.mean": (), "data.std": ()}, "needs data.image_size, and data.mean"),
        ({"data.corrupt": "skip"}, "`resnet-jax prepare` leaves out"),
        ({"data.workers": -2}, "data.workers is -2"),
        ({"data.random_crop_area": ()}, "data.eval_size is 14; it goes with"),
        ({"data.repeats": 0}, "data.repeats is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(config, fields, message):
    from resnet_jax.config.schema import set_field

    for name, value in fields.items():
        set_field(config, name, value)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_digits_are_not_decoded(config, tmp_path):
    config.data.name, config.data.dir = "digits", None
    with pytest.raises(ConfigError, match="digits come as they are"):
        resnet_jax.fit(config, tmp_path / "run")

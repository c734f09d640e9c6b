"""resnet-jax prepare: images to TFDS folders, with damage and interruptions."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.image_files import decode_upright
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.prepare import originals
from resnet_jax.data.prepare.originals import Original
from resnet_jax.data.prepare.prepare import Options, prepare
from resnet_jax.data.prepare.shards import Shard, write_shard
from resnet_jax.errors import ConfigError, DataError, WriteError
from tests.cli.mistakes import assert_one_line
from tests.data.hostile_images import pixels, save
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache"]


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes, JPEG and PNG, of several sizes."""
    root = tmp_path / "photos"
    for split, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                kind, suffix = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
                picture = pixels(20 + number, 30, seed=100 * label + number)
                (root / split / name / f"{number}.{suffix}").write_bytes(save(picture, kind))
    return root


def _prepare(photos, out, name="pets", **kwargs):
    options = {key: kwargs.pop(key) for key in ("size", "quality", "corrupt") if key in kwargs}
    return prepare(photos, out, name, Options(**options), **kwargs)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_tfds_reads_what_is_written_and_so_do_we(photos, tmp_path):
    import tensorflow_datasets as tfds

    report = _prepare(photos, tmp_path / "data", shards=3, workers=1)
    assert report["splits"] == {"train": 24, "val": 10}
    assert report["classes"]["train"] == {"cat": 12, "dog": 12}
    builder = tfds.builder("pets", data_dir=str(tmp_path / "data"))
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(source) == 24
    names = []
    for record in source:
        name = record["file_name"].decode()
        names.append(name)
        assert record["image"] == (photos / name).read_bytes()  # untouched
        assert builder.info.features["label"].int2str(record["label"]) == name.split("/")[1]
    assert len(set(names)) == 24
    # The order is fixed for good, and random: else slices would lack classes.
    digests = [hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in names]
    assert digests == sorted(digests)
    data = load_dataset(
        "pets",
        splits={"train": "train", "test": "val"},
        data_dir=str(tmp_path / "data"),
        crop=ScaleAndCrop.square(8, resize=8),
        streamed=["train"],
    )
    assert data.lengths == {"train": 24, "test": 10}
    assert data.class_names == ("cat", "dog")


@pytest.mark.thorough
def test_any_number_of_processes_writes_the_same(photos, tmp_path):
    for workers in (1, 2):
        _prepare(photos, tmp_path / str(workers), shards=3, workers=workers, size=16)
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")


def test_larger_images_are_scaled_once(photos, tmp_path):
    import tensorflow_datasets as tfds

    _prepare(photos, tmp_path / "data", workers=1, size=24)
    builder = tfds.builder("pets", data_dir=str(tmp_path / "data"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    for record in builder.as_data_source("train", decoders=decoders):
        original = (photos / record["file_name"].decode()).read_bytes()
        before, after = decode_upright(original), decode_upright(record["image"])
        if min(before.shape[:2]) <= 24:
            assert record["image"] == original
        else:
            assert min(after.shape[:2]) == 24
            assert after.shape[1] / after.shape[0] == pytest.approx(
                before.shape[1] / before.shape[0], abs=0.05
            )
            small = Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(small).astype(int) - after).mean() < 4


def test_a_damaged_image_ends_it_or_is_listed(photos, tmp_path):
    torn = photos / "train" / "dog" / "3.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"'train/dog/3.png' of 'train' can't be used: it ends"):
        _prepare(photos, tmp_path / "data", workers=1)
    assert not (tmp_path / "data" / "pets" / "1.0.0").exists()
    report = _prepare(photos, tmp_path / "other", workers=1, corrupt="skip")
    assert report["splits"]["train"] == 23
    assert report["classes"]["train"] == {"cat": 12, "dog": 11}
    (bad,) = report["bad"]
    assert bad["image"] == "train/dog/3.png"
    assert json.loads((tmp_path / "other/pets/1.0.0/report.json").read_text())["bad"] == [bad]


@pytest.mark.thorough
def test_killed_at_any_time_it_goes_on_and_writes_the_same(photos, tmp_path):
    for number in range(20):  # enough to take a while
        large = save(pixels(1400, 1400, seed=number), "JPEG")
        (photos / "train" / "cat" / f"large{number}.jpg").write_bytes(large)
    _prepare(photos, tmp_path / "whole", shards=6, workers=1)
    out = tmp_path / "data"
    program = "import sys; from resnet_jax.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "prepare", str(photos)]
    command += [f"--out={out}", "--name=pets", "--shards=6", "--workers=1"]
    draft = out / "pets" / "1.0.0.draft"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while len(list(draft.glob("*.json.draft"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (out / "pets" / "1.0.0").exists()
    suffix = ".json.draft"  # of the note that a shard is finished
    finished = [draft / p.name.removesuffix(suffix) for p in draft.glob(f"*{suffix}")]
    kept = {p.name: p.stat().st_mtime_ns for p in finished}
    assert kept
    _prepare(photos, out, shards=6, workers=1)
    assert _bytes(out) == _bytes(tmp_path / "whole")
    after = {p.name: p.stat().st_mtime_ns for p in (out / "pets" / "1.0.0").glob("pets-*")}
    assert {name: after[name] for name in kept} == kept  # not written again


@pytest.mark.thorough
def test_a_shard_that_has_decayed_is_written_again(photos, tmp_path):
    _prepare(photos, tmp_path / "whole", shards=2, workers=1)
    out = tmp_path / "data"
    shutil.copytree(photos, tmp_path / "torn")
    last = tmp_path / "torn" / "val" / "dog" / "4.jpg"
    good = last.read_bytes()
    last.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    with pytest.raises(DataError, match=r"dog/4\.jpg"):
        _prepare(tmp_path / "torn", out, shards=2, workers=1)
    last.write_bytes(good)
    (shard,) = (out / "pets" / "1.0.0.draft").glob("pets-train*-00000-of-00002")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    _prepare(tmp_path / "torn", out, shards=2, workers=1)
    assert _bytes(out) == _bytes(tmp_path / "whole")


@pytest.mark.thorough
@pytest.mark.parametrize("corrupt", ["stop", "skip"])
def test_after_a_damaged_image_it_goes_on_with_what_is_finished(corrupt, photos, tmp_path):
    torn = photos / "val" / "dog" / "4.jpg"
    good = torn.read_bytes()
    torn.write_bytes(good[:-60])
    with pytest.raises(DataError, match=r"dog/4\.jpg"):
        _prepare(photos, tmp_path / "data", shards=2, workers=1)
    draft = tmp_path / "data" / "pets" / "1.0.0.draft"
    kept = {path.name: path.stat().st_mtime_ns for path in draft.glob("pets-train*-of-00002")}
    assert len(kept) == 2
    if corrupt == "stop":
        torn.write_bytes(good)  # repaired
    _prepare(photos, tmp_path / "data", shards=2, workers=1, corrupt=corrupt)
    folder = tmp_path / "data" / "pets" / "1.0.0"
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    _prepare(photos, tmp_path / "fresh", shards=2, workers=1, corrupt=corrupt)
    assert _bytes(folder) == _bytes(tmp_path / "fresh")


@pytest.mark.thorough
def test_ctrl_c_ends_it_in_the_middle_of_a_shard(photos, tmp_path):
    large = save(pixels(2000, 2000, seed=1), "JPEG")
    (photos / "train" / "cat" / "large.jpg").write_bytes(large)
    for number in range(200):  # tens of seconds of work
        os.link(photos / "train/cat/large.jpg", photos / "train/cat" / f"large{number}.jpg")
    program = "import sys; from resnet_jax.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "prepare", str(photos), f"--out={tmp_path / 'data'}"]
    draft = tmp_path / "data" / "pets" / "1.0.0.draft"
    with subprocess.Popen(
        [*command, "--name=pets", "--shards=1", "--workers=1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 300
        while not list(draft.glob("pets-train*.draft")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (130, "interrupted; what was saved before is intact\n")
    assert not list(draft.glob("pets-train*-of-00001"))


def test_two_processes_do_not_write_to_the_same_folder(photos, tmp_path):
    draft = tmp_path / "data" / "pets" / "1.0.0.draft"
    draft.mkdir(parents=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(WriteError, match="another process is preparing"):
            _prepare(photos, tmp_path / "data", workers=1)
    finally:
        os.close(handle)
    _prepare(photos, tmp_path / "data", workers=1)


def test_a_disk_that_fails_is_no_reason_to_leave_images_out(tmp_path):
    gone = Original("cat/0.jpg", 0, str(tmp_path / "gone.tar"), 0, 10)
    shard = Shard("pets-train.array_record-00000-of-00001", "pets", "train", [gone], ("cat", "dog"))
    with pytest.raises(DataError, match="'cat/0.jpg' can't be read from .*gone.tar"):
        write_shard(tmp_path, shard, Options(corrupt="skip"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val", "all", "'all' can't be the name of a split"),
        ("val", "my val", "'my val' can't be the name of a split"),
        ("val/cat/0.jpg", os.fsdecode(b"val/cat/\xff.jpg"), "has a name that isn't UTF-8"),
    ],
)
def test_names_that_tfds_could_not_read_again_are_refused(old, new, message, photos, tmp_path):
    (photos / old).rename(photos / new)
    with pytest.raises(DataError, match=message):
        _prepare(photos, tmp_path / "data", workers=1)


def test_classes_that_differ_in_spaces_only_are_refused(photos, tmp_path):
    for split in ("train", "val"):
        (photos / split / "dog").rename(photos / split / " cat")
    with pytest.raises(DataError, match="' cat' begins or ends with a space"):
        _prepare(photos, tmp_path / "data", workers=1)


def test_another_preparation_in_the_same_place_is_refused(photos, tmp_path):
    torn = photos / "val" / "cat" / "0.jpg"
    good = torn.read_bytes()
    torn.write_bytes(good[:-40])
    with pytest.raises(DataError):
        _prepare(photos, tmp_path / "data", workers=1)
    torn.write_bytes(good)
    with pytest.raises(ConfigError, match="is of another preparation"):
        _prepare(photos, tmp_path / "data", workers=1, size=16)


def _tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["sparse", "sparse (pax)", "vast", "negative"])
def test_an_archive_is_not_larger_than_it_is(kind, tmp_path):
    """A few hundred bytes whose headers promise terabytes."""
    member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
    member.size = {"vast": 2**42, "negative": -1024}.get(kind, 512)
    header = member.tobuf(tarfile.GNU_FORMAT)
    if kind == "sparse":  # its one piece, and the length with the gaps
        pieces = b"00000000000\0" + b"00000001000\0" + bytes(73) + b"77777777777\0"
        header = header[:148] + b" " * 8 + b"S" + header[157:386] + pieces + bytes(17)
        header = header[:148] + b"%06o\0 " % tarfile.calc_chksums(header)[0] + header[156:]
    elif kind == "sparse (pax)":
        member.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(2**42)}
        header = member.tobuf(tarfile.PAX_FORMAT)
    archive = tmp_path / originals.VALIDATION_ARCHIVE
    archive.write_bytes(header + bytes(512) + bytes(1024))
    members = (Original(n, 0, str(archive), *where) for n, *where in originals._members(archive))
    with pytest.raises(
        DataError, match="length isn't that of its data|has more than 32 MiB|invalid offset"
    ):
        [member.read() for member in members]


def test_a_part_of_an_archive_that_no_image_has_isnt_read(tmp_path):
    path = tmp_path / "vast"
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(DataError, match="it has more than 32 MiB"):
        Original("cat/0.jpg", 0, str(path), 0, 2**42).read()


def test_imagenets_archives_are_read_in_place(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    folder = tfds.core.tfds_path("datasets/imagenet2012")
    wnids = (folder / "labels.txt").read_text().split()
    labels = (folder / "validation_labels.txt").read_text().split()[:6]
    source = tmp_path / "archives"
    source.mkdir()
    inner, expected = [], {}
    for label in (3, 500, 999):
        members = []
        for number in range(2):
            name = f"{wnids[label]}_{number}.JPEG"
            expected[name] = save(pixels(20, 24, seed=label + number), "JPEG")
            members.append((name, expected[name]))
        _tar(source / "inner.tar", members)
        inner.append((f"{wnids[label]}.tar", (source / "inner.tar").read_bytes()))
    (source / "inner.tar").unlink()
    _tar(source / originals.TRAIN_ARCHIVE, inner)
    validation = [
        (f"ILSVRC2012_val_{i:08d}.JPEG", save(pixels(18, 18, seed=i), "JPEG")) for i in range(1, 7)
    ]
    _tar(source / originals.VALIDATION_ARCHIVE, validation[::-1])
    with pytest.raises(DataError, match="has 6 images, not 1,281,167; it may have been cut off"):
        prepare(source, tmp_path / "data", "imagenet2012", Options(), workers=1)
    monkeypatch.setattr(originals, "TRAIN_IMAGES", 6)
    with pytest.raises(DataError, match="has 6 images, not 50,000"):
        prepare(source, tmp_path / "data", "imagenet2012", Options(), workers=1)
    real = originals._imagenet

    def few(*archives):
        path = tmp_path / "labels"
        (path / "datasets/imagenet2012").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "labels.txt", path / "datasets/imagenet2012")
        (path / "datasets/imagenet2012/validation_labels.txt").write_text("\n".join(labels))
        with monkeypatch.context() as patched:
            patched.setattr(tfds.core, "tfds_path", lambda name: path / name)
            return real(*archives)

    monkeypatch.setattr(originals, "_imagenet", few)
    report = prepare(source, tmp_path / "data", "imagenet2012", Options(), workers=1)
    assert report["splits"] == {"train": 6, "validation": 6}
    builder = tfds.builder("imagenet2012", data_dir=str(tmp_path / "data"))
    assert builder.info.splits["train"].num_examples == 6
    decoders = {"image": tfds.decode.SkipDecoding()}
    for record in builder.as_data_source("train", decoders=decoders):
        name = record["file_name"].decode()
        assert record["image"] == expected[name]
        assert wnids[record["label"]] == name.split("_")[0]
    by_name = dict(zip((name for name, _ in validation), labels, strict=True))
    for record in builder.as_data_source("validation", decoders=decoders):
        assert wnids[record["label"]] == by_name[record["file_name"].decode()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none", "--out=data", "--name=pets"], 65, "there is no folder 'none'"),
        (["photos", "--out=data", "--name=My Pets"], 78, "can't be the name of a data set"),
        (["photos", "--out=data", "--name=cifar10"], 78, "is the name of a TFDS data set"),
        (["photos", "--out=data", "--name=pets", "--size=0"], 78, "size is 0"),
        (["photos", "--out=data", "--name=pets", "--quality=101"], 78, "quality is 101"),
        (["photos", "--out=data", "--name=pets", "--shards=0"], 64, "--shards is 0"),
        (["photos", "--out=taken", "--name=pets"], 78, "is there already"),
        (["photos", "--out=photos", "--name=pets"], 78, "would be among the classes in photos"),
        (["photos", "--out=file", "--name=pets"], 73, "can't be written"),
        (["photos", "--name=pets"], 64, "--out"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.makedirs("taken/pets/1.0.0")
    (tmp_path / "file").touch()
    assert_one_line(["prepare", *arguments], code, message, capsys)


def test_people_see_what_was_written_and_left_out(photos, tmp_path, capsys):
    (photos / "val" / "cat" / "0.jpg").write_bytes(b"<html>")
    arguments = ["prepare", str(photos), f"--out={tmp_path / 'data'}", "--name=pets"]
    assert main([*arguments, "--corrupt=skip", "--workers=1"]) == 0
    out = capsys.readouterr().out
    assert "train 24, val 9" in out
    assert "left out: val/cat/0.jpg of val (it isn't a PNG or JPEG image)" in out

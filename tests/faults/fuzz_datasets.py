"""Prepared data sets: mutated descriptions, labels and records of a tiny one."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.readers import array_cache
from tests.data.tiny_dataset import write_tfds
from tests.faults import mutate

INFO, FEATURES, LABELS = "dataset_info.json", "features.json", "label.labels.txt"
RECORDS = "tiny-train.array_record-00000-of-00001"


def _described(name: str, folder: Path, rng: random.Random) -> None:
    path = folder / name
    content = path.read_bytes()
    if name != LABELS and rng.random() < 0.7:
        path.write_text(json.dumps(mutate.document(json.loads(content), rng)))
    else:
        path.write_bytes(mutate.raw(content, rng))


def _recorded(name: str, folder: Path, rng: random.Random) -> None:
    path = folder / name
    content = path.read_bytes()
    if rng.random() < 0.3:  # within the first record, not in what finds it
        at = rng.randrange(len(content))
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        )
    else:
        path.write_bytes(mutate.raw(content, rng))


def _removed(name: str, folder: Path, rng: random.Random) -> None:
    (folder / rng.choice((INFO, FEATURES, LABELS, RECORDS))).unlink()


def main(record: mutate.Record, cases: int, folder: Path) -> dict[str, object]:
    """Open and read each case; images that are read are those that were written."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    original = write_tfds(folder / "original")
    home = folder / "tfds" / "tiny" / "1.0.0"
    whole = load_dataset("tiny", splits={"train": "train"}, data_dir=str(folder / "original"))
    known = {image.tobytes() for image in whole.splits["train"].images}
    array_cache.load = lambda *_: None  # what is cached isn't read
    array_cache.store = lambda *_: None
    changes: list[tuple[Callable[[str, Path, random.Random], None], str]] = [
        *((_described, name) for name in (INFO, FEATURES, LABELS)),
        *((_recorded, RECORDS) for _ in range(2)),
        (_removed, ""),
    ]
    strangers = 0
    for case in range(cases):
        rng = random.Random(f"data set {case}")
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(original, home)
        change, name = changes[case % len(changes)]
        change(name, home, rng)
        corrupt = rng.choice(("stop", "skip"))
        with record.case(case):
            data = load_dataset(
                "tiny", splits={"train": "train"}, data_dir=str(folder / "tfds"), corrupt=corrupt
            )
            images = data.splits["train"].images
            assert len(images) + len(data.skipped) >= 1
            assert data.splits["train"].labels.max() < data.num_classes
            if change is _recorded:  # records have checksums: none gives another image
                strangers += sum(image.tobytes() not in known for image in images)
    return {"strangers": strangers}

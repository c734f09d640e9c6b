"""The metadata of a prepared set, as TFDS writes them, and the report of a preparation."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare.shards import IMAGENET, Options, Shard, ShardNote, features_of
from resnet_jax.utils.files import replace_file

REPORT = "report.json"


def write_metadata(
    draft: Path,
    name: str,
    version: str,
    class_names: Sequence[str],
    notes: Mapping[str, Sequence[ShardNote]],
) -> None:
    """Write features.json, dataset_info.json and the class names to the folder `draft`.

    Args:
        draft: the folder of the finished shards.
        name: the data set's name.
        version: the data set's version.
        class_names: one name per class.
        notes: the notes of each split's shards, in order.
    """
    # Importing TFDS takes a second.
    import tensorflow_datasets as tfds  # noqa: PLC0415

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(draft),
        module_name=f"tensorflow_datasets.datasets.{name}" if name == IMAGENET else __package__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features_of(name, class_names), description=name
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[note.examples for note in split_notes],
            num_bytes=sum(note.bytes for note in split_notes),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=draft, dataset_name=name, split=split, filetype_suffix="array_record"
            ),
        )
        for split, split_notes in notes.items()
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    info.set_file_format("array_record")
    info.write_to_directory(str(draft))


def write_report(
    draft: Path,
    options: Options,
    class_names: Sequence[str],
    parts: Mapping[str, Sequence[Shard]],
    notes: Mapping[str, Sequence[ShardNote]],
) -> dict[str, Any]:
    """Write report.json to the folder `draft`, and return its content.

    The report has the options, examples by split and by class, SHA-256 digests of the files, and
    the images that were left out, with the reasons.
    """
    by_file = sorted(
        (shard.file, note)
        for split, shards in parts.items()
        for shard, note in zip(shards, notes[split], strict=True)
    )
    classes = {}
    for split, split_notes in notes.items():
        counts: Counter[str] = Counter()
        for note in split_notes:
            counts.update(note.classes)
        classes[split] = {name: counts[str(label)] for label, name in enumerate(class_names)}
    report = {
        "options": dataclasses.asdict(options),
        "splits": {
            split: sum(note.examples for note in split_notes)
            for split, split_notes in notes.items()
        },
        "classes": classes,
        "files": {file: note.sha256 for file, note in by_file},
        "bytes": sum(note.bytes for _, note in by_file),
        "bad": [bad for _, note in by_file for bad in note.bad],
    }
    replace_file(draft / REPORT, [json.dumps(report, indent=1, ensure_ascii=False).encode()])
    return report

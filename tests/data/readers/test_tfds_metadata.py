"""Prepared TFDS sets whose metadata are hostile: none of them runs code or reads elsewhere."""

import json
import os
import shutil
import time

import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.errors import DataError
from tests.data.tiny_dataset import write_tfds

IMAGE = "tensorflow_datasets.core.features.image_feature.Image"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def prepared(original, tmp_path, monkeypatch):
    """The folder of a copy, beside a module `payload` that writes a file when it is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.py").write_text("open('marker', 'w').close()\nclass Feature: pass\n")
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    shutil.copytree(original, folder)
    return folder


def refuse(folder, message):
    began = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("tiny", splits={"train": "train"}, data_dir=str(folder.parents[1]))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert not (folder.parents[2] / "marker").exists()


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": "payload.Feature", "jsonFeature": {"json": "{}"}},
        {"python_class_name": "payload.Feature", "jsonFeature": {"json": "{}"}},
        {"type": "payload.Feature", "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": {"pythonClassName": "payload.Feature", "jsonFeature": {}}},
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"a": {"type": "payload.Feature", "content": {}}})},
        },
        {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video", "video": {}},
    ],
)
def test_features_of_others_are_refused_before_their_module_is_imported(prepared, feature):
    def add(document):
        document["featuresDict"]["features"]["more"] = feature

    edit(prepared / "features.json", add)
    refuse(prepared, r"features\.json names the class .*nothing of it was run")


def test_features_in_the_other_document_are_refused_too(prepared):
    feature = {"pythonClassName": "payload.Feature", "jsonFeature": {"json": "{}"}}
    edit(prepared / "dataset_info.json", lambda document: document.update(features=feature))
    refuse(prepared, r"dataset_info\.json names the class 'payload\.Feature'")


def test_the_older_format_is_still_read(prepared):
    def older(document):
        document.clear()
        content = {
            "image": {
                "type": IMAGE,
                "content": {"shape": [4, 5, 3], "dtype": "uint8", "encoding_format": "png"},
            },
            "label": {
                "type": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
                "content": {"num_classes": 3},
            },
        }
        kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
        document.update(type=kind, content=content)

    edit(prepared / "features.json", older)
    data = load_dataset("tiny", splits={"train": "train"}, data_dir=str(prepared.parents[1]))
    assert data.class_names == ("cat", "dog", "owl")


def test_a_feature_may_be_called_type(prepared):
    """The key of a class in the older format."""
    kind = "tensorflow_datasets.core.features.text_feature.Text"

    def add(document):
        document["featuresDict"]["features"]["type"] = {"pythonClassName": kind, "text": {}}

    edit(prepared / "features.json", add)
    data = load_dataset("tiny", splits={"train": "train"}, data_dir=str(prepared.parents[1]))
    assert len(data.splits["train"]) == 20


def test_labels_in_a_file_elsewhere_are_refused(prepared):
    def elsewhere(document):
        label = {"names_file": "/dev/zero"}
        kind = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
        document["featuresDict"]["features"]["label"] = {
            "pythonClassName": kind,
            "jsonFeature": {"json": json.dumps(label)},
        }

    edit(prepared / "features.json", elsewhere)
    refuse(prepared, "names a file of labels elsewhere, '/dev/zero'")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("filepathTemplate", "../../{SPLIT}", "names files outside of its folder"),
        ("filepathTemplate", "/etc/{SPLIT}", "names files outside of its folder"),
        ("filepathTemplate", "{SPLIT:>99999999999}", "names files outside of its folder"),
        ("filepathTemplate", "{SPLIT.__class__}", "names files outside of its folder"),
        ("name", "../train", r"'\.\./train' as the name of a split"),
        ("shardLengths", ["-20"], "promises a negative number of examples"),
        ("shardLengths", ["1000000000000"], r"holds 20 examples where .* promises 1000000000000"),
        ("shardLengths", ["1"] * 50_000, "is missing or damaged"),
    ],
)
def test_impossible_splits_are_refused(prepared, field, value, message):
    def change(document):
        (split,) = (one for one in document["splits"] if one["name"] == "train")
        split[field] = value

    edit(prepared / "dataset_info.json", change)
    refuse(prepared, message)


@pytest.mark.parametrize("field", ["name", "fileFormat"])
def test_impossible_names_are_refused(prepared, field):
    edit(prepared / "dataset_info.json", lambda document: document.update({field: "../../x"}))
    refuse(prepared, r"'\.\./\.\./x' as the name of a ")


def test_more_classes_than_there_can_be_are_refused(prepared):
    def change(document):
        label = document["featuresDict"]["features"]["label"]
        label["classLabel"]["numClasses"] = str(10**12)

    edit(prepared / "features.json", change)
    (prepared / "label.labels.txt").unlink()
    refuse(prepared, "has 1000000000000 classes; there can be 1 to 1,000,000")


def test_a_configuration_elsewhere_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "elsewhere" / "1.0.0")
    shutil.rmtree(prepared)
    (prepared.parent / ".config").mkdir()
    default = {"default_config_name": "../../elsewhere"}
    (prepared.parent / ".config" / "metadata.json").write_text(json.dumps(default))
    refuse(prepared, "names a folder outside of")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt"])
@pytest.mark.parametrize("kind", ["pipe", "sparse", "device"])
def test_metadata_that_are_no_ordinary_files_are_refused(prepared, name, kind):
    path = prepared / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 60 * 2**30)
    refuse(prepared, f"{name} can't be read: it")


def test_records_in_a_pipe_are_refused(prepared):
    (path,) = prepared.glob("tiny-train.*")
    path.unlink()
    os.mkfifo(path)
    refuse(prepared, "is missing or damaged")

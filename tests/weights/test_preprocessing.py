"""Preprocessing is read from a weight file or a config beside it; nothing is guessed."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import DataError
from resnet_jax.weights.files import write_weights
from resnet_jax.weights.preprocessing import read_preprocessing

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# As timm/resnet50.a1_in1k has it, with names that a fine-tuned network has.
TIMM = {
    "architecture": "resnet50",
    "num_classes": 3,
    "label_names": ["ant", "bee", "cicada"],
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": MEAN,
        "std": STD,
    },
}
# As microsoft/resnet-50 has it.
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 224,
}
# As BitImageProcessor writes it.
BIT = {
    "crop_size": {"height": 448, "width": 448},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 480},
}
LABELS = {"model_type": "resnet", "id2label": {"0": "ant", "2": "cicada", "1": "bee"}}
NAMES = ("ant", "bee", "cicada")
EXPECTED = {
    "timm": Preprocessing(tuple(MEAN), tuple(STD), 224, 235, "bicubic", NAMES),
    "convnext": Preprocessing(tuple(MEAN), tuple(STD), 224, 256, "bicubic", NAMES),
    "bit": Preprocessing((0.5,) * 3, (0.5,) * 3, 448, 480, "bilinear", NAMES),
}


def _read(folder, config=None, processor=None, metadata=None):
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    path = folder / "model.safetensors"
    write_weights(path, {"w": np.ones(1, np.float32)}, metadata=metadata)
    return read_preprocessing(path)


def test_a_file_that_says_nothing(tmp_path):
    assert _read(tmp_path) is None
    assert _read(tmp_path, config=LABELS) is None


def test_timms_config(tmp_path):
    """224 / 0.95 is 235.8, rounded down; sizes for a test at another resolution aren't taken."""
    assert _read(tmp_path, config=TIMM) == EXPECTED["timm"]


def test_a_timm_config_without_names(tmp_path):
    config = {key: value for key, value in TIMM.items() if key != "label_names"}
    assert _read(tmp_path, config=config).class_names is None


def test_names_of_timm_by_number(tmp_path):
    config = TIMM | {"label_names": LABELS["id2label"]}
    assert _read(tmp_path, config=config) == EXPECTED["timm"]


@pytest.mark.parametrize(("name", "processor"), [("convnext", CONVNEXT), ("bit", BIT)])
def test_processors_of_transformers(name, processor, tmp_path):
    assert _read(tmp_path, config=LABELS, processor=processor) == EXPECTED[name]


def test_a_newer_processor(tmp_path):
    newer = CONVNEXT | {
        "size": {"shortest_edge": 224},
        "image_processor_type": "ConvNextImageProcessorFast",
        "rescale_factor": 1 / 255,
    }
    del newer["feature_extractor_type"]
    found = _read(tmp_path, processor=newer)
    assert (found.size, found.resize, found.class_names) == (224, 256, None)


def test_the_files_own_note_comes_first_then_timms(tmp_path, caplog):
    own = Preprocessing((0.1,) * 3, (0.2,) * 3, 32)
    caplog.set_level("INFO", logger="resnet_jax")
    assert _read(tmp_path, TIMM, CONVNEXT, own.metadata()) == own
    assert _read(tmp_path, TIMM, CONVNEXT) == EXPECTED["timm"]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"images are prepared as {tmp_path / name} says"
        for name in ("model.safetensors", "config.json")
    ]


def _timm(**changes):
    return {**TIMM, "pretrained_cfg": TIMM["pretrained_cfg"] | changes}


def _without(fields, key):
    return {name: value for name, value in fields.items() if name != key}


HOSTILE_CONFIGS = {
    "{'pretrained_cfg': {}}": "isn't an object in JSON",
    "[" * 10**5: "isn't an object in JSON",
    "[]": "isn't an object in JSON",
    '{"pretrained_cfg": [1]}': r"pretrained_cfg is \[1\]",
    '{"pretrained_cfg": {}}': "it doesn't say input_size",
    json.dumps(_timm(crop_mode="squash")): "crop_mode is 'squash'",
    json.dumps(_timm(input_size=[3, 224, 192])): r"input_size is \[3, 224, 192\]",
    json.dumps(_timm(input_size=[1, 224, 224])): r"input_size is \[1, 224, 224\]",
    json.dumps(_timm(input_size="224")): "input_size is '224'",
    json.dumps(_timm(input_size=[3, [224], [224]])): r"of \[224\] pixels",
    json.dumps(_timm(input_size=[3, 10**400, 10**400])): "pixels",
    json.dumps(_timm(crop_pct=5e-324)): "crop_pct is 5e-324",
    json.dumps(_timm(crop_pct=float("nan"))): "crop_pct is nan",
    json.dumps(_timm(crop_pct=True)): "crop_pct is True",
    json.dumps(_timm(crop_pct=None)): "crop_pct is None",
    json.dumps(_timm(interpolation="random")): "interpolation is 'random'",
    json.dumps(_timm(mean=[[0.5], 0.5, 0.5])): "mean is",
    json.dumps(_timm(std=[0, 0, 0])): "no std is 0",
    json.dumps(TIMM | {"label_names": "ant"}): "class_names is 'ant'",
    json.dumps(TIMM | {"label_names": ["ant\n"]}): r"class_names has 'ant\\n'",
    json.dumps(TIMM | {"label_names": {"1": "ant"}}): "aren't numbered from 0 to 0",
}
for missing in ("mean", "std", "crop_pct", "interpolation"):
    HOSTILE_CONFIGS[
        json.dumps(TIMM | {"pretrained_cfg": _without(TIMM["pretrained_cfg"], missing)})
    ] = f"it doesn't say {missing}"


@pytest.mark.parametrize("text", HOSTILE_CONFIGS, ids=range(len(HOSTILE_CONFIGS)))
def test_what_timms_config_says_wrongly_is_one_line(text, tmp_path):
    with pytest.raises(DataError, match=HOSTILE_CONFIGS[text]) as caught:
        _read(tmp_path, config=text)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} can't be used: ")
    assert str(caught.value).isprintable()


HOSTILE_PROCESSORS = [
    (_without(CONVNEXT, "feature_extractor_type"), "it doesn't say image_processor_type"),
    (CONVNEXT | {"feature_extractor_type": "ViTFeatureExtractor"}, "neither ConvNeXT's nor BiT's"),
    (CONVNEXT | {"size": 384}, "size is 384: images are squeezed"),
    (CONVNEXT | {"size": {"height": 224, "width": 224}}, "size is"),
    (CONVNEXT | {"size": True}, "size is True"),
    (CONVNEXT | {"do_normalize": False}, "do_normalize is False"),
    (CONVNEXT | {"rescale_factor": 1}, "rescale_factor is 1, not 1/255"),
    (CONVNEXT | {"resample": 1}, "resample is 1"),
    (CONVNEXT | {"resample": [3]}, r"resample is \[3\]"),
    (_without(CONVNEXT, "resample"), "it doesn't say resample"),
    (_without(CONVNEXT, "crop_pct"), "it doesn't say crop_pct"),
    (_without(CONVNEXT, "image_mean"), "it doesn't say image_mean"),
    (BIT | {"do_center_crop": False}, "do_center_crop isn't true"),
    (BIT | {"crop_size": {"height": [4], "width": [4]}}, "crop_size is"),
    (BIT | {"crop_size": {"height": 448, "width": 224}}, "crop_size is"),
    (BIT | {"size": {"shortest_edge": 10**9}}, "resize is 1000000000"),
]


@pytest.mark.parametrize(("processor", "message"), HOSTILE_PROCESSORS)
def test_what_a_processor_says_wrongly_is_one_line(processor, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, config=LABELS, processor=processor)
    assert str(caught.value).startswith(f"{tmp_path / 'preprocessor_config.json'} can't be used: ")
    assert str(caught.value).isprintable()


def test_a_damaged_note_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"model\.safetensors can't be used: its note .*damaged"):
        _read(tmp_path, metadata={"resnet_jax.preprocessing": "{"})


def test_a_pipe_beside_the_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"config\.json isn't a regular file"):
        _read(tmp_path)


def test_a_pipe_that_was_a_file_when_it_was_looked_at_is_not_waited_for(tmp_path, monkeypatch):
    pipe, a_file = tmp_path / "config.json", Path(__file__).stat()
    os.mkfifo(pipe)
    stat = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **of: a_file if path == pipe else stat(path, **of)
    )
    # Lets a reader go on that waits.
    writer = threading.Timer(5, lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))
    writer.start()
    try:
        with pytest.raises(DataError, match=r"config\.json isn't a regular file"):
            _read(tmp_path)
    finally:
        writer.cancel()


def test_a_weight_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        read_preprocessing(tmp_path / "none.safetensors")

"""Events for TensorBoard, read by TensorBoard's own code where it is installed."""

import struct
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from resnet_jax.logging.plots import contact_sheet_png
from resnet_jax.logging.tensorboard import TensorBoard

PNG = contact_sheet_png(np.zeros((3, 8, 8, 1), np.uint8))


def read_events(folder: Path) -> list:
    """The events of all files in a folder, in order."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def _run(workdir: Path, *, start_step=0, outcome="finished") -> None:
    board = TensorBoard(epath.Path(workdir), start_step=start_step, metrics=["test_raw/top1"])
    board.hyperparameters({"optimizer.name": "sgd", "seed": 1, "data.flip": True})
    board.scalars(start_step + 2, {"train/loss": 2.5, "train/top1": 0.5})
    board.picture(0, "z_pictures/augmented_inputs", PNG)
    board.sync()
    board.end(outcome)


def test_numbers_and_pictures_are_in_the_file(tmp_path):
    _run(tmp_path)
    values = {
        value.tag: (event.step, value)
        for event in read_events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert values["train/loss"][0] == 2
    assert values["train/loss"][1].simple_value == 2.5
    assert values["z_pictures/augmented_inputs"][1].image.encoded_image_string == PNG
    assert "_hparams_/session_end_info" in values


def test_a_run_that_goes_on_hides_later_steps_of_the_process_before(tmp_path):
    _run(tmp_path, outcome="stopped")
    assert "_hparams_/session_end_info" not in {
        v.tag for e in read_events(tmp_path / "tensorboard") for v in e.summary.value
    }
    _run(tmp_path, start_step=6)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = read_events(tmp_path / "tensorboard")
    starts = [e.step for e in events if e.HasField("session_log")]
    assert starts == [1, 7]


def test_tensorboard_itself_shows_hyperparameters_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    _run(tmp_path, outcome="stopped")
    _run(tmp_path, start_step=6)
    shown = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    tags = shown.Tags()
    assert set(tags["scalars"]) >= {"train/loss", "train/top1"}
    assert [event.step for event in shown.Scalars("train/loss")] == [2, 8]
    (picture, *_) = shown.Images("z_pictures/augmented_inputs")
    assert picture.encoded_image_string == PNG
    content = shown.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert values["optimizer.name"].string_value == "sgd"
    assert (values["seed"].number_value, values["data.flip"].bool_value) == (1, True)
    content = shown.SummaryMetadata("_hparams_/experiment").plugin_data.content
    (metric,) = metadata.parse_experiment_plugin_data(content).metric_infos
    assert metric.name.tag == "test_raw/top1"

"""Runs that decode their training images as they are needed."""

import pytest

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.schema import validate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.image_files import decode_upright
from resnet_jax.data.loaders.streaming import StreamingLoader
from resnet_jax.errors import ConfigError
from tests.data.photos import AREA, SIZE, photos
from tests.data.tiny_dataset import own_cache
from tests.runs import digest

__all__ = ["own_cache", "photos"]


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
    take, taken = StreamingLoader.take, []

    def timed(self, step):
        batch = take(self, step)
        self.waited_s = 60.0 * (len(taken) + 1 - len({*taken, step}))
        taken.append(step)
        return batch

    monkeypatch.setattr(StreamingLoader, "take", timed)
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
            "the points must rise",
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

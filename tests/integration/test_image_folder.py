"""A run on a folder of images: training, evaluation and prediction."""

import json

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.cli.main import main
from tests.data.readers.test_folders import write
from tests.data.tiny_dataset import own_cache

__all__ = ["own_cache"]


@pytest.mark.thorough
def test_a_run_on_a_folder_is_scored_and_classifies_its_files(tiny_config, tmp_path, capsys):
    root = write(tmp_path / "images", {"cat": 40, "dog": 40})
    config = tiny_config
    config.data.name, config.data.dir, config.data.image_size = "folder", str(root), 8
    config.data.train, config.data.validation, config.data.test = (
        "train[:80%]",
        "train[80%:90%]",
        "train[90%:]",
    )
    config.duration = 3 * 32.0
    result = resnet_jax.fit(config, tmp_path / "run")
    assert result.evaluation["test"].examples == 8
    network = resnet_jax.restore_run(tmp_path / "run")
    assert network.class_names == ("cat", "dog")
    assert network.image_shape == (8, 8, 3)
    again = network.evaluate("test")  # on more devices
    assert again.loss == pytest.approx(result.evaluation["test"].loss, rel=1e-4)

    # Its own files, of 6×5 pixels, are prepared as they were in training.
    files = [str(root / "cat" / "0.png"), str(root / "dog" / "1.png")]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = [
        {top["index"]: top["probability"] for top in one["top"]} for one in document["predictions"]
    ]
    expected = network.predict([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose([[one[0], one[1]] for one in found], expected, rtol=1e-3)

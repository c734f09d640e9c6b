"""Model cards: their figures are those of their definitions."""

import json
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.config.schema import default_config
from resnet_jax.inference.card import (
    calibration_error,
    card_rows,
    describe_recipe,
    measured_scores,
)
from resnet_jax.weights.zoo import list_weights


def test_the_calibration_error_is_that_of_its_definition():
    # Two bins: three images at 0.9, of which two are right; one at 0.6, which is wrong.
    confidence, label = np.array([0.9, 0.9, 0.9, 0.6]), np.array([0, 0, 1, 1])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(0 - 0.6)
    assert calibration_error(probabilities, label) == pytest.approx(expected)
    certain = np.eye(10)[[3, 1]]  # a confidence of 1 belongs to the last bin
    assert calibration_error(certain, np.array([3, 1])) == 0
    found = measured_scores(probabilities, label)
    assert (found["examples"], found["correct"], found["top1"]) == (4, 2, 0.5)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.9, 0.1, 0.4]).mean())


def test_a_recipe_has_the_learning_rate_of_its_batch():
    config = default_config()
    config.batch_size, config.schedule.base_lr, config.schedule.reference_batch = 32, 0.1, 128
    assert "12 steps of 32, SGD" in describe_recipe(config, 12)
    assert " schedule from 0.025, " in describe_recipe(config, 12)


def test_a_recipe_lists_all_that_differs_from_the_defaults():
    config = default_config()
    assert describe_recipe(config, 12).endswith(", flips")
    config.mixup, config.init_from, config.data.random_crop_area = 0.2, "mine/w.npz", (0.35, 1.0)
    config.model.stochastic_depth = 0.1
    config.seed, config.log_every, config.data.mean = 3, 7, (0.5,)  # not of the recipe
    assert describe_recipe(config, 12).endswith(
        ", flips, `data.random_crop_area` (0.35, 1.0), `init_from` w.npz, `mixup` 0.2,"
        " `model.stochastic_depth` 0.1"
    )


@pytest.mark.parametrize("own", list_weights(), ids=lambda own: own.name)
def test_the_rows_of_a_card_hold_its_figures(own):
    rows = card_rows(own.card)
    scores = own.card["scores"]
    assert f"{scores['correct']:,} of {scores['examples']:,} test images" in rows["accuracy"]
    assert f"{100 * scores['calibration_error']:.1f} % in 15 bins" in rows["calibration"]
    assert rows["licence"].startswith("Apache-2.0; of the data: ")
    less = own.card | {"licence": "", "note": "", "scores": dict(scores)}
    del less["scores"]["calibration_error"]
    assert "calibration" not in card_rows(less)
    assert card_rows(less)["licence"].startswith("none given; ")
    assert card_rows(less)["training"].startswith(own.card["recipe"])


def test_cards_of_the_docs_are_made_of_these_rows():
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    for own in list_weights():
        for heading, text in card_rows(own.card).items():
            assert f"| {heading} | {text} |" in page
        assert json.dumps(own.card["file"]["sha256"])[1:-1] in page

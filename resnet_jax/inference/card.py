"""Model cards: what a published network is, how it was trained, and how well it does.

A card is a JSON document. `weights/zoo_files/` has cards of the weights of this package,
docs/weights.md shows them, and `push` makes the README of a model on the Hub from a card.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from resnet_jax.config.fields import MAY_CHANGE
from resnet_jax.config.schema import default_config, flatten
from resnet_jax.data.images.preprocessing import Preprocessing
from resnet_jax.errors import ConfigError
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.privacy import public_config
from resnet_jax.models.summary import summarize

BINS = 15
"""Bins of the calibration error."""

_VERSIONS = ("jax", "flax", "optax")

_NOT_OF_RECIPE = {
    # In the recipe's sentence.
    *("batch_size", "optimizer.name", "optimizer.momentum", "optimizer.nesterov"),
    *("optimizer.weight_decay", "schedule.name", "schedule.base_lr", "schedule.reference_batch"),
    *("data.crop_padding", "data.flip", "model.bn_group_size"),
    # In other rows of a card, or only in the published config.
    *("seed", "seeds", "vary", "extensions", "model.name", "metrics", "mesh.shards"),
    *("data.name", "data.train", "data.validation", "data.test"),
    *("data.normalize", "data.mean", "data.std"),
    *("data.eval_size", "data.eval_resize", "data.interpolation"),
    *("duration", "duration_unit", "eval_every", "eval_batch_size"),
    *("schedule.boundaries", "schedule.scales", "data.size_boundaries"),
    *MAY_CHANGE,
}
"""Fields of the config that `describe_recipe` doesn't list by name."""


@dataclasses.dataclass(frozen=True)
class DataTerms:
    """What a card says of a data set.

    Attributes:
        licence: of the data.
        intended_use: of a network that was trained on them.
    """

    licence: str
    intended_use: str


TERMS = {
    "cifar10": DataTerms(
        "none stated (A. Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images)",
        "Research and teaching: lesions, responses, loss landscapes, distillation, transfer. The"
        " network knows ten classes in 32×32 images, and assigns one of them to any image. Don't"
        " use it for decisions about people or safety.",
    ),
    "digits": DataTerms(
        "CC BY 4.0 (E. Alpaydin and C. Kaynak, 1998, Optical Recognition of Handwritten Digits)",
        "Tests and teaching. The network knows 8×8 images of single digits, light on dark, and"
        " assigns a digit to any image. Don't use it to read real documents.",
    ),
    "fashion_mnist": DataTerms(
        "MIT (Zalando SE; H. Xiao, K. Rasul and R. Vollgraf, 2017, Fashion-MNIST, 1708.07747)",
        "Research and teaching. The network knows ten kinds of clothes in grey 28×28 images, light"
        " on dark, and assigns one of them to any image.",
    ),
}
"""By the name of the data set."""

_OTHER_TERMS = DataTerms(
    "not known",
    "Images like those of the training data. The network assigns one of its classes to any image."
    " Don't use it for decisions about people or safety.",
)


def calibration_error(
    probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, bins: int = BINS
) -> float:
    """Expected calibration error of Guo et al. 2017 (1706.04599, equation 5), in 0…1.

    Args:
        probabilities: of the classes.
        labels: of the images.
        bins: the number of bins of equal width of the largest probability.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[of_bin == number].sum() - confidence[of_bin == number].sum())
        for number in range(bins)
    ]
    return float(sum(gaps) / len(labels))


def measured_scores(
    probabilities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """The card's scores of the class probabilities of test images."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    return {
        "examples": len(labels),
        "correct": correct,
        "top1": correct / len(labels),
        "loss": float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        "calibration_error": calibration_error(probabilities, labels),
        "calibration_bins": BINS,
    }


def describe_recipe(config: ConfigDict, steps: int) -> str:
    """The recipe of a run in a sentence, with all else that differs from the defaults, by field."""
    optimizer, schedule, data = config.optimizer, config.schedule, config.data
    peak = schedule.base_lr * config.batch_size / schedule.reference_batch
    parts = [
        f"{steps:,} steps of {config.batch_size}",
        f"{optimizer.name.upper()}{', Nesterov' if optimizer.nesterov else ''} with momentum"
        f" {optimizer.momentum:g}",
        f"{schedule.name} schedule from {peak:g}",
        f"weight decay {optimizer.weight_decay:g}",
    ]
    if data.crop_padding:
        parts.append(f"crops with padding {data.crop_padding}")
    if data.flip:
        parts.append("flips")
    if config.model.bn_group_size:
        parts.append(f"batch norm over groups of {config.model.bn_group_size}")
    defaults = flatten(default_config(config.extensions))
    parts += [
        f"`{name}` {value}"
        for name, value in flatten(public_config(config)).items()
        if name not in _NOT_OF_RECIPE and value != defaults.get(name)
    ]
    return ", ".join(parts)


def published_preprocessing(network: TrainedNetwork) -> Preprocessing:
    """How a published network prepares images: scaled and cropped from any size.

    Raises:
        ConfigError: a weight file can't say it; see `TrainedNetwork.preprocessing`.
    """
    prepared = network.preprocessing()
    if prepared is None:
        shape = "×".join(map(str, network.image_shape))
        raise ConfigError(
            f"The network takes images of {shape} (height×width×channels), which a weight file"
            " can't describe: it describes squares with one or three channels."
        )
    return dataclasses.replace(prepared, resize=prepared.resize or prepared.size)


def _describe_preprocessing(network: TrainedNetwork) -> str:
    """How images are prepared, in a sentence."""
    prepared, config = published_preprocessing(network), network.config
    if config.data.mean or config.init_from:
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values)
            for values in (prepared.mean, prepared.std)
        )
        normalised = f"values in 0…1 minus {mean}, divided by {std}"
    elif prepared.mean_image is not None:
        normalised = (
            "minus the training images' mean image, divided by their standard deviation of all"
            " pixels"
        )
    else:
        normalised = (
            "minus the training images' mean per channel, divided by their standard deviation per"
            " channel"
        )
    return (
        f"{'RGB' if len(prepared.mean) == 3 else 'grey'}; the shorter side is scaled to"
        f" {prepared.resize} pixels, {prepared.size}×{prepared.size} are cropped at the centre;"
        f" {normalised}"
    )


def make_card(
    network: TrainedNetwork,
    summary: Mapping[str, Any],
    *,
    name: str,
    file: Path,
    note: str,
    scores: Mapping[str, Any],
    licence: str,
) -> dict[str, Any]:
    """Make the card of a network of a finished run.

    Args:
        network: of the run.
        summary: summary.json of the run.
        name: of the published network.
        file: its weight file.
        note: what users must know of the training.
        scores: {"split", "examples", "correct", "top1", "loss", …} of the network.
        licence: of the weights; "" if none is given.
    """
    config, data = network.config, summary["data"]
    terms = TERMS.get(data["name"], _OTHER_TERMS)
    return {
        "name": name,
        "model": config.model.name,
        "params": summarize(network.model, network.image_shape).params,
        "note": note,
        "file": {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "bytes": file.stat().st_size,
            "type": "float32",
        },
        "data": {
            "name": data["name"],
            "fingerprint": data["fingerprint"],
            "train": config.data.train,
            "validation": config.data.validation,
            "test": config.data.test,
            "examples": data["examples"],
            "classes": list(network.class_names),
            "licence": terms.licence,
        },
        "recipe": describe_recipe(config, summary["steps"]),
        "seed": config.seed,
        "steps": summary["steps"],
        "epochs": summary["epochs"],
        "scores": dict(scores),
        "preprocessing": _describe_preprocessing(network),
        "intended_use": terms.intended_use,
        "licence": licence,
    }


def card_rows(
    card: Mapping[str, Any], *, weights: str = "weights of the last step"
) -> dict[str, str]:
    """The rows of a card's table, in Markdown, by heading.

    Args:
        card: of `make_card`, perhaps without "note" and the calibration error.
        weights: which weights of the run they are.
    """
    data, scores = card["data"], card["scores"]
    counts = ", ".join(f"{split} {count:,}" for split, count in data["examples"].items())
    training = f"{card['recipe']}; {card['epochs']:.1f} epochs"
    rows = {
        "network": f"`{card['model']}`, {card['params']:,} parameters, {card['file']['type']}",
        "training": f"{card['note']}: {training}" if card["note"] else training,
        "seed": str(card["seed"]),
        "data": f"{data['name']}, fingerprint `{data['fingerprint']}`; images: {counts}",
        "splits": f"training `{data['train']}`, {scores['split']} `{data[scores['split']]}`;"
        f" {weights}",
        "classes": ", ".join(data["classes"]),
        "accuracy": f"{100 * scores['top1']:.2f} %: {scores['correct']:,} of"
        f" {scores['examples']:,} {scores['split']} images; loss {scores['loss']:.3f} nats",
    }
    if "calibration_error" in scores:
        rows["calibration"] = (
            f"expected calibration error {100 * scores['calibration_error']:.1f} % in"
            f" {scores['calibration_bins']} bins (Guo et al. 2017, 1706.04599)"
        )
    licence = card["licence"] or "none given"
    return rows | {
        "images": card["preprocessing"],
        "intended use": card["intended_use"],
        "licence": f"{licence}; of the data: {data['licence']}",
    }


def describe_environment(trained: Mapping[str, Any]) -> str:
    """Versions and hardware of a run, from its summary.json or its card."""
    versions = ", ".join(f"{k} {v}" for k, v in trained["versions"].items() if k in _VERSIONS)
    hardware = trained["hardware"]
    if hardware["platform"] == "cpu":
        return f"{versions}; {hardware['cpu_cores']} cores, {hardware['cpu']}"
    return f"{versions}; {hardware['devices']} × {hardware['device']}"

"""Publish the network of a finished run with the package, together with its model card.

    python benchmarks/publish.py runs/table6/resnet20_full_seed0 resnet20.cifar10_full \\
        --note "the paper's 64,000 steps"

It writes resnet_jax/weights/zoo_files/NAME.safetensors and NAME.json, both or none. A name that is
published is refused. The network is that of the last step. The file is scored on all test images
as users would score it, and must classify as many of them correctly as the run's summary says.
config.json, metrics.jsonl, summary.json and curves.png of the run must be in a folder of
benchmarks/results, which the card names as its log. Afterwards `python benchmarks/tables.py` writes
docs/weights.md.
"""

import argparse
import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from table_text import RESULTS, ROOT

from resnet_jax.data.datasets import ImageSet
from resnet_jax.inference.network import TrainedNetwork
from resnet_jax.inference.pretrained import pretrained
from resnet_jax.inference.restore import restore_run
from resnet_jax.logging.provenance import provenance
from resnet_jax.models.summary import summarize
from resnet_jax.train.experiment import load_data
from resnet_jax.weights.save import save_weights
from resnet_jax.weights.zoo import FILES

_LICENCE = "Apache-2.0"
_DATA_LICENCES = {
    "cifar10": "none stated (A. Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny"
    " Images)",
    "digits": "CC BY 4.0 (E. Alpaydin and C. Kaynak, 1998, Optical Recognition of Handwritten"
    " Digits)",
    "fashion_mnist": "MIT (Zalando SE; H. Xiao, K. Rasul and R. Vollgraf, 2017, Fashion-MNIST,"
    " 1708.07747)",
}
_INTENDED = {
    "cifar10": "Research and teaching: lesions, responses, loss landscapes, distillation, transfer."
    " The network knows ten classes in 32×32 images, and assigns one of them to any image. Don't"
    " use it for decisions about people or safety.",
    "digits": "Tests and teaching. The network knows 8×8 images of single digits, light on dark,"
    " and assigns a digit to any image. Don't use it to read real documents.",
    "fashion_mnist": "Research and teaching. The network knows ten kinds of clothes in grey 28×28"
    " images, light on dark, and assigns one of them to any image.",
}
_BINS = 15
_BATCH = 250


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = _BINS) -> float:
    """Expected calibration error of Guo et al. 2017 (1706.04599, equation 5), in 0…1.

    Args:
        probabilities: float [n, k] of the classes.
        labels: int [n].
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


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The card's scores of the class probabilities of test images."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    return {
        "examples": len(labels),
        "correct": correct,
        "top1": correct / len(labels),
        "loss": float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        "calibration_error": calibration_error(probabilities, labels),
        "calibration_bins": _BINS,
    }


def describe_recipe(config: ConfigDict, steps: int) -> str:
    """The recipe of a run in a sentence."""
    optimizer, schedule, data = config.optimizer, config.schedule, config.data
    parts = [
        f"{steps:,} steps of {config.batch_size}",
        f"{optimizer.name.upper()}{', Nesterov' if optimizer.nesterov else ''} with momentum"
        f" {optimizer.momentum:g}",
        f"{schedule.name} schedule from {schedule.base_lr:g}",
        f"weight decay {optimizer.weight_decay:g}",
    ]
    if data.crop_padding:
        parts.append(f"crops with padding {data.crop_padding}")
    if data.flip:
        parts.append("flips")
    if config.model.bn_group_size:
        parts.append(f"batch norm over groups of {config.model.bn_group_size}")
    return ", ".join(parts)


def describe_preprocessing(network: TrainedNetwork) -> str:
    """How images are prepared, in a sentence."""
    height, width, channels = network.image_shape
    subtracted = "mean image" if np.ndim(network.normalization["mean"]) == 3 else "mean per channel"
    divided = "per channel" if np.ndim(network.normalization["std"]) else "of all pixels"
    return (
        f"{'RGB' if channels == 3 else 'grey'}; the shorter side is scaled to {height} pixels,"
        f" {height}×{width} are cropped at the centre; minus the training images' {subtracted},"
        f" divided by their standard deviation {divided}"
    )


def find_log(run: Path) -> tuple[str, str]:
    """The folder of benchmarks/results with the run's log, and the SHA-256 of metrics.jsonl."""
    digest = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    for path in sorted(RESULTS.rglob("metrics.jsonl")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return str(path.parent.relative_to(ROOT)), digest
    raise SystemExit(
        f"No folder of {RESULTS} has the log of {run}. Copy config.json, metrics.jsonl,"
        " summary.json and curves.png of the run there first."
    )


def publish(run: Path, name: str, note: str, folder: Path) -> dict[str, Any]:
    """Write the weights and the card of a run into a folder; returns the card."""
    names = [f"{name}.safetensors", f"{name}.json"]
    if there := [file for file in names if (folder / file).exists()]:
        raise SystemExit(f"{folder / there[0]} exists. Choose another name.")
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        card = _write(run, name, note, Path(temporary))
        for file in names:  # the card last, which lists the weights
            (Path(temporary) / file).replace(folder / file)
    return card


def _write(run: Path, name: str, note: str, folder: Path) -> dict[str, Any]:
    """Write the weights and the card, and compare the scores of the file with the run's."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = summary["data"]
    if about["name"] not in _DATA_LICENCES:
        raise SystemExit(f"The licence and intended use of {about['name']} aren't listed here.")
    log, digest = find_log(run)
    network = restore_run(run)
    if network.step != summary["steps"]:
        raise SystemExit(f"The last checkpoint of {run} isn't that of its last step.")
    preprocessing = network.preprocessing()
    if preprocessing is None:
        raise SystemExit("The images of this network can't be described in a weight file.")
    preprocessing = dataclasses.replace(preprocessing, resize=preprocessing.size)
    path = folder / f"{name}.safetensors"
    save_weights(path, network.model, network.variables, metadata=preprocessing.metadata())
    data = load_data(network.config).splits["test"]
    assert isinstance(data, ImageSet)
    found = scores(pretrained(path).predictor(list(data.images), batch_size=_BATCH), data.labels)
    promised = round(summary["final"]["test"]["top1"] * summary["final"]["test"]["examples"])
    if found["correct"] != promised:
        raise SystemExit(f"The file classifies {found['correct']} images, the run {promised}.")
    config = network.config
    card = {
        "name": name,
        "model": config.model.name,
        "params": summarize(network.model, network.image_shape).params,
        "note": note,
        "file": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "type": "float32",
        },
        "data": {
            "name": about["name"],
            "fingerprint": about["fingerprint"],
            "train": config.data.train,
            "validation": config.data.validation,
            "test": config.data.test,
            "examples": about["examples"],
            "classes": list(network.class_names),
            "licence": _DATA_LICENCES[about["name"]],
        },
        "recipe": describe_recipe(config, summary["steps"]),
        "seed": summary["seed"],
        "steps": summary["steps"],
        "epochs": summary["epochs"],
        "scores": {"split": "test", **found},
        "preprocessing": describe_preprocessing(network),
        "intended_use": _INTENDED[about["name"]],
        "licence": _LICENCE,
        "log": log,
        "log_sha256": digest,
        "trained_by": {
            key: summary[key] for key in ("command", "commit", "versions", "hardware", "wall_s")
        },
        "published_by": {
            key: value for key, value in provenance().items() if key in ("command", "commit")
        },
    }
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return card


def main() -> None:
    """Publish a run, and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    parser.add_argument("name", metavar="NAME", help="MODEL.DATA or MODEL.DATA_TAG")
    parser.add_argument("--note", required=True, help="what users must know of the training")
    parser.add_argument("--out", type=Path, default=FILES, help="default: the package")
    args = parser.parse_args()
    card = publish(args.run, args.name, args.note, args.out)
    print(f"{args.name}: {json.dumps(card['scores'])}, {card['file']['bytes']:,} bytes")


if __name__ == "__main__":
    main()

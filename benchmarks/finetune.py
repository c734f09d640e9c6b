"""What fine-tuning is worth with few examples: a CIFAR-10 network on five kinds of flowers.

A ResNet-20 with projection shortcuts learns from 100 photographs, about 20 of each class, at 32×32,
and is scored on half of all photographs. Each way of training has the same steps, and the best of
three learning rates: the one with the highest score of seed 0 on images that are neither trained
nor tested on. Each seed has 100 photographs of its own.

    python benchmarks/finetune.py --images FOLDER --weights resnet20.safetensors \
        --out benchmarks/results/finetune_flowers.json

FOLDER holds 4,317 photographs as CLASS/name.jpg. The weights are those of
github.com/EhanW/advrob-cifar10 (MIT), made a safetensors file by `resnet-jax convert`: 90.01 % of
CIFAR-10's test images, normalised as below.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from report import write_report

import resnet_jax

STEPS, BATCH, EXAMPLES, SEEDS = 100, 32, 100, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FINE_TUNED = {"init_from": True}
WAYS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "from scratch": ({}, (0.02, 0.05, 0.1)),
    "classifier alone": (
        FINE_TUNED | {"optimizer.trainable": "head", "model.bn_frozen": True},
        (0.1, 0.3, 1.0),
    ),
    "everything": (FINE_TUNED, (0.01, 0.03, 0.1)),
    "everything, rates × 0.7 per stage": (
        FINE_TUNED | {"optimizer.layer_decay": 0.7},
        (0.01, 0.03, 0.1),
    ),
}
"""Fields that differ, and learning rates to choose from."""


def recipe(fields: dict[str, Any], *, rate: float, seed: int, args: argparse.Namespace) -> Any:
    """Return configs/finetune.py with what this comparison changes."""
    from resnet_jax.config.schema import set_field  # noqa: PLC0415

    path = Path(__file__).parents[1] / "configs" / "finetune.py"
    spec = importlib.util.spec_from_file_location("finetune_config", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    begin = seed * EXAMPLES
    config = module.get_config("resnet20")
    changes = {
        "seed": seed,
        "model.shortcut": "B",
        "data.dir": str(args.images),
        "data.train": f"train[{begin}:{begin + EXAMPLES}]",
        "data.validation": "train[40%:50%]",
        "data.test": "train[50%:]",
        "batch_size": BATCH,
        "duration_unit": "examples",
        "duration": float(STEPS * BATCH),
        "eval_every": float(STEPS * BATCH),
        "checkpoint_every": float(STEPS * BATCH),
        "schedule.warmup": STEPS * BATCH / 10,
        "schedule.base_lr": rate,
    }
    for name, value in (changes | fields).items():
        if name != "init_from":
            set_field(config, name, value)
        else:
            config.init_from = str(args.weights)
            config.data.mean, config.data.std = MEAN, STD
    config.new_head = bool(config.init_from)
    return config


def score(fields: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Train once; accuracies of the last step."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        scores = resnet_jax.fit(recipe(fields, **kwargs), workdir).evaluation
    return {
        "validation_top1": round(scores["validation"].top1, 4),
        "test_top1": round(scores["test"].top1, 4),
        "test_examples": scores["test"].examples,
        "wall_s": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    """Choose the rates, train with the other seeds, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of CLASS/name.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="of a CIFAR-10 ResNet-20")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    rows, summary = [], {}
    for way, (fields, rates) in WAYS.items():

        def row(rate: float, seed: int, way: str = way, fields: dict[str, Any] = fields) -> Any:
            found = score(fields, rate=rate, seed=seed, args=args)
            rows.append({"way": way, "base_lr": rate, "seed": seed, **found})
            print(rows[-1], flush=True)
            return rows[-1]

        first = max((row(rate, 0) for rate in rates), key=lambda one: one["validation_top1"])
        others = [row(first["base_lr"], seed) for seed in range(1, SEEDS)]
        tests = [one["test_top1"] for one in (first, *others)]
        summary[way] = {
            "base_lr": first["base_lr"],
            "test_top1": tests,
            "mean": round(statistics.mean(tests), 4),
        }
        print(way, summary[way], flush=True)
    weights = {
        "file": args.weights.name,
        "sha256": hashlib.sha256(args.weights.read_bytes()).hexdigest(),
    }
    settings = {"steps": STEPS, "batch_size": BATCH, "examples": EXAMPLES, "weights": weights}
    write_report(args.out, settings | {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()

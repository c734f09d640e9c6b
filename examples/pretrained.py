"""What weights that others trained are good for: a linear probe, fine-tuning, and Grad-CAM.

    python examples/pretrained.py --weights resnet50.safetensors --model resnet50 \
        --images FOLDER --size 224 --out pretrained

FOLDER holds one's own images as CLASS/name.jpg; a fifth of them tests. --weights is a file, or a
model of the Hub such as timm/resnet50.a1_in1k. Written are scores.json and grad_cam.png, and the
fine-tuned run lies in OUT/run.
"""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import pyplot as plt
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import resnet_jax
from resnet_jax.cli.common.exits import report, show_progress
from resnet_jax.cli.common.weights_flags import add_weights_flags
from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.images.normalization import given_normalization, normalize
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.errors import ResnetJaxError
from resnet_jax.inference.grad_cam import grad_cam
from resnet_jax.weights.preprocessing import read_preprocessing

TRAIN, TEST = "train[:80%]", "train[80%:]"
BATCH = 64


def pooled_features(
    model: resnet_jax.ResNet,
    variables: Any,
    images: UInt8[np.ndarray, "n h w 3"],
    normalization: Any,
) -> Float[np.ndarray, "n c"]:
    """What a network makes of images before its classifier."""
    apply = jax.jit(
        lambda batch: model.apply(variables, normalize(batch, normalization), method="features")
    )
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(apply(part)["pooled"]) for part in parts])


def draw(path: Path, images: np.ndarray, maps: np.ndarray, titles: Sequence[str]) -> None:
    """Lay each map over its image."""
    figure, axes = plt.subplots(2, len(images), figsize=(2.2 * len(images), 4.8), squeeze=False)
    for column, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True)):
        side = image.shape[0]
        for row in (0, 1):
            axes[row, column].imshow(image, extent=(0, side, side, 0))
            axes[row, column].axis("off")
        axes[0, column].set_title(title, fontsize=9)
        axes[1, column].imshow(
            heat, extent=(0, side, side, 0), cmap="inferno", alpha=0.6, interpolation="bilinear"
        )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def fine_tuning_config(args: argparse.Namespace) -> ConfigDict:
    """configs/finetune.py, for the arguments."""
    path = Path(__file__).parents[1] / "configs/finetune.py"
    spec = importlib.util.spec_from_file_location("finetune", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(args.model)
    for name, value in args.field or ():
        config.model[name] = value
    config.init_from = str(args.weights)
    config.data.dir, config.data.image_size = str(args.images), args.size
    config.data.train, config.data.validation, config.data.test = TRAIN, "", TEST
    config.duration = args.epochs
    config.schedule.warmup = min(1.0, args.epochs / 4)
    return config


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do all three; returns the scores."""
    data = load_dataset(
        "folder",
        splits={"train": TRAIN, "test": TEST},
        data_dir=str(args.images),
        crop=ScaleAndCrop.square(args.size, resize=args.size),
    )
    train, test = data.splits["train"], data.splits["test"]
    args.out.mkdir(parents=True, exist_ok=True)

    # A linear probe: the network without its classifier, and a logistic regression on what it sees.
    fields = dict(args.field or ())
    backbone: Any = resnet_jax.create_model(args.model, **fields | {"num_classes": 0})
    variables = resnet_jax.load_weights(backbone, args.weights)
    told = read_preprocessing(args.weights)
    mean, std = (told.mean, told.std) if told else (IMAGENET_MEAN, IMAGENET_STD)
    features = [
        pooled_features(backbone, variables, part.images, given_normalization(mean, std))
        for part in (train, test)
    ]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(features[0], train.labels)

    # Fine-tuning: the same network with a new classifier, all of it trained.
    config = fine_tuning_config(args)
    if not told:
        config.data.mean, config.data.std = mean, std
    result = resnet_jax.fit(config, args.out / "run")

    # Grad-CAM: where the fine-tuned network sees the first image of each class.
    network = resnet_jax.restore_run(args.out / "run")
    first = [int(np.flatnonzero(test.labels == label)[0]) for label in np.unique(test.labels)]
    images, labels = test.images[first], test.labels[first]
    normalized = normalize(images, network.normalization)
    maps = np.asarray(grad_cam(network.model, network.variables, normalized, labels))
    draw(args.out / "grad_cam.png", images, maps, [data.class_names[label] for label in labels])

    scores = {
        "classes": data.num_classes,
        "training images": len(train),
        "test images": len(test),
        "linear probe": probe.score(features[1], test.labels),
        "fine-tuned": result.evaluation["test"].top1,
    }
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, do all, print the scores; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_weights_flags(parser.add_argument_group("the network"))
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size", type=int, default=224, help="pixels to which images are scaled")
    parser.add_argument("--epochs", type=float, default=5.0, help="of fine-tuning")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    if not args.weights or not args.model:
        parser.error("--weights and --model are needed")
    mpl.use("agg")
    show_progress()
    try:
        scores = run(args)
    except ResnetJaxError as error:
        return report(error)
    print(json.dumps(scores, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

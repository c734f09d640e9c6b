"""Photographs on their way through the input pipeline, drawn side by side.

Without --images: three that come with scikit-learn (china.jpg by danielbuechele, flower.jpg
by vultilion; CC BY 2.0) and Matplotlib (grace_hopper.jpg; public domain).

    python benchmarks/contact_sheet.py --out docs/figures/contact_sheet.png
"""

import argparse
import contextlib
import shutil
import tempfile
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from ml_collections import ConfigDict

mpl.use("agg")
import sklearn.datasets
from matplotlib import pyplot as plt

from resnet_jax.config.schema import default_config
from resnet_jax.data.augment.config import example_keys
from resnet_jax.data.augment.crop_flip import crop_and_flip
from resnet_jax.data.augment.mixing import mix
from resnet_jax.data.augment.policies import apply_policy, erase
from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.data.images.image_files import decode_upright, read_file
from resnet_jax.train.experiment import Experiment

SIZE, STEPS = 224, 3


def bundled(folder: Path) -> None:
    """Copy the photographs of the libraries, each a class."""
    of_sklearn = Path(sklearn.datasets.__file__).parent / "images"
    of_matplotlib = Path(mpl.get_data_path()) / "sample_data"
    photos = [of_sklearn / name for name in ("china.jpg", "flower.jpg")]
    for photo in [*photos, of_matplotlib / "grace_hopper.jpg"]:
        (folder / photo.stem).mkdir()
        shutil.copy(photo, folder / photo.stem / photo.name)


def config_for(folder: Path, images: int) -> ConfigDict:
    """Random-resized crops of each image once in an epoch."""
    config = default_config()
    config.data.name, config.data.dir, config.data.test = "folder", str(folder), ""
    config.data.random_crop_area, config.data.image_size = (0.08, 1.0), SIZE
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.data.crop_padding, config.data.workers, config.batch_size = 0, 0, images
    return config


def columns_of(folder: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The originals, and by title what becomes of them, in the same order."""
    count = sum(1 for _ in folder.rglob("*.*"))
    config = config_for(folder, count)
    config.mesh.data = 1
    experiment = Experiment.make(config)
    examples = experiment.dataset.streamed["train"]
    (_, records) = examples.parts[0]
    originals = [decode_upright(read_file(folder / file.path)) for file in records.files]
    columns = {}
    with contextlib.closing(experiment.loader()) as batches:
        for step in range(STEPS):
            taken = jax.device_get(batches.take(step))
            order = np.argsort(taken.ids.reshape(-1))
            crops = taken.images.reshape(-1, SIZE, SIZE, 3)[order]
            columns[f"crop, epoch {step}"] = crops
    ids = np.arange(count)
    keys = example_keys(jax.random.key(7), ids, 0 * ids)
    for policy, title in (("trivial", "TrivialAugment"), ("randaugment", "RandAugment 9")):
        for number in (0, 1):
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
            done = apply_policy(crops, own, policy, magnitude=9.0, magnitude_std=0.5)
            columns[f"{title} ({number})"] = np.asarray(done)
    floats = crops.astype(np.float32)
    mirrored = crop_and_flip(floats, keys, pad=0, flip=True)
    columns["mirrored (half)"] = np.asarray(mirrored)
    columns["erased"] = np.asarray(erase(floats - 128, keys, probability=1.0)) + 128
    labels = np.eye(count, dtype=np.float32)
    columns["mixup"] = np.asarray(mix(floats, labels, keys, mixup=1.0, cutmix=0.0)[0])
    columns["CutMix"] = np.asarray(mix(floats, labels, keys, mixup=0.0, cutmix=1.0)[0])
    return originals, columns


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="CLASS/name.jpg")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.images or Path(temporary)
        if not args.images:
            bundled(folder)
        originals, columns = columns_of(folder)
    rows, titles = len(originals), ["original", *columns]
    figure, axes = plt.subplots(rows, len(titles), figsize=(1.5 * len(titles), 1.7 * rows))
    for row in range(rows):
        shown = [originals[row], *(column[row] for column in columns.values())]
        for place, title, image in zip(axes[row], titles, shown, strict=True):
            place.imshow(np.clip(image, 0, 255).astype(np.uint8))
            place.axis("off")
            if row == 0:
                place.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(args.out, dpi=64)


if __name__ == "__main__":
    main()

"""Our input pipeline beside tf.data and PyTorch's DataLoader, on the same JPEG files, in turn.

Each loader reads photographs of ImageNet's size from disk, crops and scales them to 224×224, and
gives uint8 batches of 128 in host memory; ours puts them on a device beyond that. Flips are left
out: here they are done on the device. Rounds alternate, so that what else the machine does falls
on all alike; ratios are of the medians.

    python benchmarks/input_pipeline.py --images FOLDER --tensorflow PYTHON --torch PYTHON

FOLDER has CLASS/name.jpg; PYTHONs are of environments with TensorFlow, and with torch, torchvision
and Pillow. `taskset` limits all loaders to some of the cores.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH, SIZE, AREA = 128, 224, (0.08, 1.0)
WARM_UP = 4  # batches
CORES = len(os.sched_getaffinity(0))
ROOT = Path(__file__).resolve().parents[1]


def files(folder: str) -> list[str]:
    """The images, in a fixed order that mixes the classes."""
    paths = sorted(str(path) for path in Path(folder).rglob("*.*g"))
    return sorted(paths, key=lambda path: path[::-1])


def tensorflow_batches(folder: str) -> Iterator[Any]:
    """tf.data with the decoder that reads only the part of a JPEG that is cropped."""
    import tensorflow as tf  # noqa: PLC0415 - another environment's

    tf.config.threading.set_inter_op_parallelism_threads(CORES)
    tf.config.threading.set_intra_op_parallelism_threads(CORES)

    def crop(path: Any) -> Any:
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    paths = files(folder)
    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = data.map(crop, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
    return iter(data.prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def torch_batches(folder: str) -> Iterator[Any]:
    """PyTorch's DataLoader, with torchvision's transforms on Pillow's images."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415 - another environment's
    from PIL import Image  # noqa: PLC0415
    from torchvision.transforms import RandomResizedCrop  # noqa: PLC0415

    crop = RandomResizedCrop(SIZE, scale=AREA)
    paths = files(folder)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            with Image.open(paths[index]) as image:
                return torch.from_numpy(np.array(crop(image.convert("RGB"))))

    loader = torch.utils.data.DataLoader(
        Images(), batch_size=BATCH, shuffle=True, num_workers=CORES, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


def our_batches(folder: str) -> Iterator[Any]:
    """This package's, as train.py uses it, on all cores that it finds."""
    import jax  # noqa: PLC0415

    from resnet_jax.config.schema import default_config  # noqa: PLC0415
    from resnet_jax.data.dataset_info import IMAGENET_MEAN, IMAGENET_STD  # noqa: PLC0415
    from resnet_jax.train.experiment import Experiment  # noqa: PLC0415

    config = default_config()
    config.data.name, config.data.dir = "folder", folder
    config.data.random_crop_area, config.data.image_size = AREA, SIZE
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.data.train, config.data.test, config.data.crop_padding = "train", "", 0
    config.batch_size, config.duration = BATCH, 1000.0
    experiment = Experiment.make(config)
    with contextlib.closing(experiment.loader()) as batches:
        for step in range(experiment.spec.intervals.total_steps):
            yield jax.block_until_ready(batches.take(step).images)


LOADERS = {"tf.data": tensorflow_batches, "DataLoader": torch_batches, "resnet_jax": our_batches}


def measure(loader: str, folder: str, seconds: float) -> float:
    """Images per second of a loader in this process."""
    batches = LOADERS[loader](folder)
    for _ in range(WARM_UP):
        next(batches)
    began, count = time.perf_counter(), 0
    for batch in batches:
        assert batch.shape[-3:] == (SIZE, SIZE, 3)
        count += BATCH
        if time.perf_counter() - began >= seconds:
            break
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure all loaders in turn, each in a process of its own; write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--tensorflow", default="", metavar="PYTHON")
    parser.add_argument("--torch", default="", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/input_pipeline.json")
    parser.add_argument("--loader", choices=LOADERS, help="measure this one, here")
    args = parser.parse_args()
    if args.loader:
        print(measure(args.loader, args.images, args.seconds))
        sys.stdout.flush()
        os._exit(0)  # libraries take their time to end their threads

    from report import write_report  # noqa: PLC0415 - it needs JAX

    pythons = {"tf.data": args.tensorflow, "DataLoader": args.torch, "resnet_jax": sys.executable}
    speeds: dict[str, list[float]] = {name: [] for name, python in pythons.items() if python}
    for number in range(args.rounds):
        # Each second round the other way round.
        for name in list(speeds)[:: 1 if number % 2 == 0 else -1]:
            command = [pythons[name], __file__, f"--images={args.images}", f"--loader={name}"]
            command += [f"--seconds={args.seconds}"]
            quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True
            )
            speeds[name].append(round(float(done.stdout.split()[-1]), 1))
            print(name, speeds[name][-1], flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    paths = files(args.images)
    results = {
        "images": len(paths),
        "mean_bytes": round(sum(os.path.getsize(path) for path in paths) / len(paths)),
        "batch_size": BATCH,
        "image_size": SIZE,
        "cores_used": CORES,
        "img_per_s": speeds,
        "median_img_per_s": medians,
        "ours_divided_by": {
            name: round(medians["resnet_jax"] / value, 3)
            for name, value in medians.items()
            if name != "resnet_jax"
        },
    }
    write_report(args.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""How fast images come from disk to the devices, stage by stage, and whether a step waits."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.schema import streams, validate
from resnet_jax.data.augment.crops import crop_draws, decode_part
from resnet_jax.data.loaders.streaming import StreamingLoader
from resnet_jax.data.readers.encoded import Record
from resnet_jax.errors import ConfigError
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.experiment import Experiment
from resnet_jax.train.intervals import Intervals

_MOST_STEPS = 50
_KEPT = 256  # encoded images in memory, which single stages go round


def measure_pipeline(config: ConfigDict, *, seconds: float, train: bool) -> dict[str, Any]:
    """Measure the stages of the input pipeline of a config, each alone, and all of it together.

    Crops have `data.image_size`: smaller crops at first (`data.early_sizes`) are left out.

    Args:
        config: of a run whose images are decoded as they are needed.
        seconds: for each measurement.
        train: also take steps of the network, and tell how much of their time they wait.

    Returns:
        A JSON document: sizes of the config; "mean_bytes" of an encoded image; "cores" and
        "workers"; "img_per_s" by stage, of which "read", "decode", "scale" and "batch, one thread"
        use one thread; "end_to_end_per_core"; and with `train`, "training": "steps", "img_per_s",
        and "data_wait", the share of the time in which training waited for images.

    Raises:
        ConfigError: the config's images are in memory, or it can't be.
        DataError: data that are missing or damaged.
    """
    validate(config)
    if not streams(config):
        raise ConfigError(
            "data.random_crop_area is (): the images of this config are decoded once, and then in"
            " memory or on the devices."
        )
    config = config.copy_and_resolve_references()
    config.data.early_sizes = config.data.size_boundaries = ()
    experiment = Experiment.make(config)
    stream, area = experiment.spec.orders()[0], tuple(config.data.random_crop_area)
    size, examples = config.data.image_size, experiment.dataset.streamed["train"]
    ids = stream.take(0, 1)[0][0].tolist()
    rate: dict[str, float] = {}

    def read() -> Iterator[int]:
        for start in itertools.count(0, 32):
            some = [ids[i % len(ids)] for i in range(start, start + 32)]
            yield sum(1 for _ in examples.fetch(some))

    rate["read"] = _per_second(read(), seconds)
    kept = [record for _, record in examples.fetch(ids[:_KEPT])]
    draws = [crop_draws(config.seed, 0, number) for number in range(len(kept))]

    def decode(record: Record, draw: np.ndarray) -> np.ndarray:
        return decode_part(record.image, draw, area=area, size=size)

    rate["decode"] = _per_second(_rounds(kept, draws, decode), seconds)
    parts = [decode(record, draw) for record, draw in zip(kept, draws, strict=True)]
    scale = lambda part, _: cv2.resize(part, (size, size))  # noqa: E731
    rate["scale"] = _per_second(_rounds(parts, draws, scale), seconds)

    batches = experiment.loader()
    assert isinstance(batches, StreamingLoader)
    pieces = batches.pieces
    whole = (len(pieces[number % len(pieces)].labels) for number in itertools.count())
    rate["batch, one thread"] = _per_second(whole, seconds)
    images = np.zeros((len(pieces.rows), size, size, 3), np.uint8)

    def transfer() -> Iterator[int]:
        while True:
            jax.block_until_ready(batches.to_devices(images))
            yield len(images)

    rate["to the devices"] = _per_second(transfer(), seconds)
    with contextlib.closing(batches):
        rate["end to end"] = _per_second(
            _taken(batches, experiment.spec.intervals), seconds, warm_up=2
        )
    document: dict[str, Any] = {
        "data": config.data.name,
        "training_images": len(examples),
        "batch_size": config.batch_size,
        "image_size": size,
        "mean_bytes": round(sum(len(record.image) for record in kept) / len(kept)),
        "cores": os.cpu_count(),
        "workers": batches.workers,
        "img_per_s": {name: round(value, 1) for name, value in rate.items()},
        "end_to_end_per_core": round(rate["end to end"] / (os.cpu_count() or 1), 1),
    }
    if train:
        document["training"] = _train(experiment, seconds)
    return document


def _rounds(
    items: list[Any], draws: list[np.ndarray], work: Callable[[Any, np.ndarray], Any]
) -> Iterator[int]:
    for item, draw in itertools.cycle(list(zip(items, draws, strict=True))):
        work(item, draw)
        yield 1


def _taken(batches: StreamingLoader, intervals: Intervals) -> Iterator[int]:
    for step in range(intervals.total_steps):
        jax.block_until_ready(batches.take(step).images)
        yield intervals.batch_size


def _per_second(counts: Iterator[int], seconds: float, *, warm_up: int = 1) -> float:
    """Images per second of an iterator of numbers of images, after the first `warm_up`."""
    for _ in itertools.islice(counts, warm_up):
        pass
    began, images = time.perf_counter(), 0
    for count in counts:
        images += count
        if time.perf_counter() - began >= seconds:
            break
    return images / (time.perf_counter() - began)


def _train(experiment: Experiment, seconds: float) -> dict[str, float]:
    """Take steps for a while; their speed, and the share of the time that they waited."""
    spec, state = experiment.spec, experiment.initial_state()
    with contextlib.closing(experiment.loader()) as batches:
        batches.start(0)
        train_steps = make_train_steps(spec)
        shapes = spec.abstract_batches()
        teacher = experiment.teacher_variables()
        compiled = train_steps.lower(state, *shapes, 1, *teacher).compile()
        state = compiled(state, *batches.take(0), np.int32(1), *teacher)
        jax.block_until_ready(state)
        began, waited, done = time.perf_counter(), batches.waited_s, 0
        for step in range(1, min(_MOST_STEPS + 1, spec.intervals.total_steps)):
            state = compiled(state, *batches.take(step), np.int32(1), *teacher)
            done += 1
            if time.perf_counter() - began >= seconds:
                break
        jax.block_until_ready(state)
        elapsed = time.perf_counter() - began
        return {
            "steps": done,
            "img_per_s": round(done * spec.intervals.batch_size / elapsed, 1),
            "data_wait": round((batches.waited_s - waited) / elapsed, 4),
        }

"""Batches of images that are read and decoded as they are needed, ahead of the training step.

Processes decode pieces of batches, each a pure function of its number: the order of examples, and
their crops, are the same for any number of processes, and training goes on from any step.
"""

import concurrent.futures
import dataclasses
import logging
import os
import time
from collections import deque
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from resnet_jax.data.augment.crops import crop_draws, decode_crop
from resnet_jax.data.loaders.in_memory import CropSizes, DeviceBatches, ExampleStream
from resnet_jax.data.readers.encoded import EncodedSet
from resnet_jax.errors import DataError, PeerError
from resnet_jax.parallel.mesh import batch_sharding, put_global
from resnet_jax.utils.files import allow_files
from resnet_jax.utils.subprocess import die_with_parent

_log = logging.getLogger(__name__)

_PIECE = 128  # examples, at most, that a process decodes at a time
_AHEAD = 2  # batches on the devices that wait for the step
_PIECES_AHEAD = 2  # of each process
_THREADS = 8  # that one process has, unless told otherwise
_FILES, _FILES_PER_WORKER = 64, 32  # that may be open; the images of a piece are shared in one each
_SLOW_S = 30.0
_CLOSING_S = 5.0


class Piece(NamedTuple):
    """Decoded examples, uint8 [n, h, w, 3] and int32 [n]; without any, what is wrong with one."""

    images: np.ndarray
    labels: np.ndarray
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Random access to the pieces of batches that this process's devices hold.

    Attributes:
        examples: of the training split.
        stream: their order.
        rows: which positions within a batch are decoded here, in order.
        length: examples of a piece; it divides the number of `rows`.
        area, sizes: of the crops; see `crop_box` and `decode_crop`.
        first, stop: steps, of which the first has pieces from number 0 on.
    """

    examples: EncodedSet
    stream: ExampleStream
    rows: np.ndarray
    length: int
    area: tuple[float, float]
    sizes: CropSizes
    first: int
    stop: int

    @property
    def per_step(self) -> int:
        """How many pieces make up the rows of a step."""
        return len(self.rows) // self.length

    def __len__(self) -> int:
        return (self.stop - self.first) * self.per_step

    def __getitem__(self, number: int) -> Piece:
        try:
            return self._decode(number)
        except DataError as error:  # an error that is raised loses its type between processes
            return Piece(np.empty(0, np.uint8), np.empty(0, np.int32), str(error))

    def _decode(self, number: int) -> Piece:
        step, piece = divmod(number, self.per_step)
        size = self.sizes.at(self.first + step)
        ids, epochs = (array[0] for array in self.stream.take(self.first + step, 1))
        rows = self.rows[piece * self.length : (piece + 1) * self.length]
        images = np.empty((len(rows), size, size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        for at, record in self.examples.fetch(ids[rows].tolist()):
            index, epoch = int(ids[rows[at]]), int(epochs[rows[at]])
            draws = crop_draws(self.stream.seed, epoch, index)
            try:
                decode_crop(record.image, draws, area=self.area, into=images[at])
            except DataError as error:
                why = f"{record.where}{error}"
                raise self.examples.damaged(*self.examples.locate(index), why) from error
            labels[at] = record.label
        return Piece(images, labels)


def piece_length(rows: int) -> int:
    """The largest divisor of the number of rows that isn't larger than a piece may be."""
    return max(n for n in range(1, min(rows, _PIECE) + 1) if rows % n == 0)


class StreamedBatches:
    """Brings the batches of a run to the devices; has the interface of `Batches`.

    Attributes:
        pieces: what is decoded here, from step 0 on.
        workers: processes that decode.
        waited_s: seconds that the host waited for images.
    """

    def __init__(
        self,
        examples: EncodedSet,
        stream: ExampleStream,
        *,
        shape: tuple[int, int, int],
        mesh: Mesh,
        area: tuple[float, float],
        sizes: CropSizes,
        total_steps: int,
        workers: int,
    ) -> None:
        """Find out which rows are decoded here; nothing is read yet.

        Args:
            examples: of the training split.
            stream: their order.
            shape: (1, micro-batches per step, examples of each).
            mesh: of the devices.
            area, sizes: of the crops.
            total_steps: after which nothing is read.
            workers: processes that decode, in threads, as many as there are cores in all; 0 does
                it in this process, and -1 takes one for every eight cores beyond the first eight.

        Raises:
            ConfigError: they need more open files than this process may have.
        """
        self._stream, self._shape, self._mesh = stream, shape, mesh
        # Decoders let other threads run: on a few cores, threads are faster than processes.
        self.workers = (_cores() - 1) // _THREADS if workers < 0 else workers
        if self.workers:
            files = _FILES + _FILES_PER_WORKER * self.workers
            allow_files(files, what=f"data.workers={self.workers}")
        self._layout = batch_sharding(mesh, axis=2)
        here = np.zeros(shape, bool)
        for part in self._layout.addressable_devices_indices_map(shape).values():
            here[part] = True
        rows = np.flatnonzero(here.reshape(-1))
        self._place_of = np.full(here.size, -1)
        self._place_of[rows] = np.arange(len(rows))
        self._place_of = self._place_of.reshape(shape)
        self.pieces = Pieces(
            examples,
            stream,
            rows,
            piece_length(len(rows)),
            area,
            sizes,
            first=0,
            stop=total_steps,
        )
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "reader")
        self._waiting: deque[tuple[int, concurrent.futures.Future[DeviceBatches]]] = deque()
        self._decoded: Any = None  # Grain's iterator of pieces
        self.waited_s = 0.0

    def start(self, step: int) -> None:
        """Begin to read for the batch of that step and those after it."""
        self._forget()
        anew: Pieces | None = dataclasses.replace(self.pieces, first=step)
        for ahead in range(step, min(step + _AHEAD, self.pieces.stop)):
            self._waiting.append((ahead, self._reader.submit(self._assemble, ahead, anew)))
            anew = None

    def take(self, step: int) -> DeviceBatches:
        """The batch of a step; those after it are read meanwhile.

        Raises:
            DataError: an example is damaged.
            PeerError: a process that decodes has died.
        """
        if not self._waiting or self._waiting[0][0] != step:
            self.start(step)
        _, future = self._waiting.popleft()
        ahead = step + _AHEAD
        if ahead < self.pieces.stop:
            self._waiting.append((ahead, self._reader.submit(self._assemble, ahead, None)))
        began = time.monotonic()
        while not concurrent.futures.wait([future], timeout=_SLOW_S).done:
            waited = time.monotonic() - began
            _log.warning("the images of step %d have been awaited for %.0f s", step, waited)
        self.waited_s += time.monotonic() - began
        return future.result()

    def close(self) -> None:
        """End the processes."""
        self._forget()
        done = self._reader.submit(self._stop)
        self._reader.shutdown(wait=False)
        # A process that hangs isn't waited for: it ends with this one.
        concurrent.futures.wait([done], timeout=_CLOSING_S)

    def _forget(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def _stop(self) -> None:
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def _assemble(self, step: int, anew: Pieces | None) -> DeviceBatches:
        """The batch of a step, which is the next one; of the first of `anew`, if there is that."""
        if anew:
            self._stop()
            self._decoded = _decoded(anew, workers=self.workers)
        parts = [self._next_piece() for _ in range(self.pieces.per_step)]
        images, labels = parts[0]
        if len(parts) > 1:
            images, labels = map(np.concatenate, zip(*parts, strict=True))
        ids, epochs = (array.reshape(self._shape) for array in self._stream.take(step, 1))
        return DeviceBatches(
            self.on_devices(images),
            self.on_devices(labels),
            *put_global((ids, epochs), self._layout),
        )

    def _next_piece(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            piece = next(self._decoded)
        except RuntimeError as error:  # Grain's, of a process that has ended
            raise PeerError(f"A process that decodes images has died ({error}).") from error
        if piece.error:
            raise DataError(piece.error)
        return piece.images, piece.labels

    def on_devices(self, local: np.ndarray) -> jax.Array:
        """The rows that are this process's, in order, on its devices."""

        def rows(part: Any) -> np.ndarray:
            places = self._place_of[part[:3]]
            first, last = places.flat[0], places.flat[-1]
            if last - first + 1 == places.size:  # all of those between: a view will do
                return local[first : last + 1].reshape(*places.shape, *local.shape[1:])
            return local[places]

        shape = (*self._shape, *local.shape[1:])
        return jax.make_array_from_callback(shape, self._layout, rows)


def _decoded(pieces: Pieces, *, workers: int) -> Any:
    """An iterator of all pieces, in order."""
    threads = max(1, _cores() // max(1, workers))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    data = grain.MapDataset.source(pieces).to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes are started with them
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=_PIECES_AHEAD
        )
        data = data.mp_prefetch(options, worker_init_fn=die_with_parent)
    return iter(data)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

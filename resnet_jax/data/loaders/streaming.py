"""The loader of training splits that are decoded during training, ahead of the step.

Threads or processes decode pieces of batches. A piece is a pure function of its number: the order
of the examples and their crops don't depend on the number of processes, and training can resume
at any step.
"""

import concurrent.futures
import dataclasses
import logging
import time
from collections import deque
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from resnet_jax.data.augment.crops import crop_draws, decode_crop
from resnet_jax.data.loaders.crop_sizes import CropSizes
from resnet_jax.data.loaders.loader import DeviceBatches
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.data.readers.encoded import EncodedSet
from resnet_jax.errors import DataError, PeerError
from resnet_jax.parallel.mesh import batch_sharding, put_global
from resnet_jax.utils.cores import usable_cores
from resnet_jax.utils.files import ensure_open_files
from resnet_jax.utils.subprocess import die_with_parent

_log = logging.getLogger(__name__)

_MAX_PIECE = 128  # examples in a piece
_PREFETCH = 2  # batches on the devices ahead of the step
_PIECES_PER_WORKER = 2  # decoded ahead by each worker process
_THREADS = 8  # threads of each process, with the default number of workers
# Open files of this process, and for each worker: a piece's arrays are shared as one file each.
_FILES, _FILES_PER_WORKER = 64, 32
_SLOW_S = 30.0  # between warnings that a step still waits
_CLOSING_S = 5.0  # the longest wait for workers to end


class Piece(NamedTuple):
    """Consecutive examples of a batch, decoded.

    Attributes:
        images: uint8 [n, h, w, 3].
        labels: int32 [n].
        error: message of the DataError of a damaged example; the arrays are then empty. Grain's
            processes don't preserve the type of a raised error.
    """

    images: np.ndarray
    labels: np.ndarray
    error: str = ""


@dataclasses.dataclass(frozen=True)
class PieceSource:
    """Random access to the pieces of batches that this process's devices hold.

    Attributes:
        examples: the training split.
        sampler: the order of the examples.
        rows: positions within a batch that are decoded here, ascending.
        length: examples per piece; a divisor of the number of `rows`.
        area: smallest and largest share of the image's area in a crop; see `crop_box`.
        sizes: side of the crops by step.
        first: step of piece 0.
        stop: first step without pieces.
    """

    examples: EncodedSet
    sampler: IndexSampler
    rows: np.ndarray
    length: int
    area: tuple[float, float]
    sizes: CropSizes
    first: int
    stop: int

    @property
    def per_step(self) -> int:
        """Number of pieces per step."""
        return len(self.rows) // self.length

    def __len__(self) -> int:
        return (self.stop - self.first) * self.per_step

    def __getitem__(self, number: int) -> Piece:
        try:
            return self._decode(number)
        except DataError as error:
            return Piece(np.empty(0, np.uint8), np.empty(0, np.int32), str(error))

    def _decode(self, number: int) -> Piece:
        step, piece = divmod(number, self.per_step)
        size = self.sizes.at(self.first + step)
        ids, epochs = (array[0] for array in self.sampler.take(self.first + step, 1))
        rows = self.rows[piece * self.length : (piece + 1) * self.length]
        images = np.empty((len(rows), size, size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        for at, record in self.examples.fetch(ids[rows].tolist()):
            index, epoch = int(ids[rows[at]]), int(epochs[rows[at]])
            draws = crop_draws(self.sampler.seed, epoch, index)
            try:
                decode_crop(record.image, draws, area=self.area, into=images[at])
            except DataError as error:
                reason = f"{record.where}{error}"
                raise self.examples.damaged(*self.examples.locate(index), reason) from error
            labels[at] = record.label
        return Piece(images, labels)


class StreamingLoader:
    """Decodes batches ahead of the step and copies them to the devices; see `Loader`.

    Attributes:
        pieces: the pieces that are decoded on this process, from step 0.
        workers: number of processes that decode; 0 decodes in threads of this process.
        waited_s: seconds that `take` has waited for images so far.
    """

    def __init__(
        self,
        examples: EncodedSet,
        sampler: IndexSampler,
        *,
        shape: tuple[int, int, int],
        mesh: Mesh,
        area: tuple[float, float],
        sizes: CropSizes,
        total_steps: int,
        workers: int,
    ) -> None:
        """Determine which rows of a batch are decoded here; nothing is read yet.

        Args:
            examples: the training split.
            sampler: the order of its examples.
            shape: (1, micro-batches per step, examples per micro-batch).
            mesh: the devices.
            area: smallest and largest share of the image's area in a crop.
            sizes: side of the crops by step.
            total_steps: steps of the run; nothing is read for later steps.
            workers: number of processes that decode. All processes together have as many threads
                as there are cores. 0 decodes in this process. -1 starts one process for every
                eight cores beyond the first eight.

        Raises:
            ConfigError: the workers need more open files than this process may have.
        """
        self.waited_s = 0.0
        # Decoders release the GIL: on a few cores, threads are faster than processes.
        self.workers = (usable_cores() - 1) // _THREADS if workers < 0 else workers
        if self.workers:
            files = _FILES + _FILES_PER_WORKER * self.workers
            ensure_open_files(files, what=f"data.workers={self.workers}")
        self._sampler, self._shape = sampler, shape
        self._layout = batch_sharding(mesh, axis=2)
        local = np.zeros(shape, bool)
        for part in self._layout.addressable_devices_indices_map(shape).values():
            local[part] = True
        rows = np.flatnonzero(local)
        # Index of each row of the batch among the rows that are decoded here.
        self._index_of_row = np.full(shape, -1)
        self._index_of_row[local] = np.arange(len(rows))
        # The largest divisor of the number of rows that a piece may have.
        length = max(n for n in range(1, min(len(rows), _MAX_PIECE) + 1) if len(rows) % n == 0)
        self.pieces = PieceSource(examples, sampler, rows, length, area, sizes, 0, total_steps)
        self._assembler = concurrent.futures.ThreadPoolExecutor(1, "assembler")
        self._queue: deque[tuple[int, concurrent.futures.Future[DeviceBatches]]] = deque()
        # Used by the assembler's thread alone: Grain's iterator over pieces, and its position.
        self._decoded: Any = None
        self._next_step = -1

    def start(self, step: int) -> None:
        """Begin to load the batches of `step` and of the steps after it."""
        self._clear_queue()
        for ahead in range(step, step + _PREFETCH):
            self._enqueue(ahead)

    def take(self, step: int) -> DeviceBatches:
        """Return the batch of `step`, and begin to load the next one.

        Raises:
            DataError: an example is damaged.
            PeerError: a process that decodes images has died.
        """
        if not self._queue or self._queue[0][0] != step:
            self.start(step)
        _, future = self._queue.popleft()
        self._enqueue(step + _PREFETCH)
        began = time.monotonic()
        while not concurrent.futures.wait([future], timeout=_SLOW_S).done:
            waited = time.monotonic() - began
            _log.warning("step %d has waited %.0f s for its images", step, waited)
        self.waited_s += time.monotonic() - began
        return future.result()

    def close(self) -> None:
        """End the processes and threads; a process that hangs ends with this process."""
        self._clear_queue()
        stopped = self._assembler.submit(self._stop)
        self._assembler.shutdown(wait=False)
        concurrent.futures.wait([stopped], timeout=_CLOSING_S)

    def to_devices(self, local: np.ndarray) -> jax.Array:
        """Copy the rows that were decoded here, in order, to the devices that hold them."""

        def rows_of_device(part: Any) -> np.ndarray:
            places = self._index_of_row[part[:3]]
            first, last = places.flat[0], places.flat[-1]
            if last - first + 1 == places.size:  # consecutive rows: a view suffices
                return local[first : last + 1].reshape(*places.shape, *local.shape[1:])
            return local[places]

        shape = (*self._shape, *local.shape[1:])
        return jax.make_array_from_callback(shape, self._layout, rows_of_device)

    def _enqueue(self, step: int) -> None:
        """Assemble the batch of `step` after those in the queue."""
        if step < self.pieces.stop:
            self._queue.append((step, self._assembler.submit(self._assemble, step)))

    def _clear_queue(self) -> None:
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()

    def _stop(self) -> None:
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def _assemble(self, step: int) -> DeviceBatches:
        """Join the pieces of `step` to a batch on the devices."""
        if step != self._next_step:
            self._stop()
            from_step = dataclasses.replace(self.pieces, first=step)
            self._decoded = _iterate(from_step, workers=self.workers)
        self._next_step = -1  # after an error, the iterator's position is unknown
        pieces = [self._next_piece() for _ in range(self.pieces.per_step)]
        self._next_step = step + 1
        images, labels = pieces[0].images, pieces[0].labels
        if len(pieces) > 1:
            images = np.concatenate([piece.images for piece in pieces])
            labels = np.concatenate([piece.labels for piece in pieces])
        ids, epochs = (array.reshape(self._shape) for array in self._sampler.take(step, 1))
        return DeviceBatches(
            self.to_devices(images),
            self.to_devices(labels),
            *put_global((ids, epochs), self._layout),
        )

    def _next_piece(self) -> Piece:
        try:
            piece: Piece = next(self._decoded)
        except RuntimeError as error:  # raised by Grain when a process has ended
            raise PeerError(f"A process that decodes images has died ({error}).") from error
        if piece.error:
            raise DataError(piece.error)
        return piece


def _iterate(pieces: PieceSource, *, workers: int) -> Any:
    """Return Grain's iterator over all pieces, in order."""
    threads = max(1, usable_cores() // max(1, workers))
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    data = grain.MapDataset.source(pieces).to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain passes absl's flags to its processes
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=_PIECES_PER_WORKER
        )
        data = data.mp_prefetch(options, worker_init_fn=die_with_parent)
    return iter(data)

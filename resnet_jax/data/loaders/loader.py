"""The protocol of the loaders, which bring training batches to the devices."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Int, UInt8


class DeviceBatches(NamedTuple):
    """The examples of one dispatch, on the devices: k steps of m micro-batches of n examples.

    Attributes:
        images, labels: either the examples of the steps, [k, m, n, …], sharded over the mesh along
            n; or the whole training split, replicated on every device, which `ids` index.
        ids, epochs: of each example. With several seeds they have a leading seed axis, and so do
            images and labels of the first kind.
    """

    images: UInt8[Array, "*examples h w c"]
    labels: Int[Array, "*examples"]
    ids: Int[Array, "*seeds k m n"]
    epochs: Int[Array, "*seeds k m n"]


class Loader(Protocol):
    """Brings the training batches to the devices; each process loads those of its own devices.

    The training loop calls `start` once, `take` for each dispatch, and `close` at the end. A batch
    is a function of its step: `take` may return to an earlier step or skip some.

    Attributes:
        waited_s: seconds that `take` has waited for images so far.
    """

    waited_s: float

    def start(self, step: int) -> None:
        """Begin to load the batches of `step` and of the steps after it."""

    def take(self, step: int) -> DeviceBatches:
        """Return the batches of the dispatch whose first step is `step`.

        Raises:
            DataError: an example is damaged.
            PeerError: a process that decodes images has died.
        """

    def close(self) -> None:
        """End the processes and threads of the loader."""

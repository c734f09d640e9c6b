"""The size of training crops in each step."""

import bisect
import dataclasses


@dataclasses.dataclass(frozen=True)
class CropSizes:
    """Side of the square training crops, in pixels, by step.

    Attributes:
        sizes: the sides, in the order of use.
        edges: `sizes[i]` is used in the steps below `edges[i]`; the last size has no edge.
    """

    sizes: tuple[int, ...]
    edges: tuple[float, ...] = ()

    def at(self, step: int) -> int:
        """Return the size in `step`."""
        return self.sizes[bisect.bisect_right(self.edges, step)]

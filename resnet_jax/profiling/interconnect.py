"""What joins the devices of a slice, as the model of a step's time (`roofline`) sees it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Path:
    """What a collective goes over. A pass is a reduce-scatter, or an all-gather.

    Attributes:
        start_s: latency of the collective.
        pass_s: latency of each pass.
        bytes_per_s: bandwidth of a pass: n devices take size · (n − 1)/n over this.
        neighbour_bytes_per_s: bandwidth from one device to another.
    """

    start_s: float
    pass_s: float
    bytes_per_s: float
    neighbour_bytes_per_s: float

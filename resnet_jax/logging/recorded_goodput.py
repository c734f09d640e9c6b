"""Where the wall time of a run went, as goodput.json tells it."""

import dataclasses
import json
import math
from typing import Any

from etils import epath

from resnet_jax.checkpoint.workdir import GOODPUT
from resnet_jax.errors import DataError
from resnet_jax.utils.paths import read_document


@dataclasses.dataclass(frozen=True)
class RecordedGoodput:
    """The sums over all starts of a run.

    Attributes:
        share: the share of the wall time that went into training steps that count, 0 to 1.
        seconds: phase → seconds.
        restarts: number of starts after the first.
    """

    share: float
    seconds: dict[str, float]
    restarts: int


def read_goodput(workdir: epath.Path) -> RecordedGoodput | None:
    """The sums in goodput.json; None if the run has no such file.

    Raises:
        DataError: the file is damaged, or can't be read.
    """
    path = workdir / GOODPUT
    try:
        document = json.loads(read_document(path))
        seconds = {str(phase): _finite(value) for phase, value in document["seconds"].items()}
        restarts = int(_finite(document["restarts"]))
        return RecordedGoodput(_finite(document["goodput"]), seconds, restarts)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{GOODPUT} can't be read ({error.strerror or error}).") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise DataError(f"{GOODPUT} is damaged: it isn't JSON of this package.") from None


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no finite number")
    return number

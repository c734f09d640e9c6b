"""The progress of a run in another process, parsed from the lines that it prints."""

import dataclasses
import re

# The format of resnet_jax.logging.console.TrainingConsole.
_LINE = re.compile(
    r"step (?P<step>\d+)/(?P<total>\d+)  ("
    r"epoch .*  ETA (?P<eta>[\d:]+)"
    r"|(?P<scored>\w+)( \(moving average\))?: top-1 (?P<top1>.+?)  )"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress that a run has printed.

    Attributes:
        step: the last step; None before the first.
        total: the number of steps of the run.
        scored: name and top-1 accuracy of the split that was evaluated last, as text.
        eta: the time left, as text.
    """

    step: int | None = None
    total: int | None = None
    scored: str = ""
    eta: str = ""

    def after(self, line: str) -> "Progress":
        """The progress after another line; lines without progress change nothing."""
        found = _LINE.match(line)
        if not found:
            return self
        scored = f"{found['scored']} {found['top1']}" if found["scored"] else self.scored
        return Progress(int(found["step"]), int(found["total"]), scored, found["eta"] or self.eta)

    def __str__(self) -> str:
        if self.step is None:
            return "no step yet"
        parts = [f"step {self.step:,}/{self.total:,}", self.scored, self.eta and f"ETA {self.eta}"]
        return "  ".join(filter(None, parts))

"""How far a run in another process is, read from the lines that it prints."""

import dataclasses
import re

# As resnet_jax.logging.console.TrainingConsole prints them.
_LINE = re.compile(
    r"step (?P<step>\d+)/(?P<total>\d+)  ("
    r"epoch .*  ETA (?P<eta>[\d:]+)"
    r"|(?P<scored>\w+)( \(moving average\))?: top-1 (?P<top1>.+?)  )"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run has printed so far.

    Attributes:
        step: the last one that it told of; None before the first.
        total: steps of the whole run.
        scored: name of the split that was scored last, and its top-1 accuracy, as text.
        eta: time left, as text.
    """

    step: int | None = None
    total: int | None = None
    scored: str = ""
    eta: str = ""

    def after(self, line: str) -> "Progress":
        """The progress after another line; lines that don't tell of any change nothing."""
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

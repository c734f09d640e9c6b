"""What a check has found, and what becomes of a check that goes wrong itself."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from resnet_jax.errors import ResnetJaxError

Status = Literal["ok", "warn", "fail"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; made by `ok`, `warn` and `fail`.

    Attributes:
        name: what was looked at.
        status: "fail" if a run would end or do the wrong thing, "warn" if it might.
        message: what was found.
        remedy: what to do about it; empty if all is well.
        exit_code: of the process that finds this failure first; 0 unless it is one.
    """

    name: str
    status: Status
    message: str
    remedy: str = ""
    exit_code: int = 0


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", message)


def warn(name: str, message: str, remedy: str) -> Finding:
    """A run may work, but not as one would expect."""
    return Finding(name, "warn", message, remedy)


def fail(name: str, message: str, remedy: str, *, error: type[ResnetJaxError]) -> Finding:
    """A run would end with the exit code of `error`."""
    return Finding(name, "fail", message, remedy, error.exit_code)


Check = Callable[[], Iterable[Finding]]


def diagnose(checks: Mapping[str, Check]) -> list[Finding]:
    """Run the checks in their order; whatever one of them raises becomes a finding of its name."""
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            for finding in check():
                findings.append(finding)  # one by one, so that an error keeps those before it
        except ResnetJaxError as error:  # what a run would say; the sentence has its advice
            remedy = f"until then a run ends here with exit code {error.exit_code}"
            lines = [line.strip() for line in str(error).splitlines()]
            sentence = "; ".join(lines).replace(":; ", ": ")  # some list differences in lines
            findings.append(fail(name, sentence, remedy, error=type(error)))
        except Exception as error:  # not known to be bad, but not known to be good either
            line = (str(error).strip().splitlines() or [""])[0]
            findings.append(
                warn(
                    name,
                    f"this couldn't be checked ({type(error).__name__}: {line})",
                    "look yourself; if the machine isn't to blame, report it",
                )
            )
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """The exit code of the first failure, or 0."""
    return next((f.exit_code for f in findings if f.status == "fail"), 0)

"""A row of the catalogue of faults."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One row.

    Attributes:
        fault: what goes wrong.
        how: how it is brought about.
        survives: what happens then, in a few words.
        tests: files of tests/, or functions in them, that try it; each must pass.
        plain: the experiment of benchmarks/plain_checkpoints.py that is the same fault.
    """

    fault: str
    how: str
    survives: str
    tests: tuple[str, ...]
    plain: str = ""

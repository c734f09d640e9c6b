"""What the tables of README.md and docs/ have in common: result files, Markdown, times."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """Read a file of results/, by its path there without ".json"."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a heading for each column."""
    rule = f"|{'---|' * len(columns)}"
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def minutes(seconds: float) -> str:
    """A time in seconds, or from 100 s on in minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

"""What a sweep shows of its runs while they are under way."""

import io
import sys

import pytest
from rich.cells import cell_len

from resnet_jax.cli import sweep_console
from resnet_jax.cli.sweep_console import SweepConsole
from resnet_jax.research.progress import Progress

LABELS = {"model.width=8,seed=0": "width=8, seed=0", "model.width=16,seed=0": "width=16, seed=0"}
NARROW, WIDE = LABELS
FAR = Progress(step=120, total=64_000, scored="validation 91.11 %", eta="1:02:03")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sweep_console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("terminal", ["dumb", None])
def test_a_log_has_a_line_of_each_run_every_half_minute(terminal, clock, monkeypatch):
    """As a dumb terminal, which can't go back to a line, has."""
    output = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setenv("TERM", "dumb")
    with SweepConsole(LABELS) as console:
        console.show(NARROW, Progress())
        for second in range(61):
            clock[0] = 100.0 + second
            console.show(NARROW, Progress(step=second, total=90, eta="0:10"))
        console.show(WIDE, Progress())
        console.end(NARROW, "finished after 61 s")
    assert output.getvalue().splitlines() == [
        f"{NARROW}: begins, or goes on",
        f"{NARROW}: step 30/90  ETA 0:10",
        f"{NARROW}: step 60/90  ETA 0:10",
        f"{WIDE}: begins, or goes on",
        f"{NARROW}: finished after 61 s",
    ]


@pytest.mark.parametrize("columns", [20, 40, 60, 100])
def test_a_terminal_has_a_line_per_run_that_fits(columns, monkeypatch):
    output = _Terminal()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with SweepConsole(LABELS) as console:
        console.show(NARROW, Progress())
        console.show(WIDE, FAR)
        shown = [str(line) for line in console._lines().renderables]
        console.end(WIDE, "finished after 61 s")
        assert len(console._lines().renderables) == 1
    assert len(shown) == 2
    assert all(cell_len(line) <= columns for line in shown)
    if columns == 100:
        assert shown == [
            "width=8, seed=0   no step yet",
            "width=16, seed=0  step 120/64,000  validation 91.11 %  ETA 1:02:03",
        ]
    if columns >= 60:
        assert shown[1].endswith("step 120/64,000  validation 91.11 %  ETA 1:02:03")
    assert f"{NARROW}: begins, or goes on\n" in output.getvalue()  # stays above the lines

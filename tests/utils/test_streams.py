"""Control characters in names and messages are escaped before they reach a terminal."""

import io
import logging

import pytest

from resnet_jax.cli import main as cli
from resnet_jax.cli.common import exits
from resnet_jax.cli.common.exits import report, show_progress
from resnet_jax.cli.common.tables import Table
from resnet_jax.cli.sweep_console import SweepConsole
from resnet_jax.errors import DataError, UsageError
from resnet_jax.logging.console import TrainingConsole
from resnet_jax.utils.console import plain_console
from resnet_jax.utils.streams import escaped

HOSTILE = "\x1b]0;owned\x07cat\x9b2J\u202egpj.exe\r[link=http://x]y[/link][/b]:100:"
HARMLESS = r"\x1b]0;owned\x07cat\x9b2J\u202egpj.exe\r[link=http://x]y[/link][/b]:100:"


def steers(text):
    return any(not c.isprintable() and c not in "\n\t" for c in text)


def test_what_steers_a_terminal_is_written_as_escapes():
    assert escaped(HOSTILE) == HARMLESS
    assert escaped("Größe 3×3 …\n\tnext 🐈") == "Größe 3×3 …\n\tnext 🐈"
    assert escaped("b\udcff") == r"b\udcff"
    document = {HOSTILE: [HOSTILE, 1, None, 0.5], "n": (HOSTILE,)}
    assert escaped(document) == {HARMLESS: [HARMLESS, 1, None, 0.5], "n": [HARMLESS]}


@pytest.mark.parametrize("kind", [DataError, UsageError])
def test_errors_dont_steer_a_terminal(kind, capsys):
    report(kind(f"there is no {HOSTILE}"))
    assert capsys.readouterr().err == f"error: there is no {HARMLESS}\n"


def test_progress_doesnt_steer_a_terminal(capsys):
    show_progress()
    logging.getLogger("resnet_jax.data").warning("copying %s", HOSTILE)
    assert capsys.readouterr().err == f"copying {HARMLESS}\n"


def test_a_run_doesnt_steer_a_terminal(capsys):
    TrainingConsole(total_steps=1, start_step=0).say(f"resuming {HOSTILE}")
    assert capsys.readouterr().out == f"resuming {HARMLESS}\n"


def test_a_sweep_doesnt_steer_a_terminal(capsys):
    SweepConsole({}).say(f"{HOSTILE}: begins")
    assert capsys.readouterr().err == f"{HARMLESS}: begins\n"


def test_other_processes_dont_steer_a_terminal(capfd, monkeypatch):
    """The reason of an end comes from a process on another host."""
    monkeypatch.setattr(exits, "_end", lambda code, flush: None)
    exits.end_with(f"Process 1 has ended: {HOSTILE}.")
    assert capfd.readouterr().err.startswith(f"error: Process 1 has ended: {HARMLESS}. What")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_doesnt_steer_a_terminal(terminal):
    shown = io.StringIO()
    table = Table("name", title=HARMLESS)
    table.add_row(HARMLESS)
    plain_console(shown, force_terminal=terminal, width=200).print(table)
    text = shown.getvalue()
    assert (text.count(HARMLESS), text.count("http")) == (2, 2)
    assert "\x1b]" not in text


def test_no_subcommands_table_steers_a_terminal(monkeypatch, capsys):
    from resnet_jax.cli import summary

    monkeypatch.setattr(summary, "run", lambda args: {"name": HOSTILE, "layers": [HOSTILE]})
    monkeypatch.setattr(summary, "show", lambda document, console: console.print(document))
    assert cli.main(["summary", "resnet20"]) == 0
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert not steers(shown)

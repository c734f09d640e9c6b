"""What a run shows while it runs."""

import sys
from types import SimpleNamespace

from etils import epath

from resnet_jax.logging.console import TrainingConsole

SPEED = {"examples": 320, "img_per_s": 10.0}


def test_the_time_left_is_that_of_all_seeds(capsys):
    """Ninety steps of eight images are left, of each of five seeds, at ten images a second."""
    numbers = {"step": 10, "epoch": 0.5, "examples": 80, "loss": 1.0, "top1": 0.5, "img_per_s": 10}
    for seeds in ({}, {"seeds": {"loss": [1.0] * 5}}):
        with TrainingConsole(total_steps=100, start_step=0) as console:
            console.train(numbers | seeds)
    alone, together = capsys.readouterr().out.splitlines()
    assert alone.endswith("ETA 1:12")
    assert together.endswith("ETA 6:00")


def test_lines_are_plain_where_the_environment_asks_for_colours(capsys, monkeypatch):
    """As in a notebook, whose kernel sets this variable for the commands of cells."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with TrainingConsole(total_steps=100, start_step=0) as console:
        console.train({"step": 10, "epoch": 0.5, "loss": 1.0, "top1": 0.5} | SPEED)
        console.train({"step": 100, "epoch": 5.0, "loss": 0.5, "top1": 0.9} | SPEED)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 10/100  epoch 0.50  loss 1.000")
    assert last.startswith("step 100/100  epoch 5.00  loss 0.500")


def test_an_output_that_can_only_be_written_is_no_terminal(monkeypatch):
    """As programs replace sys.stdout to copy what is printed."""
    lines = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=lines.append, flush=lambda: None))
    with TrainingConsole(total_steps=100, start_step=0) as console:
        console.say("a line")
    assert "".join(lines) == "a line\n"


def test_commands_can_be_pasted(capsys):
    summary = {
        "final": {},
        "best": None,
        "config": {"data": {"name": "digits"}, "trackers": ["tensorboard"]},
    }
    with TrainingConsole(total_steps=1, start_step=0) as console:
        console.closing(summary, epath.Path("runs/my run"))
    out = capsys.readouterr().out
    assert "resnet-jax eval 'runs/my run' --per-class" in out
    assert "tensorboard --logdir 'runs/my run'" in out

"""What a run shows while it runs."""

from resnet_jax.logging.console import TrainingConsole


def test_the_time_left_is_that_of_all_seeds(capsys):
    """Ninety steps of eight images are left, of each of five seeds, at ten images a second."""
    numbers = {"step": 10, "epoch": 0.5, "examples": 80, "loss": 1.0, "top1": 0.5, "img_per_s": 10}
    for seeds in ({}, {"seeds": {"loss": [1.0] * 5}}):
        with TrainingConsole(total_steps=100, start_step=0) as console:
            console.train(numbers | seeds)
    alone, together = capsys.readouterr().out.splitlines()
    assert alone.endswith("ETA 1:12")
    assert together.endswith("ETA 6:00")

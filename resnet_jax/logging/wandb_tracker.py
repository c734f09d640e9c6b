"""Weights & Biases as a tracker."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath
from PIL import Image

from resnet_jax.errors import STOPPED_EARLY
from resnet_jax.logging.trackers import Outcome, Value
from resnet_jax.utils.paths import is_remote

_PROJECT = "resnet_jax"
_FINISH_S = 60.0
_EXIT_CODES = {"finished": 0, "stopped": STOPPED_EARLY, "failed": 1}


class WandbTracker:
    """A run of Weights & Biases; see `Tracker`.

    The client's variables hold: WANDB_PROJECT (default "resnet_jax"), WANDB_ENTITY, WANDB_MODE. A
    process of the client sends the data, so that training doesn't wait for the network. The client
    keeps its files in the folder wandb of the run's directory, from which `wandb sync` sends what
    was written offline. For a run in a bucket they are in a temporary folder of this host, which
    stays if the client hasn't sent all.

    Attributes:
        run_id: of the run.
        where: address of the run, or the folder of its files.
    """

    title = "W&B"

    def __init__(self, workdir: epath.Path, *, run_id: str | None) -> None:
        """Begin a run, or go on with the run of `run_id`.

        Raises:
            Exception: of the client: no key, no network, or a service that refuses.
        """
        import wandb  # noqa: PLC0415 - an extra

        self._wandb = wandb
        settings = wandb.Settings(
            console="off",  # the client would read the progress bar
            silent=True,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
        )
        wandb.setup(settings)  # silent from now on: without a key, `init` fails rather than asks
        with contextlib.ExitStack() as temporary:
            folder = os.fspath(workdir)
            if is_remote(workdir):
                folder = tempfile.mkdtemp(prefix="resnet_jax-")
                temporary.callback(shutil.rmtree, folder, ignore_errors=True)
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=os.environ.get("WANDB_NAME", workdir.name),
                id=run_id,
                resume="allow" if run_id else None,
                dir=folder,
                reinit="create_new",  # a run of the caller's stays as it is
                settings=settings,
            )
            self._temporary = temporary.pop_all()
        self.run_id: str = self._run.id
        self.where: str = self._run.dir if self._run.offline else self._run.url
        self._run.define_metric("*", step_metric="step")  # its own steps can't go back

    def hyperparameters(self, values: Mapping[str, Value]) -> None:
        """Set the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by tag."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Log a picture."""
        self._run.log({"step": step, tag: self._wandb.Image(Image.open(io.BytesIO(png)))})

    def sync(self) -> None:
        """Do nothing: the client sends what it gets."""

    def end(self, outcome: Outcome) -> None:
        """End the run, and wait for a minute at most until all is sent.

        Raises:
            TimeoutError: not all was sent; the rest is in the client's files.
        """
        if outcome == "stopped":
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=_EXIT_CODES[outcome])
        except TimeoutError:
            reason = f"not all was sent in {_FINISH_S:g} s; `wandb sync` sends what is in"
            raise TimeoutError(f"{reason} {self._run.dir}") from None
        if not self._run.offline:
            self._temporary.close()

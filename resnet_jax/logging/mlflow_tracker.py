"""MLflow as a tracker."""

import io
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from etils import epath
from PIL import Image

from resnet_jax.logging.trackers import Outcome, Value

_EXPERIMENT = "resnet_jax"
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_BATCH = 100  # parameters or metrics in a request, of which MLflow takes so many
_LONGEST = 500  # characters of a parameter, which every server takes
_MOST_WAITING = 10_000  # requests
_BEGIN_S = 180.0  # a new database is made
_END_S = 60.0
_POLL_S = 0.05


class MlflowTracker:
    """A run of MLflow; see `Tracker`.

    The client's variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (default "resnet_jax").

    Attributes:
        run_id: of the run.
        where: of the run.
    """

    title = "MLflow"

    def __init__(self, workdir: epath.Path, *, run_id: str | None) -> None:
        """Begin a run, or go on with the run of `run_id`; a run that is gone begins anew.

        Raises:
            Exception: of the client: no server, or a server that refuses.
        """
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        self._metric, self._param = Metric, Param
        self._client = MlflowClient()
        self._is_new, self.run_id = False, ""
        self._sender = _Sender()
        self._sender.send(partial(self._begin, workdir.name, run_id))
        self._sender.wait(timeout_s=_BEGIN_S)
        self.where = f"run {self.run_id}"

    def hyperparameters(self, values: Mapping[str, Value]) -> None:
        """Log the parameters of a new run; MLflow lets no run change them."""
        params = [self._param(name, str(value)[:_LONGEST]) for name, value in values.items()]
        for start in range(0, len(params) if self._is_new else 0, _BATCH):
            self._log(params=params[start : start + _BATCH])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by tag."""
        now_ms = int(1000 * time.time())
        metrics = [self._metric(tag, float(value), now_ms, step) for tag, value in values.items()]
        for start in range(0, len(metrics), _BATCH):
            self._log(metrics=metrics[start : start + _BATCH])

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Log a picture as an artefact, which replaces an earlier picture of this tag."""
        image = Image.open(io.BytesIO(png))
        self._sender.send(partial(self._client.log_image, self.run_id, image, f"{tag}.png"))

    def sync(self) -> None:
        """Raise the error of an earlier request, if there is one."""
        self._sender.check()

    def end(self, outcome: Outcome) -> None:
        """End the run, and wait for a minute at most until all is sent.

        Raises:
            TimeoutError: not all was sent.
        """
        self._sender.send(partial(self._client.set_terminated, self.run_id, _STATUS[outcome]))
        self._sender.wait(timeout_s=_END_S)
        self._sender.close()

    def _log(self, **entities: Sequence[Any]) -> None:
        self._sender.send(partial(self._client.log_batch, self.run_id, **entities))

    def _begin(self, name: str, run_id: str | None) -> None:
        self._is_new = run_id is None or not self._goes_on(run_id)
        if run_id is None or self._is_new:
            run_id = self._client.create_run(self._experiment(), run_name=name).info.run_id
        self.run_id = run_id

    def _goes_on(self, run_id: str) -> bool:
        """Go on with a run; return whether there is such a run."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _experiment(self) -> str:
        """Return the number of the experiment, which is made if it doesn't exist."""
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)


class _Sender:
    """Makes requests in a thread, in order, so that training doesn't wait for the network.

    The first request that fails is the last one; the next method that is called raises its error.
    """

    def __init__(self) -> None:
        self._requests: queue.Queue[Callable[[], object] | None] = queue.Queue(_MOST_WAITING)
        self._failure: Exception | None = None
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def send(self, request: Callable[[], object]) -> None:
        """Make a request as soon as those before it are done.

        Raises:
            Exception: of an earlier request.
            TimeoutError: too many requests wait.
        """
        self.check()
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            raise TimeoutError(f"{_MOST_WAITING:,} requests wait for the server") from None

    def check(self) -> None:
        """Raise the error of an earlier request, if there is one."""
        if self._failure:
            raise self._failure

    def wait(self, *, timeout_s: float) -> None:
        """Wait until all requests so far are done.

        Raises:
            Exception: of a request.
            TimeoutError: they aren't done in time.
        """
        done, until = threading.Event(), time.monotonic() + timeout_s
        self.send(done.set)
        while not done.wait(_POLL_S):
            self.check()
            if time.monotonic() > until:
                raise TimeoutError(f"no answer in {timeout_s:g} s")

    def close(self) -> None:
        """End the thread once all requests are done."""
        self._requests.put(None)

    def _work(self) -> None:
        while request := self._requests.get():
            try:
                request()
            except Exception as error:  # of the client, the network or the server
                self._failure = error
                return

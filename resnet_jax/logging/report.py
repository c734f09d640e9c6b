"""What a run leaves behind: summary.json and curves.png."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from resnet_jax import __version__
from resnet_jax.checkpoint.workdir import CURVES, SUMMARY, write_atomically
from resnet_jax.errors import DataError, WriteError
from resnet_jax.train.evaluate import Evaluation
from resnet_jax.train.experiment import Experiment
from resnet_jax.utils.paths import bucket_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

_MOST_NAMED_CLASSES = 40
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version(), "resnet_jax": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def provenance() -> dict[str, Any]:
    """What a reader needs to repeat a measurement: command, commit, versions, hardware."""
    device = jax.devices()[0]
    return {
        "command": " ".join([Path(sys.executable).name, *map(_without_folder, sys.argv)]),
        "commit": _commit(),
        "versions": package_versions(),
        "hardware": {
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "cpu": _cpu_model(),
            "cpu_cores": os.cpu_count(),
        },
    }


def _without_folder(argument: str) -> str:
    """An absolute path says where, which is nobody's business, instead of what."""
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{Path(value).name}" if os.path.isabs(value) else argument


def _commit() -> str | None:
    """The commit of the source tree, with "+" if it has uncommitted changes; None outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # else it is a stranger's repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run_summary(
    experiment: Experiment,
    *,
    evaluation: dict[str, Evaluation],
    best: dict[str, Any] | None,
    init_from: dict[str, str] | None,
    convolutions: list[str],
    history: list[dict[str, Any]],
    wall_s: float,
) -> dict[str, Any]:
    """Everything that summary.json says of a finished run."""
    config, plan, dataset = experiment.config, experiment.plan, experiment.dataset
    scores = {name: scored.scalars() for name, scored in evaluation.items()}
    of_best = scores.pop("test_best", None)
    if best and of_best:
        best = best | {"test": of_best}
    speeds = [r["img_per_s"] for r in history if r["split"] == "train"]
    return {
        "model": config.model.name,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "examples": dataset.lengths,
            "skipped": [dataclasses.asdict(one) for one in dataset.skipped],
        },
        "init_from": init_from,
        "convolutions": convolutions,
        **({"seeds": list(config.seeds)} if config.seeds else {"seed": config.seed}),
        "steps": plan.total_steps,
        "epochs": round(plan.epoch(plan.total_steps), 4),
        "final": scores,
        "best": best,
        "wall_s": round(wall_s, 1),
        "img_per_s": round(statistics.median(speeds), 1) if speeds else None,
        **provenance(),
        "config": config.to_dict(),
    }


def write_summary(workdir: epath.Path, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_atomically(workdir / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def recorded_summary(workdir: epath.Path) -> Iterator[dict[str, Any]]:
    """The content of summary.json; what it can't be used for inside shows that it is damaged.

    Raises:
        DataError: it is, or can't be read.
    """
    path = workdir / SUMMARY
    try:
        with bucket_errors(path):
            content = path.read_bytes()
        yield json.loads(content)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}).") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{path} is damaged. Checkpoints don't depend on it: remove it and start the run again,"
            " which scores the last one anew."
        ) from None


def recorded_scores(summary: dict[str, Any]) -> dict[str, Evaluation]:
    """What was given to `run_summary` as `evaluation`, but for the confusion matrices."""
    scores = dict(summary["final"])
    if summary["best"] and "test" in summary["best"]:
        scores["test_best"] = summary["best"]["test"]
    return {name: Evaluation.from_scalars(scalars) for name, scalars in scores.items()}


def draw_confusion(
    path: Path, confusion: Int[np.ndarray, "k k"], class_names: tuple[str, ...]
) -> None:
    """Draw the confusion matrix, rows normalised to the share of each true class.

    Raises:
        WriteError: the picture can't be written.
    """
    named = min(len(class_names), _MOST_NAMED_CLASSES)
    figure = new_figure(4 + 0.35 * named, 3 + 0.35 * named)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(class_names) <= _MOST_NAMED_CLASSES:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90)
        axes.set_yticks(ticks, class_names)
        for true, predicted in np.argwhere(confusion):
            dark = shares[true, predicted] > 0.5
            color = "white" if dark else "black"
            text = str(confusion[true, predicted])
            axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=7)
    try:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise WriteError(f"{path} can't be written: {error}") from None


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that needs no display."""
    # The object interface: pyplot would look for a display. Half a second that the first step of a
    # run needn't wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Figures:
    """The pictures of a run. Where one can't be written, a warning says so, and the run goes on."""

    def __init__(self, workdir: epath.Path) -> None:
        """Draw into files in `workdir`."""
        self._workdir = workdir
        self._lost: set[str] = set()

    def draw(self, name: str, draw: Callable[[], None]) -> None:
        """Call `draw`, which writes the file of that name; warn if the first try in a row fails."""
        try:
            draw()
        except OSError as error:
            if name not in self._lost:
                _log.warning(
                    "%s can't be written (%s); the run goes on without it.",
                    *(self._workdir / name, error.strerror or error),
                )
            self._lost.add(name)
        else:
            self._lost.discard(name)


def _itself(value: float) -> float:
    return value


def _error(top1: float) -> float:
    """In percent."""
    return 100 * (1 - top1)


def draw_curves(workdir: epath.Path, history: list[dict[str, Any]], *, title: str) -> None:
    """Draw loss, top-1 error and learning rate over epochs into curves.png.

    Of several seeds these are means, with a band of ± one standard deviation.
    """
    figure = new_figure(11, 3.6)
    losses, errors, rates = figure.subplots(1, 3)
    figure.suptitle(title)
    styles = {
        ("train", "raw"): ("C0", "-", "train, augmented"),
        ("validation", "raw"): ("C1", "-", "validation"),
        ("validation", "ema"): ("C2", "--", "validation, moving average"),
    }
    for (split, weights), (color, line, label) in styles.items():
        records = [r for r in history if r["split"] == split and r.get("weights", "raw") == weights]
        if not records:
            continue
        epochs = [r["epoch"] for r in records]
        width = 0.9 if split == "train" else 1.6
        style = {"color": color, "linestyle": line, "linewidth": width, "label": label}
        for axes, metric, shown in ((losses, "loss", _itself), (errors, "top1", _error)):
            axes.plot(epochs, [shown(r[metric]) for r in records], **style)
            if "std" in records[0]:
                low, high = (
                    [shown(r[metric] + sign * r["std"][metric]) for r in records]
                    for sign in (-1, 1)
                )
                axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        if split == "train":
            rates.plot(epochs, [r["lr"] for r in records], color=color, linewidth=1.6)
    tests = [r for r in history if r["split"] == "test" and r.get("weights", "raw") == "raw"]
    if tests:
        last = max(tests, key=lambda r: r["step"])
        spread = f" ± {100 * last['std']['top1']:.2f}" if "std" in last else ""
        label = f"test {_error(last['top1']):.2f}{spread} %"
        errors.plot(last["epoch"], _error(last["top1"]), "k*", markersize=10, label=label)
    losses.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    errors.set(xlabel="epoch", ylabel="top-1 error (%)", ylim=(0, None))
    rates.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, errors, rates):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend(frameon=False)
    errors.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    write_atomically(workdir / CURVES, picture.getvalue())

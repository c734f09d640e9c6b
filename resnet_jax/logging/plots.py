"""Figures of a run: curves.png, confusion matrices and contact sheets."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from resnet_jax.checkpoint.workdir import CURVES, write_atomically
from resnet_jax.errors import WriteError
from resnet_jax.utils.streams import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

_MOST_NAMED_CLASSES = 40
_DPI = 150
_COLUMNS, _TILE, _GAP = 8, 96, 2  # of a contact sheet: images in a row, and pixels


def draw_confusion(
    path: Path, confusion: Int[np.ndarray, "k k"], class_names: tuple[str, ...]
) -> None:
    """Draw the confusion matrix, rows normalised to the share of each true class.

    Raises:
        WriteError: the picture can't be written.
    """
    figure = _confusion_figure(confusion, class_names)
    try:
        picture = picture_of(figure, path.suffix.removeprefix("."), dpi=_DPI)
        write_atomically(epath.Path(path), picture)
    except (OSError, ValueError) as error:
        raise WriteError(f"{path} can't be written: {error}") from None


def confusion_png(confusion: Int[np.ndarray, "k k"], class_names: tuple[str, ...]) -> bytes:
    """Return the picture of `draw_confusion` as the content of a PNG file."""
    return picture_of(_confusion_figure(confusion, class_names), "png", dpi=_DPI)


def _confusion_figure(confusion: Int[np.ndarray, "k k"], class_names: tuple[str, ...]) -> "Figure":
    named = min(len(class_names), _MOST_NAMED_CLASSES)
    figure = new_figure(4 + 0.35 * named, 3 + 0.35 * named)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(class_names) <= _MOST_NAMED_CLASSES:
        ticks, labels = range(len(class_names)), [*map(figure_text, class_names)]
        axes.set_xticks(ticks, labels, rotation=90)
        axes.set_yticks(ticks, labels)
        for true, predicted in np.argwhere(confusion):
            dark = shares[true, predicted] > 0.5
            color = "white" if dark else "black"
            text = str(confusion[true, predicted])
            axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=7)
    return figure


def contact_sheet_png(images: UInt8[np.ndarray, "n h w c"]) -> bytes:
    """Return images side by side, eight in a row, as the content of a PNG file.

    Small images are enlarged by a whole factor, so that their pixels can be seen.
    """
    count, height, width, channels = images.shape
    factor = max(1, _TILE // max(height, width))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    steps = (height * factor + _GAP, width * factor + _GAP)
    sheet = np.full((rows * steps[0] + _GAP, columns * steps[1] + _GAP, channels), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (
            _GAP + place * step for place, step in zip(divmod(number, columns), steps, strict=True)
        )
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    picture = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet[..., :3]).save(picture, "png")
    return picture.getvalue()


def figure_text(name: str) -> str:
    """A name as a text of a figure, in which Matplotlib takes what is between dollars for TeX."""
    return escaped(name).replace("$", r"\$")


def new_figure(width: float, height: float) -> "Figure":
    """Return a figure of `width` × `height` inches that needs no display."""
    # Not pyplot, which looks for a display. The import takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture_of(figure: "Figure", kind: str, *, dpi: int | None = None) -> bytes:
    """Return the content of a picture file: "png", "pdf" or "svg"; `dpi` None is the style's."""
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=dpi)
    return picture.getvalue()


class Figures:
    """Draws the figures of a run. A figure that can't be written is a warning, not an error."""

    def __init__(self, workdir: epath.Path) -> None:
        """Draw nothing yet; figures go to `workdir`."""
        self._workdir = workdir
        self._lost: set[str] = set()

    def draw(self, name: str, draw: Callable[[], None]) -> None:
        """Call `draw`, which writes the file `name`; warn of the first failure in a row."""
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


def _percent_error(top1: float) -> float:
    return 100 * (1 - top1)


def draw_curves(workdir: epath.Path, history: list[dict[str, Any]], *, title: str) -> None:
    """Draw loss, top-1 error and learning rate over epochs into curves.png.

    With several seeds, the curves are means with a band of ± one standard deviation.

    Raises:
        OSError: the file can't be written.
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
        for axes, metric, shown in ((losses, "loss", float), (errors, "top1", _percent_error)):
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
        label = f"test {_percent_error(last['top1']):.2f}{spread} %"
        errors.plot(last["epoch"], _percent_error(last["top1"]), "k*", markersize=10, label=label)
    losses.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    errors.set(xlabel="epoch", ylabel="top-1 error (%)", ylim=(0, None))
    rates.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, errors, rates):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend(frameon=False)
    errors.legend(frameon=False)
    write_atomically(workdir / CURVES, picture_of(figure, "png", dpi=_DPI))

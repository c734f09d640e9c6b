"""Writes the tables of README.md from committed results, so that no figure is typed by hand.

python benchmarks/tables.py          rewrite the tables
python benchmarks/tables.py --check  exit with 1 if they don't agree with the results
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resnet_jax
from resnet_jax.models.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# Published single-crop (224 of 256) top-1 errors on ImageNet in percent; for the CIFAR nets top-1
# errors on CIFAR-10. What somebody else measured, with its source; not results of this package.
_PAPER = "[He et al. 2015](https://arxiv.org/abs/1512.03385), table 6"
_RELEASE = "[the authors' release](https://github.com/KaimingHe/deep-residual-networks)"
_TORCH = "[fb.resnet.torch](https://github.com/facebookarchive/fb.resnet.torch)"
PUBLISHED = {
    "resnet18": (30.43, _TORCH),
    "resnet34": (26.73, _TORCH),
    "resnet50": (24.01, _TORCH),
    "resnet101": (22.44, _TORCH),
    "resnet152": (22.16, _TORCH),
    "resnet50_v1": (24.7, _RELEASE),
    "resnet101_v1": (23.6, _RELEASE),
    "resnet152_v1": (23.0, _RELEASE),
    "resnet20": (8.75, _PAPER),
    "resnet32": (7.51, _PAPER),
    "resnet44": (7.17, _PAPER),
    "resnet56": (6.97, _PAPER),
    "resnet110": (6.43, _PAPER),
    "resnet1202": (7.93, _PAPER),
}


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))


def results_table() -> str:
    """Runs of this package: what, how well, how long, on what."""
    lines = [
        "| run | test images | top-1 | time | img/s | hardware |",
        "|---|---|---|---|---|---|",
    ]
    digits = [_read(f"digits/seed{seed}") for seed in (0, 1, 2)]
    scores = [100 * run["final"]["test"]["top1"] for run in digits]
    rows = [
        (
            f"`make train`, seeds 0, 1, 2: {digits[0]['model']} on digits, "
            f"{digits[0]['epochs']:.0f} epochs",
            digits[0],
            f"{', '.join(f'{score:.2f}' for score in scores)} %"
            f" (median **{statistics.median(scores):.2f} %**)",
            statistics.median(run["wall_s"] for run in digits),
            statistics.median(run["img_per_s"] for run in digits),
        )
    ]
    cifar = _read("cifar10_resnet20_cpu")
    rows.append(
        (
            f"`configs/cifar10.py:resnet20,cpu`: {cifar['model']} on CIFAR-10, "
            f"{cifar['epochs']:.0f} epochs",
            cifar,
            f"**{100 * cifar['final']['test']['top1']:.2f} %**",
            cifar["wall_s"],
            cifar["img_per_s"],
        )
    )
    for what, run, score, wall_s, speed in rows:
        hardware = run["hardware"]
        lines.append(
            f"| {what} | {run['final']['test']['examples']:,} | {score} | {_minutes(wall_s)}"
            f" | {speed:,.0f} | {hardware['cpu_cores']} cores, {hardware['cpu']} |"
        )
    return "\n".join(lines)


def models_table() -> str:
    """Every preset: its size, as computed, and its error, as published."""
    lines = [
        "| model | parameters | multiply-adds | image | published top-1 error | source |",
        "|---|---|---|---|---|---|",
    ]
    for name in resnet_jax.list_models():
        model = resnet_jax.create_model(name)
        shape = PRESETS[name].image_shape
        summary = resnet_jax.summarize(model, shape)
        error, source = PUBLISHED.get(name, (None, ""))
        published = f"{error:.2f} %" if error is not None else ""
        lines.append(
            f"| `{name}` | {summary.params:,} | {summary.macs / 1e6:,.1f} M"
            f" | {shape[0]}×{shape[1]} | {published} | {source} |"
        )
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


TABLES: dict[str, Callable[[], str]] = {"results": results_table, "models": models_table}


def render(text: str) -> str:
    """Put each table between its marks, `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        places = list(re.finditer(pattern, text, flags=re.DOTALL))
        if len(places) != 1:
            raise ValueError(f"README.md has {len(places)} places for the table {name!r}, not one")
        start, end = places[0].end(1), places[0].start(2)
        text = f"{text[:start]}{table()}\n{text[end:]}"
    return text


def main() -> int:
    """Rewrite or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    rendered = render(text)
    if not check:
        readme.write_text(rendered, encoding="utf-8")
    elif rendered != text:
        print("README.md's tables aren't those of the results: run python benchmarks/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes the tables of README.md and docs/ from results and the code.

No figure is typed by hand.

python benchmarks/tables.py          rewrite the tables
python benchmarks/tables.py --check  exit with 1 if they don't agree with them
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # this file isn't always run as a script
sys.path.insert(0, str(Path(__file__).parents[1]))
import config_tables
import cpu_tables
import model_tables
import papers_tables
import recipe_tables
import reliability_tables
import run_tables
import scaling
import scaling_gpu
import shards_tables
import speed_tables
import weights_tables
from table_text import ROOT, markdown, minutes, read

from resnet_jax.models.published import PUBLISHED


def results_table() -> str:
    """Runs of this package: what, how well, how long, on what."""
    digits = [read(f"digits/seed{seed}/summary") for seed in (0, 1, 2)]
    scores = [100 * run["final"]["test"]["top1"] for run in digits]
    fashion = read("fashion_mnist/summary")
    fashion_test = fashion["final"]["test"]
    fashion_depth = 2 * sum(read("fashion_mnist/config")["model"]["stage_sizes"]) + 2
    cifar = read("cifar10_resnet20_cpu/summary")
    paper = read("cifar10_table6/resnet20_full_seed0/summary")
    rows = []
    for run, command, model, data, score, time, speed in (
        (
            digits[0],
            "`make train`, seeds 0, 1, 2",
            digits[0]["model"],
            "digits",
            f"{', '.join(f'{score:.2f}' for score in scores)} %"
            f" (median **{statistics.median(scores):.2f} %**)",
            minutes(statistics.median(run["wall_s"] for run in digits)),
            statistics.median(run["img_per_s"] for run in digits),
        ),
        (
            fashion,
            f"`configs/fashion_mnist.py`, seeds {', '.join(map(str, fashion['seeds']))} at once",
            f"ResNet-{fashion_depth}",
            "Fashion-MNIST",
            f"**{100 * fashion_test['top1']:.2f} ± {100 * fashion_test['std']['top1']:.2f} %**",
            minutes(fashion["wall_s"]),
            fashion["img_per_s"],
        ),
        (
            cifar,
            "`configs/cifar10.py:resnet20,cpu`",
            cifar["model"],
            "CIFAR-10",
            f"**{100 * cifar['final']['test']['top1']:.2f} %**",
            minutes(cifar["wall_s"]),
            cifar["img_per_s"],
        ),
        (
            paper,
            f"`configs/cifar10_table6.py`, the paper's {paper['steps']:,} steps",
            paper["model"],
            "CIFAR-10",
            f"**{100 * paper['final']['test']['top1']:.2f} %**"
            f" (the paper's {100 - PUBLISHED['resnet20'].error:.2f} %)",
            minutes(paper["wall_s"]),
            paper["img_per_s"],
        ),
    ):
        hardware = run["hardware"]
        rows.append(
            (
                f"{command}: {model} on {data}, {run['epochs']:.0f} epochs",
                f"{run['final']['test']['examples']:,}",
                score,
                time,
                f"{speed:,.0f}",
                f"{hardware['cpu_cores']} cores, {hardware['cpu']}",
                run["convolutions"][-1],
            )
        )
    columns = ("run", "test images", "top-1", "time", "img/s", "hardware", "convolutions")
    return markdown(columns, rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "results": ("README.md", results_table),
    **model_tables.TABLES,
    **reliability_tables.TABLES,
    **run_tables.TABLES,
    **speed_tables.TABLES,
    **cpu_tables.TABLES,
    **papers_tables.TABLES,
    **recipe_tables.TABLES,
    **weights_tables.TABLES,
    **shards_tables.TABLES,
    "gpu-peers": ("docs/performance.md", scaling_gpu.peers_table),
    "gpu-variants": ("docs/performance.md", scaling_gpu.variants_table),
    **{name: ("docs/scaling.md", table) for name, table in scaling.TABLES.items()},
    **{name: ("docs/scaling.md", table) for name, table in scaling_gpu.TABLES.items()},
    **{name: ("docs/config.md", table) for name, table in config_tables.TABLES.items()},
}


def render(name: str) -> tuple[Path, str, str]:
    """Put a table between its marks, `<!-- NAME -->` and `<!-- /NAME -->`.

    Returns:
        The page's path, its text, and its text with the table.
    """
    page, table = TABLES[name]
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    places = list(re.finditer(pattern, text, flags=re.DOTALL))
    if len(places) != 1:
        raise ValueError(f"{page} has {len(places)} places for the table {name!r}, not one")
    start, end = places[0].end(1), places[0].start(2)
    return path, text, f"{text[:start]}{table()}\n{text[end:]}"


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in TABLES:
        path, text, rendered = render(name)
        if not check:
            path.write_text(rendered, encoding="utf-8")
        elif rendered != text:
            print(f"{path.name} isn't that of the results: run python benchmarks/tables.py")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

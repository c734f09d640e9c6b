"""Writes the tables of README.md and docs/ from results and the code.

No figure is typed by hand.

python benchmarks/tables.py          rewrite the tables
python benchmarks/tables.py --check  exit with 1 if they don't agree with them
"""

import argparse
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resnet_jax
from resnet_jax.models.presets import PRESETS
from resnet_jax.models.published import PUBLISHED
from resnet_jax.models.sizes import preset_sizes
from resnet_jax.research.catalogue import REPRODUCTIONS

sys.path.insert(0, str(Path(__file__).parent))  # this file isn't always run as a script
sys.path.insert(0, str(Path(__file__).parents[1]))
import config_tables
import scaling
import scaling_gpu
import shards_tables

from tests.faults.catalogue import FAULTS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAPERS = RESULTS / "papers"


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
    """Every preset: its size, as benchmarks/sizes.py counts it, and its error, as published."""
    lines = [
        "| model | parameters | multiply-adds | image | published top-1 error | recipe | source |",
        "|---|---|---|---|---|---|---|",
    ]
    sizes = preset_sizes()
    for name in resnet_jax.list_models():
        image = "×".join(map(str, PRESETS[name].image_shape))
        lines.append(
            f"| `{name}` | {sizes[name].params:,} | {sizes[name].macs / 1e6:,.1f} M"
            f" | {image} | {published(name)} |"
        )
    return "\n".join(lines)


def depth_table() -> str:
    """What depth costs on a CPU, by the form of the network."""
    rows = json.loads((RESULTS / "depth_cpu.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| network | batch | form | init | trace | compile | step | temporary memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `resnet{row['depth']}` | {row['batch']} | {row['form']} | {row['init_s']:.1f} s"
        f" | {row['trace_s']:.1f} s | {row['compile_s']:.1f} s | {row['step_s']:.2f} s"
        f" | {row['temporary_mib']:,.0f} MiB |"
        for row in rows
    ]
    return "\n".join(lines)


def faults_table() -> str:
    """Every fault of the catalogue: how often tried and survived, and what others do."""
    ours = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))["faults"]
    soak = json.loads((RESULTS / "soak.json").read_text(encoding="utf-8"))
    plain = json.loads((RESULTS / "faults_plain.json").read_text(encoding="utf-8"))["experiments"]
    lines = [
        "| fault | brought about by | tried | survived | what happens | the same, elsewhere |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        if fault.fault not in ours:  # newer than the last `make faults`
            lines.append(f"| {fault.fault} | {fault.how} | – | – | {fault.survives} |  |")
            continue
        row = dict(ours[fault.fault])
        if fault is FAULTS[0]:  # kills at random times, of which the soak has more
            row["tried"] += soak["kills"]
            row["survived"] += soak["kills"] - len(soak["losses"])
        line = textwrap.shorten(row["saw"], 110, placeholder=" …").replace("|", "\\|")
        saw = f": “{line}”" if line else ""
        others = _elsewhere(plain[fault.plain]) if fault.plain else ""
        lines.append(
            f"| {fault.fault} | {fault.how} | {row['tried']:,} | {row['survived']:,}"
            f" | {fault.survives}{saw} | {others} |"
        )
    return "\n".join(lines)


def tiers_table() -> str:
    """How long the tests of each tier take."""
    ours = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    soak = json.loads((RESULTS / "soak.json").read_text(encoding="utf-8"))
    seconds = ours["seconds"]
    lines = ["| tier | command | time | results |", "|---|---|---|---|"]
    rows = (
        ("everyday tests", "make test", seconds.get("everyday"), "faults"),
        ("all tests", "make test-all", sum(seconds.values()), "faults"),
        (f"{soak['kills']} kills at random", "make soak", None, "soak"),
    )
    for tier, command, took_s, result in rows:
        took = "" if took_s is None else f"{_minutes(took_s)} on {ours['cores']} cores"
        file = f"[{result}.json](../benchmarks/results/{result}.json)"
        lines.append(f"| {tier} | `{command}` | {took} | {file} |")
    return "\n".join(lines)


def long_run_table() -> str:
    """What grows in a long run."""
    result = json.loads((RESULTS / "long_run.json").read_text(encoding="utf-8"))
    lines = ["| | after a fifth | at the end | growth |", "|---|---|---|---|"]
    rows = (
        ("resident memory", "rss_mib", "{:,.0f} MiB"),
        ("open files", "files", "{:.0f}"),
        ("threads", "threads", "{:.0f}"),
        ("time of a step", "step_ms", "{:.1f} ms"),
    )
    for what, key, form in rows:
        row = result[key]
        begin, end = form.format(row["begin"]), form.format(row["end"])
        lines.append(f"| {what} | {begin} | {end} | {row['growth_percent']:+.1f} % |")
    return "\n".join(lines)


def pipeline_table() -> str:
    """Images per second of loaders."""
    result = json.loads((RESULTS / "input_pipeline.json").read_text(encoding="utf-8"))
    medians = result["median_img_per_s"]
    lines = ["| loader | img/s | this package's, divided by it |", "|---|---|---|"]
    for name, rate in medians.items():
        ratio = result["ours_divided_by"].get(name)
        lines.append(f"| {name} | {rate:,.0f} | {f'{ratio:.2f}' if ratio else ''} |")
    return "\n".join(lines)


def seeds_table() -> str:
    """What several seeds in one program cost."""
    result = json.loads((RESULTS / "seeds_cpu.json").read_text(encoding="utf-8"))
    steps, runs = result["steps"], result["runs"]
    of_one = statistics.median(runs["one_s"])
    of_all = statistics.median(runs["several_s"])
    return "\n".join(
        [
            f"| on CPU | {result['seeds']} seeds in one program, divided by one |",
            "|---|---|",
            f"| a whole run (`make train`: {of_one:.0f} s; {of_all:.0f} s) | {runs['ratio']:.2f} |",
            f"| a training step, one seed after the other | {steps['one_by_one_ratio']:.2f} |",
            f"| a training step, all together by `vmap` | {steps['together_ratio']:.2f} |",
        ]
    )


def startup_table() -> str:
    """How long it takes to begin."""
    result = json.loads((RESULTS / "startup_cpu.json").read_text(encoding="utf-8"))
    median = result["median_s"]
    jax_s = median["import jax"]
    names = {
        "import resnet_jax": "`import resnet_jax`, beyond `import jax`",
        "resnet_jax.create_model": "`resnet_jax.create_model`, beyond `import jax`",
        "resnet_jax.fit": "`resnet_jax.fit`, all that training imports, beyond `import jax`",
    }
    rows = [f"| {what} | {median[name] - jax_s:.2f} s |" for name, what in names.items()]
    rest = [
        f"| {name[0].upper()}{name[1:]} | {seconds:.2f} s |"
        for name, seconds in median.items()
        if name not in names and name != "import jax"
    ]
    return "\n".join(["| | median |", "|---|---|", *rows, *rest])


def peers_table() -> str:
    """Speed beside others', by network and mode."""
    lines = [
        "| | img/s | ours / it | with oneDNN | with oneDNN, bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("vs_peers_*_cpu.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        network = result["network"]
        for mode in ("train", "inference"):
            of = result[mode]
            lines.append(f"| **{network}, {mode}, {result['batch_size']} images** | | | | |")
            for name, speed in of["img_per_s"].items():
                ratios = [
                    f"{r[name]['median']:.2f}" if name in r else ""
                    for r in of["ours_divided_by"].values()
                ]
                lines.append(f"| {name} | {speed:,.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def fast_table() -> str:
    """The shortest comparison, for README."""
    names = {
        "resnet_jax": "resnet_jax",
        "resnet_jax onednn": "resnet_jax with oneDNN (`resnet-jax build`)",
        "resnet_jax onednn bfloat16": "the same, bfloat16",
        "flax": "Flax as most write it",
        "torch": "PyTorch, channels last",
        "torch.compile": "PyTorch compiled",
        "torch bfloat16": "PyTorch, bfloat16",
    }
    lines = ["| img/s on two CPU cores |", "|---|"]
    cells: dict[str, list[str]] = {name: [] for name in names}
    for network in ("resnet20", "resnet50"):
        result = json.loads((RESULTS / f"vs_peers_{network}_cpu.json").read_text("utf-8"))
        for mode in ("train", "inference"):
            lines[0] += f" {network}, {mode} |"
            lines[1] += "---|"
            for name, row in cells.items():
                row.append(
                    f"{result[mode]['img_per_s'][name]:,.{0 if network[6:] == '20' else 1}f}"
                )
    return "\n".join(
        lines + [f"| {names[name]} | {' | '.join(row)} |" for name, row in cells.items()]
    )


def changes_table() -> str:
    """What a step takes without each change for CPUs."""
    results = [
        json.loads((RESULTS / f"changes_{network}_cpu.json").read_text(encoding="utf-8"))
        for network in ("resnet20", "resnet50")
    ]
    names = [f"{result['network']}, {result['batch_size']} images" for result in results]
    lines = [
        f"| a step without it, divided by a step with it | {' | '.join(names)} |",
        "|---|---|---|",
    ]
    for change, told in results[0]["changes"].items():
        cells = []
        for result in results:
            of, temp_mb = result["changes"][change], result["temp_mb"]
            more = of["temp_mb_without"] - temp_mb
            memory = f", {more:+,.0f} MB" if abs(more) > temp_mb / 50 else ""
            cells.append(f"{of['without_divided_by_with']:.2f}{memory}")
        lines.append(f"| {told['change']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tpu_peers_table() -> str:
    """Memory traffic of a ResNet-50's step beside that of google/flax's example."""
    folder = RESULTS / "tpu_compile"
    lines = [
        "| slice, images per chip | MB per image | google/flax | ours / it | peak memory"
        " | google/flax | GFLOP per image | google/flax |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("flax_*.json")):
        name = path.stem.removeprefix("flax_")
        ours, theirs = (
            json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
            for stem in (name, path.stem)
        )
        mb, peak = (
            [one["mb_per_image"] for one in (ours, theirs)],
            [one["memory"]["peak_bytes"] / 2**30 for one in (ours, theirs)],
        )
        lines.append(
            f"| {ours['topology']}, {ours['batch_per_chip']} | {mb[0]:.0f} | {mb[1]:.0f}"
            f" | {mb[0] / mb[1]:.2f} | {peak[0]:.1f} GiB | {peak[1]:.1f} GiB"
            f" | {ours['gflop_per_image']:.2f} | {theirs['gflop_per_image']:.2f} |"
        )
    return "\n".join(lines)


def tpu_variants_table() -> str:
    """What was tried on one slice."""
    folder = RESULTS / "tpu_compile"
    names = {
        "before_": "before both changes",
        "": "as it is",
        "remat_": "units recomputed (`model.remat`)",
        "space_to_depth_": "stem on blocks of 2×2 pixels (`model.stem=space_to_depth`)",
    }
    lines = [
        "| resnet50, v5e:2x2, 256 images per chip | MB per image | peak memory | GFLOP per image |",
        "|---|---|---|---|",
    ]
    for prefix, what in names.items():
        file = folder / f"{prefix}resnet50_v5e-4_256.json"
        one = json.loads(file.read_text(encoding="utf-8"))
        peak = one["memory"]["peak_bytes"] / 2**30
        lines.append(
            f"| {what} | {one['mb_per_image']:.0f} | {peak:.1f} GiB"
            f" | {one['gflop_per_image']:.2f} |"
        )
    return "\n".join(lines)


def cost_table() -> str:
    """How a step's time grows with its multiply-adds."""
    result = json.loads((RESULTS / "cost_scaling_cpu.json").read_text(encoding="utf-8"))
    lines = [
        "| varied | values | time grows with the multiply-adds to the power of |",
        "|---|---|---|",
    ]
    for name, exponent in result["exponent_of_time_in_macs"].items():
        values = [str(row[name]) for row in result["rows"] if row["varied"] == name]
        lines.append(f"| {name} | {', '.join(values)} | {exponent:.2f} |")
    return "\n".join(lines)


def papers_section() -> str:
    """Each reproduction: its claim, figure, table, and command."""
    parts = []
    for name, reproduction in REPRODUCTIONS.items():
        result = json.loads((PAPERS / f"{name}.cpu.json").read_text(encoding="utf-8"))
        command = f"resnet-jax reproduce {name}"
        full = "" if reproduction.runs["full"] is reproduction.runs["cpu"] else _full_size(name)
        rows = [
            f"| {row['what']} | {row['data']} | {_value(row['published'])} | {row['source']}"
            f" | {_measured(row)} | {row['accepts']} | {row['verdict']} |"
            for row in result["rows"]
        ]
        parts += [
            f"### {name}",
            "",
            f"**{reproduction.claim}** ({reproduction.paper})",
            "",
            f"![{reproduction.title}](figures/papers/{name}.png)",
            "",
            f"`{command}`: {result['verdict']}, in {_minutes(result['wall_s'])}.{full}",
            "",
            "| what | on | published | source | measured | accepted | verdict |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(parts).rstrip()


def _full_size(name: str) -> str:
    path = PAPERS / f"{name}.full.json"
    if not path.exists():
        return " `--size=full`, on CIFAR-10: not run: budget."
    result = json.loads(path.read_text(encoding="utf-8"))
    return f" `--size=full`, on CIFAR-10: {result['verdict']}."


def _measured(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {_value(row['std'])}"
    return _value(row["mean"]) + spread + ("" if row["exact"] else f" (n = {row['n']})")


def _value(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def verdicts_table() -> str:
    """One line for each reproduction."""
    lines = ["| | claim | on two cores | on CIFAR-10 |", "|---|---|---|---|"]
    for name, reproduction in REPRODUCTIONS.items():
        verdicts = []
        for size in ("cpu", "full"):
            path = PAPERS / f"{name}.{size}.json"
            if reproduction.runs["full"] is reproduction.runs["cpu"] and size == "full":
                verdicts.append("the same")
            elif path.exists():
                verdicts.append(json.loads(path.read_text(encoding="utf-8"))["verdict"])
            else:
                verdicts.append("not run: budget")
        lines.append(
            f"| [{name}](#{name}) | {reproduction.claim} | {verdicts[0]} | {verdicts[1]} |"
        )
    return "\n".join(lines)


def imported_table() -> str:
    """Logits of imported networks against PyTorch's."""
    result = json.loads((RESULTS / "imported_weights.json").read_text(encoding="utf-8"))
    lines = [
        "| network | published by | here | parameters | logits differ by | PyTorch's float32 by |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["networks"]:
        fields = "".join(f", {name}={value!r}" for name, value in row["fields"].items())
        lines.append(
            f"| {row['name']} | {row['library']} | `{row['model']}{fields}`"
            f" | {row['parameters']:,} | {row['error']:.1e} | {row['error_of_torch_float32']:.1e} |"
        )
    return "\n".join(lines)


def _elsewhere(systems: dict[str, dict[str, Any]]) -> str:
    """What an experiment of plain_checkpoints.py found, by system."""
    said = []
    for system, counts in systems.items():
        shown = {
            name: value
            for name, value in counts.items()
            if name not in ("saw", "checkpoints left") and value != 0 and not isinstance(value, str)
        }
        said.append(f"{system}: " + ", ".join(f"{n} {_short(v)}" for n, v in shown.items()))
    return "; ".join(said)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return json.dumps(value).replace("null", "hangs") if isinstance(value, list) else str(value)


def published(name: str) -> str:
    """The last three cells of a model's row."""
    if name not in PUBLISHED:
        return " |  | "
    row = PUBLISHED[name]
    title, address = row.source
    return f"{row.error:.2f} % on {row.data} | {row.recipe} | [{title}]({address})"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "results": ("README.md", results_table),
    "models": ("docs/models.md", models_table),
    "depth": ("docs/models.md", depth_table),
    "tiers": ("docs/reliability.md", tiers_table),
    "faults": ("docs/reliability.md", faults_table),
    "long_run": ("docs/reliability.md", long_run_table),
    "pipeline": ("docs/data.md", pipeline_table),
    "seeds": ("docs/runs.md", seeds_table),
    "startup": ("docs/performance.md", startup_table),
    "fast": ("README.md", fast_table),
    "peers": ("docs/performance.md", peers_table),
    "changes": ("docs/performance.md", changes_table),
    "tpu-peers": ("docs/performance.md", tpu_peers_table),
    "tpu-variants": ("docs/performance.md", tpu_variants_table),
    "gpu-peers": ("docs/performance.md", scaling_gpu.peers_table),
    "cost": ("docs/performance.md", cost_table),
    "verdicts": ("docs/papers.md", verdicts_table),
    "papers": ("docs/papers.md", papers_section),
    "imported": ("docs/use_pretrained.md", imported_table),
    **{name: ("docs/scaling.md", table) for name, table in scaling.TABLES.items()},
    **{name: ("docs/scaling.md", table) for name, table in scaling_gpu.TABLES.items()},
    **{name: ("docs/runs.md", table) for name, table in shards_tables.TABLES.items()},
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

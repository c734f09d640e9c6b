"""The tables of docs/papers.md, from results/papers/ and the runs in results/cifar10_table6/."""

import statistics
from typing import Any

from table_text import RESULTS, markdown, minutes, read

from resnet_jax.cli.reproduce import SEEDS
from resnet_jax.models.published import PUBLISHED
from resnet_jax.research.catalogue import REPRODUCTIONS
from resnet_jax.research.table6 import planned_runs

_ROW = ("what", "on", "published", "source", "measured", "95 % interval", "accepted", "verdict")


def papers_section() -> str:
    """Each reproduction: its claim, figures, tables, and commands."""
    parts = []
    for name, reproduction in REPRODUCTIONS.items():
        parts += [f"### {name}", "", f"**{reproduction.claim}** ({reproduction.paper})", ""]
        if _has(name, "cifar"):
            parts += _result(name, "cifar")
        if "cpu" in reproduction.runs:
            full = "" if _is_one_size(name) else f" `--size=full`, on CIFAR-10: {_verdict(name)}."
            parts += _result(name, "cpu", after=full)
    return "\n".join(parts).rstrip()


def _result(name: str, size: str, *, after: str = "") -> list[str]:
    """The figure, command and table of a reproduction at a size, as lines."""
    result = read(f"papers/{name}.{size}")
    flag = "" if size == "cpu" else f" --size={size}"
    if len(result["seeds"]) != SEEDS[size]:
        flag += f" --seeds={len(result['seeds'])}"
    if result.get("missing"):
        after += f" Not finished, or without weights: {', '.join(result['missing'])}."
    rows = [
        (
            row["what"],
            row["data"],
            _value(row["published"]),
            row["source"],
            _measured(row),
            " … ".join(map(_value, row["interval"])) if row["interval"] else "–",
            row["accepts"],
            row["verdict"],
        )
        for row in result["rows"]
    ]
    return [
        f"![{REPRODUCTIONS[name].title}]({_figure(name, size)})",
        "",
        f"`resnet-jax reproduce {name}{flag}`: {result['verdict']}, in"
        f" {minutes(result['wall_s'])}.{after}",
        "",
        markdown(_ROW, rows),
        "",
    ]


def verdicts_table() -> str:
    """One line for each reproduction."""
    rows = [
        (
            f"[{name}](#{name})",
            reproduction.claim,
            _verdict(name, "cpu"),
            _verdict(name, "cifar"),
            "as on two cores" if _is_one_size(name) else _verdict(name),
        )
        for name, reproduction in REPRODUCTIONS.items()
    ]
    headings = ("on two cores", "on CIFAR-10, an eighth of the steps", "`--size=full`")
    return markdown(("", "claim", *headings), rows)


def gallery() -> str:
    """The figures, two in a row, each with its claim and verdicts; on CIFAR-10 if there is one."""
    cells = []
    for name, reproduction in REPRODUCTIONS.items():
        if sizes := [size for size in ("cifar", "cpu") if _has(name, size)]:
            shown = f"![{reproduction.title}]({_figure(name, sizes[0])})"
            verdicts = {size: _verdict(name, size) for size in sizes}
            said = verdicts.get("cpu", "")
            if "cifar" in verdicts:
                said = f"on CIFAR-10 {verdicts['cifar']}" + (
                    f"; at the small size {said}" if said else ""
                )
            words = f"**{reproduction.claim}** {reproduction.paper}: {said}."
            cells.append(f"[{shown}](papers.md#{name})<br>{words}")
    if len(cells) % 2:
        cells.append("")
    return markdown(("", ""), zip(cells[::2], cells[1::2], strict=True))


def table6() -> str:
    """Test errors of the finished runs of configs/cifar10_table6.py, and the paper's."""
    finished: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name in planned_runs():
        if (RESULTS / "cifar10_table6" / name / "summary.json").exists():
            summary = read(f"cifar10_table6/{name}/summary")
            finished.setdefault((summary["model"], summary["steps"]), []).append(summary)
    rows = []
    for (model, steps), runs in finished.items():
        errors = [100 * (1 - run["final"]["test"]["top1"]) for run in runs]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        paper = f"{PUBLISHED[model].error:.2f}" if model in PUBLISHED else "figure 6 only"
        error = f"{statistics.fmean(errors):.2f}{spread}"
        rows.append((f"`{model}`", f"{steps:,}", str(len(runs)), error, paper))
    of_all = f"{sum(len(runs) for runs in finished.values())} of {len(planned_runs())} runs"
    headings = ("network", "steps", "n", "test error, %", "the paper's, 64,000 steps")
    return f"{markdown(headings, rows)}\n\n{of_all} are finished."


def _figure(name: str, size: str) -> str:
    return f"figures/papers/{name if size == 'cpu' else f'{name}.{size}'}.png"


def _is_one_size(name: str) -> bool:
    runs = REPRODUCTIONS[name].runs
    return "full" in runs and runs["full"] is runs.get("cpu")


def _has(name: str, size: str) -> bool:
    return (RESULTS / "papers" / f"{name}.{size}.json").exists()


def _verdict(name: str, size: str = "full") -> str:
    if size not in REPRODUCTIONS[name].runs:
        return "–"
    if _has(name, size):
        return str(read(f"papers/{name}.{size}")["verdict"])
    return "open" if size == "cifar" else "not run: budget"


def _measured(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {_value(row['std'])}"
    return _value(row["mean"]) + spread + ("" if row["exact"] else f" (n = {row['n']})")


def _value(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


TABLES = {
    "verdicts": ("docs/papers.md", verdicts_table),
    "table6": ("docs/papers.md", table6),
    "papers": ("docs/papers.md", papers_section),
    "gallery": ("docs/gallery.md", gallery),
}

"""The tables of docs/papers.md, from results/papers/."""

from typing import Any

from table_text import RESULTS, markdown, minutes, read

from resnet_jax.research.catalogue import REPRODUCTIONS

_ROW = ("what", "on", "published", "source", "measured", "95 % interval", "accepted", "verdict")


def papers_section() -> str:
    """Each reproduction: its claim, figure, table, and command."""
    parts = []
    for name, reproduction in REPRODUCTIONS.items():
        result = read(f"papers/{name}.cpu")
        full = "" if _is_one_size(name) else f" `--size=full`, on CIFAR-10: {_full_verdict(name)}."
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
        parts += [
            f"### {name}",
            "",
            f"**{reproduction.claim}** ({reproduction.paper})",
            "",
            f"![{reproduction.title}](figures/papers/{name}.png)",
            "",
            f"`resnet-jax reproduce {name}`: {result['verdict']}, in {minutes(result['wall_s'])}."
            + full,
            "",
            markdown(_ROW, rows),
            "",
        ]
    return "\n".join(parts).rstrip()


def verdicts_table() -> str:
    """One line for each reproduction."""
    rows = [
        (
            f"[{name}](#{name})",
            reproduction.claim,
            read(f"papers/{name}.cpu")["verdict"],
            "the same" if _is_one_size(name) else _full_verdict(name),
        )
        for name, reproduction in REPRODUCTIONS.items()
    ]
    return markdown(("", "claim", "on two cores", "on CIFAR-10"), rows)


def _is_one_size(name: str) -> bool:
    runs = REPRODUCTIONS[name].runs
    return runs["full"] is runs["cpu"]


def _full_verdict(name: str) -> str:
    path = f"papers/{name}.full"
    return read(path)["verdict"] if (RESULTS / f"{path}.json").exists() else "not run: budget"


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
    "papers": ("docs/papers.md", papers_section),
}

"""The tables of docs/reliability.md: faults, tiers of tests, and what grows in a long run."""

import json
import textwrap
from typing import Any

from table_text import markdown, minutes, read

from tests.faults.catalogue import FAULTS


def faults_table() -> str:
    """Every fault of the catalogue: how often tried and survived, and what others do."""
    ours, soak = read("faults")["faults"], read("soak")
    plain = read("faults_plain")["experiments"]
    rows = []
    for fault in FAULTS:
        if fault.fault not in ours:  # newer than the last `make faults`
            rows.append((fault.fault, fault.how, "–", "–", fault.survives, ""))
            continue
        row = dict(ours[fault.fault])
        if fault is FAULTS[0]:  # kills at random times, of which the soak has more
            row["tried"] += soak["kills"]
            row["survived"] += soak["kills"] - len(soak["losses"])
        line = textwrap.shorten(row["saw"], 110, placeholder=" …").replace("|", "\\|")
        rows.append(
            (
                fault.fault,
                fault.how,
                f"{row['tried']:,}",
                f"{row['survived']:,}",
                fault.survives + (f": “{line}”" if line else ""),
                _elsewhere(plain[fault.plain]) if fault.plain else "",
            )
        )
    columns = ("fault", "brought about by", "tried", "survived", "what happens")
    return markdown((*columns, "the same, elsewhere"), rows)


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
    return json.dumps(value).replace("null", "hangs") if isinstance(value, list) else str(value)


def tiers_table() -> str:
    """How long the tests of each tier take."""
    ours, soak = read("faults"), read("soak")
    seconds = ours["seconds"]
    rows = []
    for tier, command, took_s, result in (
        ("everyday tests", "make test", seconds["everyday"], "faults"),
        ("all tests", "make test-all", sum(seconds.values()), "faults"),
        (f"{soak['kills']} kills at random", "make soak", None, "soak"),
    ):
        took = "" if took_s is None else f"{minutes(took_s)} on {ours['cores']} cores"
        file = f"[{result}.json](../benchmarks/results/{result}.json)"
        rows.append((tier, f"`{command}`", took, file))
    return markdown(("tier", "command", "time", "results"), rows)


def long_run_table() -> str:
    """What grows in a long run."""
    result = read("long_run")
    rows = []
    for what, key, form in (
        ("resident memory", "rss_mib", "{:,.0f} MiB"),
        ("open files", "files", "{:.0f}"),
        ("threads", "threads", "{:.0f}"),
        ("time of a step", "step_ms", "{:.1f} ms"),
    ):
        row = result[key]
        ends = form.format(row["begin"]), form.format(row["end"])
        rows.append((what, *ends, f"{row['growth_percent']:+.1f} %"))
    return markdown(("", "after a fifth", "at the end", "growth"), rows)


TABLES = {
    "tiers": ("docs/reliability.md", tiers_table),
    "faults": ("docs/reliability.md", faults_table),
    "long_run": ("docs/reliability.md", long_run_table),
}

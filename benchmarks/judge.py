"""Judge the committed results of reproductions anew, by the rules of this version.

    python benchmarks/judge.py [RESULT.json …] [--ratio WHAT …]

The rows are made again from the measured values, the bounds, and whether the measurement is exact
or a ratio; nothing is measured. The JSON and CSV files are written. "judged_by" in the JSON file
names the command and the commit; "command", "commit" and the other fields still say how the values
were measured. Afterwards `python benchmarks/tables.py` writes docs/papers.md.
"""

import argparse
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from resnet_jax.logging.provenance import provenance
from resnet_jax.research.reproduction import Row, Within, overall
from resnet_jax.research.results import COMMITTED, text_files


def make_row(row: dict[str, Any], *, ratios: Collection[str] = ()) -> Row:
    """The row of a result file.

    Args:
        row: the row as JSON values.
        ratios: the measured quantities (`what`) that are ratios though the row doesn't say so.
    """
    return Row(
        what=row["what"],
        published=row["published"],
        source=row["source"],
        data=row["data"],
        measured=tuple(map(float, row["measured"])),
        accepts=Within(*map(float, row["bounds"])),
        exact=row["exact"],
        ratio=row["ratio"] or row["what"] in ratios,
        images=row["images"],
        planned=row.get("planned"),
        unmeasured="not run: budget" if row["measured"] else row["verdict"],
    )


def judge(
    result: dict[str, Any], judged_by: Mapping[str, Any], *, ratios: Collection[str] = ()
) -> dict[str, Any]:
    """A result with new verdicts, intervals and means; see `make_row`."""
    rows = [make_row(row, ratios=ratios) for row in result["rows"]]
    changed = {
        "verdict": overall([row.verdict for row in rows]),
        "rows": [row.to_json() for row in rows],
    }
    data = {"judged_by": judged_by, "data": result["data"]}
    return {key: value for key, value in result.items() if key != "data"} | changed | data


def main() -> None:
    """Judge files, and print the verdicts that change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="RESULT.json", help="default: all")
    parser.add_argument("--ratio", action="append", default=[], metavar="WHAT")
    args = parser.parse_args()
    paths = args.files or sorted(COMMITTED.glob("*.json"))
    results = {path: json.loads(path.read_bytes()) for path in paths}
    known = {row["what"] for result in results.values() for row in result["rows"]}
    if unknown := {*args.ratio} - known:
        parser.error(f"--ratio {unknown.pop()!r}: no row measures that")
    about = provenance()  # before a file is changed
    judged_by = {key: about[key] for key in ("command", "commit")}
    for path, result in results.items():
        judged = judge(result, judged_by, ratios=args.ratio)
        for old, new in zip(result["rows"], judged["rows"], strict=True):
            if old["verdict"] != new["verdict"]:
                print(f"{path.stem}: {new['what']}: {old['verdict']} → {new['verdict']}")
        for kind, content in text_files(judged).items():
            path.with_suffix(f".{kind}").write_bytes(content)


if __name__ == "__main__":
    main()

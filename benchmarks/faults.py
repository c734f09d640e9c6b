"""Runs all tests, those of every fault in tests/faults/catalogue.py among them, and counts.

python benchmarks/faults.py [--out benchmarks/results/faults.json]
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report import write_report

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.faults.catalogue import FAULTS

ROOT = Path(__file__).resolve().parents[1]

TIERS = {"everyday": "not thorough", "thorough": "thorough"}


def run(tier: str) -> tuple[list[ElementTree.Element], float]:
    """Run the tests of a tier: `make test` runs the everyday ones, `make test-all` both.

    Returns:
        What JUnit's format says of each test, and the seconds that all took.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "--numprocesses=2"]
        command += ["--dist=loadfile", "--no-loadscope-reorder", "-m", TIERS[tier]]
        began = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code not in (0, 1):  # neither passed nor failed
            sys.exit(code)
        return list(ElementTree.parse(report).iter("testcase")), time.monotonic() - began


def counted(cases: list[ElementTree.Element], tests: tuple[str, ...]) -> dict[str, Any]:
    """How often a fault was tried and survived, tests skipped, and what the user saw first."""
    tried = survived = skipped = 0
    saw = ""
    for case in cases:
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        function = case.attrib["name"].partition("[")[0]
        if not {file, f"{file}::{function}"} & set(tests):
            continue
        if case.find("skipped") is not None:
            skipped += 1
            continue
        recorded = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        times = int(recorded.get("tries", 1))
        tried += times
        survived += times if case.find("failure") is None and case.find("error") is None else 0
        saw = saw or re.sub(r"/\S*/", "…/", recorded.get("saw", ""))  # no folders of this machine
    return {"tried": tried, "survived": survived, "skipped": skipped, "saw": saw}


def main() -> int:
    """Run all, write the counts; exits with 1 if anything wasn't survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    out = parser.parse_args().out
    cases: list[ElementTree.Element] = []
    seconds: dict[str, int] = {}
    for tier in TIERS:
        found, taken = run(tier)
        cases += found
        seconds[tier] = round(taken)
        faults = {fault.fault: counted(cases, fault.tests) for fault in FAULTS}
        write_report(out, {"seconds": seconds, "tests": len(cases), "faults": faults})
    lost = [name for name, row in faults.items() if not row["tried"] == row["survived"] > 0]
    for name in lost:
        print(f"not survived, or not tried: {name}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

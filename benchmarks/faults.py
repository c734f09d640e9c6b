"""Runs the tests of every fault in tests/faults/catalogue.py, and counts what was survived.

python benchmarks/faults.py [--out benchmarks/results/faults.json]
"""

import argparse
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

TIERS = {"every commit": "not thorough", "thorough": "thorough"}


def run(tier: str) -> tuple[list[ElementTree.Element], float]:
    """Run a tier's tests of all faults.

    Returns:
        What JUnit's format says of each test, and the seconds that all took.
    """
    tests = sorted({f"tests/{test}" for fault in FAULTS for test in fault.tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", TIERS[tier], f"--junitxml={report}"]
        command += ["--numprocesses=2", "--dist=loadfile", *tests]
        began = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code not in (0, 1):  # neither passed nor failed
            sys.exit(code)
        return list(ElementTree.parse(report).iter("testcase")), time.monotonic() - began


def counted(cases: list[ElementTree.Element], tests: tuple[str, ...]) -> dict[str, Any]:
    """How often a fault was tried and survived, and what the user saw the first time."""
    tried = survived = 0
    saw = ""
    for case in cases:
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        function = case.attrib["name"].partition("[")[0]
        if not {file, f"{file}::{function}"} & set(tests) or case.find("skipped") is not None:
            continue
        recorded = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        times = int(recorded.get("tries", 1))
        tried += times
        survived += times if case.find("failure") is None and case.find("error") is None else 0
        saw = saw or recorded.get("saw", "")
    return {"tried": tried, "survived": survived, "saw": saw}


def main() -> int:
    """Run all, write the counts; exits with 1 if anything wasn't survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    out = parser.parse_args().out
    done = {tier: run(tier) for tier in TIERS}
    cases = [case for each, _ in done.values() for case in each]
    faults = {fault.fault: counted(cases, fault.tests) for fault in FAULTS}
    seconds = {tier: round(taken) for tier, (_, taken) in done.items()}
    write_report(out, {"seconds": seconds, "faults": faults})
    lost = [name for name, row in faults.items() if not row["tried"] == row["survived"] > 0]
    for name in lost:
        print(f"not survived, or not tried: {name}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

"""Thousands of damaged inputs, read in a process of its own whose memory is limited.

    python -m tests.faults.fuzz TARGET CASES [FOLDER]

TARGET is configs, images, datasets or checkpoints. Cases follow from their number alone. Writes a
JSON object as the last line.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.fuzz_weights import peak_mib
from tests.faults.mutate import Record

CASES = 2000
_ROOT = Path(__file__).parents[2]


def outcome(target: str, folder: Path) -> dict[str, Any]:
    """What came out of all cases, checked for what holds of any target."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", target, str(CASES), folder],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
        cwd=_ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == [], result["wrong"]
    assert result["accepted"] + result["refused"] == CASES
    assert result["slowest_s"] < 2, result
    assert result["peak_mib"] < 500, result
    return result


def main(target: str, cases: int, folder: Path) -> dict[str, object]:
    """Try all cases; says what came out of them."""
    module = importlib.import_module(f"tests.faults.fuzz_{target}")
    limit = 6 * 2**30  # of addresses, of which libraries reserve much; memory is counted below
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    record, begin = Record(), time.process_time()
    more = module.main(record, cases, folder) or {}
    return {
        **record.summary(),
        **more,
        "peak_mib": peak_mib(),
        "cpu_s": time.process_time() - begin,
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))

"""The last slice of a run by an older version, trained again by that version and by the present.

    python benchmarks/verify_older.py WORKDIR CHECKOUT

WORKDIR is the run, whose checkpoints have checksums but no digests, and don't record what computed
them; it is only read. CHECKOUT is the version that trained it, with the library of convolutions
that it used. $TFDS_DATA_DIR is the folder of the prepared data.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import write_report
from verify import ROOT, verify

from resnet_jax.checkpoint.reader import CheckpointReader
from resnet_jax.logging.metrics_log import read_metrics
from resnet_jax.verification.compare import first_array_difference, first_record_difference
from tests.verification.runs import forge_bit

# `from_json` has moved since.
_TRAIN = """
import sys
from pathlib import Path
import resnet_jax
from resnet_jax.train.config import from_json
run = Path(sys.argv[1])
resnet_jax.fit(from_json((run / "config.json").read_text()), run)
"""


def train_again(source: Path, checkout: Path, run: Path) -> None:
    """Train from the last checkpoint but one to the end by the code of the checkout."""
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(source / name, run)
    first = steps_of(source)[-2]
    shutil.copytree(source / "checkpoints" / str(first), run / "checkpoints" / str(first))
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    environment.pop("RESNET_JAX_NATIVE", None)  # the checkout has a library of its own
    command = [sys.executable, "-c", _TRAIN, str(run)]
    subprocess.run(command, cwd=checkout, env=environment, check=True)


def steps_of(run: Path) -> list[int]:
    """The steps of the checkpoints."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def compare(recorded: Path, replayed: Path) -> dict[str, Any]:
    """The first differences of the records and of the arrays of the last step."""
    last = steps_of(recorded)[-1]
    with_names = CheckpointReader(recorded / "checkpoints")
    names = with_names.manifest(last)["checksums"]
    with_names.close()
    first = steps_of(recorded)[-2]  # lines up to its step were copied, not written again
    lines = [
        [line for line in read_metrics(run / "metrics.jsonl") if line["step"] > first]
        for run in (recorded, replayed)
    ]
    states = [run / "checkpoints" / str(last) / "state" for run in (recorded, replayed)]
    found = (first_record_difference(*lines), first_array_difference(last, names, *states))
    return {
        "arrays": len(names),
        "records": len(lines[0]),
        "differences": [dataclasses.asdict(one) for one in found if one],
    }


def main() -> int:
    """Replay, forge, compare, write the result; exit with 1 if a difference isn't found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("checkout", type=Path)
    out = ROOT / "benchmarks/results/verify_older.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    summary = json.loads((args.workdir / "summary.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        intact, forged, replayed = (folder / name for name in ("intact", "forged", "replayed"))
        for copy in (intact, forged):
            shutil.copytree(args.workdir, copy)
        forge_bit(forged, steps_of(forged)[-1])
        train_again(args.workdir, args.checkout, replayed)
        by_its_version = {
            "intact": compare(intact, replayed),
            "forged": compare(forged, replayed),
        }
        print(json.dumps(by_its_version), flush=True)
        by_present = verify(intact, "1")
        steps = steps_of(intact)
    results = {
        "run": {
            name: summary[name] for name in ("model", "seed", "commit", "versions", "hardware")
        },
        "slice": steps[-2:],
        "by_its_version": by_its_version,
        "by_present": by_present,
    }
    write_report(args.out, results)
    found = [bool(one["differences"]) for one in by_its_version.values()]
    return int(found != [False, True])


if __name__ == "__main__":
    sys.exit(main())

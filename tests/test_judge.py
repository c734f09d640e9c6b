"""benchmarks/judge.py: committed results judged anew."""

import json
import sys
from pathlib import Path

import pytest

from resnet_jax.research.results import COMMITTED

ROUNDED = {"mean", "std", "interval", "sampling_error"}  # otherwise by other versions of SciPy
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import judge

    yield judge
    sys.modules.pop("judge", None)


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_judged_by_the_rules_of_this_version(judge, path):
    result = json.loads(path.read_text())
    again = judge.judge(result, {"command": "a", "commit": "b"})
    assert again.pop("judged_by") == {"command": "a", "commit": "b"}
    result.pop("judged_by", None)
    for new, old in zip(again.pop("rows"), result.pop("rows"), strict=True):
        for name, value in new.items():
            is_close = name in ROUNDED and not isinstance(value, str | None)
            assert old[name] == (pytest.approx(value, rel=1e-9) if is_close else value), name
    assert again == result


def test_rows_are_judged_as_ratios_on_request(judge, tmp_path, monkeypatch):
    result = json.loads((COMMITTED / "he2015-fig7.cpu.json").read_text())
    [row] = result["rows"]
    row |= {"measured": [100.0, 1_000.0, 10_000.0], "ratio": False, "verdict": "undecided"}
    path = tmp_path / "he2015-fig7.cpu.json"
    path.write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["judge.py", str(path), "--ratio", row["what"]])
    judge.main()
    judged = json.loads(path.read_text())
    assert judged["verdict"] == judged["rows"][0]["verdict"] == "reproduced"
    assert judged["rows"][0]["mean"] == pytest.approx(1_000.0)
    assert "commit" in judged["judged_by"]
    assert judged["commit"] == result["commit"]
    assert path.with_suffix(".csv").read_text().splitlines()[1].endswith("≥ 1,reproduced")
    monkeypatch.setattr(sys, "argv", ["judge.py", str(path), "--ratio", "no such row"])
    with pytest.raises(SystemExit):
        judge.main()

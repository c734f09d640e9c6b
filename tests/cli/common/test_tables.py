"""No cell of a table is cut, however narrow the terminal is, and in pipes and logs."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from resnet_jax.cli import bench, compare, evaluate, main, reproduce, summary, sweep
from resnet_jax.cli import compile as compile_
from resnet_jax.cli.common.tables import Table
from resnet_jax.research import results
from resnet_jax.research.catalogue import REPRODUCTIONS

ROOT = Path(__file__).parents[3]
LONG = "model.stage_sizes=3-3-3,model.shortcut=none,optimizer.name=sgd"


def _shown(what, width=None):
    """What is printed on a terminal of this width; None is a pipe, where Rich assumes 80."""
    output = io.StringIO()
    terminal = width is not None
    console = Console(
        file=output,
        width=width or 80,
        force_terminal=terminal,
        no_color=True,
        highlight=False,
        soft_wrap=True,
    )
    what(console)
    return re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())


def _columns(text):
    """What stands in each column of a table, from top to bottom, without spaces."""
    lines = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    cells = [re.split("[│┃]", line)[1:-1] for line in lines]
    return ["".join("".join(column).split()) for column in zip(*cells, strict=True)]


def _table(console):
    table = Table("run", title="scores [of] runs")
    table.add_column("artefact", no_wrap=True)
    table.add_column("test error", justify="right")
    for number in range(3):
        table.add_row(f"{LONG},seed={number}", f"he2016-table{number}", "2.59 ± 0.16")
    table.add_row("[a] in brackets", "he2015-fig6", "4.427e-05")
    console.print(table)


@pytest.mark.parametrize("width", [None, 200, 80, 60, 40, 10])
def test_every_cell_is_there_in_full(width):
    text = _shown(_table, width)
    runs = "".join(f"{LONG},seed={number}" for number in range(3))
    assert _columns(text) == [
        f"run{runs}[a]inbrackets",
        "artefacthe2016-table0he2016-table1he2016-table2he2015-fig6",
        "testerror" + 3 * "2.59±0.16" + "4.427e-05",
    ]
    assert "…" not in text
    assert "scores [of] runs" in text
    for whole in ("he2016-table1", "2.59 ± 0.16", "4.427e-05"):
        assert whole in text
    widest = max(map(cell_len, text.splitlines()))
    if width is None or width == 200:
        assert f" {LONG},seed=1 " in text
    elif width >= 60:
        assert widest <= width
    else:
        assert widest == 16 + 13 + 11 + 10  # no narrower, so that the terminal folds the lines


def test_text_folds_between_words_before_it_does_within_them():
    def show(console):
        table = Table("words", "more")
        table.add_row("residual networks learn faster", "plain networks learn slowly")
        console.print(table)

    text = _shown(show, 30)
    assert max(map(cell_len, text.splitlines())) <= 30
    for word in ("residual", "networks", "faster", "slowly"):
        assert re.search(rf"[ │]{word}[ │]", text), text


SCORES = {"top1": {"mean": 0.5 + 1 / 3e5, "std": 0.0123}, "sampling_error": 0.0045}
GROUP = {"label": LONG, "seeds": [0, 1], "versus": None}
GROUP |= {"scores": {"test": SCORES, "validation": SCORES}}
DOCUMENTS = {
    "sweep": (
        sweep,
        {
            "groups": [GROUP | {"params": 25_557_032, "wall_s": 123_456.0}] * 6,
            "runs": [LONG],
            "finished": 1,
            "failed": {},
            "files": ["sweep.csv"],
        },
    ),
    "compare": (
        compare,
        {
            "lines": [
                GROUP
                | {"model": "resnet110_sd", "steps": 64_000, "finished": False}
                | {"train_loss": {"mean": 0.0314, "std": 0.002}, "differs": {}}
            ],
            "files": ["compare.png"],
        },
    ),
    "eval": (
        evaluate,
        {
            "classes": [
                {"class": LONG, "examples": 10, "correct": 1, "recall": 0.1, "precision": None}
            ],
            "split": "test",
            "weights": "w",
            "data": "cifar10",
            "mirrored": False,
            "top1": 0.1,
            "top5": 0.2,
            "loss": 0.3,
            "examples": 10,
        },
    ),
    "reproduce": (
        reproduce,
        {
            "results": [
                json.loads(path.read_text()) | {"files": ["a.json"]}
                for path in sorted(results.COMMITTED.glob("*.json"))
            ]
        },
    ),
    "reproduce --list": (
        reproduce,
        {"artefacts": results.list_verdicts(REPRODUCTIONS, Path("no such folder"))},
    ),
}


@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_cut_nothing(name, width):
    module, document = DOCUMENTS[name]
    text = _shown(lambda console: module.show(document, console), width)
    rows = [row for result in document.get("results", ()) for row in result["rows"]]
    legitimate = json.dumps(document, ensure_ascii=False).count("…")  # ranges: "4 … 30"
    legitimate += sum(bool(row.get("interval")) for row in rows)
    assert text.count("…") <= legitimate
    whole = _shown(lambda console: module.show(document, console))
    assert _letters(text) == _letters(whole)


def _letters(text):
    return sorted(re.findall(r"\w", text))


@pytest.mark.parametrize("module", [bench, compare, compile_, evaluate, reproduce, summary, sweep])
def test_commands_make_their_tables_here(module):
    assert module.Table is Table


def test_no_other_module_of_the_command_line_makes_a_table():
    for path in Path(main.__file__).parent.glob("*.py"):
        assert path.name == "tables.py" or "rich.table" not in path.read_text(), path

"""README and docs say only what is so."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import resnet_jax
from resnet_jax.cli.main import main
from tests.faults.catalogue import FAULTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_in_the_readme_are_those_of_the_result_files():
    tables = _tables()
    assert tables.results_table() in README


@pytest.mark.parametrize("table", [name for name in _tables().TABLES if name != "results"])
def test_the_tables_of_the_docs_are_generated(table):
    path, text, rendered = _tables().render(table)
    assert rendered == text, f"{path.name} is old: python benchmarks/tables.py"


def test_the_readme_counts_the_models():
    assert f"{len(resnet_jax.list_models())} networks" in README


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").rglob("summary.json")))
def test_every_result_names_how_it_came_about(path):
    summary = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{40}", summary["commit"])  # and no uncommitted changes
    assert re.match(
        r"python (train\.py --config=configs/|\S*resnet-jax sweep --config=)", summary["command"]
    )
    assert summary["versions"]["jax"]
    assert summary["hardware"]["cpu"]
    seeds = summary["seeds"] if "seeds" in summary else [summary["seed"]]
    assert seeds
    assert all(isinstance(seed, int) for seed in seeds)
    last = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "test"


def test_the_promised_results_were_reached():
    results = ROOT / "benchmarks" / "results"
    digits = [
        json.loads((results / f"digits/seed{seed}/summary.json").read_text()) for seed in range(3)
    ]
    assert sorted(run["final"]["test"]["top1"] for run in digits)[1] >= 0.983
    cifar = json.loads((results / "cifar10_resnet20_cpu/summary.json").read_text())
    assert cifar["final"]["test"]["top1"] >= 0.89
    assert cifar["final"]["test"]["examples"] == 10_000
    assert cifar["wall_s"] <= 45 * 60


def test_the_sweep_on_digits_came_to_what_its_config_says():
    results = json.loads((ROOT / "benchmarks/results/digits_sweep/sweep.json").read_text())
    (made_by,) = results["made_by"]
    assert re.fullmatch(r"[0-9a-f]{40}", made_by["commit"])
    said = " ".join((ROOT / "configs" / "digits_sweep.py").read_text().split())
    for kind in ("residual", "plain", "highway"):
        groups = [group for group in results["groups"] if group["label"].startswith(kind)]
        scores = [group["scores"]["test"]["top1"] for group in groups]
        shown = [f"{100 * (1 - one['mean']):.2f} ± {100 * one['std']:.2f}" for one in scores]
        assert len(shown) == 3
        assert ", ".join(shown) in said


def test_fashion_mnist_came_to_what_its_config_says():
    path = ROOT / "benchmarks/results/fashion_mnist/summary.json"
    run = json.loads(path.read_text())
    test = run["final"]["test"]
    assert (run["seeds"], test["examples"]) == ([0, 1, 2], 10_000)
    said = " ".join((ROOT / "configs" / "fashion_mnist.py").read_text().split())
    assert f"{100 * (1 - test['top1']):.2f} ± {100 * test['std']['top1']:.2f}" in said


_PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", _PAGES)
def test_links_and_named_tests_exist(page):
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), f"{target}#{anchor}"
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), test


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == resnet_jax.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_picture_of_a_diagram_is_drawn_of_its_text():
    """The site shows it in place of the diagram: website/draw_diagram.py."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    digest = hashlib.sha256(diagram.encode()).hexdigest()[:16]
    picture = (ROOT / "docs" / "figures" / "architecture.svg").read_text()
    assert picture.startswith(f"<!-- diagram {digest} -->")


def test_the_tests_of_every_fault_exist():
    for fault in FAULTS:
        for test in fault.tests:
            file, _, function = test.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert (f"def {function}(" if function else "def test_") in text, test


def test_the_python_of_the_readme_runs():
    """Traced, with a small image and the network's depth as it is."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    code = code.replace("(224, 224, 3)", "(32, 32, 3)")
    names = {"images": jnp.zeros((2, 32, 32, 3))}
    jax.eval_shape(lambda: exec(code, names))
    assert names["logits"].shape == (2, 1000)
    assert set(names["taps"]) >= {"stem", "stage1", "pooled", "logits"}


def test_the_network_of_the_readme_has_what_is_shown():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    code = re.sub(r"\n.*restore_run.*", "", code)
    names = {"images": [np.zeros((32, 32, 3), np.uint8)], "resnet_jax": resnet_jax}
    exec(code, names)
    assert names["probabilities"].shape == (1, 10)
    assert names["network"].class_names[0] == "airplane"


@pytest.mark.parametrize("command", ["summary", "eval", "predict", "compile", "convert"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"example: resnet-jax {command}" in capsys.readouterr().out


def test_the_status_in_the_docs_is_that_of_the_command(capsys, monkeypatch):
    text = (ROOT / "docs" / "watching.md").read_text()
    shown = re.search(r"\$ resnet-jax status (\S+)\n(.*?)\nlast log line", text, re.DOTALL)
    workdir, lines = shown.groups()
    monkeypatch.chdir(ROOT)
    assert main(["status", workdir]) == 0
    assert capsys.readouterr().out.startswith(lines)

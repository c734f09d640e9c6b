"""README and docs say only what is so."""

import hashlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import resnet_jax
from resnet_jax.cli.main import _SUBCOMMANDS, _make_parser, main
from resnet_jax.config.schema import default_config, flatten, validate
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
    assert cifar["final"]["test"]["examples"] == 10_000
    said = " ".join((ROOT / "configs" / "cifar10.py").read_text().split())
    top1, minutes = 100 * cifar["final"]["test"]["top1"], cifar["wall_s"] / 60
    assert f"{top1:.1f} % of the 10,000 test images (seed 0) in {minutes:.0f} minutes" in said
    full = json.loads((results / "cifar10_table6/resnet20_full_seed0/summary.json").read_text())
    error = 100 * (1 - full["final"]["test"]["top1"])
    for file in ("cifar10.py", "cifar10_table6.py"):
        text = (ROOT / "configs" / file).read_text()
        assert f"{error:.2f} % for" in " ".join(text.split())
    assert f"{100 - error:.2f} %" in README
    said = " ".join((ROOT / "configs" / "cifar10_table6.py").read_text().split())
    names = {
        "resnet20": "ResNet-20",
        "plain20": "plain-20",
        "resnet56": "ResNet-56",
        "plain56": "plain-56",
    }
    for name, shown in names.items():
        runs = sorted(results.glob(f"cifar10_table6/{name}_eighth_seed*/summary.json"))
        scores = [json.loads(path.read_text())["final"]["test"]["top1"] for path in runs]
        assert len(scores) == 3
        assert f"{100 * (1 - np.mean(scores)):.2f} % for {shown}" in said


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


def _words(command: str) -> list[str]:
    """The words of a command, up to a redirection, a pipe or the next command."""
    return shlex.split(re.split(r"[>|;&)]", command)[0], comments=True)


def _commands(page: str) -> list[list[str]]:
    """The words after `resnet-jax` of each command in the code of a page."""
    code = re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*resnet-jax ([a-z].*)", line) for line in lines]
    return [_words(command[1]) for command in found if command]


def _check_command(words: list[str]) -> None:
    """Check that a command line has a subcommand, flags and config fields that exist."""
    _, rest = _make_parser().parse_known_args(words)
    fields = [re.match(r"--(?:no)?config\.([\w.]+)", word) for word in rest]
    assert all(fields), rest
    assert {field[1] for field in fields} <= set(flatten(default_config()))


@pytest.mark.parametrize("page", _PAGES)
def test_the_commands_of_a_page_can_be_parsed(page):
    for words in _commands(page):
        _check_command(words)


def test_the_pages_have_commands():
    assert sum(len(_commands(page)) for page in _PAGES) > 40


@pytest.mark.parametrize("name", list(_SUBCOMMANDS))
def test_help_shows_an_example_that_can_be_parsed(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    assert "example: " in capsys.readouterr().out
    commands = _SUBCOMMANDS[name].EXAMPLE.split(", or ")
    for command in commands:
        words = _words(command.partition("resnet-jax ")[2])
        assert words[0] == name
        _check_command(words)


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


def test_the_config_of_the_readme_is_valid():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[2].partition("result = ")[0]
    names = {"resnet_jax": resnet_jax}
    exec(code, names)
    validate(names["config"])


def test_the_status_in_the_docs_is_that_of_the_command(capsys, monkeypatch):
    text = (ROOT / "docs" / "watching.md").read_text()
    shown = re.search(r"\$ resnet-jax status (\S+)\n(.*?)\nlast log line", text, re.DOTALL)
    workdir, lines = shown.groups()
    monkeypatch.chdir(ROOT)
    assert main(["status", workdir]) == 0
    assert capsys.readouterr().out.startswith(lines)

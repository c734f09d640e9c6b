"""The notebooks run from the first cell to the last, and their stored outputs are fit to be shown.

UPDATE_GOLDEN=1 make test FLAGS="-m '' tests/test_notebooks.py" stores the outputs anew.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes of a file
# Folders of a machine, and addresses of registries and hosts.
PRIVATE = re.compile(r"(?<![\w.])/(home|root|tmp|usr|work|opt|var|Users)/|[A-Z]:\\|site-packages")


def _source(cell):
    return "".join(cell["source"])


def _texts(output):
    """The text of an output; pictures have none."""
    if output["output_type"] == "stream":
        yield "".join(output["text"])
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield "".join(content)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_whole_small_and_names_no_machine(path):
    assert path.stat().st_size < LARGEST
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert "%pip install" in _source(code[0])
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs) or "pod" in path.stem
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]
        for text in _texts(output):
            assert not PRIVATE.search(text), text
            assert "\x1b" not in text


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["ablation", "finetune_photos", "laptop_to_pod"]


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_an_empty_folder(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    folder = tmp_path / "notebook"
    folder.mkdir()
    scripts = str(Path(sys.executable).parent)  # where the command resnet-jax is
    environment = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "100",
        "TERM": "dumb",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1800,  # for a cell
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()  # raises the error of a cell
    outputs = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"}
    said = "".join(text for each in outputs.values() for one in each for text in _texts(one))
    assert not PRIVATE.search(said), said
    assert EXPECTED[path.stem].search(said), said
    if os.environ.get("UPDATE_GOLDEN"):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = _tidy(cell.outputs)
        nbformat.write(notebook, path)


def _tidy(outputs):
    """Outputs without control sequences, those that follow each other on a stream joined."""
    tidied = []
    for output in outputs:
        if output["output_type"] != "stream":
            tidied.append(output)
            continue
        output["text"] = re.sub(r"\x1b\[[0-9;]*m", "", "".join(output["text"]))
        if tidied and tidied[-1].get("name") == output["name"]:
            tidied[-1]["text"] += output["text"]
        else:
            tidied.append(output)
    return tidied


# What only a run whose cells did their work says.
EXPECTED = {
    "ablation": re.compile(r"plain +20 layers: test error( +\d+\.\d\d){3} %"),
    "finetune_photos": re.compile(r"top-1 (8[5-9]\.\d|9\d\.\d|100\.0)%, mean confidence 0\.[6-9]"),
    "laptop_to_pod": re.compile(r"The states have the same bits: True"),
}

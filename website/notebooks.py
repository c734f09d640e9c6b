"""Notebooks as pages of the site: their text, code, and stored output."""

import json
from pathlib import Path
from typing import Any


def to_markdown(path: Path) -> str:
    """The Markdown of a notebook, with pictures inside."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(_fenced("python", source))
            parts += [text for output in cell["outputs"] if (text := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """An output of a cell: a picture, or else its text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join("".join(data["image/png"]).split())
        return f"![Output](data:image/png;base64,{picture})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return _fenced("text", text.rstrip()) if text.strip() else ""


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text}\n````"

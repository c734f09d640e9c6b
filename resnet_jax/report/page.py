"""The page as one file: template, style, script and data together.

Browsers run no other script on the page and load nothing from anywhere: the page's content security
policy names the hashes of its style and script, and forbids all else but embedded images. The data
are one JSON block; the script writes them into the page as text, never as HTML.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import string
from collections.abc import Mapping
from typing import Any

_SCRIPTS = ("elements.js", "chart.js", "curves.js", "scores.js", "details.js", "main.js")
_STYLE = "style.css"
_PAGE = "index.html"


def render_page(document: Mapping[str, Any]) -> str:
    """The HTML page of a document of `report_document`."""
    style, script = _read(_STYLE), "".join(map(_read, _SCRIPTS))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none';"
        f" style-src {_hash(style)}; script-src {_hash(script)}"
    )
    return string.Template(_read(_PAGE)).substitute(
        policy=policy,
        title=html.escape(document["title"]),
        style=style,
        script=script,
        data=embedded_json(document),
    )


def embedded_json(document: Mapping[str, Any]) -> str:
    """The document as JSON that can't end the element in which it stands."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(name: str) -> str:
    files = importlib.resources.files("resnet_jax.report").joinpath("template")
    return files.joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source expression of an inline element in a content security policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"

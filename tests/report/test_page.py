"""The page holds data that can neither become markup nor load anything."""

import base64
import hashlib
import json
import re

import pytest

from resnet_jax.report.page import embedded_json, render_page
from resnet_jax.research.figures import COLORS
from tests.report.pages import Page

_HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror='alert(2)'> <!-- & \u2028 $title ${x}"
)


def _document(**fields):
    empty = {"notes": [], "lines": [], "grid": [], "fields": [], "made_by": [], "times": []}
    return {"title": "a run", "dates": None, "shown": {}} | empty | fields


def test_the_json_block_is_the_document():
    document = _document(title=_HOSTILE, notes=[_HOSTILE, "é", "\udcff"])
    page = Page(render_page(document))
    assert page.data == document
    assert json.loads(embedded_json(document)) == document


def test_texts_of_runs_are_no_markup():
    harmless, hostile = (render_page(_document(title=t, notes=[t])) for t in ("x", _HOSTILE))
    assert [tag for tag, _ in Page(hostile).tags] == [tag for tag, _ in Page(harmless).tags]
    assert [a for _, a in Page(hostile).tags] == [a for _, a in Page(harmless).tags]
    assert "".join(Page(hostile).all("title")) == _HOSTILE
    assert "".join(Page(hostile).all("h1")) == _HOSTILE


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_no_other():
    page = Page(render_page(_document()))
    (policy,) = [a["content"] for tag, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind, text in (("style", page.all("style")[0]), ("script", page.all("script")[1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert re.findall(rf"{kind}-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_nothing_on_the_page_is_elsewhere():
    text = render_page(_document())
    links = re.findall(r"https?://[^\s\"'<]+|url\([^)]*\)|@import", text)
    assert {*links} <= {"http://www.w3.org/2000/svg", "url(#${id})"}  # the name of SVG; clip paths
    assert not [a for _, a in Page(text).tags if {"src", "href"} & {*a}]
    assert "innerHTML" not in text


def test_the_template_leaves_nothing_open():
    text = render_page(_document())
    assert not re.search(r"\$(policy|title|style|script|data)\b", text)
    for tag in ("html", "head", "body", "header", "main", "section", "style", "script", "nav"):
        opened = [name for name, _ in Page(text).tags if name == tag]
        assert opened
        assert len(opened) == text.count(f"</{tag}>")


def test_numbers_that_json_lacks_are_an_error_not_a_broken_page():
    with pytest.raises(ValueError, match="JSON"):
        render_page(_document(times=[float("nan")]))


def test_the_colours_are_those_of_the_figures():
    light = re.findall(r"--c\d: (#\w+);", Page(render_page(_document())).all("style")[0])
    assert tuple(light[: len(COLORS)]) == COLORS
    assert tuple(light[-len(COLORS) :]) == COLORS  # on paper

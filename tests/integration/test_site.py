"""The site of `make docs`: whole, self-contained, and usable from a folder without a server."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest

import resnet_jax
from resnet_jax.cli.main import _SUBCOMMANDS
from tests.runs import ROOT


def _module(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "website" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check_links():
    return _module("check_links").check


def test_a_notebook_is_a_page_with_its_output(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["x = 1\n", "x"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["1"]}},
                {
                    "output_type": "display_data",
                    "data": {"image/png": "iVBO\nRw0=\n", "text/plain": ["<Figure>"]},
                },
            ],
        },
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert _module("notebooks").to_markdown(tmp_path / "n.ipynb") == (
        "# Title\nText.\n\n````python\nx = 1\nx\n````\n\n````text\none\ntwo\n````\n\n"
        "````text\n1\n````\n\n![Output](data:image/png;base64,iVBORw0=)\n"
    )


def test_what_is_wrong_with_links_is_found(check_links, tmp_path):
    (tmp_path / "good.html").write_text(
        '<h1 id="top">Good</h1><a href="#top">a</a><a href="sub/bad.html#here">b</a>'
        '<a href="https://example.com/page">c</a><a href="/good.html">d</a>'
    )
    assert check_links(tmp_path)[0] == ["good.html: sub/bad.html#here doesn't exist"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.html").write_text(
        '<p id="here"></p><a href="../good.html#bottom">a</a><img src="none.png">'
        '<a href="../sub">b</a><script src="https://example.com/x.js"></script>'
    )
    wrong, checked = check_links(tmp_path)
    assert checked == 8
    assert wrong == [
        "sub/bad.html: ../good.html#bottom has no such heading",
        "sub/bad.html: ../sub is a folder",
        "sub/bad.html: none.png doesn't exist",
        "sub/bad.html loads https://example.com/x.js",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", f"--site-dir={folder}"]
    command.append(f"--config-file={ROOT / 'website' / 'mkdocs.yml'}")
    subprocess.run(command, check=True)
    return folder


@pytest.mark.thorough
def test_every_link_of_the_site_leads_somewhere(site, check_links):
    wrong, checked = check_links(site)
    assert wrong == []
    assert checked > 1000


@pytest.mark.thorough
def test_the_reference_has_every_public_name_and_every_subcommand(site):
    reference = (site / "api.html").read_text()
    for name in resnet_jax.__all__:
        assert re.search(rf'id="resnet_jax\.[\w.]*\b{name}"', reference), name
    commands = (site / "command_line.html").read_text()
    for name in _SUBCOMMANDS:
        assert f'id="resnet-jax-{name}"' in commands


@pytest.fixture
def page(site):
    """A page of the site in Chromium, opened as a file."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=300_000
        )
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.set_default_timeout(300_000)
        opened.remote = []
        opened.on("request", lambda sent: opened.remote.append(sent.url))
        opened.goto((site / "models.html").as_uri())
        yield opened
        assert all(url.startswith("file:") for url in opened.remote)
        browser.close()


@pytest.mark.thorough
def test_the_table_of_models_sorts_and_filters(page):
    table = page.locator("table", has_text="published top-1 error")
    page.wait_for_selector(".table-filter")
    names = table.locator("tbody tr:visible td:first-child")
    assert names.count() == len(resnet_jax.list_models())
    page.locator(".table-filter input").fill("resnet1 cifar")
    assert set(names.all_inner_texts()) < set(resnet_jax.list_models("*resnet1*"))
    page.locator(".table-filter input").fill("plain")
    assert set(names.all_inner_texts()) == set(resnet_jax.list_models("plain*"))
    numbers = table.locator("tbody tr:visible td:nth-child(2)")
    for ascending in (True, False):
        table.locator("th").nth(1).click()
        found = [int(text.replace(",", "")) for text in numbers.all_inner_texts()]
        assert found == sorted(found, reverse=not ascending)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.thorough
def test_the_search_works_without_a_server(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("input.md-search__input").click()
    page.keyboard.type("stochastic depth")
    page.wait_for_selector(".md-search-result__item")
    assert "matching" in page.locator(".md-search-result__meta").inner_text()

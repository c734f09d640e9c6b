"""The page of a report in Chromium: it renders, filters, sorts and zooms, and loads nothing.

Skipped without Playwright (the extra [browser]) or without Debian's Chromium.
"""

import json
import re
import shutil

import numpy as np
import pytest

from resnet_jax.report.document import report_document
from resnet_jax.report.examples import confident_mistakes, confusions
from resnet_jax.report.page import render_page
from resnet_jax.research.compare import find_runs
from tests.research.fake_run import write_run

sync_api = pytest.importorskip("playwright.sync_api")
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(_CHROMIUM is None, reason="there is no Chromium"),
]
TIMEOUT_MS = 300_000
_HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM, args=["--no-sandbox"], timeout=TIMEOUT_MS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A sweep of four lines of three seeds, and one of a hostile name, with all sections."""
    folder = tmp_path_factory.mktemp("page") / "sweep"
    for width in (8, 32):
        for order, tops in (("v1", (0.80, 0.82, 0.85)), ("preact", (0.90, 0.91, 0.93))):
            for seed, top1 in enumerate(tops):
                name = f"width={width},order={order},seed={seed}"
                fields = {"model__width": width, "model__order": order, "seed": seed}
                run = write_run(folder / name, top1=top1 + width / 1000, **fields)
                goodput = {"goodput": 0.9, "restarts": 0, "seconds": {"step": 9.0, _HOSTILE: 1.0}}
                (run / "goodput.json").write_text(json.dumps(goodput))
    write_run(folder / _HOSTILE, top1=0.5, model__name="resnet8", init_from=_HOSTILE)
    document = report_document(find_runs([folder]), mistakes=0)
    names = ("cat", _HOSTILE, "owl")
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    labels = np.arange(60) % 3
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    images = np.random.default_rng(1).integers(0, 256, (60, 8, 8, 1), np.uint8)
    document["lines"][0]["examined"] = {
        "split": "test",
        "networks": 1,
        "examples": 60,
        **confusions(confusion, names),
        "mistakes": confident_mistakes(probabilities, images, labels, names, most=12),
    }
    path = folder.parent / "report.html"
    path.write_text(render_page(document))
    return path


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(request, browser, page_file):
    """The page, after which nothing was requested, no script failed, and nothing was injected."""
    width, height, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(TIMEOUT_MS)
    requested, errors = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_file.as_uri())
    yield page
    assert errors == []
    assert [url for url in requested if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.title() == "sweep"
    assert page.locator("img").evaluate_all("all => all.every((i) => i.naturalWidth === 8)")
    page.close()


def _labels(page):
    rows = page.locator("#scores table").first.locator("tbody th")
    return [text.split("\n")[0] for text in rows.all_inner_texts()]


def test_all_sections_are_shown_within_the_width(page):
    shown = page.locator("main section:visible h2").all_inner_texts()
    assert shown == [
        *("Scores", "Grid", "Curves", "Confusions", "Most confident mistakes", "Config", "Time"),
        "Versions and hardware",
    ]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for panel in ("Loss", "Top-1 error", "Learning rate"):
        figure = page.locator("#curves figure").filter(has_text=panel)
        assert figure.locator("path[d]").count() >= 5
    assert _HOSTILE in page.locator("#scores").inner_text()
    assert page.locator(".gallery img").count() == 12


def test_the_numbers_are_those_of_the_runs(page):
    row = page.locator("#scores tbody tr").filter(has_text="width=8,order=preact").first
    error = 100 * (1 - (0.90 + 0.91 + 0.93) / 3 - 0.008)
    assert f"{error:.2f} ± 1.53" in row.inner_text()
    assert "lowest test error\n6.13 %" not in page.locator("#facts").inner_text()
    lowest = 100 * (1 - (0.90 + 0.91 + 0.93) / 3 - 0.032)
    assert f"lowest test error\n{lowest:.2f} %" in page.locator("#facts").inner_text()
    counts = [int(text or 0) for text in page.locator("#confusion td").all_inner_texts()]
    assert sum(counts) == 60


def test_the_filter_holds_for_table_curves_grid_and_config(page):
    assert len(_labels(page)) == 5
    curves = page.locator("#curves figure").first.locator("path")
    points = page.locator("#grid circle")
    before, drawn = curves.count(), points.count()
    page.get_by_label("filter runs").fill("width=32 preact")
    assert _labels(page) == ["width=32,order=preact"]
    assert page.locator("#matching").inner_text() == "1 of 5 lines"
    assert curves.count() < before
    assert (drawn, points.count()) == (5, 1)
    assert page.locator("#fields table").first.locator("tbody tr").count() == 1
    page.get_by_label("filter runs").fill("nothing is called so")
    assert _labels(page) == []
    page.get_by_label("filter runs").fill("")
    assert len(_labels(page)) == 5


def test_columns_sort_both_ways(page):
    test = page.locator("#scores table").first.get_by_role("button", name="test, %")
    test.click()
    rising = _labels(page)
    assert rising[0] == "width=32,order=preact"
    assert rising[-1] == _HOSTILE
    test.click()
    assert _labels(page) == rising[::-1]
    sort = page.locator("#scores th[aria-sort]").first
    assert sort.get_attribute("aria-sort") == "descending"


def test_splits_lines_and_seeds_can_be_chosen(page):
    lines = page.locator("#curves figure").first.locator("path[stroke-width]")
    assert lines.count() == 10
    page.locator("#curves").get_by_role("button", name="training").click()
    assert lines.count() == 5
    page.get_by_label("each seed").check()
    assert lines.count() == 13
    page.locator("#curves").get_by_role("button", name="width=8,order=v1").click()
    assert lines.count() == 10
    page.locator("#curves select").select_option("steps")
    assert "step" in page.locator("#curves figure").first.inner_text()


def test_the_grid_turns(page):
    ticks = page.locator("#grid svg text")
    page.locator("#grid select").first.select_option(label="model.width")
    assert {"8", "32"} <= {*ticks.all_text_contents()}
    page.locator("#grid select").first.select_option(label="model.order")
    assert {"preact", "v1"} <= {*ticks.all_text_contents()}


def test_mistakes_are_filtered_by_class(page):
    page.locator("#mistakes select").last.select_option(label="owl")
    captions = page.locator(".gallery p").all_inner_texts()
    assert captions
    assert all("is owl" in text for text in captions)
    assert len(captions) < 12


def test_the_config_shows_all_fields_on_request(page):
    rows = page.locator("#fields tr")
    few = rows.count()
    page.get_by_label("all fields").check()
    assert rows.count() > few + 50
    page.get_by_label("filter fields").fill("momentum")
    assert re.search(r"optimizer\.momentum\s+0\.9", page.locator("#fields").inner_text())


def test_the_pointer_reads_values_and_zooms(page):
    chart = page.locator("#curves figure").first.locator("svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 20, middle)
    tip = page.locator("#curves .tooltip:visible")
    assert tip.inner_text().startswith("epoch 3")
    page.mouse.move(box["x"] + box["width"] * 0.4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="show all").click()
    assert page.get_by_role("button", name="show all").count() == 0


def test_a_zoom_into_a_place_without_points_shows_empty_charts(page):
    charts = page.locator("#curves svg.chart")
    for _ in range(12):  # the range is then narrower than numbers of its size can tell
        chart = charts.first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.45, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.48, middle)
        page.mouse.up()
    assert charts.count() >= 3
    page.get_by_role("button", name="show all").click()
    assert page.locator("#curves path[stroke-width]").count() >= 4


def test_paper_is_white_and_has_no_controls(page):
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.get_by_label("filter runs").is_visible()
    assert page.locator("#curves svg.chart").first.is_visible()


def test_numbers_of_any_size_are_no_obstacle(browser, tmp_path):
    metrics = write_run(tmp_path / "a", steps=(4, 8, 12, 16)) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    for number, loss in ((0, "1e99"), (2, "5e-324"), (4, "0.0"), (5, "-1e-9")):
        lines[number] = re.sub(r'"loss": [\d.]+', f'"loss": {loss}', lines[number])
    metrics.write_text("".join(lines))
    path = tmp_path / "report.html"
    path.write_text(render_page(report_document(find_runs([tmp_path]), mistakes=0)))
    page, errors = browser.new_page(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    for _ in range(2):
        assert page.locator("#curves svg path").count() >= 4
        page.get_by_label("logarithmic loss").click()
    assert errors == []
    page.close()

"""Draws docs/figures/report.png: pages of `resnet-jax report` in Chromium, side by side.

    python benchmarks/report_picture.py

Needs the extra [browser] and Debian's chromium. Both pages are of committed results.
"""

import io
import shutil
import tempfile
from pathlib import Path

from etils import epath
from PIL import Image
from playwright.sync_api import sync_playwright

from resnet_jax.report.document import report_document
from resnet_jax.report.kept_sweep import sweep_document
from resnet_jax.report.page import render_page
from resnet_jax.research.compare import find_runs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "report.png"
DESKTOP, PHONE = (1120, 985), (400, 985)
GAP = 24


def main() -> None:
    """Make the pages, look at them, and write the figure."""
    three_seeds = report_document(find_runs([RESULTS / "digits"]), mistakes=0)
    sweep = sweep_document(epath.Path(RESULTS / "digits_sweep"))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("seeds.html", "sweep.html")]
        for file, document in zip(files, (three_seeds, sweep), strict=True):
            file.write_text(render_page(document))
        left = _picture(files[0], DESKTOP, scheme="light", section=None)
        right = _picture(files[1], PHONE, scheme="dark", section="#grid")
    figure = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    figure.paste(left, (0, 0))
    figure.paste(right, (left.width + GAP, 0))
    figure.save(FIGURE, optimize=True)
    print(f"{FIGURE.relative_to(ROOT)}: {FIGURE.stat().st_size / 1000:.0f} kB")


def _picture(file: Path, size: tuple[int, int], *, scheme: str, section: str | None) -> Image.Image:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page.goto(file.as_uri())
        if section:
            page.locator(section).evaluate("section => section.scrollIntoView()")
            page.wait_for_timeout(1000)  # the page scrolls smoothly
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    return picture


if __name__ == "__main__":
    main()

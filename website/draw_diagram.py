"""Draws the Mermaid diagram of a page of docs/, for the site: figures/NAME.svg.

GitHub draws such diagrams itself. The site shows the picture, because Mermaid's 3 MB would have to
be loaded from elsewhere. After a change of a diagram, with Mermaid from npm, and Playwright:

    python website/draw_diagram.py docs/architecture.md --mermaid=mermaid/dist/mermaid.min.js
"""

import argparse
import hashlib
import re
from pathlib import Path

from playwright.sync_api import sync_playwright


def draw(diagram: str, mermaid: Path, browser: str | None) -> str:
    """The SVG picture of a diagram, which begins with a comment that names the diagram's digest."""
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser).new_page()
        page.set_content("<body style='font-family: sans-serif'></body>")
        page.add_script_tag(path=str(mermaid))
        options = {"startOnLoad": False, "theme": "neutral", "htmlLabels": False}
        page.evaluate("options => mermaid.initialize(options)", options)
        svg = page.evaluate("async text => (await mermaid.render('diagram', text)).svg", diagram)
    digest = hashlib.sha256(diagram.encode()).hexdigest()[:16]
    return f"<!-- diagram {digest} -->\n{svg}\n"


def main() -> None:
    """Draw the only diagram of a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--mermaid", type=Path, required=True, help="mermaid.min.js")
    parser.add_argument("--browser", help="Chromium's executable (default: Playwright's)")
    args = parser.parse_args()
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", args.page.read_text("utf-8"), re.DOTALL)
    picture = args.page.parent / "figures" / f"{args.page.stem}.svg"
    picture.write_text(draw(diagram, args.mermaid, args.browser), encoding="utf-8")
    print(picture)


if __name__ == "__main__":
    main()

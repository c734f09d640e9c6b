"""Checks a built site: links lead to files and headings that exist, and nothing remote is loaded.

    python website/check_links.py build/site

Links to other sites are counted, not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}
_FOLLOWED = {("a", "href")}


class _Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if values.get("rel") == "canonical":
            return
        for name, value in values.items():
            if (tag, name) in _LOADED:
                self.loaded.append(value)
            elif (tag, name) in _FOLLOWED:
                self.links.append(value)


def check(site: Path) -> tuple[list[str], int]:
    """Check all pages of a site.

    Returns:
        What is wrong, a line each, and the number of links and loaded files that were checked.
    """
    site = site.resolve()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    wrong, checked = [], 0
    for path, page in pages.items():
        here = path.relative_to(site)
        for link in page.links + page.loaded:
            checked += 1
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    wrong.append(f"{here} loads {link}")
                continue
            # 404.html, which stands for any address, links to the site's root.
            folder = site if parts.path.startswith("/") else path.parent
            target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                wrong.append(f"{here}: {link} is a folder")
            elif not target.exists():
                wrong.append(f"{here}: {link} doesn't exist")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                wrong.append(f"{here}: {link} has no such heading")
    return wrong, checked


def main() -> int:
    """Check the site that the command line names."""
    site = Path(sys.argv[1])
    wrong, checked = check(site)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{site}: {checked:,} links and files checked, {len(wrong)} wrong")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main())

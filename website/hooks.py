"""What MkDocs does with docs/ beside rendering it.

- README.md, CONTRIBUTING.md and CHANGELOG.md become pages, as does what the package says of itself:
  the reference of the public names and of the command line.
- Links to files of the repository outside docs/ lead to copies of these files in the site.
- A diagram in Mermaid, which GitHub draws, becomes the picture that was drawn of it.
"""

import hashlib
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import notebooks

ROOT = Path(__file__).resolve().parents[1]

_DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Documents of the repository that are pages of the site."""

_NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
_LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}
_AS_THEY_ARE = (".json", ".csv", ".png", ".txt", ".html", ".onnx")

_LIST_AFTER_TEXT = re.compile(r"^([^\s\-*|>#<].*)\n(- )", re.MULTILINE)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|data:|#)([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that aren't in docs/, and the files of the repository that pages link to."""
    for asset in sorted((Path(__file__).parent / "assets").iterdir()):
        uri = f"assets/{asset.name}"
        files.append(File.generated(config, uri, abs_src_path=str(asset)))
    for document, uri in _DOCUMENTS.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        if document == "CHANGELOG.md":  # it would be found by every word
            text = f"{_NOT_SEARCHED}{text}"
        files.append(File.generated(config, uri, content=text))
    for uri, page in (("api.md", _api_page), ("command_line.md", _command_line_page)):
        files.append(File.generated(config, uri, content=page()))
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        file = waiting.pop()
        for target in _targets(file):
            uri = _uri_of(target)
            if files.get_file_from_path(uri) is None and (ROOT / target).exists():
                added = _copy(target, uri, config)
                files.append(added)
                waiting += [added] if added.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their copies; replace diagrams."""
    here = posixpath.dirname(page.file.src_uri)
    folder = _folder(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if not (ROOT / target).exists():
            return link[0]  # MkDocs reports it
        return f"{link[1]}{posixpath.relpath(_uri_of(target), here or '.')}{link[3] or ''}{link[4]}"

    if _is_code(page.file.src_uri):
        return markdown
    markdown = _outside_code(markdown, lambda text: _LINK.sub(replaced, text))
    # GitHub begins a list without an empty line before it.
    markdown = _outside_code(markdown, lambda text: _LIST_AFTER_TEXT.sub(r"\1\n\n\2", text))
    return re.sub(r"```mermaid\n(.*?)```", _picture, markdown, flags=re.DOTALL)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change the text outside of fenced code."""
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _targets(file: File) -> list[str]:
    """Paths in the repository of the files outside docs/ to which a page links."""
    if _is_code(file.src_uri):
        return []
    folder, paths = _folder(file.src_uri), list[str]()

    def collected(text: str) -> str:
        links = (link[2] for link in _LINK.finditer(text))
        paths.extend(posixpath.normpath(posixpath.join(folder, link)) for link in links)
        return text

    _outside_code(file.content_string, collected)
    return [path for path in paths if not path.startswith(("docs/", ".."))]


def _is_code(uri: str) -> bool:
    """Whether a page shows the text of a file of the repository."""
    path = ROOT / uri.removeprefix("files/").removesuffix(".md")
    return uri.startswith("files/") and path.is_file() and path.suffix != ".ipynb"


def _folder(uri: str) -> str:
    """The folder of the repository from which links of a page start."""
    if uri.startswith("files/"):
        return posixpath.dirname(uri.removeprefix("files/"))
    generated = uri in _DOCUMENTS.values()
    return "." if generated else posixpath.join("docs", posixpath.dirname(uri))


def _uri_of(path: str) -> str:
    """Where a file or folder of the repository is in the site."""
    if path in _DOCUMENTS:
        return _DOCUMENTS[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"files/{path}/index.md"
    suffix = posixpath.splitext(path)[1]
    if suffix in (*_AS_THEY_ARE, ".md"):
        return f"files/{path}"
    return f"files/{path}.txt" if suffix == ".jsonl" else f"files/{path}.md"


def _copy(path: str, uri: str, config: MkDocsConfig) -> File:
    """A file of the repository as a page or as it is, or a page that lists a folder."""
    source = ROOT / path
    heading = f"{_NOT_SEARCHED}# {path}\n\n"
    if source.is_dir():
        names = sorted(child.name for child in source.iterdir() if _is_listed(child))
        text = heading + "".join(f"- [{name}]({name})\n" for name in names)
        return File.generated(config, uri, content=text)
    if not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(source))
    if source.suffix == ".md":
        return File.generated(config, uri, content=source.read_text(encoding="utf-8"))
    if source.suffix == ".ipynb":
        return File.generated(config, uri, content=notebooks.to_markdown(source))
    language = _LANGUAGES.get(source.suffix, "text")
    code = source.read_text(encoding="utf-8").rstrip()
    return File.generated(config, uri, content=f"{heading}````{language}\n{code}\n````\n")


def _is_listed(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and path.suffix != ".so" and path.name != "run"


def _picture(diagram: re.Match[str]) -> str:
    """The picture of a diagram, which must have been drawn of this text."""
    digest = hashlib.sha256(diagram[1].encode()).hexdigest()[:16]
    for picture in (ROOT / "docs" / "figures").glob("*.svg"):
        if f"diagram {digest}" in picture.read_text(encoding="utf-8")[:400]:
            return f"![Diagram](figures/{picture.name}){{ .diagram }}"
    raise PluginError(f"No figure was drawn of the diagram {digest}: website/draw_diagram.py")


def _api_page() -> str:
    """The reference of `resnet_jax.__all__`, grouped by what the names are for."""
    import resnet_jax  # noqa: PLC0415 - only this page needs the package
    from resnet_jax import _HOME  # noqa: PLC0415

    groups: dict[str, list[str]] = {title: [] for title, _ in _API_GROUPS}
    for name in resnet_jax.__all__:
        title = next(t for t, pattern in _API_GROUPS if re.match(pattern, f"{_HOME[name]}:{name}"))
        groups[title].append(name)
    parts = [
        "# Public names\n",
        "All of them are attributes of `resnet_jax`. What isn't on this page may change with every"
        " version.\n",
    ]
    for title, names in groups.items():
        parts.append(f"## {title}\n")
        parts += [f"::: resnet_jax.{name}\n" for name in names]
    return "\n".join(parts)


_API_GROUPS = (
    ("Models", r"models\.\w+:(?!register_)"),
    ("Weights", r"weights\."),
    ("Trained networks", r"inference\."),
    ("Training", r".*:(?!register_)"),
    ("Names of your own", r".*:register_"),
)
"""Title, and a pattern of MODULE:NAME; the first that matches counts."""


def _command_line_page() -> str:
    """What every subcommand says with --help."""
    from resnet_jax.cli.main import describe_commands  # noqa: PLC0415

    parts = ["# Command line\n"]
    for title, text in describe_commands().items():
        parts += [f"## {title}\n", f"```text\n{text.rstrip()}\n```\n"]
    return "\n".join(parts)

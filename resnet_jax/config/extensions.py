"""Modules of the user that register names for a config: `config.extensions`.

A module is imported as any Python module is, and last from the current directory, which is on the
import path only meanwhile. It is never imported from the directory of a run: reading the run of
someone else doesn't run their code. A folder counts as a run's if a document in it can name the
modules to import: whatever can be read as a run counts, and an unrelated config.json doesn't.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from resnet_jax.errors import ConfigError, ResnetJaxError, StoppedEarly
from resnet_jax.utils.files import open_regular_file

_LARGEST = 16 * 2**20  # bytes of a document that is parsed
_SHOWN = 16  # digits of a digest, in a message


def import_extensions(names: Sequence[str], *, workdir: Path | None = None) -> None:
    """Import the modules of `config.extensions`, in order.

    A module that is imported already isn't imported again.

    Args:
        names: import names, such as "my_losses" or "my_package.losses".
        workdir: the directory of the run that is about to start.

    Raises:
        ConfigError: a module can't be found, lies in the directory of a run or fails.
    """
    added: list[str] = []
    try:
        for name in names:
            _check_name(name)
            if name not in sys.modules:
                _check_origin(name, workdir, added)
                _import(name)
    finally:
        for folder in added:
            if folder in sys.path:  # the last one; a module may have added the same folder itself
                del sys.path[-1 - sys.path[::-1].index(folder)]


def extension_digests(names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the source of each imported module, in hexadecimal.

    The source of a package is all of its Python files; of a package in an archive, the archive.

    Raises:
        ConfigError: the source can't be read.
    """
    return {name: _digest(name) for name in names}


def describe_changes(names: Sequence[str], recorded: Mapping[str, str]) -> str:
    """Say in a clause which imported modules have another source than a run has on record.

    Returns:
        The clause; "" if all are the same.
    """
    changed = [
        f"{name} (SHA-256 {digest[:_SHOWN]}…, was {recorded[name][:_SHOWN]}…)"
        for name, digest in extension_digests(names).items()
        if recorded.get(name, digest) != digest
    ]
    if not changed:
        return ""
    return f"the source of {', '.join(changed)} has changed since the checkpoint was written"


def _check_name(name: object) -> None:
    parts = name.split(".") if isinstance(name, str) else [""]
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        raise ConfigError(
            f"extensions names {name!r}; it holds import names of modules, such as 'my_losses'."
        )
    if parts[0] in sys.stdlib_module_names:
        raise ConfigError(f"extensions names {name!r}, a module of Python itself.")


def _check_origin(name: str, workdir: Path | None, added: list[str]) -> None:
    """Find the module and its packages, importing a package only after it has been checked.

    A folder that is added to the import path is added to `added`.
    """
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        found = ".".join(parts[:number])
        if found in sys.modules:
            continue
        spec, folder = _find(found)
        if spec is None:
            raise ConfigError(
                f"extensions names {name!r}, and there is no module {found}; put {found}.py into"
                f" the current directory ({os.getcwd()}) or add its folder to PYTHONPATH."
            )
        for place in _places(spec):
            if _is_of_run(place, workdir):
                raise ConfigError(
                    f"extensions names {name!r}, which lies in the directory of a run ({place}),"
                    " from which no code is run; move it to a directory of yours."
                )
        if folder and folder not in sys.path:
            sys.path.append(folder)
            added.append(folder)
        if number < len(parts):
            _import(found)


def _find(name: str) -> tuple[ModuleSpec | None, str | None]:
    """Find a module whose packages are imported.

    Returns:
        The spec, or None; and the current directory if the module was found only there.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # what should be a package is a module
        spec = None
    if spec or "." in name:
        return spec, None
    return PathFinder.find_spec(name, [os.getcwd()]), os.getcwd()


def _places(spec: ModuleSpec) -> list[Path]:
    """The module's file, or the folders of its package."""
    origin = [spec.origin] if spec.has_location and spec.origin else []
    return [Path(place) for place in (*origin, *(spec.submodule_search_locations or ()))]


def _is_of_run(place: Path, workdir: Path | None) -> bool:
    """Whether a file or folder lies in the directory of a run, as it is named or resolved."""
    for path in {place.absolute(), place.resolve()}:
        for folder in (path, *path.parents):
            if workdir and folder == workdir.resolve():
                return True
            if _names_extensions(folder / "config.json") or _names_extensions(
                folder / "summary.json", "config"
            ):
                return True
    return False


def _names_extensions(path: Path, *keys: str) -> bool:
    """Whether the config in a JSON document, below these keys, has the field `extensions`.

    What can't be read here can't be read as a run either. A document that is too large or too deep
    to be parsed counts as one that has the field.
    """
    try:
        with open_regular_file(path) as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            return True
        node = json.loads(content)
    except RecursionError:
        return True
    except (OSError, ValueError):
        return False
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return isinstance(node, dict) and "extensions" in node


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except (ResnetJaxError, StoppedEarly):
        raise
    except (Exception, SystemExit) as error:  # a script may end itself
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else where.lineno
        file = error.filename if isinstance(error, SyntaxError) else where.filename
        message = (str(error).strip().splitlines() or [""])[0]
        what = f"{type(error).__name__}: {message}".removesuffix(": ")
        raise ConfigError(f"extensions: {name} fails at {file}, line {line}: {what}") from error


def _digest(name: str) -> str:
    digest = hashlib.sha256()
    spec = sys.modules[name].__spec__
    try:
        for source in _sources(spec) if spec else ():
            digest.update(source)
    except (OSError, ImportError) as error:  # the latter is zipimport's
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"extensions names {name!r}, whose source can't be read ({reason})."
        ) from None
    return digest.hexdigest()


def _sources(spec: ModuleSpec) -> Iterator[bytes]:
    get_data = getattr(spec.loader, "get_data", None)
    archive = getattr(spec.loader, "archive", None)
    for place in _places(spec):
        if place.is_dir():
            files = sorted(file for file in place.rglob("*.py") if file.is_file())
            yield from (file.read_bytes() for file in files)
        elif get_data and spec.origin and place == Path(spec.origin):
            yield get_data(spec.origin)
        else:
            yield Path(archive or place).read_bytes()

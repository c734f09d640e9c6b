"""Installed packages against the ranges that their own metadata ask for."""

import platform
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata

from resnet_jax.doctor.finding import Finding, fail, ok, warn
from resnet_jax.errors import ConfigError
from resnet_jax.utils.distribution import DISTRIBUTION, is_same_release

_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# Packages that make JAX use an accelerator → the extra of JAX's metadata that says which version.
_BACKENDS = {
    "libtpu": "tpu",
    "jax-cuda13-plugin": "cuda13-local",
    "jax-cuda12-plugin": "cuda12-local",
}


def check_versions(*, present: Mapping[str, str]) -> Iterator[Finding]:
    """Python, the packages that resnet_jax and JAX require, and the backends of accelerators.

    Args:
        present: "tpu" or "gpu", if there seems to be one.
    """
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 - for the doctor only

    try:
        ours = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield warn(
            "versions",
            f"{DISTRIBUTION} isn't installed (older installs of resnet_jax had another name), so it"
            " isn't known which versions it needs",
            "pip install -e .",
        )
        return
    python = platform.python_version()
    backends = {name: found for name in _BACKENDS if (found := _version(name))}
    failures = []
    needed = ours["Requires-Python"] or ""
    if not SpecifierSet(needed).contains(python, prereleases=True):
        failures.append((f"python is {python}, but {DISTRIBUTION} needs {needed}", "use another"))
    failures += _unmet(DISTRIBUTION)
    failures += _unmet("jax", extras=[_BACKENDS[name] for name in backends])
    for plugin, found in backends.items():
        if plugin.endswith("-plugin"):
            failures += _unmet(plugin)
            failures += _mismatch(plugin, found)
    for message, remedy in dict.fromkeys(failures):
        yield fail("versions", message, remedy, error=ConfigError)
    if "tpu" in present and "libtpu" not in backends:
        yield warn(
            "versions",
            f"there seems to be a TPU ({present['tpu']}), but libtpu isn't installed",
            "pip install -e '.[tpu]'",
        )
    if not failures:
        shown = {"python": python} | {name: _version(name) or "–" for name in _SHOWN} | backends
        yield ok("versions", ", ".join(f"{name} {found}" for name, found in shown.items()))


def check_compilers() -> Iterator[Finding]:
    """Which accelerators `resnet-jax compile` can compile for without having them."""
    plugins = [name for name in _BACKENDS if name.endswith("-plugin")]
    found = {"TPUs": _version("libtpu"), "GPUs": next(filter(None, map(_version, plugins)), None)}
    extras = {"TPUs": "tpu", "GPUs": "gpu-compile"}
    parts = [
        f"{kind} yes" if found[kind] else f"{kind} no (pip install -e '.[{extras[kind]}]')"
        for kind in found
    ]
    yield ok("compilers", f"resnet-jax compile can compile for: {', '.join(parts)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(package: str, *, extras: Collection[str] = ()) -> list[tuple[str, str]]:
    """Messages and remedies for what `package`, if installed, requires and doesn't find."""
    from packaging.requirements import Requirement  # noqa: PLC0415

    if not _version(package):
        return []  # reported by the package that requires it
    result = []
    for requirement in map(Requirement, metadata.requires(package) or ()):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        found = _version(requirement.name)
        if found and requirement.specifier.contains(found, prereleases=True):
            continue
        is_what = f"is {found}" if found else "isn't installed"
        result.append(
            (
                f"{requirement.name} {is_what}, but {package} {_version(package)} needs"
                f" {requirement.specifier or 'it'}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        )
    return result


def _mismatch(plugin: str, found: str) -> list[tuple[str, str]]:
    """Message and remedy if the version `found` of a plugin isn't of jaxlib's release.

    JAX then ignores the plugin, and goes on without the GPU.
    """
    jaxlib = _version("jaxlib")
    if jaxlib is None or is_same_release(found, jaxlib):
        return []
    return [
        (
            f"{plugin} is {found}, but jaxlib is {jaxlib}: JAX won't use the GPU",
            f"pip install '{plugin}[with-cuda]=={jaxlib}'",
        )
    ]

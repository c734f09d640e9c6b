"""Names that shells complete as values of arguments."""

# ruff: noqa: PLC0415 - a command that isn't completed doesn't need the names

import argparse
from collections.abc import Callable, Iterable


def completes(
    action: argparse.Action, names: Callable[[], Iterable[str]], *, files: bool = False
) -> None:
    """Let shells complete an argument with names, and with names of files if `files`.

    An argument without completion by names is completed with names of files.
    """

    def complete(prefix: str, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        return [*names(), *(FilesCompleter()(prefix) if files else ())]

    action.completer = complete  # type: ignore[attr-defined]


def preset_names() -> Iterable[str]:
    """The presets, read without JAX: a shell completes within a fraction of a second."""
    from resnet_jax.models.sizes import preset_sizes

    return preset_sizes()


def weights_names() -> Iterable[str]:
    """The weights of this package."""
    from resnet_jax.weights.zoo import list_weights

    return [own.name for own in list_weights()]

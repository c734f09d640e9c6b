"""What must not leave this machine with a published network: paths, names of hosts, tokens."""

import functools
import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from resnet_jax.config.fields import FOLDERS
from resnet_jax.config.io import to_json
from resnet_jax.config.schema import default_config, flatten, set_field
from resnet_jax.errors import ConfigError
from resnet_jax.models.families import PRESETS
from resnet_jax.weights.hub import is_reference
from resnet_jax.weights.zoo import list_weights

_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 8
_SHORTEST_NAME = 4  # of hosts and users: shorter ones are words of other meanings
_COMMON_NAMES = ("localhost", "root", "user", "admin")
_TOKENS = re.compile(
    r"\b(hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA\w{16}|sk-[\w-]{20,})"
)
_PATHS = re.compile(r"""(?<![\w./<+-])(~?/[\w.@+-]+/[\w.@+-]|[A-Za-z]:\\+\w|\\\\\w|file://)""")
_WEIGHT_FILES = ("init_from", "distill.teacher")
_OWN_SETTINGS = (*FOLDERS, "trackers")
"""Fields of this machine, which are published with their defaults."""


def public_config(config: ConfigDict) -> ConfigDict:
    """A copy of a config without what is of this machine: of a path only the last part is left."""
    public = config.copy_and_resolve_references()
    defaults = flatten(default_config(public.extensions))
    for name, value in flatten(public).items():
        if name in _OWN_SETTINGS:
            section = public[name.split(".")[0]] if "." in name else public
            section[name.split(".")[-1]] = defaults[name]
        elif isinstance(value, str) and _is_path(name, value):
            set_field(public, name, re.split(r"[\\/]", value.rstrip("\\/"))[-1])
    return public


def _is_path(name: str, value: str) -> bool:
    if name in _WEIGHT_FILES and not is_reference(value):
        return "/" in value or "\\" in value
    return bool(_PATHS.search(value)) or "://" in value


def check_private(texts: Mapping[str, str], *, token: str | None = None) -> None:
    """Check that texts hold no absolute path, no token, and no name of this host or user.

    Args:
        texts: content by the name of the file, for messages.
        token: a secret to look for, beside those of environment variables.

    Raises:
        ConfigError: naming the file and the kind of what was found, but not what was found.
    """
    for file, text in texts.items():
        for kind, is_in in _looked_for(token).items():
            if is_in(text):
                raise ConfigError(
                    f"{file} would hold {kind}, so nothing is sent. Look for it in the run's config"
                    " and class names, and in --note; a network can be pushed from a copy of the"
                    " run without it."
                )


def _looked_for(token: str | None) -> dict[str, Callable[[str], bool]]:
    """Kind of what must not be sent → whether a text holds it."""
    values = [value for name, value in os.environ.items() if _SECRET_NAMES.search(name)]
    secrets = [value for value in (*values, token or "") if len(value) >= _SHORTEST_SECRET]
    folders = [str(folder) for folder in (Path.home(), Path.cwd()) if len(folder.parts) > 1]
    return {
        "a token": lambda text: bool(_TOKENS.search(text)) or any(s in text for s in secrets),
        "a path of this machine": lambda text: (
            bool(_PATHS.search(text)) or any(folder in text for folder in folders)
        ),
        "the name of this host": lambda text: _reveals(text, socket.gethostname()),
        "the name of this user": lambda text: _reveals(text, _user()),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name
        return ""


def _reveals(text: str, name: str) -> bool:
    """Whether a text has the name of this host or user, unless anybody's card may have the word."""
    if len(name) < _SHORTEST_NAME or name in _COMMON_NAMES or _has_word(_public_text(), name):
        return False
    return _has_word(text, name)


def _has_word(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text))


@functools.cache
def _public_text() -> str:
    """The default config, the presets and the cards of this package: "train", "resnet20", …"""
    cards = (json.dumps(weights.card) for weights in list_weights())
    return "\n".join((to_json(default_config()), *PRESETS, *cards))

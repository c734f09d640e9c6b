"""Tables of functions by name, to which users add functions of their own."""

from collections.abc import Mapping
from typing import TypeVar

from resnet_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, T]):
    """A table of built-in entries, to which others can be added by `register`."""

    def __init__(self, kind: str, builtin: Mapping[str, T]) -> None:
        """Make a table of the built-in entries; `kind` names an entry in messages: "loss"."""
        super().__init__(builtin)
        self._kind = kind
        self._builtin = frozenset(builtin)
        self._modules: dict[str, str] = {}  # of the registered entries, by name

    def register(self, name: str, entry: T, *, module: str) -> None:
        """Add an entry. The same module may add it again, as when it is reloaded.

        Args:
            name: the name in a config.
            entry: the entry.
            module: the name of the module that defines the entry.

        Raises:
            ConfigError: the name isn't an identifier, or belongs to a built-in entry or to an
                entry of another module.
        """
        if not name.isidentifier():
            raise ConfigError(
                f"{name!r} can't be the name of a {self._kind}; a name consists of letters, digits"
                " and _, and doesn't start with a digit."
            )
        if name in self._builtin:
            raise ConfigError(
                f"{module} registers the {self._kind} {name!r}, which is built in; choose another"
                " name."
            )
        owner = self._modules.setdefault(name, module)
        if owner != module:
            raise ConfigError(
                f"{module} registers the {self._kind} {name!r}, which {owner} has registered;"
                " choose another name."
            )
        self[name] = entry

    def find(self, field: str, name: str) -> T:
        """Return the entry that a config field names.

        Raises:
            ConfigError: there is no such entry; a module of `extensions` may have to register it.
        """
        if name in self:
            return self[name]
        known = ", ".join(self) or "nothing until a module of `extensions` registers one"
        raise ConfigError(f"{field} is {name!r}; it can be {known}.{did_you_mean(name, self)}")

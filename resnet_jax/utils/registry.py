"""Tables of functions by name, to which users add functions of their own."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from resnet_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, T]):
    """A table of built-in entries, to which others can be added by `register`."""

    def __init__(self, kind: str, builtin: Mapping[str, T], *, reserved: Collection[str] = ()):
        """Make a table of the built-in entries.

        Args:
            kind: what an entry is, in messages: "loss".
            builtin: the entries, whose names can't be registered.
            reserved: other names that can't be registered.
        """
        super().__init__(builtin)
        self._kind = kind
        self._taken = frozenset((*builtin, *reserved))
        self._modules: dict[str, str] = {}  # of the registered entries, by name

    def register(self, name: str, entry: T, *, module: str) -> None:
        """Add an entry. The same module may add it again, as when it is reloaded.

        Args:
            name: the name in a config.
            entry: the entry.
            module: the name of the module that defines the entry.

        Raises:
            ConfigError: the name isn't an identifier, or belongs to resnet_jax or to an entry of
                another module.
        """
        if not name.isidentifier():
            raise ConfigError(
                f"{module} registers the {self._kind} {name!r}, whose name isn't an identifier; use"
                " letters, digits and _, and don't begin with a digit."
            )
        owner = self._modules[name] if name in self._modules and name in self else module
        if name in self._taken:
            owner = "resnet_jax"
        if owner != module:
            raise ConfigError(
                f"{module} registers the {self._kind} {name!r}, whose name belongs to {owner};"
                " choose another name."
            )
        self[name], self._modules[name] = entry, module

    def find(self, field: str, name: str) -> T:
        """Return the entry with a name.

        Args:
            field: the beginning of the message, such as "loss is".
            name: the name.

        Raises:
            ConfigError: there is no such entry.
        """
        if name in self:
            return self[name]
        other = f"{'or ' if self else ''}a name that a module of extensions registers"
        known = ", ".join([*self, other])
        raise ConfigError(f"{field} {name!r}; it can be {known}.{did_you_mean(name, self)}")

"""Branches of a residual block: what computes f in y = shortcut(x) + f(x).

A branch is a frozen dataclass. Its fields, if it has any, become fields of `create_model` and of
`config.model`, and are kept in weight files. `register_branch` adds one from outside this package.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from jaxtyping import Array, Float

from resnet_jax.errors import ConfigError
from resnet_jax.models.fields import check_fields, fields_of, values_of
from resnet_jax.utils.registry import Registry

StrideOn = Literal["1x1", "3x3"]


class Geometry(NamedTuple):
    """Sizes of a block.

    Attributes:
        width: output channels, divided by the branch's expansion.
        inner: channels of a bottleneck's 3×3 convolution.
        groups: into which that convolution is split (the cardinality of ResNeXt).
        stride: of the whole branch.
        stride_on: which convolution of a bottleneck has the stride.
    """

    width: int
    inner: int
    groups: int = 1
    stride: int = 1
    stride_on: StrideOn = "3x3"


class Layer(NamedTuple):
    """One convolution of a branch."""

    kernel_size: int
    features: int
    stride: int = 1
    groups: int = 1


class Block(Protocol):
    """What a branch sees of the block that it is part of."""

    @property
    def geometry(self) -> Geometry:
        """Sizes of the block."""

    @property
    def train(self) -> bool:
        """Whether the block is being trained."""

    def convolve(
        self, x: Float[Array, "n h w c"], layers: Sequence[Layer]
    ) -> Float[Array, "n h2 w2 f"]:
        """Convolve `x`, with normalisation and activation in the order of the network."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """The convolutions `layers`, one after the other.

    A subclass that computes more overrides `__call__`, where it may call linen modules that have a
    name. A subclass without `layers` calls its own modules only.
    """

    expansion: ClassVar[int] = 1
    """Output channels, as a multiple of the width."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: naming the field, its value and the values that it can have.
        """
        check_fields(self)

    def layers(self, geometry: Geometry) -> list[Layer]:
        """The convolutions; as many for any geometry. The last has width · expansion features."""
        del geometry
        return []

    def __call__(self, x: Float[Array, "n h w c"], block: Block) -> Float[Array, "n h2 w2 f"]:
        """Return the branch's output for the block's input, of the compute type."""
        return block.convolve(x, self.layers(block.geometry))


@dataclasses.dataclass(frozen=True)
class Single(Branch):
    """One 3×3 convolution, as in a highway network."""

    def layers(self, geometry: Geometry) -> list[Layer]:
        """3×3."""
        return [Layer(3, geometry.width, geometry.stride)]


@dataclasses.dataclass(frozen=True)
class Basic(Branch):
    """Two 3×3 convolutions: figure 5 of He et al. 2015, left."""

    def layers(self, geometry: Geometry) -> list[Layer]:
        """3×3, 3×3."""
        return [Layer(3, geometry.width, geometry.stride), Layer(3, geometry.width)]


@dataclasses.dataclass(frozen=True)
class Bottleneck(Branch):
    """1×1, 3×3 and 1×1 to four times the width: figure 5 of He et al. 2015, right.

    With groups it is figure 3c of Xie et al. 2016. A bottleneck that shrinks the map has its stride
    on the first 1×1 convolution in the paper ("v1"), and on the 3×3 convolution in Torch's and most
    later code ("v1.5").
    """

    expansion = 4

    def layers(self, geometry: Geometry) -> list[Layer]:
        """1×1, 3×3, 1×1."""
        width, inner, groups, stride, stride_on = geometry
        on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
        return [
            Layer(1, inner, on_1x1),
            Layer(3, inner, on_3x3, groups),
            Layer(1, self.expansion * width),
        ]


BRANCHES: Registry[type[Branch]] = Registry(
    "branch", {"single": Single, "basic": Basic, "bottleneck": Bottleneck}
)
"""Every branch by its name: the values that `model.branch` can have."""

_B = TypeVar("_B", bound=type[Branch])


def register_branch(name: str) -> Callable[[_B], _B]:
    """Give a name to a branch, for `model.branch`; a decorator of its class.

    Args:
        name: an identifier. The same module may register it again, as when it is reloaded.

    Raises:
        ConfigError: the name isn't an identifier, or belongs to resnet_jax or to another module; or
            the class isn't a frozen dataclass derived from `Branch` with a default for each field.
    """

    def register(cls: _B) -> _B:
        own = "__dataclass_fields__" in vars(cls)
        if not (issubclass(cls, Branch) and own):
            raise ConfigError(
                f"The branch {cls.__name__} must be a frozen dataclass that is derived from Branch."
            )
        missing = [n for n, f in fields_of(cls).items() if f.default is dataclasses.MISSING]
        if missing:
            raise ConfigError(f"The field {missing[0]} of {cls.__name__} has no default value.")
        BRANCHES.register(name, cls, module=cls.__module__)
        return cls

    return register


def find_branch(branch: str | Branch) -> Branch:
    """The branch with a name, or the branch itself.

    Raises:
        ConfigError: there is no such branch.
    """
    if isinstance(branch, Branch):
        return branch
    if not isinstance(branch, str):
        shown = reprlib.repr(branch)  # a file from elsewhere may hold anything
        raise ConfigError(f"model.branch is {shown}; it can be a name or a Branch.")
    return BRANCHES.find("model.branch is", branch)()


def convolutions(branch: str | Branch) -> int:
    """Number of convolutions of a branch."""
    return len(find_branch(branch).layers(Geometry(1, 1)))


def with_branch_name(values: dict[str, Any]) -> dict[str, Any]:
    """Fields in which a branch stands by its name and its own fields.

    Raises:
        ConfigError: the branch has no name.
    """
    branch = find_branch(values["branch"])
    name = next((name for name, cls in BRANCHES.items() if cls is type(branch)), None)
    if name is None:
        raise ConfigError(
            f"The branch {type(branch).__name__} has no name; register_branch gives it one."
        )
    return values | {"branch": name} | values_of(branch)


def with_branch(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `with_branch_name`; fields that are missing stay those of the branch.

    Raises:
        ConfigError: there is no such branch, or it can't have such a value.
    """
    branch = find_branch(values["branch"])
    own = {name: values[name] for name in fields_of(branch) if name in values}
    if not own:
        return values
    rest = {name: value for name, value in values.items() if name not in own}
    return rest | {"branch": dataclasses.replace(branch, **own)}


def shortest(branch: str | Branch) -> str | Branch:
    """The name of a branch that has one and whose fields have their defaults; else the branch.

    So networks that are equal compare equal, however their branch is given.

    Raises:
        ConfigError: there is no such branch.
    """
    found = find_branch(branch)
    return next(
        (name for name, cls in BRANCHES.items() if type(found) is cls and found == cls()), found
    )

"""Tables of functions to which users add."""

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.utils.registry import Registry


def test_entries_are_found_by_name_and_added():
    table = Registry("loss", {"softmax": 1})
    table.register("focal", 2, module="mine")
    table.register("focal", 3, module="mine")  # reloaded
    assert dict(table) == {"softmax": 1, "focal": 3}
    assert table.find("loss is", "focal") == 3
    with pytest.raises(ConfigError) as error:
        table.find("loss is", "fokal")
    assert str(error.value) == (
        "loss is 'fokal'; it can be softmax, focal, or a name that a module of extensions"
        " registers. Did you mean 'focal'?"
    )
    with pytest.raises(ConfigError, match="'x'; it can be a name that a module of extensions"):
        Registry("metric", {}).find("metrics names", "x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softmax", "mine registers the loss 'softmax', whose name belongs to resnet_jax"),
        ("lr", "whose name belongs to resnet_jax; choose another name"),
        ("focal", "whose name belongs to theirs; choose another name"),
        ("2nd", "whose name isn't an identifier"),
    ],
)
def test_names_that_are_taken_are_refused(name, message):
    table = Registry("loss", {"softmax": 1}, reserved=("lr",))
    table.register("focal", 2, module="theirs")
    with pytest.raises(ConfigError, match=message):
        table.register(name, 3, module="mine")
    assert dict(table) == {"softmax": 1, "focal": 2}

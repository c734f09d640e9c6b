"""The public names, and what importing them costs."""

import subprocess
import sys

import pytest

import resnet_jax


def test_every_public_name_resolves():
    for name in resnet_jax.__all__:
        assert getattr(resnet_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = resnet_jax.fitt


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import resnet_jax", {"jax", "flax", "tensorflow", "orbax", "matplotlib"}),
        (
            "import resnet_jax; resnet_jax.create_model('resnet18')",
            {"tensorflow", "orbax", "matplotlib", "tensorflow_datasets", "sklearn", "grain"},
        ),
        ("import resnet_jax; resnet_jax.fit", {"tensorflow", "tensorflow_datasets", "sklearn"}),
    ],
)
def test_imports_are_only_what_is_needed(statement, unwanted):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unwanted & set(done.stdout.split())

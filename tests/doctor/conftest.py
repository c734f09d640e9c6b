"""The environment of each test of a check."""

import pytest

from resnet_jax.doctor import devices


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """The variables that doctor looks at, as on a machine where nobody has set any."""
    for name in ("XLA_FLAGS", "JAX_COORDINATOR_ADDRESS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def quick(monkeypatch):
    """Without the devices: JAX takes a second to start, in tests of something else."""
    monkeypatch.setattr(devices, "check_devices", lambda **_: iter(()))

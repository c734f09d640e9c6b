"""The environment of each test of a check."""

import pytest

from tests.train.doctor.helpers import make_environment_plain, skip_devices


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    make_environment_plain(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    """Without the devices."""
    skip_devices(monkeypatch)

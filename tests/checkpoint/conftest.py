"""Locks in a hurry."""

import pytest

from resnet_jax.checkpoint import lock, lock_file


@pytest.fixture
def hurried(monkeypatch):
    """Locks are renewed every 0.1 s, and stale after 0.8 s."""
    monkeypatch.setattr(lock, "_RENEW_S", 0.1)
    monkeypatch.setattr(lock_file, "_POLL_S", 0.05)
    monkeypatch.setattr(lock, "_STALE_S", 0.8)
    monkeypatch.setattr(lock_file, "_TAKEOVER_S", 0.3)

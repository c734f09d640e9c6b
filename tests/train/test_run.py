"""Parts of the course of a run that no whole run reaches in reasonable time."""

from types import SimpleNamespace

from resnet_jax.errors import WriteError
from resnet_jax.train.loop import Run


def test_the_pause_between_attempts_to_save_has_a_limit():
    """Otherwise a run with many attempts would never save again once the storage is back."""
    run = object.__new__(Run)
    run._failed_saves, run._best_on_disk, run._step = 0, None, 1_000
    run._config = SimpleNamespace(save_attempts=10**6)
    run._plan = SimpleNamespace(log_every=10)
    pauses = []
    for _ in range(5_000):
        run._count_failure(WriteError("no room."), last=False)
        pauses.append((run._retry_at - run._step) // 10)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert set(pauses[8:]) == {64}

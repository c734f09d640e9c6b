"""A run that is stuck is noticed; one that gets on, or was asleep, is left alone."""

import threading
import time

from resnet_jax.train import watchdog
from resnet_jax.train.watchdog import Watchdog


def test_silence_ends_the_process_with_what_it_was_doing_and_where_it_stands(capfd):
    said, barked = [], threading.Event()

    def end(message):
        said.append(message)
        barked.set()

    dog = Watchdog(0.2, end)
    dog.now("saving step 7")
    with dog.watching():
        assert barked.wait(60)
    assert "no progress for 0.2 s (hang_timeout_s) while saving step 7" in said[0]
    assert "test_watchdog.py" in capfd.readouterr().err  # this thread, waiting


def test_news_keep_it_quiet():
    said = []
    dog = Watchdog(1.0, said.append)
    with dog.watching():
        for _ in range(30):
            time.sleep(0.05)
            dog.now("training")
    time.sleep(1.3)  # nor does it bark afterwards
    assert said == []


def test_a_process_that_was_stopped_or_asleep_has_not_hung(monkeypatch):
    """As after SIGCONT: the clock has jumped, and the main thread had no chance to say anything."""
    said, jump_s = [], [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: time.perf_counter() + jump_s[0])
    monkeypatch.setattr(watchdog, "_TICK_S", 0.1)
    dog = Watchdog(60.0, said.append)
    with dog.watching():
        time.sleep(0.3)
        jump_s[0] = 3600.0
        time.sleep(0.5)
    assert said == []


def test_without_a_limit_nobody_watches():
    with Watchdog(0.0, None).watching():
        assert not [t for t in threading.enumerate() if t.name == "watchdog"]

"""Signals that ask a run to stop: the first saves, a second Ctrl-C interrupts."""

import signal

import pytest

from resnet_jax.checkpoint.stop import StopRequest


def test_a_second_ctrl_c_interrupts():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_schedulers_may_repeat_their_signal(first):
    with StopRequest() as stop:
        signal.raise_signal(first)
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested

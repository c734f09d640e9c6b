"""The watch over other processes, all of them in this one; for whole jobs see tests/train."""

import queue
import socket
import time

import pytest

from resnet_jax.parallel.peers import PeerWatch


class Job:
    """Process 0 and two others, each with its watch and what ended it."""

    def __init__(self, *, grace_s=0.2):
        pairs = {number: socket.socketpair() for number in (1, 2)}
        self.lines = {0: {n: pair[0] for n, pair in pairs.items()}}
        self.lines |= {n: {0: pair[1]} for n, pair in pairs.items()}
        self.ended = {number: queue.Queue() for number in range(3)}
        self.watches = {
            n: PeerWatch(n, self.lines[n], self.ended[n].put, grace_s=grace_s) for n in range(3)
        }

    def kill(self, number):
        """As the kernel does it."""
        self.watches[number]._left.set()  # its thread is dead
        for line in self.lines[number].values():
            line.shutdown(socket.SHUT_RDWR)

    def quiet(self, *numbers):
        return all(self.ended[number].empty() for number in numbers)


@pytest.fixture(autouse=True)
def _tcp_options_of_a_socketpair(monkeypatch):
    from resnet_jax.parallel import peers

    monkeypatch.setattr(peers, "_KEEPALIVE", {})


@pytest.mark.parametrize("victim", [1, 2])
def test_the_death_of_any_ends_all(victim):
    job = Job()
    job.kill(victim)
    for number in {0, 1, 2} - {victim}:
        said = job.ended[number].get(timeout=5)
        assert said == f"Process {victim} has ended: its connection broke."


def test_the_death_of_the_first_ends_all():
    job = Job()
    job.kill(0)
    for number in (1, 2):
        assert "Process 0 has ended" in job.ended[number].get(timeout=5)


def test_a_failure_is_passed_on_with_its_reason_after_a_grace():
    job = Job(grace_s=0.5)
    began = time.monotonic()
    job.watches[2].leave("the disk is full.")
    for number in (0, 1):
        assert job.ended[number].get(timeout=5) == "Process 2 has ended: the disk is full."
    assert time.monotonic() - began >= 0.5
    assert job.quiet(2)


def test_who_fails_in_time_too_is_left_to_do_so():
    job = Job(grace_s=1.0)
    job.watches[2].leave("configs differ")
    time.sleep(0.2)
    for number in (0, 1):
        job.watches[number].leave("configs differ")
    time.sleep(1.5)
    assert job.quiet(0, 1, 2)


def test_orderly_ends_in_any_order_are_no_loss():
    for order in ((0, 1, 2), (2, 1, 0)):
        job = Job()
        for number in order:
            job.watches[number].leave(None)
            time.sleep(0.1)
            for line in job.lines[number].values():
                line.close()
        time.sleep(0.5)
        assert job.quiet(0, 1, 2)


def test_of_a_long_reason_the_first_line_arrives():
    job = Job(grace_s=0.1)
    job.watches[1].leave("out of memory\n" + "ä" * 9000)
    assert job.ended[0].get(timeout=5) == "Process 1 has ended: out of memory."
    job = Job(grace_s=0.1)
    job.watches[1].leave("ä" * 9000)
    assert job.ended[2].get(timeout=5) == f"Process 1 has ended: {'ä' * 500}."

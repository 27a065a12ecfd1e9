"""Work that is shared out to processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import Any

import pytest

from f2pad_jax.experiments.workers import Tell, Work, share_out


def begin() -> Work:
    """What a worker of these tests does: says what it got, dies of 13, and never ends of 99."""
    assert not sys.stderr.isatty()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def work(piece: int, tell: Tell) -> None:
        tell((piece, os.getpid()))
        if piece == 13:
            os._exit(1)
        if piece == 99:
            time.sleep(600)
        tell(-piece)

    return work


def test_a_process_that_dies_loses_its_piece_alone() -> None:
    told: list[Any] = []
    lost: list[int] = []
    share_out([13, 1, 2, 3, 4], begin, jobs=2, tell=told.append, on_loss=lost.append)
    assert lost == [13]
    begun = dict(message for message in told if isinstance(message, tuple))
    assert sorted(begun) == [1, 2, 3, 4, 13]
    assert sorted(message for message in told if not isinstance(message, tuple)) == [-4, -3, -2, -1]
    assert os.getpid() not in begun.values()
    assert 2 <= len(set(begun.values())) <= 3  # the one that died had a successor
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_processes() -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        share_out([99, 99], begin, jobs=2, tell=interrupted, on_loss=interrupted)
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 300

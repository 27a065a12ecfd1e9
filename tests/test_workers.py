"""Work that is shared out to processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
from piecework import begin

from f2pad_jax.experiments.workers import share_out


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_processes(error: type[BaseException]) -> None:
    def interrupted(_: Any) -> None:
        if error is KeyboardInterrupt:  # as the terminal's signal raises; pytest's processes ignore that signal
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    started, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        share_out([99, 99], begin, jobs=2, tell=interrupted, on_loss=interrupted)
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 300
    assert signal.getsignal(signal.SIGTERM) is handler

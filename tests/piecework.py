"""What the processes of tests run: a module of its own, so that they can import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import jax
import pytest
from solving import tiny_extractor

from f2pad_jax import preparing
from f2pad_jax.experiments import command, runs, sets
from f2pad_jax.experiments.workers import Tell, Work

SIZE, TRAIN, IMAGES = 32, 16, 3


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Small pictures, a tiny network, and a clock that stands still: times are all that two runs differ in."""
    patch.setattr(sets, "SIZE", SIZE)
    patch.setattr(sets, "TEXTURE_TRAIN", TRAIN)
    patch.setattr(sets, "TEXTURE_IMAGES", IMAGES)
    patch.setattr(runs, "CHUNK", 2)
    patch.setattr(preparing, "SHARES", (1.0,))
    patch.setattr(command, "load_extractor", lambda name, weights: tiny_extractor())
    patch.setattr(time, "perf_counter", lambda: 0.0)


def small_worker(request: command.Request, plan: dict[str, Any]) -> Any:
    """`begin_worker` in another process, which knows nothing of what was patched in this one."""
    shrink(pytest.MonkeyPatch())
    work = command.begin_worker(request, plan)
    assert jax.local_device_count() == max(1, (os.cpu_count() or 1) // 2)
    return work


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

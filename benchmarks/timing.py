"""Wall times of calls that are to be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

Seconds = float


def call_once(function: Callable[[], Any]) -> Seconds:
    """Wall time of one call until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def interleaved(
    timers: dict[str, Callable[[], Seconds]], *, repeats: int
) -> tuple[dict[str, list[Seconds]], dict[str, Seconds]]:
    """Measures in turns, A B A B …, so that other work on the machine weighs on all alike.

    Args:
      timers: each runs its function once and returns the seconds.
      repeats: measurements of each, after a first one that compiles and a second one that warms up.

    Returns:
      The measurements, and the first ones.
    """
    first = {name: timer() for name, timer in timers.items()}
    for timer in timers.values():
        timer()
    times: dict[str, list[Seconds]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            times[name].append(timer())
    return times, first


def summary(times: list[Seconds], base: list[Seconds]) -> dict[str, float]:
    """The figures of a case: medians, their ratio, and the extremes, in seconds."""
    return {
        "ratio": round(statistics.median(times) / statistics.median(base), 3),
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "base_median_s": statistics.median(base),
        "base_min_s": min(base),
        "base_max_s": max(base),
    }

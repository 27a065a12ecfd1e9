"""Wall times of calls that are to be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from limits import operations

Seconds = float
SIZES = {"arguments": "argument", "results": "output", "temporaries": "temp", "reused": "alias"}  # as XLA names them


class Prepared(NamedTuple):
    """A compiled call.

    Attributes:
      run: calls it.
      compile_s: seconds that tracing and compiling took.
      flops: floating-point operations of the traced program.
      bytes: that the compiled program touches.
      memory: the compiler's numbers in bytes: of the arguments, results and temporaries, and of results that take
        the place of arguments.
    """

    run: Callable[[], Any]
    compile_s: Seconds
    flops: int
    bytes: float
    memory: dict[str, int]


def prepared(function: Any, *arguments: Any, **static: Any) -> Prepared:
    """Compiles a jitted function ahead of its calls.

    Args:
      function: of `jax.jit`.
      arguments: arrays, or their shapes if it is never to run.
      static: its static arguments.
    """
    began = time.perf_counter()
    traced = function.trace(*arguments, **static)
    compiled = traced.lower().compile()
    taken = time.perf_counter() - began
    cost, sizes = compiled.cost_analysis() or {}, compiled.memory_analysis()
    memory = {name: int(getattr(sizes, f"{word}_size_in_bytes")) for name, word in SIZES.items()}
    moved = float(cost.get("bytes accessed", 0.0))
    return Prepared(lambda: compiled(*arguments), taken, operations(traced.jaxpr), moved, memory)


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


def spread(times: list[Seconds]) -> dict[str, float]:
    """Median, quartiles and extremes in seconds, and how many there were."""
    lower, upper = np.quantile(times, [0.25, 0.75])
    return {
        "median_s": statistics.median(times),
        "quartile1_s": float(lower),
        "quartile3_s": float(upper),
        "min_s": min(times),
        "max_s": max(times),
        "repeats": len(times),
    }


def summary(times: list[Seconds], base: list[Seconds]) -> dict[str, float]:
    """The figures of a case: the spread, that of what it is compared with, and the ratio of the medians."""
    ratio = round(statistics.median(times) / statistics.median(base), 3)
    return {"ratio": ratio, **spread(times), **{f"base_{name}": value for name, value in spread(base).items()}}

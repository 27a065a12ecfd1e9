"""Wall times of calls that are to be compared, and what compiled calls ask for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Seconds = float
SIZES = {"arguments": "argument", "results": "output", "temporaries": "temp", "reused": "alias"}  # as XLA names them


class Prepared(NamedTuple):
    """A compiled call.

    Attributes:
      run: calls it.
      compile_s: seconds that tracing and compiling took.
      flops: floating-point operations of the traced program, see `operations`.
      bytes: that the compiled program touches, operation by operation; what stays in caches counts as if it did not.
      memory: the compiler's numbers in bytes: of the arguments, results and temporaries, and of results that take
        the place of arguments.
    """

    run: Callable[[], Any]
    compile_s: Seconds
    flops: float
    bytes: float
    memory: dict[str, int]

    @property
    def call_bytes(self) -> int:
        """The compiler's number for one call: arguments, results and temporaries."""
        sizes = self.memory
        return sizes["arguments"] + sizes["results"] + sizes["temporaries"] - sizes["reused"]


def prepared(function: Any, *arguments: Any) -> Prepared:
    """Compiles a jitted function ahead of its calls; arguments may be shapes if it is never to run."""
    began = time.perf_counter()
    compiled = function.trace(*arguments).lower().compile()
    taken = time.perf_counter() - began
    cost, sizes = compiled.cost_analysis() or {}, compiled.memory_analysis()
    memory = {name: int(getattr(sizes, f"{word}_size_in_bytes")) for name, word in SIZES.items()}
    moved = float(cost.get("bytes accessed", 0.0))
    return Prepared(lambda: compiled(*arguments), taken, operations(function, *arguments), moved, memory)


def operations(function: Any, *arguments: Any) -> float:
    """Floating-point operations of a jitted function as XLA counts them before it optimises, the same on all devices.

    A product counts as two, products with padding do not count, and a loop's body counts once. The program is lowered
    for a CPU, because other compilers tell no numbers, or none of what their libraries compute.
    """

    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    with jax.default_device(jax.devices("cpu")[0]):
        return float(function.trace(*jax.tree.map(shape, arguments)).lower().cost_analysis()["flops"])


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

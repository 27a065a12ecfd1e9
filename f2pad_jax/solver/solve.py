"""The whole solve of one image, in one compiled loop; many images are the caller's `vmap`."""

from __future__ import annotations

from typing import NamedTuple

import jax

from f2pad_jax.detectors import Detector
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem
from f2pad_jax.solver.step import RUNNING, Info, Method, Rates, State, init, no_info, step


class Solution(NamedTuple):
    """The result of a solve."""

    normal: jax.Array  # n, (H, W, 3)
    iterations: jax.Array  # () int32
    status: jax.Array  # () int32: RUNNING means that the iteration limit came first
    info: Info  # of the last step


def solve(
    start: jax.Array,
    problem: Problem,
    rates: Rates,
    limit: jax.Array | int,
    *,
    extractor: Extractor,
    detector: Detector,
    method: Method = Method(),
) -> Solution:
    """Minimises F(n) from n⁽⁰⁾ until the stop rule or the iteration limit, in a `lax.while_loop`.

    Args:
      start: n⁽⁰⁾, (H, W, 3), ImageNet-normalised.
      problem: the image and all that belongs to it.
      rates: numbers of the optimiser.
      limit: most iterations, at least one; traced.
      extractor: network with its parameters.
      detector: functions of the detector; static.
      method: choices that change the compiled step; static.
    """

    def advance(carry: tuple[State, Info]) -> tuple[State, Info]:
        return step(carry[0], problem, rates, extractor=extractor, detector=detector, method=method)

    def unfinished(carry: tuple[State, Info]) -> jax.Array:
        return (carry[0].status == RUNNING) & (carry[0].count < limit)

    state = init(start, problem, rates)
    state, info = jax.lax.while_loop(unfinished, advance, (state, no_info(state.normal)))
    return Solution(state.normal, state.count, state.status, info)

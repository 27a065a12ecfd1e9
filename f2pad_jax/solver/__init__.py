"""One step of F2PAD and the whole solve, as pure functions."""

from __future__ import annotations

from f2pad_jax.solver.solve import Solution, solve
from f2pad_jax.solver.step import CONVERGED, NON_FINITE, RUNNING, Info, Method, Rates, State, init, step

__all__ = [
    "CONVERGED",
    "NON_FINITE",
    "RUNNING",
    "Info",
    "Method",
    "Rates",
    "Solution",
    "State",
    "init",
    "solve",
    "step",
]

"""One step of F2PAD, the whole solve, and many solves at once."""

from __future__ import annotations

from f2pad_jax.solver.lanes import Lane, solve_lanes
from f2pad_jax.solver.solve import Solution, solve
from f2pad_jax.solver.step import CONVERGED, NON_FINITE, RUNNING, Info, Method, Rates, State, init, step

__all__ = [
    "CONVERGED",
    "NON_FINITE",
    "RUNNING",
    "Info",
    "Lane",
    "Method",
    "Rates",
    "Solution",
    "State",
    "init",
    "solve",
    "solve_lanes",
    "step",
]

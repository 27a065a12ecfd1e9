"""Figure 10: how F falls with what neighbours share."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.core import Energy, Problem, Settings, Solution, Status, init, objective, step
from f2pad_jax.core.solver import no_info, solution
from f2pad_jax.model import Model
from f2pad_jax.outcomes import read_off
from f2pad_jax.preparing import begin, build, find_doubtful, plan
from f2pad_jax.sights import Sight

_step = jax.jit(step)


class Curves(NamedTuple):
    """Solves of one picture.

    Attributes:
      plain: the mask where nothing is shared, (S, S) bool.
      losses: F before every step and at the end where ‖a‖ is shared ("shared", as by default; not in the paper's
        settings, which have no proximal map), the gradient as well ("gradient"), and nothing ("plain"); empty where
        there was nothing to solve.
    """

    plain: np.ndarray
    losses: dict[str, list[float]]


@jax.jit
def _positive_objective(normal: jax.Array, energy: Energy, problem: Problem, settings: Settings) -> jax.Array:
    """F with sparsity counted from that of n = x, so that it is not negative.

    The sparsity counts in the warm-up as well, where the solver leaves it out: a curve has one meaning throughout.
    """
    least = energy.penalty.value(jnp.zeros(problem.region.shape))
    return objective(normal, energy, problem, settings) - settings.beta0 * jnp.sum(problem.sparsity * least)


def descend(start: jax.Array, energy: Energy, problem: Problem, settings: Settings) -> tuple[Solution, list[float]]:
    """`solve`, step by step: the solution, and F before every step and of n* at the end."""
    state, info = init(start, energy, problem, settings), no_info()
    losses = []
    while int(state.status) == Status.RUNNING:
        losses.append(float(_positive_objective(state.normal, energy, problem, settings)))
        state, info = _step(state, energy, problem, settings)
    end = solution(state, info)
    return end, [*losses, float(_positive_objective(end.normal, energy, problem, settings))]


def trace(model: Model, sight: Sight, region: np.ndarray) -> Curves:
    """Solves a picture in each way.

    Args:
      model: as fitted or tuned, with a constant β.
      sight: the picture.
      region: where n is free, (S, S) bool.
    """
    if not region.any():
        return Curves(np.zeros_like(region), {})
    start = begin(model, sight.image, region, doubtful=find_doubtful(model, sight))
    procedure = model.procedure
    ways = {"shared": (True, False), "gradient": (True, True), "plain": (False, False)}
    if not model.settings.proximal:
        del ways["shared"]
    masks, losses = {}, {}
    for way, (length, gradient) in ways.items():
        candidate = replace(
            model,
            procedure=replace(procedure, sharing=length),
            settings=model.settings.replace(share_gradient=gradient),
        )
        chosen = plan(candidate, sight, region, start)
        began, problem, settings = build(candidate, chosen)
        solved, losses[way] = descend(began, model.energy, problem, settings)
        masks[way] = read_off(candidate, chosen, solved).mask
    return Curves(masks["plain"], losses)

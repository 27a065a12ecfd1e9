"""Figure 10: how F falls with what neighbours share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.core.pixels import normalize
from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Terms, terms
from f2pad_jax.pipeline import Segmentation, clean, find_region, lane, masking, method_of, segment_many
from f2pad_jax.priors import log_penalty
from f2pad_jax.solver import RUNNING, Lane, Method, init, step


class Curves(NamedTuple):
    """Three solves of one picture.

    Attributes:
      result: as the settings say.
      plain: the mask where nothing is shared, (H, W) bool.
      losses: F before every step and at the end where ‖a‖ is shared ("shared", as the settings say), the gradient as
        well ("gradient"), and nothing ("plain"); empty where there was nothing to solve.
    """

    result: Segmentation
    plain: np.ndarray
    losses: dict[str, list[float]]


@partial(jax.jit, static_argnames=("detector", "method", "limit"))
def _trajectory(
    extractor: Extractor, solve: Lane, *, detector: Detector, method: Method, limit: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """N when the solve is over, F before each of at most `limit` steps and at the end, and how many steps were taken.

    F counts sparsity in the warm-up as well, where the solver leaves it out: the curve has one meaning throughout.
    Sparsity is counted from that of n = x, so that F is not negative.
    """
    problem = solve.problem
    least = log_penalty(jnp.zeros_like(problem.image))

    def total(parts: Terms, normal: jax.Array) -> jax.Array:
        sparsity = problem.coefficients.beta * (log_penalty(problem.image - normal) - least)
        return parts.feature + parts.pixel + parts.variation + sparsity

    def one(state, _):
        after, info = step(state, problem, solve.rates, extractor=extractor, detector=detector, method=method)
        running = (state.status == RUNNING) & (state.count < limit)
        kept = jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state)
        return kept, total(info.terms, state.normal)

    state, losses = jax.lax.scan(one, init(jnp.asarray(solve.start), problem, solve.rates), length=limit + 1)
    end = total(terms(state.normal, problem, extractor=extractor, detector=detector), state.normal)
    return state.normal, losses.at[state.count].set(end), state.count


def trace(model: Model, images: np.ndarray) -> list[Curves]:
    """Solves pictures in three ways, step by step.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, S, S, 3).
    """
    ways = {
        "shared": model,
        "gradient": replace(model, settings=model.settings._replace(sharing="all")),
        "plain": replace(model, settings=model.settings._replace(sharing="none")),
    }
    found = []
    for image, scores, result in zip(images, score_maps(model, images), segment_many(model, images), strict=True):
        region, x = find_region(model, scores), normalize(image)
        losses: dict[str, list[float]] = {}
        plain = np.zeros(region.shape, bool)
        for way, candidate in ways.items() if region.any() else ():
            normal, values, count = _trajectory(
                model.extractor,
                lane(masking(candidate, x, region)),
                detector=get_detector(model.detector),
                method=method_of(candidate.settings),
                limit=model.settings.limit,
            )
            losses[way] = [float(value) for value in np.asarray(values)[: int(count) + 1]]
            if way == "plain":
                changed = np.linalg.norm(x - np.asarray(normal), axis=-1) > model.settings.smallest
                plain = clean(changed, kind=model.settings.cleaning)
        found.append(Curves(result, plain, losses))
    return found

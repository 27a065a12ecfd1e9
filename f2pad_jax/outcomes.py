"""What a solve has come to: the mask that is read off it, and the score map that goes with the mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import remove_small_objects

from f2pad_jax.calibration import choose_levels, piece_maxima, residual_of
from f2pad_jax.core import Solution, levels_of
from f2pad_jax.data.images import resize_map, resize_mask
from f2pad_jax.model import Model
from f2pad_jax.preparing import SQUARE, Plan
from f2pad_jax.reducing import scale_of
from f2pad_jax.sights import look, smooth_map
from f2pad_jax.solving import find_solutions

DOT = 8  # pixels that the extractor sees; connected pieces of the mask that are no larger are removed
NEAR = 0.7  # of the highest score of its piece of the region: what a piece of the mask reaches to stay
CERTAIN = 0.1  # of the false alarms: the rate at which a detector is certain
REACH = 8  # pixels that the extractor sees within which a local maximum of the scores is the highest
EDGE = 1.0  # σ of the Gaussian that smooths the mask's edge in the refined map, pixels
EVIDENT = 0.4  # of the highest evidence in the region: what a pixel of the mask has
APART = 1.0  # σ of the Gaussian that smooths how far x is from its fill, pixels that the extractor sees


class Outcome(NamedTuple):
    """What the main solve of one picture has come to.

    Attributes:
      mask: cleaned, (H, W) bool.
      residual: see `Segmentation`.
      iterations: of the solve.
      status: in words; "normal" where nothing was to be solved.
      given_up: whether the solve left nothing, so that the mask is the detector's.
    """

    mask: np.ndarray
    residual: float
    iterations: int
    status: str
    given_up: bool = False


def find_outcomes(model: Model, plans: Sequence[Plan], *, title: str | None = None) -> Iterator[tuple[int, Outcome]]:
    """Steps 4 and 5: solves, and reads the masks off a = x − n; index and outcome of each, as they finish."""
    for index, solution in find_solutions(model, plans, title=title):
        yield index, read_off(model, plans[index], solution)


def read_off(model: Model, chosen: Plan, solution: Solution) -> Outcome:
    """The mask of a solve, {a ≠ 0} at the β that is right for each piece of the region, cleaned, and what is left.

    Below the highest level, pixels with little `evidence` are left out: normal ones differ from a fill as well.

    A solve that leaves nothing where the detector is certain has failed: then the mask is the detector's.

    Args:
      model: as fitted or tuned.
      chosen: the plan.
      solution: its solution.
    """
    sight, normal = chosen.sight, chosen.box.put(np.asarray(solution.normal), chosen.sight.image)
    if model.procedure.sparsity == "levels" and chosen.start.filled:
        ends, factors = levels_of(chosen.start.filled, chosen.settings)
        betas, costs = np.asarray(factors) * float(chosen.settings.beta0), smooth_map(sight.costs, model.seen)
        region = resize_mask(chosen.region, model.seen)
        found = choose_levels(
            region, costs, left_maps(model, chosen, solution), betas, model.limits, error=chosen.start.error
        )
        lasting = chosen.box.put(np.asarray(solution.lasting), np.zeros(model.shape, np.int32))
        level, residual = resize_mask(found.level, model.shape), found.residual
        mask = (level >= 0) & (lasting >= np.asarray(ends)[np.maximum(level, 0)])
        values = evidence(sight.scores, sight.image, chosen.start.fill)
        mask &= (level == len(ends) - 1) | (values > EVIDENT * values[chosen.region].max(initial=0))
    else:
        residual = left_in(model, chosen, normal)
        mask = np.linalg.norm(sight.image - normal, axis=-1) > model.procedure.smallest
    mask = clean(mask, sight.scores, chosen.region, kind=model.procedure.cleaning)
    certain = model.threshold_in(sight.limits, share=CERTAIN)
    given_up = not mask.any() and model.procedure.cleaning == "whole" and bool(sight.scores.max() > certain)
    if given_up:
        mask = resize_map(sight.scores, model.shape) > model.threshold_in(sight.limits)
    return Outcome(model.inspected(mask), residual, int(solution.iterations), solution.message, given_up)


def left_in(model: Model, chosen: Plan, normal: np.ndarray) -> float:
    """What is left in n, by the detector's scores of it, as `residual_of` has it.

    Args:
      model: as fitted or tuned.
      chosen: the plan.
      normal: n, (H, W, 3) float32, ImageNet-normalised.
    """
    # The scores of the solve would not do: PatchCore's are those of few candidates, near the fill and not near x.
    (after,), sight = look(model, normal[None]), chosen.sight
    threshold = model.threshold
    if sight.scores is not sight.own:  # another detector cannot tell what it makes of n
        threshold = model.limits.threshold(model.procedure.false_alarms)
    return residual_of(resize_mask(chosen.region, model.seen), sight.own, after.own, threshold)


def left_maps(model: Model, chosen: Plan, solution: Solution) -> np.ndarray:
    """Smoothed maps of the s_ij of n at the end of each level, (K, h, w); x has the other positions."""
    present = chosen.affected.present > 0
    grid = np.repeat(chosen.sight.costs.reshape(1, -1), len(solution.left), axis=0)
    grid[:, chosen.affected.positions[present]] = np.asarray(solution.left)[:, present]
    return np.stack([smooth_map(one.reshape(chosen.sight.costs.shape), model.seen) for one in grid])


def evidence(scores: np.ndarray, image: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Evidence from features times the root of evidence from pixels, s · ‖x − fill‖^½, (H, W) float32.

    Each alone is blurred or blind: scores are high around a defect, and a fill differs from normal pixels as well.

    Args:
      scores: smoothed score map, (h, w) as the extractor sees the picture; below zero counts as zero.
      image: x, (H, W, 3) float32, ImageNet-normalised.
      fill: x with the region filled, likewise.
    """
    shape = (image.shape[0], image.shape[1])
    apart = ndimage.gaussian_filter(np.linalg.norm(image - fill, axis=-1), APART * scale_of(shape, scores.shape))
    return np.maximum(resize_map(scores, shape), 0) * np.sqrt(apart)


def refined_map(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The refined map, (H, W) float32: evidence from features times evidence from pixels.

    Args:
      scores: smoothed score map, (H, W).
      mask: (H, W) bool; its edge is smoothed by one pixel.
    """
    refined = ndimage.gaussian_filter(mask.astype(np.float32), EDGE)
    refined += 1  # in place: pictures may be large
    refined *= scores
    return refined


def clean(mask: np.ndarray, scores: np.ndarray, region: np.ndarray, *, kind: str) -> np.ndarray:
    """A mask without what is no defect, as `Procedure.cleaning` says.

    "opening" is the paper's 3 × 3 opening. "whole" removes pieces of at most `DOT` pixels and closes enclosed holes; of
    the pieces that are left those stay whose highest score reaches `NEAR` of the highest of their piece of the region,
    and those at a local maximum of the scores: the others are what the detector sees only because a defect is near.

    Args:
      mask: (H, W) bool.
      scores: smoothed score map, (h, w) as the extractor sees the picture.
      region: where n was free, bool of any size.
      kind: "whole" or "opening".
    """
    if kind == "opening":
        return ndimage.binary_opening(mask, SQUARE)
    scale = scale_of(mask.shape, scores.shape)
    scores, region = resize_map(scores, mask.shape), resize_mask(region, mask.shape)
    dots, reach = round(DOT * scale**2), round(REACH * scale)
    filled = np.asarray(ndimage.binary_fill_holes(remove_small_objects(mask, max_size=dots, connectivity=2)), bool)
    pieces, areas = (np.asarray(label(each, connectivity=2)) for each in (filled, region))
    around = piece_maxima(scores, areas)[np.maximum(piece_maxima(areas, pieces), 0).astype(int)]
    near = piece_maxima(scores, pieces) >= NEAR * around
    summits = region & (scores >= ndimage.maximum_filter(scores, 2 * reach + 1))
    touching = np.asarray(ndimage.binary_dilation(summits, SQUARE, iterations=round(2 * scale)), bool)
    touched = np.isin(np.arange(len(near)), pieces[touching])
    stays = near | touched
    return np.asarray(stays[pieces] & filled)

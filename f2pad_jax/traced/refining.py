"""Algorithm 1 of arXiv 2407.06519 on one picture, from pixels to the mask, as a pure function."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, UInt8
from scipy.ndimage import gaussian_filter1d

from f2pad_jax.calibration import GAIN, POOR, POWER, UNEXPLAINED
from f2pad_jax.core import Problem, Reduction, Solution, levels_of, reduce, sharing_weights, solve
from f2pad_jax.core.penalty import pixel_norm
from f2pad_jax.core.pixels import normalize
from f2pad_jax.core.sharing import Sharing
from f2pad_jax.data.images import resize_mask
from f2pad_jax.detectors import Drawing, Maps, drawing_of
from f2pad_jax.detectors.base import enlarge
from f2pad_jax.interest import lowest_outside
from f2pad_jax.model import Model
from f2pad_jax.outcomes import APART, CERTAIN, DOT, EDGE, EVIDENT, NEAR, REACH
from f2pad_jax.reducing import Shape, axis_weights
from f2pad_jax.sights import SMOOTHING
from f2pad_jax.traced.fills import FILLS
from f2pad_jax.traced.pieces import (
    SQUARE,
    areas,
    cells_met,
    dilated,
    filled_holes,
    highest,
    local_maximum,
    opened,
    pieces,
)

VERDICTS = ("ok", "defect", "unexplained")  # of `Segmentation.verdict`, by their numbers


class Sight(NamedTuple):
    """What the extractor tells of the picture, as `model.Sight`."""

    image: Float[Array, "H W 3"]
    seen: Float[Array, "h w 3"]
    maps: Maps
    scores: Float[Array, "h w"]
    costs: Float[Array, "p q"]


class Start(NamedTuple):
    """Where the solve begins, as `preparing.Start`."""

    normal: Float[Array, "h w 3"]
    fill: Float[Array, "h w 3"]
    filled: Bool[Array, ""]
    error: Float[Array, ""]


class Outcome(NamedTuple):
    """What the solve has come to, as `outcomes.Outcome`; `status` is a `core.Status`, 0 where there was no solve."""

    mask: Bool[Array, "h w"]
    residual: Float[Array, ""]
    iterations: Array
    status: Array


def refine_one(model: Model, picture: UInt8[Array, "h w 3"]) -> dict[str, Array]:
    """Finds the anomaly of one picture: `segment` as a pure function of the picture, for `jit`, `lax.map` and `export`.

    It solves on the whole picture where `segment` solves in a box around the region, and leaves the recovered picture
    out. Sums add up in another order, so n differs by roundings.

    Args:
      model: as fitted or tuned, not one of windows; its arrays become constants of what is traced.
      picture: RGB of the model's shape.

    Returns:
      "mask" (H, W) bool; "score_map" and "refined_map" (H, W) float32; and numbers, () each: "threshold" and "residual"
      float32 as in `Segmentation`, "iterations" int32, "status" int32, a `core.Status` or 0 where n was free nowhere,
      and "verdict" int32, an index of `VERDICTS`.
    """
    sight = look(model, normalize(picture))
    region, start = _locate(model, sight)
    nothing = Outcome(jnp.zeros(model.shape, bool), jnp.float32(0), jnp.int32(0), jnp.int32(0))
    found = lax.cond(jnp.any(region), lambda: _solved(model, sight, region, start), lambda: nothing)
    scores = _resized(sight.scores, model.shape)
    inside = None if model.inside is None else model.inside[1]
    initial, mask = scores > model.threshold, found.mask
    if inside is not None:
        initial, scores = initial & inside, lowest_outside(scores, inside)
    refined = scores * (1 + _blurred(mask.astype(jnp.float32), EDGE))
    marked = jnp.where(found.residual <= 1, 1, 2)
    return {
        "score_map": scores,
        "refined_map": refined if inside is None else jnp.where(inside, refined, jnp.min(scores)),
        "mask": mask,
        "threshold": jnp.float32(model.threshold),
        "residual": found.residual,
        "iterations": found.iterations,
        "status": found.status,
        "verdict": jnp.where(jnp.any(mask), marked, jnp.where(jnp.any(initial), 2, 0)).astype(jnp.int32),
    }


def score_one(model: Model, picture: UInt8[Array, "h w 3"]) -> Float[Array, "h w"]:
    """The detector's smoothed score map of one picture, the "score_map" of `refine_one`; arguments as there."""
    scores = _resized(look(model, normalize(picture)).scores, model.shape)
    return scores if model.inside is None else lowest_outside(scores, model.inside[1])


def look(model: Model, image: Float[Array, "h w 3"]) -> Sight:
    """`model.look` of one picture, (H, W, 3), ImageNet-normalised."""
    seen = image
    if model.seen != model.shape:
        rows, columns = (axis_weights(*sides) for sides in zip(model.shape, model.seen, strict=True))
        seen = jnp.einsum("ij,jkc,lk->ilc", rows, image, columns, precision="highest")
    maps = tuple(m[0] for m in model.extractor(seen[None]))
    scores = model.scored(_smoothed(model, model.detector.score(maps), drawing_of(model.detector)))
    return Sight(image, seen, maps, scores, model.detector.summands(maps))


def _resized(values: Array, shape: Shape) -> Array:
    return values if values.shape == shape else enlarge(values, shape)


def _blurred(
    values: Float[Array, "h w"], sigma: float, border: Literal["reflect", "mirror"] = "reflect"
) -> Float[Array, "h w"]:
    # SciPy's filter is linear along an axis: what it makes of unit vectors is its matrix.
    units = (np.eye(side, dtype=np.float32) for side in values.shape)
    down, across = (gaussian_filter1d(unit, sigma, axis=0, mode=border) for unit in units)
    return jnp.matmul(jnp.matmul(down, values, precision="highest"), across.T, precision="highest")


def _smoothed(model: Model, grid: Array, drawing: Drawing = Drawing()) -> Array:
    """`model.smooth_map`."""
    return _blurred(enlarge(grid, model.seen, drawing.enlarging), SMOOTHING, drawing.border)


def _find_region(model: Model, scores: Array, *, faint: bool = False) -> Array:
    """`preparing.find_region`."""
    procedure, threshold = model.procedure, model.threshold
    low = threshold if procedure.region == "threshold" else min(model.limits.pixel, threshold)
    counting = scores if model.inside is None else scores[np.nonzero(model.inside[0])]
    free = scores > jnp.maximum(low, jnp.quantile(counting, 1 - procedure.largest))
    if not faint:
        free = free & highest(free & (scores > threshold), pieces(free))
    return model.inspected(dilated(free, procedure.dilation))


def _begin(model: Model, image: Array, region: Array, doubtful: Array) -> Start:
    """`preparing.begin`."""
    choice = model.procedure.start
    region = model.inspected(resize_mask(region, model.shape))
    elsewhere = resize_mask(doubtful, model.shape)
    fill, error = FILLS[choice if choice in FILLS else "matching"](model, image, region, elsewhere)
    filled = {"image": False, "auto": error <= model.procedure.trusted}.get(choice, True)
    return Start(jnp.where(filled, fill, image), fill, jnp.asarray(filled), jnp.asarray(error))


def _locate(model: Model, sight: Sight) -> tuple[Array, Start]:
    """`preparing.locate`: from a fill only pieces that reach the threshold count, and the fill is that of these."""
    region = wide = _find_region(model, sight.scores)
    faint = _find_region(model, sight.scores, faint=True)
    if model.procedure.threshold is None:
        wide = faint

    def once_more(carry: tuple[Array, Start, Array]) -> tuple[Array, Start, Array]:
        before, _, _ = carry
        start = _begin(model, sight.image, before, faint)
        after = jnp.where(start.filled, region, before)
        return after, start, jnp.any(after != before)

    unfilled = Start(sight.image, sight.image, jnp.zeros((), bool), jnp.float32(jnp.inf))
    first = (wide, unfilled, jnp.any(wide))
    found, start, _ = lax.while_loop(lambda carry: carry[2], once_more, first)
    return found, start


def _solved(model: Model, sight: Sight, region: Array, start: Start) -> Outcome:
    """Steps 4 and 5 where there is a region, (h, w) bool."""
    region = model.inspected(resize_mask(region, model.shape))
    settings, procedure = model.settings, model.procedure
    sparsity = jnp.ones(model.shape)
    if procedure.sparsity == "area":
        sparsity = sparsity / jnp.maximum(jnp.sum(sight.scores > model.threshold), 1)
    if procedure.sparsity != "levels":
        settings = settings.replace(first_beta=settings.beta0)
    grid = model.grids[0]
    present = dilated(cells_met(region, grid), 1, SQUARE).ravel()
    reduction, maps = _reduction(model, sight), sight.maps
    if model.detector.anchored:
        seen = start.fill if reduction is None else reduce(start.fill, sight.image, reduction)
        maps = tuple(m[0] for m in model.extractor(seen[None]))
    problem = Problem(
        image=sight.image,
        region=region,
        sparsity=sparsity,
        local=model.detector.localize(maps, jnp.arange(grid[0] * grid[1], dtype=jnp.int32)),
        present=present.astype(jnp.float32),
        scales=model.scales.replace(score=jnp.maximum(model.scales.score, jnp.median(sight.costs))),
        filled=start.filled,
        sharing=_sharing(model, sight, start),
        reduction=reduction,
    )
    solution = solve(start.normal, model.energy, problem, settings)
    if procedure.sparsity == "levels":
        mask, residual = lax.cond(
            start.filled,
            lambda: _by_levels(model, sight, problem, solution, start),
            lambda: _by_scores(model, sight, problem, solution),
        )
    else:
        mask, residual = _by_scores(model, sight, problem, solution)
    mask = opened(mask) if procedure.cleaning == "opening" else _whole(model, mask, sight.scores, region)
    if procedure.cleaning == "whole":  # a solve that leaves nothing where the detector is certain has failed
        failed = ~jnp.any(mask) & (jnp.max(sight.scores) > model.threshold_in(model.limits, share=CERTAIN))
        mask = jnp.where(failed, _resized(sight.scores, model.shape) > model.threshold, mask)
    return Outcome(model.inspected(mask), residual, solution.iterations, solution.status)


def _reduction(model: Model, sight: Sight) -> Reduction | None:
    if model.seen == model.shape:
        return None
    rows, columns = (jnp.asarray(axis_weights(*sides)) for sides in zip(model.shape, model.seen, strict=True))
    corner, area = jnp.zeros(2, jnp.int32), jnp.float32(model.scale**2)
    return Reduction(seen=sight.seen, rows=rows, columns=columns, corner=corner, area=area)


def _sharing(model: Model, sight: Sight, start: Start) -> Sharing | None:
    """Weights of Eq. (14); where neighbours share nothing, those by which each pixel keeps its own value."""
    always = model.settings.share_gradient
    if not (always or model.procedure.sharing):
        return None
    sharing = sharing_weights(sight.image)
    own = jnp.asarray([offset == (0, 0) for offset in sharing.offsets], jnp.float32)[:, None]
    return sharing.replace(weights=jnp.where(always | start.filled, sharing.weights, own))


def _by_levels(model: Model, sight: Sight, problem: Problem, solution: Solution, start: Start) -> tuple[Array, Array]:
    """`calibration.choose_levels` for every pixel of the region, and the mask and residual of these levels."""
    ends, factors = levels_of(problem.filled, model.settings)
    betas = (factors * model.settings.beta0)[:, None, None]
    region = resize_mask(problem.region, model.seen)
    numbers = pieces(region)
    left = jnp.where(problem.present > 0, solution.left, sight.costs.ravel()).reshape(-1, *sight.costs.shape)
    # one after the other: together the levels of a large picture would fill the memory
    lasts = lax.map(lambda grid: highest(_smoothed(model, grid), numbers), left)
    peaks, usual = highest(_smoothed(model, sight.costs), numbers), model.limits.cost
    ratios = lasts / jnp.maximum(usual, UNEXPLAINED * peaks)
    poor = jnp.where(jnp.isfinite(start.error), jnp.maximum(start.error / POOR, 1), 1)
    affordable = jnp.clip(poor * GAIN * (peaks / usual) ** POWER, betas[0], betas[-1])
    errors = jnp.abs(jnp.log(betas / affordable))
    order = jnp.arange(len(betas))[:, None, None]
    allowed = order < len(betas) - jnp.argmin(errors[::-1], axis=0)  # up to the last of equals
    last = jnp.max(jnp.where(allowed & (ratios <= 1), order, -1), axis=0)
    level = jnp.where(last >= 0, last, jnp.argmin(jnp.where(allowed, ratios, jnp.inf), axis=0))
    residual = jnp.max(jnp.where(region, jnp.take_along_axis(ratios, level[None], axis=0)[0], 0.0))
    level = resize_mask(jnp.where(region, level, -1), model.shape)
    mask = (level >= 0) & (solution.lasting >= ends[jnp.maximum(level, 0)])
    return mask & ((level == len(betas) - 1) | _evident(model, sight, problem.region, start.fill)), residual


def _by_scores(model: Model, sight: Sight, problem: Problem, solution: Solution) -> tuple[Array, Array]:
    """The mask {a ≠ 0} and `calibration.residual_of`."""
    after, region = look(model, solution.normal).scores, resize_mask(problem.region, model.seen)
    numbers = pieces(region)
    peaks, lasts = highest(sight.scores, numbers), highest(after, numbers)
    ratios = lasts / jnp.maximum(model.threshold, UNEXPLAINED * peaks)
    mask = pixel_norm(sight.image - solution.normal) > model.procedure.smallest
    return mask, jnp.max(jnp.where(region, ratios, 0.0))


def _evident(model: Model, sight: Sight, region: Array, fill: Array) -> Array:
    """Pixels with a share of the highest `outcomes.evidence` in the region."""
    apart = _blurred(pixel_norm(sight.image - fill), APART * model.scale)
    values = jnp.maximum(_resized(sight.scores, model.shape), 0) * jnp.sqrt(jnp.maximum(apart, 0))
    return values > EVIDENT * jnp.max(jnp.where(region, values, 0))


def _whole(model: Model, mask: Array, scores: Array, region: Array) -> Array:
    """`outcomes.clean` of the kind "whole"."""
    scores, reach = _resized(scores, model.shape), round(REACH * model.scale)
    filled = filled_holes(mask & (areas(pieces(mask)) > round(DOT * model.scale**2)))
    own, regions = pieces(filled), pieces(region)
    tops = jax.ops.segment_max(scores.ravel(), regions.ravel(), num_segments=regions.size + 1)
    near = highest(scores, own) >= NEAR * tops[highest(regions, own)]
    summits = region & (scores >= local_maximum(scores, reach))
    touched = highest(dilated(summits, round(2 * model.scale), SQUARE), own)
    return filled & (near | touched)

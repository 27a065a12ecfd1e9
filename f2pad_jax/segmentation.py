"""Algorithm 1 of arXiv 2407.06519: from pictures to the exact masks of their anomalies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import remove_small_objects
from tqdm import tqdm

from f2pad_jax.calibration import choose_levels, piece_maxima, residual_of
from f2pad_jax.core import Solution, levels_of
from f2pad_jax.core.pixels import denormalize
from f2pad_jax.data.images import check_images, resize_image, resize_map, resize_mask
from f2pad_jax.model import Model, Sight, look, smooth_map
from f2pad_jax.preparing import SQUARE, Plan, Start, locate, plan, plan_estimation
from f2pad_jax.reducing import scale_of
from f2pad_jax.solving import find_solutions

DOT = 8  # pixels that the extractor sees; connected pieces of the mask that are no larger are removed
NEAR = 0.7  # of the highest score of its piece of the region: what a piece of the mask reaches to stay
REACH = 8  # pixels that the extractor sees within which a local maximum of the scores is the highest
GROUP = 32  # pictures of at most `USUAL` pixels that are in memory at a time
USUAL = 2**18


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What `segment` found in one picture; everything at the size of the picture.

    Attributes:
      mask: {a ≠ 0} without dots and enclosed holes, (H, W) bool.
      normal: the recovered non-defective picture n*, (H, W, 3) uint8; equal to the picture outside the mask.
      anomaly: a = x − n*, (H, W, 3) float32 in [-1, 1].
      initial_mask: the detector's mask m⁽⁰⁾, (H, W) bool.
      score_map: the detector's smoothed scores, (H, W) float32.
      refined_map: the scores, up to twice as high in the mask, (H, W) float32: what it ranks highest has the mask's
        outline.
      residual: the highest s_ij that are left in n, over those of a usual normal picture or a quarter of what they were
        in x; with one β, the highest scores, over the threshold or a quarter of what they were. Up to 1 the anomaly is
        explained. 0 where n was free nowhere.
      iterations: of the main solve.
      status: "converged", "iteration limit", "non-finite" or "normal" (n was free nowhere).
      seconds: wall time; of pictures that are segmented together, each one's share.
    """

    mask: np.ndarray
    normal: np.ndarray
    anomaly: np.ndarray
    initial_mask: np.ndarray
    score_map: np.ndarray
    refined_map: np.ndarray
    residual: float
    iterations: int
    status: str
    seconds: float

    @property
    def verdict(self) -> str:
        """Of the picture: "ok", "defect", or "unexplained", where something stands out that no mask accounts for."""
        if not self.mask.any():
            return "unexplained" if self.initial_mask.any() else "ok"
        return "defect" if self.residual <= 1 else "unexplained"


@overload
def segment(model: Model, images: np.ndarray, *, grow: bool = False, title: str | None = None) -> Any: ...
@overload
def segment(
    model: Model, images: Sequence[np.ndarray], *, grow: bool = False, title: str | None = None
) -> list[Segmentation]: ...
def segment(
    model: Model, images: np.ndarray | Sequence[np.ndarray], *, grow: bool = False, title: str | None = None
) -> Segmentation | list[Segmentation]:
    """Finds the anomaly of a picture of any size, or of each of many; the work is done at the model's shape.

    A model that was fitted to windows works in windows of this shape, one after the other. Many pictures are solved
    side by side, in lanes over all local devices.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB: a picture (H, W, 3), a stack (N, H, W, 3), or a list of pictures of any sizes.
      grow: whether regions grow where the recovered picture still scores high at their border.
      title: of a progress bar; none without.

    Returns:
      A `Segmentation` of a picture, or a list of them.

    Raises:
      InputError: not such arrays.

    Examples:
      >>> result = segment(model, image)  # doctest: +SKIP
      >>> first, second = segment(model, [image, other])  # doctest: +SKIP
    """
    from f2pad_jax.windows import segment_windows  # segments each window by `segment_alike`

    single = getattr(images, "ndim", 4) != 4
    pictures = [check_images(image, rank=3) for image in ([images] if single else images)]
    results: list[Segmentation] = []
    if model.windowed:
        for image in tqdm(pictures, desc=title, unit="image", leave=False, disable=None if title else True):
            began = time.perf_counter()
            found = segment_windows(model, image, grow=grow)
            results.append(replace(found, seconds=time.perf_counter() - began))
        return results[0] if single else results
    count = group_size(model)
    for first in range(0, len(pictures), count):
        group = pictures[first : first + count]
        began = time.perf_counter()
        alike = np.stack([resize_image(image, model.shape) for image in group])
        solved = segment_alike(model, alike, grow=grow, title=title)
        seconds = (time.perf_counter() - began) / len(group)
        results += [
            at_size_of(replace(result, seconds=seconds), image) for result, image in zip(solved, group, strict=True)
        ]
    return results[0] if single else results


def group_size(model: Model) -> int:
    """How many pictures are in memory at a time."""
    if model.windowed:
        return 1
    return max(1, min(GROUP, GROUP * USUAL // (model.shape[0] * model.shape[1])))


def segment_alike(
    model: Model, images: np.ndarray, *, grow: bool = False, title: str | None = None
) -> list[Segmentation]:
    """`segment` of pictures of the model's shape, uint8 (N, H, W, 3)."""
    from f2pad_jax.growing import let_grow  # solves again by `segment_regions`

    sights = look(model, images)
    places = [locate(model, sight) for sight in sights]
    regions, starts = [place.region for place in places], [place.start for place in places]
    results = segment_regions(model, images, sights, regions, starts=starts, title=title)
    return [growth.result for growth in let_grow(model, images, sights, regions, results)] if grow else results


def segment_regions(
    model: Model,
    images: np.ndarray,
    sights: Sequence[Sight],
    regions: Sequence[np.ndarray],
    *,
    starts: Sequence[Start | None] | None = None,
    title: str | None = None,
) -> list[Segmentation]:
    """Steps 4 to 6 of Algorithm 1 where the regions are known.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, H, W, 3).
      sights: of `look`.
      regions: where n is free, (h, w) bool each.
      starts: n⁽⁰⁾ of each; by default that of `begin`.
      title: of a progress bar; none without.

    Returns:
      One result a picture; their `seconds` are equal shares of the whole.
    """
    began = time.perf_counter()
    nothing = Outcome(np.zeros(images.shape[1:3], bool), 0.0, 0, "normal")
    outcomes, normals = [nothing] * len(images), images.copy()

    suspect = [k for k, region in enumerate(regions) if region.any()]
    plans = [plan(model, sights[k], regions[k], starts[k] if starts else None) for k in suspect]
    for place, outcome in find_outcomes(model, plans, title=title):
        outcomes[suspect[place]] = outcome

    marked = [k for k, outcome in enumerate(outcomes) if outcome.mask.any()]
    estimations = [plan_estimation(model, sights[k], outcomes[k].mask) for k in marked]
    for place, solution in find_solutions(model, estimations):
        k = marked[place]
        recovered = estimations[place].box.put(denormalize(np.asarray(solution.normal)), images[k])
        normals[k] = np.where(outcomes[k].mask[..., None], recovered, images[k])

    scores = [resize_map(sight.scores, model.shape) for sight in sights]
    anomalies = (images.astype(np.float32) - normals.astype(np.float32)) / 255
    seconds = (time.perf_counter() - began) / max(len(images), 1)
    return [
        Segmentation(
            mask=outcome.mask,
            normal=normals[k],
            anomaly=anomalies[k],
            initial_mask=scores[k] > model.threshold,
            score_map=scores[k],
            refined_map=refine(scores[k], outcome.mask),
            residual=outcome.residual,
            iterations=outcome.iterations,
            status=outcome.status,
            seconds=seconds,
        )
        for k, outcome in enumerate(outcomes)
    ]


class Outcome(NamedTuple):
    """What the main solve of one picture has come to.

    Attributes:
      mask: cleaned, (H, W) bool.
      residual: see `Segmentation`.
      iterations: of the solve.
      status: in words; "normal" where nothing was to be solved.
    """

    mask: np.ndarray
    residual: float
    iterations: int
    status: str


def find_outcomes(model: Model, plans: Sequence[Plan], *, title: str | None = None) -> Iterator[tuple[int, Outcome]]:
    """Steps 4 and 5: solves, and reads the masks off a = x − n; index and outcome of each, as they finish."""
    for index, solution in find_solutions(model, plans, title=title):
        yield index, read_off(model, plans[index], solution)


def read_off(model: Model, chosen: Plan, solution: Solution) -> Outcome:
    """The mask of a solve, {a ≠ 0} at the β that is right for each piece of the region, cleaned, and what is left.

    Args:
      model: as fitted or tuned.
      chosen: the plan.
      solution: its solution.
    """
    sight, normal = chosen.sight, chosen.box.put(np.asarray(solution.normal), chosen.sight.image)
    region = resize_mask(chosen.region, model.seen)
    if model.procedure.sparsity == "levels" and chosen.start.filled:
        ends, factors = levels_of(chosen.start.filled, chosen.settings)
        betas, costs = np.asarray(factors) * float(chosen.settings.beta0), smooth_map(sight.costs, model.seen)
        found = choose_levels(region, costs, _left_maps(model, chosen, solution), betas, model.limits)
        lasting = chosen.box.put(np.asarray(solution.lasting), np.zeros(model.shape, np.int32))
        level, residual = resize_mask(found.level, model.shape), found.residual
        mask = (level >= 0) & (lasting >= np.asarray(ends)[np.maximum(level, 0)])
    else:
        # The scores of the solve would not do: PatchCore's are those of few candidates, near the fill and not near x.
        (after,) = look(model, normal[None])
        residual = residual_of(region, sight.scores, after.scores, model.threshold)
        mask = np.linalg.norm(sight.image - normal, axis=-1) > model.procedure.smallest
    mask = clean(mask, sight.scores, chosen.region, kind=model.procedure.cleaning)
    return Outcome(mask, residual, int(solution.iterations), solution.message)


def _left_maps(model: Model, chosen: Plan, solution: Solution) -> np.ndarray:
    """Smoothed maps of the s_ij of n at the end of each level, (K, h, w); x has the other positions."""
    present = chosen.affected.present > 0
    grid = np.repeat(chosen.sight.costs.reshape(1, -1), len(solution.left), axis=0)
    grid[:, chosen.affected.positions[present]] = np.asarray(solution.left)[:, present]
    return np.stack([smooth_map(one.reshape(chosen.sight.costs.shape), model.seen) for one in grid])


def refine(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The refined map, (H, W) float32: evidence from features times evidence from pixels.

    Args:
      scores: smoothed score map, (H, W).
      mask: (H, W) bool; its edge is smoothed by one pixel.
    """
    return (scores * (1 + ndimage.gaussian_filter(mask.astype(np.float32), 1.0))).astype(np.float32)


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
    around = piece_maxima(scores, areas)[piece_maxima(areas, pieces).astype(int)]
    near = piece_maxima(scores, pieces) >= NEAR * around
    summits = region & (scores >= ndimage.maximum_filter(scores, 2 * reach + 1))
    touching = np.asarray(ndimage.binary_dilation(summits, SQUARE, iterations=round(2 * scale)), bool)
    touched = np.isin(np.arange(len(near)), pieces[touching])
    stays = near | touched
    return np.asarray(stays[pieces] & filled)


def at_size_of(result: Segmentation, image: np.ndarray) -> Segmentation:
    """A result at the model's shape, at that of its picture: masks by nearest neighbour, scores bilinearly."""
    shape = (image.shape[0], image.shape[1])
    if shape == result.mask.shape:
        return result
    mask = resize_mask(result.mask, shape)
    normal = np.where(mask[..., None], resize_image(result.normal, shape), image)
    return replace(
        result,
        mask=mask,
        normal=normal,
        anomaly=(image.astype(np.float32) - normal.astype(np.float32)) / 255,
        initial_mask=resize_mask(result.initial_mask, shape),
        score_map=resize_map(result.score_map, shape),
        refined_map=resize_map(result.refined_map, shape),
    )

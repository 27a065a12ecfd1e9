"""Algorithm 1 of arXiv 2407.06519: from pictures to the exact masks of their anomalies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from PIL import Image
from skimage.measure import label
from skimage.morphology import remove_small_objects
from tqdm import tqdm

from f2pad_jax.composing import explain
from f2pad_jax.data.arrays import as_pictures
from f2pad_jax.data.images import resize_image, resize_map, resize_mask
from f2pad_jax.defects import Defect, find_defects
from f2pad_jax.grouping import budget, groups
from f2pad_jax.interest import brought, check_roi, lowest_outside
from f2pad_jax.model import Model
from f2pad_jax.outcomes import Outcome, find_outcomes, refined_map
from f2pad_jax.preparing import Start, locate, plan
from f2pad_jax.sights import Sight, look
from f2pad_jax.solving import find_normals


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What `segment` found in one picture; everything at the size of the picture.

    Attributes:
      mask: {a ≠ 0} without dots and enclosed holes, or segments where n is composed, (H, W) bool; m⁽⁰⁾ where that is
        empty and the detector is certain.
      normal: the recovered non-defective picture n*, (H, W, 3) uint8; equal to the picture outside the mask.
      anomaly: a = x − n*, (H, W, 3) float32 in [-1, 1].
      initial_mask: the detector's mask m⁽⁰⁾, (H, W) bool.
      score_map: the detector's smoothed scores, (H, W) float32; outside the region of interest the lowest of them.
      threshold: of the scores.
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
    threshold: float
    refined_map: np.ndarray
    residual: float
    iterations: int
    status: str
    seconds: float

    @property
    def from_detector(self) -> bool:
        """Whether the mask is the detector's own, because the solve left none."""
        return bool(self.mask.any()) and np.array_equal(self.mask, self.initial_mask)

    @property
    def verdict(self) -> str:
        """Of the picture: "ok", "defect", or "unexplained", where something stands out that no mask accounts for."""
        if not self.mask.any():
            return "unexplained" if self.initial_mask.any() else "ok"
        return "defect" if self.residual <= 1 else "unexplained"

    @property
    def defects(self) -> list[Defect]:
        """The connected pieces of the mask, measured."""
        image = self.normal.copy()  # x is n outside the mask; pictures may be large
        image[self.mask] = np.rint(image[self.mask] + 255 * self.anomaly[self.mask])
        return find_defects(self.mask, self.score_map, self.anomaly, image)


@overload
def segment(
    model: Model,
    images: str | os.PathLike[str] | Image.Image,
    *,
    roi: np.ndarray | None = None,
    grow: bool = False,
    smallest_defect: int = 0,
    memory: float | None = None,
    title: str | None = None,
) -> Segmentation: ...
@overload
def segment(
    model: Model,
    images: Sequence[Any],
    *,
    roi: np.ndarray | None = None,
    grow: bool = False,
    smallest_defect: int = 0,
    memory: float | None = None,
    title: str | None = None,
) -> list[Segmentation]: ...
@overload
def segment(
    model: Model,
    images: Any,
    *,
    roi: np.ndarray | None = None,
    grow: bool = False,
    smallest_defect: int = 0,
    memory: float | None = None,
    title: str | None = None,
) -> Any: ...
def segment(
    model: Model,
    images: Any,
    *,
    roi: np.ndarray | None = None,
    grow: bool = False,
    smallest_defect: int = 0,
    memory: float | None = None,
    title: str | None = None,
) -> Segmentation | list[Segmentation]:
    """Finds the anomaly of a picture of any size, or of each of many; the work is done at the model's shape.

    A model that was fitted to windows works in windows of this shape, one after the other. Many pictures are solved
    side by side, in lanes over all local devices.

    Args:
      model: as fitted or tuned.
      images: a picture, a stack (N, H, W, C), or a list of pictures of any sizes. A picture is an array (H, W) or
        (H, W, C), grey, RGB or RGBA, of uint8, uint16 or floats in [0, 1], a PIL image or the name of a file, as
        `data.arrays.as_picture` takes it.
      roi: what is inspected, (H, W) bool, in place of the model's own region of interest; where a picture has another
        size it is brought to that by nearest neighbour. Outside nothing is scored or marked.
      grow: whether regions grow where the recovered picture still scores high at their border.
      smallest_defect: pixels of the picture below which a piece of the mask is left out, and what stands out there
        does not count.
      memory: most host memory of the process in GiB, by which fewer pictures are solved together; see
        `grouping.budget`.
      title: of a progress bar; none without.

    Returns:
      A `Segmentation` of a picture, or a list of them.

    Raises:
      InputError: no such pictures, they do not fit into `memory`, or nothing is left of the region of interest; a
        KindError, which is a TypeError as well, where pictures are of another kind.

    Examples:
      >>> result = segment(model, image)  # doctest: +SKIP
      >>> first, second = segment(model, [image, other])  # doctest: +SKIP
    """
    from f2pad_jax.windows import segment_windows  # segments each window by `segment_alike`

    pictures, single = as_pictures(images, white_level=model.white_level)
    if roi is not None:
        model = replace(model, roi=check_roi(roi))
    results: list[Segmentation] = []
    if model.windowed:
        singles = list(_groups(model, pictures, memory))
        for (index,) in tqdm(singles, desc=title, unit="image", leave=False, disable=None if title else True):
            image = pictures[index]
            began = time.perf_counter()
            found = segment_windows(model, image, grow=grow)
            found = replace(found, seconds=time.perf_counter() - began)
            results.append(restrict(found, image, roi=model.roi, smallest=smallest_defect))
        return results[0] if single else results
    results = in_groups(
        model,
        pictures,
        lambda alike, _: segment_alike(model, alike, grow=grow, title=title),
        smallest_defect=smallest_defect,
        memory=memory,
    )
    return results[0] if single else results


def in_groups(
    model: Model,
    pictures: Sequence[np.ndarray],
    solve: Callable[[np.ndarray, slice], list[Segmentation]],
    *,
    smallest_defect: int,
    memory: float | None = None,
) -> list[Segmentation]:
    """Results at the sizes of the pictures, of which as many as memory allows are solved together.

    Args:
      model: of whole pictures.
      pictures: uint8 RGB (H, W, 3), of any sizes.
      solve: of pictures brought to the model's shape, (N, H, W, 3), and of which of all pictures these are.
      smallest_defect: as for `segment`.
      memory: as for `segment`.
    """
    results = []
    for group in _groups(model, pictures, memory):
        which = slice(group.start, group.stop)
        began = time.perf_counter()
        solved = solve(np.stack([resize_image(image, model.shape) for image in pictures[which]]), which)
        seconds = (time.perf_counter() - began) / len(solved)
        for result, image in zip(solved, pictures[which], strict=True):
            found = at_size_of(replace(result, seconds=seconds), image)
            results.append(restrict(found, image, roi=model.roi, smallest=smallest_defect))
    return results


def _groups(model: Model, pictures: Sequence[np.ndarray], memory: float | None) -> Iterator[range]:
    shapes = [(image.shape[0], image.shape[1]) for image in pictures]
    return groups(model, shapes, None if memory is None else budget(model, memory), kept=True)


def segment_alike(
    model: Model, images: np.ndarray, *, grow: bool = False, title: str | None = None
) -> list[Segmentation]:
    """`segment` of pictures of the model's shape, uint8 (N, H, W, 3)."""
    from f2pad_jax.growing import let_grow  # solves again by `segment_regions`

    sights = look(model, images)
    places = [locate(model, sight) for sight in sights]
    regions, starts = [place.region for place in places], [place.start for place in places]
    results = segment_regions(model, images, sights, regions, starts=starts, title=title)
    if not grow:
        return results
    return [growth.result for growth in let_grow(model, images, sights, regions, results)]


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
    for k, normal in find_normals(model, images, sights, {k: outcomes[k].mask for k in suspect}):
        normals[k] = normal

    others = {k: explain(model, chosen, outcomes[k], normals[k]) for k, chosen in zip(suspect, plans, strict=True)}
    composed = {k: outcome.mask for k, outcome in others.items() if outcome is not outcomes[k]}
    outcomes = [others.get(k, outcome) for k, outcome in enumerate(outcomes)]
    for k, normal in find_normals(model, images, sights, composed):
        normals[k] = normal

    scores = [resize_map(sight.scores, model.shape) for sight in sights]
    thresholds = [model.threshold_in(sight.limits) for sight in sights]
    anomalies = (images.astype(np.float32) - normals.astype(np.float32)) / 255
    seconds = (time.perf_counter() - began) / max(len(images), 1)
    return [
        Segmentation(
            mask=outcome.mask,
            normal=normals[k],
            anomaly=anomalies[k],
            initial_mask=scores[k] > thresholds[k],
            score_map=scores[k],
            threshold=thresholds[k],
            refined_map=refined_map(scores[k], outcome.mask),
            residual=outcome.residual,
            iterations=outcome.iterations,
            status=outcome.status,
            seconds=seconds,
        )
        for k, outcome in enumerate(outcomes)
    ]


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


def restrict(
    result: Segmentation, image: np.ndarray, *, roi: np.ndarray | None = None, smallest: int = 0
) -> Segmentation:
    """A result without what does not count: what lies outside the region of interest, and pieces that are too small.

    Pieces of the detector's mask that meet only pieces that are too small go with them, so that what is too small to
    count leaves a good picture good.

    Args:
      result: at the size of the picture.
      image: the picture, uint8 (H, W, 3).
      roi: region of interest, bool of any size; all of the picture without.
      smallest: pixels that a piece of the mask has at least.
    """
    mask, initial, scores = result.mask, result.initial_mask, result.score_map
    inside = None if roi is None else brought(roi, (mask.shape[0], mask.shape[1]))
    if inside is not None:
        mask, initial, scores = mask & inside, initial & inside, lowest_outside(scores, inside)
    if smallest > 1:
        large = remove_small_objects(mask, max_size=smallest - 1, connectivity=2)
        pieces = np.asarray(label(initial, connectivity=2))
        initial = initial & ~np.isin(pieces, np.setdiff1d(pieces[mask & ~large], pieces[large]))
        mask = large
    if inside is None and (mask == result.mask).all():
        return result
    normal, anomaly, refined = result.normal.copy(), result.anomaly.copy(), refined_map(scores, mask)
    gone = result.mask & ~mask
    normal[gone], anomaly[gone] = image[gone], 0
    return replace(
        result,
        mask=mask,
        normal=normal,
        anomaly=anomaly,
        initial_mask=initial,
        score_map=scores,
        refined_map=refined if inside is None else np.where(inside, refined, scores.min()),
    )

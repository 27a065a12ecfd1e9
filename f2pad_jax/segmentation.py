"""Algorithm 1 of arXiv 2407.06519: from pictures to the exact masks of their anomalies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import jax
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import remove_small_objects
from tqdm import tqdm

from f2pad_jax.core import Energy, Solution, solve_many
from f2pad_jax.core.pixels import denormalize
from f2pad_jax.data.images import check_images, resize_image, resize_mask
from f2pad_jax.model import Model, Sight, look
from f2pad_jax.preparing import SQUARE, Plan, Start, build, find_region, plan, plan_estimation

LANES = 64  # per accelerator
DOT = 8  # pixels; connected pieces of the mask that are no larger are removed
GROUP = 32  # pictures that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What `segment` found in one picture; everything at the size of the picture.

    Attributes:
      mask: {a ≠ 0} without dots, (H, W) bool.
      normal: the recovered non-defective picture n*, (H, W, 3) uint8; equal to the picture outside the mask.
      anomaly: a = x − n*, (H, W, 3) float32 in [-1, 1].
      initial_mask: the detector's mask m⁽⁰⁾, (H, W) bool.
      score_map: the detector's smoothed scores, (H, W) float32.
      iterations: of the main solve.
      status: "converged", "iteration limit", "non-finite" or "normal" (nothing reached the region threshold).
      seconds: wall time; of pictures that are segmented together, each one's share.
    """

    mask: np.ndarray
    normal: np.ndarray
    anomaly: np.ndarray
    initial_mask: np.ndarray
    score_map: np.ndarray
    iterations: int
    status: str
    seconds: float


@overload
def segment(
    model: Model, images: Sequence[np.ndarray], *, grow: bool = False, title: str | None = None
) -> list[Segmentation]: ...
@overload
def segment(model: Model, images: np.ndarray, *, grow: bool = False, title: str | None = None) -> Any: ...
def segment(
    model: Model, images: np.ndarray | Sequence[np.ndarray], *, grow: bool = False, title: str | None = None
) -> Segmentation | list[Segmentation]:
    """Finds the anomaly of a picture of any size, or of each of many; the work is done at the model's size.

    Many are solved side by side, in lanes over all local devices.

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
    if isinstance(images, np.ndarray) and images.ndim == 3:
        return segment(model, [images], grow=grow, title=title)[0]
    pictures = [check_images(image, rank=3) for image in images]
    results: list[Segmentation] = []
    for first in range(0, len(pictures), GROUP):
        group = pictures[first : first + GROUP]
        began = time.perf_counter()
        squares = np.stack([resize_image(image, (model.size, model.size)) for image in group])
        found = segment_squares(model, squares, grow=grow, title=title)
        seconds = (time.perf_counter() - began) / len(group)
        results += [
            at_size_of(replace(result, seconds=seconds), image) for result, image in zip(found, group, strict=True)
        ]
    return results


def segment_squares(
    model: Model, images: np.ndarray, *, grow: bool = False, title: str | None = None
) -> list[Segmentation]:
    """`segment` of pictures of the model's size, uint8 (N, S, S, 3)."""
    from f2pad_jax.growing import let_grow  # solves again by `segment_regions`

    sights = look(model, images)
    regions = [find_region(model, sight.scores) for sight in sights]
    results = segment_regions(model, images, sights, regions, title=title)
    return [growth.result for growth in let_grow(model, images, sights, regions, results)] if grow else results


def segment_regions(
    model: Model,
    images: np.ndarray,
    sights: Sequence[Sight],
    regions: Sequence[np.ndarray],
    *,
    starts: Sequence[Start] | None = None,
    title: str | None = None,
) -> list[Segmentation]:
    """Steps 4 to 6 of Algorithm 1 where the regions are known.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, S, S, 3).
      sights: of `look`.
      regions: where n is free, (S, S) bool each.
      starts: n⁽⁰⁾ of each; by default that of `begin`.
      title: of a progress bar; none without.

    Returns:
      One result a picture; their `seconds` are equal shares of the whole.
    """
    began = time.perf_counter()
    masks, normals = np.zeros(images.shape[:3], bool), images.copy()
    iterations, statuses = [0] * len(images), ["normal"] * len(images)

    suspect = [k for k, region in enumerate(regions) if region.any()]
    plans = [plan(model, sights[k], regions[k], starts[k] if starts else None) for k in suspect]
    for place, mask, solution in find_masks(model, plans, title=title):
        k = suspect[place]
        masks[k], iterations[k], statuses[k] = mask, int(solution.iterations), solution.message

    marked = [k for k, mask in enumerate(masks) if mask.any()]
    for place, solution in find_solutions(model, [plan_estimation(model, sights[k], masks[k]) for k in marked]):
        k = marked[place]
        normals[k] = np.where(masks[k][..., None], denormalize(np.asarray(solution.normal)), images[k])

    anomalies = (images.astype(np.float32) - normals.astype(np.float32)) / 255
    seconds = (time.perf_counter() - began) / max(len(images), 1)
    return [
        Segmentation(
            mask=masks[k],
            normal=normals[k],
            anomaly=anomalies[k],
            initial_mask=sight.scores > model.threshold,
            score_map=sight.scores,
            iterations=iterations[k],
            status=statuses[k],
            seconds=seconds,
        )
        for k, sight in enumerate(sights)
    ]


def find_solutions(model: Model, plans: Sequence[Plan], *, title: str | None = None) -> Iterator[tuple[int, Solution]]:
    """Step 4: solves all plans in lanes, over all local devices; index and solution of each, as they finish.

    Args:
      model: whose energy all plans share.
      plans: any number; their settings may differ.
      title: of a progress bar; none without.
    """
    groups: dict[Any, list[int]] = {}
    for index, chosen in enumerate(plans):
        # Lanes of one compiled step have equal shapes and static settings.
        static = jax.tree.structure(chosen.settings)
        groups.setdefault((len(chosen.affected.positions), chosen.shared, static), []).append(index)
    with tqdm(total=len(plans), desc=title, unit="image", leave=False, disable=None if title else True) as bar:
        for members in groups.values():
            for place, solution in solve_on_all(model.energy, (build(model, plans[k]) for k in members), len(members)):
                bar.update()
                yield members[place], solution


def solve_on_all(energy: Energy, cases: Iterable[Any], count: int) -> Iterator[tuple[int, Solution]]:
    """`solve_many` over all local devices; on a CPU more lanes than devices gain nothing."""
    devices = jax.local_devices()[:count]
    most = len(devices) if devices[0].platform == "cpu" else LANES * len(devices)
    width = len(devices)
    while width < min(count, most):
        width *= 2
    return solve_many(cases, energy, width=width, devices=devices)


def find_masks(
    model: Model, plans: Sequence[Plan], *, title: str | None = None
) -> Iterator[tuple[int, np.ndarray, Solution]]:
    """Steps 4 and 5: solves, and reads the masks off a = x − n: index, cleaned mask (S, S) bool, and solution."""
    for index, solution in find_solutions(model, plans, title=title):
        changed = plans[index].sight.image - np.asarray(solution.normal)
        mask = np.linalg.norm(changed, axis=-1) > model.procedure.smallest
        yield index, clean(mask, kind=model.procedure.cleaning), solution


def clean(mask: np.ndarray, *, kind: str) -> np.ndarray:
    """Removes dots from a mask (Algorithm 1): small connected pieces, or whatever a 3 × 3 opening takes."""
    if kind == "opening":
        return ndimage.binary_opening(mask, SQUARE)
    return remove_small_objects(mask, max_size=DOT, connectivity=2)


def at_size_of(result: Segmentation, image: np.ndarray) -> Segmentation:
    """A result at the model's size, at the size of its picture: masks by nearest neighbour, scores bilinearly."""
    shape = (image.shape[0], image.shape[1])
    if shape == result.mask.shape:
        return result
    mask = resize_mask(result.mask, shape)
    normal = np.where(mask[..., None], resize_image(result.normal, shape), image)
    scores = Image.fromarray(result.score_map.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR)
    return replace(
        result,
        mask=mask,
        normal=normal,
        anomaly=(image.astype(np.float32) - normal.astype(np.float32)) / 255,
        initial_mask=resize_mask(result.initial_mask, shape),
        score_map=np.asarray(scores),
    )

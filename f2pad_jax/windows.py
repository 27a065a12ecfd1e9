"""Large pictures in overlapping windows, for defects that the reduction to the extractor's size would wipe out.

One detector serves all windows, so that it suits textures and detectors that do not look at the place. Each window is
looked at and, where something stands out, solved by itself: the time grows with the windows that hold a region, and no
more than one of them is in memory beside the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from f2pad_jax.boxes import Box
from f2pad_jax.data.images import read_image, resize_mask
from f2pad_jax.errors import InputError
from f2pad_jax.interest import brought
from f2pad_jax.model import Model
from f2pad_jax.outcomes import refined_map
from f2pad_jax.reducing import Shape
from f2pad_jax.segmentation import Segmentation, segment_alike

OVERLAP = 0.25  # least share of a window's side that its neighbour has as well
FITTED = 64  # windows of training pictures that a model is fitted to
SEVEREST = ("normal", "converged", "iteration limit", "diverged", "non-finite")


def windows_of(shape: Shape, window: Shape) -> list[Box]:
    """The windows of a picture, row by row, spread evenly; the picture is no smaller than one.

    Args:
      shape: of the picture.
      window: of a window.
    """

    def starts(whole: int, side: int) -> list[int]:
        count = 1 if whole == side else 1 + int(np.ceil((whole - side) / ((1 - OVERLAP) * side)))
        return np.linspace(0, whole - side, count).round().astype(int).tolist()

    return [Box(top, left, *window) for top in starts(shape[0], window[0]) for left in starts(shape[1], window[1])]


def padded(image: np.ndarray, window: Shape) -> np.ndarray:
    """A picture (H, W, 3) that is at least as large as a window, continued by its mirror image where it is not."""
    missing = [max(0, least - side) for least, side in zip(window, image.shape, strict=False)]
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric") if any(missing) else image


def training_windows(
    paths: Sequence[Path],
    window: Shape,
    *,
    white_level: int | None = None,
    roi: np.ndarray | None = None,
    count: int = FITTED,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Windows from random places of normal pictures; one picture is in memory at a time.

    Args:
      paths: the files; each gives as many windows as the others, and at least one.
      window: height and width.
      white_level: as for `read_image`.
      roi: region of interest, bool of any size; around its pixels the windows are chosen.
      count: how many in all, or one for each picture.
      seed: of the places.

    Returns:
      The windows, uint8 (N, h, w, 3), and of each the region of interest, (N, h, w) bool, where there is one.

    Raises:
      InputError: a picture cannot be read.
    """
    rng, each = np.random.default_rng(seed), -(-count // len(paths))
    found, insides = [], []
    for path in paths:
        picture = read_image(path, white_level=white_level)
        image = padded(picture, window)
        most = np.array(image.shape[:2]) - np.array(window)
        if roi is None:
            places = rng.integers(0, most + 1, (each, 2))
        else:
            inside = np.zeros(image.shape[:2], bool)
            inside[: picture.shape[0], : picture.shape[1]] = resize_mask(roi, picture.shape[:2])
            middles = np.argwhere(inside)
            if not len(middles):
                raise InputError("the region of interest is lost at the size of this picture", where=path)
            places = np.clip(rng.choice(middles, each) - np.array(window) // 2, 0, most)
            insides += [Box(int(top), int(left), *window).cut(inside).copy() for top, left in places]
        found += [Box(int(top), int(left), *window).cut(image).copy() for top, left in places]
    return np.stack(found), np.stack(insides) if insides else None


def of_one_window(model: Model, windows: int) -> Model:
    """The model for one of so many windows: a picture is to give no more false alarms than its windows together."""
    share = model.procedure.false_alarms / windows
    return replace(model, windowed=False, procedure=replace(model.procedure, false_alarms=share))


def owned(box: Box, shape: Shape, boxes: Sequence[Box]) -> Box:
    """The part of a window in which it decides: up to the middle of what it shares with its neighbours.

    Args:
      box: the window.
      shape: of the picture.
      boxes: all its windows.
    """

    def between(first: int, side: int, whole: int, others: set[int]) -> tuple[int, int]:
        before = max((other for other in others if other < first), default=None)
        after = min((other for other in others if other > first), default=None)
        low = 0 if before is None else (first + before + side) // 2
        return low, whole if after is None else (after + first + side) // 2

    top, bottom = between(box.top, box.height, shape[0], {other.top for other in boxes})
    left, right = between(box.left, box.width, shape[1], {other.left for other in boxes})
    return Box(top, left, bottom - top, right - left)


def blend(box: Box) -> np.ndarray:
    """The weight of a window's scores, (h, w) float32: highest in its middle, and positive everywhere."""
    rows, columns = (np.minimum(np.arange(side) + 1, side - np.arange(side)) for side in (box.height, box.width))
    return np.outer(rows / rows.max(), columns / columns.max()).astype(np.float32)


def segment_windows(model: Model, image: np.ndarray, *, grow: bool = False) -> Segmentation:
    """`segment` of one picture, window by window.

    Scores of windows that overlap are averaged, with weights that fall towards their borders; masks and n are those of
    the window whose middle is nearest.

    Args:
      model: as fitted to windows.
      image: uint8 RGB (H, W, 3).
      grow: as for `segment`.
    """
    whole = padded(image, model.shape)
    shape = whole.shape[0], whole.shape[1]
    boxes, inside = windows_of(shape, model.shape), np.zeros(shape, bool)
    inside[: image.shape[0], : image.shape[1]] = True if model.roi is None else brought(model.roi, image.shape[:2])
    inspected = [box for box in boxes if box.cut(inside).any()]
    single = of_one_window(model, len(inspected))
    normal, (mask, initial) = whole.copy(), np.zeros((2, *shape), bool)
    scores, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    residual, iterations, status = 0.0, 0, 0
    for box in inspected:
        if model.roi is not None:
            single = replace(single, roi=box.cut(inside))
        (found,) = segment_alike(single, box.cut(whole)[None], grow=grow)
        weight = blend(box)
        box.cut(scores)[:] += weight * found.score_map
        box.cut(weights)[:] += weight
        own = owned(box, shape, boxes)
        inner = Box(own.top - box.top, own.left - box.left, own.height, own.width)
        for target, values in ((normal, found.normal), (mask, found.mask), (initial, found.initial_mask)):
            own.cut(target)[:] = inner.cut(values)
        residual, iterations = max(residual, found.residual), iterations + found.iterations
        status = max(status, SEVEREST.index(found.status))
    np.divide(scores, weights, out=scores, where=weights > 0)  # in place: pictures may be large
    del weights
    height, width = image.shape[:2]
    mask, normal, scores = mask[:height, :width], normal[:height, :width], scores[:height, :width]
    anomaly = image.astype(np.float32)
    anomaly -= normal
    anomaly /= 255
    return Segmentation(
        mask=mask,
        normal=normal,
        anomaly=anomaly,
        initial_mask=initial[:height, :width],
        score_map=scores,
        threshold=single.threshold,
        refined_map=refined_map(scores, mask),
        residual=residual,
        iterations=iterations,
        status=SEVEREST[status],
        seconds=0.0,
    )

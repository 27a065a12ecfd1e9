"""Parts of pictures, of few sizes, so that what is compiled for them is compiled a few times."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIDE = 128  # pixels; sides of boxes are this times a power of two, or the picture's


class Box(NamedTuple):
    """A rectangle of a picture."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows in the picture."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns in the picture."""
        return slice(self.left, self.left + self.width)

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """This part of an array (H, W, …)."""
        return whole[self.rows, self.columns]

    def put(self, part: np.ndarray, around: np.ndarray) -> np.ndarray:
        """A copy of an array (H, W, …) with this part in it."""
        whole = around.copy()
        whole[self.rows, self.columns] = part
        return whole


def enclosing(region: np.ndarray, margin: int) -> Box:
    """The box of a region, (H, W) bool, and of `margin` pixels around it within the picture; of nothing, any box."""
    inside = [np.flatnonzero(region.any(axis=axis)) for axis in (1, 0)]
    ends = [(int(lines[0]), int(lines[-1]) + 1) if len(lines) else (0, 0) for lines in inside]
    side = SIDE
    while side < max(last - first for first, last in ends) + 2 * margin:
        side *= 2
    lengths = [min(side, whole) for whole in region.shape]
    top, left = (
        min(max((first + last - length) // 2, 0), whole - length)
        for (first, last), length, whole in zip(ends, lengths, region.shape, strict=True)
    )
    return Box(top, left, *lengths)

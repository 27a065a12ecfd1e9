"""Regions of interest: masks of what is inspected. Outside nothing is scored, drawn or marked."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from f2pad_jax.data.images import read_mask, resize_mask
from f2pad_jax.errors import InputError
from f2pad_jax.reducing import Shape


def read_roi(path: str | os.PathLike[str]) -> np.ndarray:
    """A region of interest from a mask picture: what is not black is inspected.

    Args:
      path: the file.

    Returns:
      (H, W) bool.

    Raises:
      InputError: it cannot be read, or is black all over.
    """
    return check_roi(read_mask(path), where=path)


def check_roi(roi: object, *, where: object = None) -> np.ndarray:
    """An array that is checked to be a region of interest, (H, W) bool: True is inspected.

    Raises:
      InputError: of another rank or kind, or nothing is inspected.
    """
    array = np.asarray(roi)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise InputError(
            f"the region of interest is {array.dtype} {array.shape}", where=where, hint="give bool, (H, W)"
        )
    inside = array != 0
    if not inside.any():
        raise InputError("the region of interest is empty", where=where, hint="what is inspected has to be white")
    return inside


def brought(roi: np.ndarray, shape: Shape) -> np.ndarray:
    """A region of interest, bool of any size, in pictures of a height and width, by nearest neighbour.

    Raises:
      InputError: nothing is left of it, so that nothing would be inspected.
    """
    inside = resize_mask(roi, shape)
    if not inside.any():
        what = f"nothing is left of the region of interest in {shape[1]} × {shape[0]} pixels"
        raise InputError(what, hint="draw it thicker, or work on more pixels")
    return inside


def digest_of(roi: np.ndarray | None) -> str:
    """What tells one region of interest from another; empty where there is none."""
    return "" if roi is None else hashlib.sha256(repr(roi.shape).encode() + np.packbits(roi).tobytes()).hexdigest()


def cells_inside(roi: np.ndarray, shape: Shape, seen: Shape) -> np.ndarray:
    """Which pixels that the extractor sees hold a pixel of the region of interest, (h, w) bool.

    Args:
      roi: bool, of any size, which is brought to the pictures' by nearest neighbour.
      shape: height and width of the pictures.
      seen: (h, w), no larger.
    """
    met = np.zeros(seen, bool)
    rows, columns = np.nonzero(resize_mask(roi, shape))
    # Those of which `resize_mask` makes these pixels: what is free in the smaller size has a pixel that is free.
    met[(2 * rows + 1) * seen[0] // (2 * shape[0]), (2 * columns + 1) * seen[1] // (2 * shape[1])] = True
    return met


def lowest_outside(scores: Any, inside: np.ndarray) -> Any:
    """Scores (H, W), of NumPy or JAX, with the lowest of them wherever a pixel is not inside, (H, W) bool."""
    return scores.__array_namespace__().where(inside, scores, scores.min())

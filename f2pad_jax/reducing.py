"""Sizes: that of the pictures that are worked on, that of what the extractor sees of them, and the way between."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.core.pixels import normalize
from f2pad_jax.networks.extractor import Extractor

LEAST = 4  # positions of the coarsest map along the shorter side

Shape = tuple[int, int]  # height and width in pixels


def seen_shape(shape: Shape, size: int, extractor: Extractor) -> Shape:
    """The shape that an extractor is to see pictures in: about `size` × `size` pixels, in the pictures' aspect.

    Sides are multiples of the coarsest stride. A side that would become too short for the network shrinks less, and
    the other one with it.

    Args:
      shape: of the pictures.
      size: side of a square of as many pixels.
      extractor: whose strides count.
    """
    coarsest = extractor.strides[-1]
    least = LEAST * coarsest
    factor = max(size / (shape[0] * shape[1]) ** 0.5, min(1.0, least / min(shape)))
    height, width = (max(round(factor * side / coarsest) * coarsest, least) for side in shape)
    return height, width


def largest_seen(shape: Shape, extractor: Extractor) -> Shape:
    """The largest shape that an extractor can see pictures in without enlarging them: multiples of its coarsest stride.

    Args:
      shape: of the pictures.
      extractor: whose strides count.
    """
    coarsest = extractor.strides[-1]
    return shape[0] // coarsest * coarsest, shape[1] // coarsest * coarsest


def work_shape(shape: Shape, size: int, seen: Shape) -> Shape:
    """The shape that pictures are worked on in: their own, up to `size` × `size` pixels, and never below `seen`."""
    factor = min(1.0, size / (shape[0] * shape[1]) ** 0.5)
    height, width = (max(1, round(factor * side)) for side in shape)
    return seen if height < seen[0] or width < seen[1] else (height, width)


def scale_of(shape: Shape, seen: Shape) -> float:
    """Side of a pixel of what is seen, in pixels of the picture: the mean of both directions."""
    return (shape[0] * shape[1] / (seen[0] * seen[1])) ** 0.5


@lru_cache(maxsize=8)
def axis_weights(length: int, target: int) -> np.ndarray:
    """D along one axis, (target, length) float32, target ≤ length: overlapping triangles, each of sum one."""
    ratio = length / target
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    weights = np.maximum(1 - np.abs(np.arange(length) - centres[:, None]) / ratio, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def part_weights(length: int, target: int, part: slice) -> tuple[int, np.ndarray]:
    """D along a part of an axis: the first pixel of the reduced axis that sees it, and the weights from there on.

    There are as many as a part of this length can touch wherever it lies.
    """
    weights = axis_weights(length, target)[:, part]
    count = min(target, -(-weights.shape[1] * target // length) + 3)
    first = min(int(np.flatnonzero(weights.any(axis=1))[0]), target - count)
    return first, weights[first : first + count]


@jax.jit
def _reduce(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("ij,jkc,lk->ilc", rows, image, columns, precision="highest")


def reduce_images(images: np.ndarray, seen: Shape) -> np.ndarray:
    """D of pictures (N, H, W, 3), (N, h, w, 3) float32, ImageNet-normalised; of that shape already, as they are.

    Args:
      images: uint8 RGB, or float32 and ImageNet-normalised already.
      seen: (h, w).
    """
    height, width = images.shape[1:3]
    if (height, width) == seen:
        return images
    rows, columns = axis_weights(height, seen[0]), axis_weights(width, seen[1])
    small = np.empty((len(images), *seen, 3), np.float32)
    for index, image in enumerate(images):
        small[index] = _reduce(normalize(image) if image.dtype == np.uint8 else image, rows, columns)
    return small

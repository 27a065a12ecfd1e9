"""Binary pictures under `jit`: dilation, connected pieces and what is highest in each, holes, distances."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from f2pad_jax.reducing import Shape

Offsets = tuple[tuple[int, int], ...]

CROSS: Offsets = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # a pixel and its four neighbours
SQUARE: Offsets = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))  # and the corners


def _over(values: Array, offsets: Offsets, outside: int, choose: Callable[[Array, Array], Array]) -> Array:
    """Of every pixel what is chosen from its neighbours, with this value beyond the border."""
    height, width = values.shape
    padded = jnp.pad(values, 1, constant_values=outside)
    first, *others = (padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in offsets)
    for other in others:
        first = choose(first, other)
    return first


def dilated(mask: Bool[Array, "h w"], times: int, offsets: Offsets = CROSS) -> Bool[Array, "h w"]:
    """A mask enlarged so often by its neighbours."""
    return jax.lax.fori_loop(0, times, lambda _, grown: _over(grown, offsets, 0, jnp.logical_or), mask)


def opened(mask: Bool[Array, "h w"]) -> Bool[Array, "h w"]:
    """The 3 × 3 opening; beyond the border nothing is in the mask."""
    return _over(_over(mask, SQUARE, 0, jnp.logical_and), SQUARE, 0, jnp.logical_or)


def pieces(mask: Bool[Array, "h w"], offsets: Offsets = SQUARE) -> Int[Array, "h w"]:
    """Numbers of the connected pieces of a mask: one more than the raster index of a piece's first pixel; 0 outside.

    Each pixel takes the lowest index among its neighbours and then that of the pixel so named, until nothing changes.

    Args:
      mask: (H, W) bool.
      offsets: which pixels are neighbours.
    """
    count = mask.size
    indices = jnp.arange(count, dtype=jnp.int32).reshape(mask.shape)

    def lower(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = carry
        near = jnp.where(mask, _over(found, offsets, count, jnp.minimum), count)
        far = jnp.append(near, count)[near]
        return far, jnp.any(far != found)

    first = jnp.where(mask, indices, count)
    found, _ = jax.lax.while_loop(lambda carry: carry[1], lower, (first, jnp.any(mask)))
    return jnp.where(mask, found + 1, 0)


def highest(values: Array, numbers: Int[Array, "h w"]) -> Array:
    """Of every pixel the highest value in its piece, (H, W); those outside of all pieces are one more.

    Args:
      values: (H, W), of any dtype with an order.
      numbers: of `pieces`.
    """
    found = jax.ops.segment_max(values.ravel(), numbers.ravel(), num_segments=numbers.size + 1)
    return found[numbers]


def areas(numbers: Int[Array, "h w"]) -> Int[Array, "h w"]:
    """Of every pixel how many its piece has, (H, W); `numbers` are of `pieces`."""
    return jnp.zeros(numbers.size + 1, jnp.int32).at[numbers.ravel()].add(1)[numbers]


def filled_holes(mask: Bool[Array, "h w"]) -> Bool[Array, "h w"]:
    """A mask with what it encloses: what no way over pixels' sides leads from to the border."""
    border = jnp.zeros(mask.shape, jnp.int32).at[jnp.array([0, -1])].set(1).at[:, jnp.array([0, -1])].set(1)
    return mask | (highest(border, pieces(~mask, CROSS)) == 0)


def cells_met(mask: Bool[Array, "h w"], grid: Shape) -> Bool[Array, "p q"]:
    """Which cells of a grid over the picture hold a pixel of the mask."""
    rows, columns = (jnp.arange(side) * cells // side for side, cells in zip(mask.shape, grid, strict=True))
    return jnp.zeros(grid, bool).at[rows[:, None], columns[None]].max(mask)


def squared_distance(mask: Bool[Array, "h w"]) -> Float[Array, "h w"]:
    """Squared distance of every pixel to the nearest of the mask, exact; (H + W)² where the mask is empty."""

    def along(values: Array) -> Array:  # the lower envelope of parabolas, along the first axis
        places = jnp.arange(values.shape[0], dtype=jnp.float32)
        steps = jnp.square(places[:, None] - places)
        return jax.lax.map(lambda step: jnp.min(values + step[:, None], axis=0), steps)

    farthest = float(sum(mask.shape) ** 2)
    return jnp.minimum(along(along(jnp.where(mask, 0.0, farthest)).T).T, farthest)


def local_maximum(values: Float[Array, "h w"], reach: int) -> Float[Array, "h w"]:
    """The highest value within so many rows and columns of every pixel."""
    window = (2 * reach + 1,) * 2
    return jax.lax.reduce_window(values, -math.inf, jax.lax.max, window, (1, 1), "SAME")

"""Ways to compute Eq. (13) of arXiv 2407.06519, the spatially varying 11 × 11 map that gradients are shared by.

Each makes what it needs of the test image once, and is then applied to the gradient of every iteration; pictures are
(H, W, 3), and a batch is the caller's `vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from f2pad_jax.optim.sharing import Sharing, share, sharing_weights

RADIUS = 5  # ks of the paper
TILE = (8, 32)  # most rows and columns that one program of the Pallas kernel works on, on a GPU


class Variant(NamedTuple):
    """A way to share gradients.

    Attributes:
      prepare: image (H, W, 3) to a tree of arrays.
      apply: gradient (H, W, 3) and that tree to the shared gradient.
    """

    prepare: Callable[[jax.Array], Any]
    apply: Callable[[jax.Array, Any], jax.Array]


def _reach(sharing: Sharing) -> int:
    return max(max(abs(i), abs(j)) for i, j in sharing.offsets)


def _whole_square(image: jax.Array, radius: int | None = None) -> Sharing:
    """The weights at every offset of a square, row-major, those that `sharing_weights` leaves out being zero."""
    sharing = sharing_weights(image)
    radius = _reach(sharing) if radius is None else radius
    side = 2 * radius + 1
    places = jnp.asarray([(i + radius) * side + j + radius for i, j in sharing.offsets])
    shape = (image.shape[0], side * side, image.shape[1])
    weights = jnp.zeros(shape, image.dtype).at[:, places].set(sharing.weights)
    return Sharing(weights, tuple((i, j) for i in range(-radius, radius + 1) for j in range(-radius, radius + 1)))


def shifted_adds(gradient: jax.Array, sharing: Sharing) -> jax.Array:
    """`share` in one piece, without its loop over blocks of rows."""
    radius, (height, width) = _reach(sharing), gradient.shape[:2]
    padded = jnp.pad(gradient, ((radius, radius), (radius, radius), (0, 0)))
    total = jnp.zeros_like(gradient)
    for k, (i, j) in enumerate(sharing.offsets):
        near = padded[radius + i : radius + i + height, radius + j : radius + j + width]
        total = total + sharing.weights[:, k, :, None] * near
    return total


def im2col(gradient: jax.Array, sharing: Sharing) -> jax.Array:
    """Every pixel's neighbourhood written out, times the weights; needs `_whole_square`."""
    height, count, width = sharing.weights.shape
    side = math.isqrt(count)
    pictures = gradient.transpose(2, 0, 1)[:, None]  # channels are the batch
    columns = lax.conv_general_dilated_patches(pictures, (side, side), (1, 1), [(side // 2, side // 2)] * 2)
    return jnp.einsum("ckhw,hkw->hwc", columns, sharing.weights)


def _kernel(near: Any, own: Any, out: Any, *, offsets: tuple[tuple[int, int], ...], radius: int) -> None:
    rows, channels, columns = out.shape
    top = pl.program_id(0) * rows
    whole = near.shape[2] == columns + 2 * radius
    left = 0 if whole else pl.program_id(1) * columns
    totals = [jnp.zeros((rows, columns), jnp.float32)] * channels
    for k, (i, j) in enumerate(offsets):
        weight = own[:, k, :]
        for c in range(channels):
            here = pl.ds(top + radius + i, rows), c, pl.ds(left + radius + j, columns)
            totals[c] = totals[c] + weight * near[here]
    for c in range(channels):
        out[:, c, :] = totals[c]


def pallas(gradient: jax.Array, sharing: Sharing) -> jax.Array:
    """One kernel that reads every weight once; interpreted, and slow, on a CPU.

    Tiles are powers of two, as Triton asks for; on a TPU they span the whole width.
    """
    height, count, width = sharing.weights.shape
    radius, channels, platform = _reach(sharing), gradient.shape[-1], jax.default_backend()
    rows, columns = math.gcd(height, TILE[0]), width if platform == "tpu" else math.gcd(width, TILE[1])
    padded = jnp.pad(gradient.swapaxes(1, 2), ((radius, radius), (0, 0), (radius, radius)))
    shared = pl.pallas_call(
        partial(_kernel, offsets=sharing.offsets, radius=radius),
        grid=(height // rows, width // columns),
        in_specs=[
            pl.BlockSpec(padded.shape, lambda *_: (0, 0, 0)),
            pl.BlockSpec((rows, count, columns), lambda i, j: (i, 0, j)),
        ],
        out_specs=pl.BlockSpec((rows, channels, columns), lambda i, j: (i, 0, j)),
        out_shape=jax.ShapeDtypeStruct((height, channels, width), gradient.dtype),
        interpret=platform == "cpu",
        compiler_params=triton.CompilerParams(num_warps=4) if platform == "gpu" else None,
    )(padded, sharing.weights)
    return shared.swapaxes(1, 2)


def _nearer(image: jax.Array, radius: int) -> Sharing:
    """The weights within a smaller square, which again add up to one."""
    sharing = sharing_weights(image)
    kept = [k for k, (i, j) in enumerate(sharing.offsets) if max(abs(i), abs(j)) <= radius]
    weights = sharing.weights[:, jnp.asarray(kept)]
    total = jnp.sum(weights, axis=1, keepdims=True)
    return Sharing(weights / total, tuple(sharing.offsets[k] for k in kept))


def _lines(image: jax.Array) -> tuple[Sharing, Sharing]:
    """Weights along the row and along the column of each pixel, each adding up to one."""
    sharing = sharing_weights(image)
    lines = []
    for axis in range(2):
        kept = [k for k, offset in enumerate(sharing.offsets) if offset[1 - axis] == 0]
        weights = sharing.weights[:, jnp.asarray(kept)]
        total = jnp.sum(weights, axis=1, keepdims=True)
        lines.append(Sharing(weights / total, tuple(sharing.offsets[k] for k in kept)))
    return lines[0], lines[1]


def two_passes(gradient: jax.Array, lines: tuple[Sharing, Sharing]) -> jax.Array:
    """The bilateral map as two of one dimension, along columns and then along rows."""
    return share(share(gradient, lines[0]), lines[1])


class LowRank(NamedTuple):
    """Weights as a sum of products of a picture and a filter."""

    pictures: jax.Array  # (H, W, R)
    filters: jax.Array  # (R, side, side)


def _factors(image: jax.Array, rank: int) -> LowRank:
    """The truncated singular value decomposition of the weights, pixels by offsets."""
    whole = _whole_square(image)
    height, count, width = whole.weights.shape
    table = whole.weights.swapaxes(1, 2).reshape(-1, count)
    # From the small matrix of offsets: the pixels are too many for a direct decomposition.
    _, vectors = jnp.linalg.eigh(table.T @ table)
    filters = vectors[:, -rank:]
    side = math.isqrt(count)
    return LowRank((table @ filters).reshape(height, width, rank), filters.T.reshape(rank, side, side))


def low_rank(gradient: jax.Array, factors: LowRank) -> jax.Array:
    """One ordinary convolution for every filter, weighted by its picture."""
    pictures = gradient.transpose(2, 0, 1)[:, None]
    filtered = lax.conv_general_dilated(pictures, factors.filters[:, None], (1, 1), "SAME", precision="highest")
    return jnp.einsum("crhw,hwr->hwc", filtered, factors.pictures)


OURS, KERNEL = "blocks of rows", "Pallas kernel"
# Those differ from one another by rounding only.
EXACT = {
    OURS: Variant(sharing_weights, share),
    "blocks of rows, all 121 offsets": Variant(partial(_whole_square, radius=RADIUS), share),
    "shifted adds": Variant(sharing_weights, shifted_adds),
    "im2col": Variant(_whole_square, im2col),
    KERNEL: Variant(sharing_weights, pallas),
}
APPROXIMATE = {
    "radius 1": Variant(partial(_nearer, radius=1), share),
    "radius 2": Variant(partial(_nearer, radius=2), share),
    "radius 3": Variant(partial(_nearer, radius=3), share),
    "two passes": Variant(_lines, two_passes),
    "rank 1": Variant(partial(_factors, rank=1), low_rank),
    "rank 4": Variant(partial(_factors, rank=4), low_rank),
    "rank 16": Variant(partial(_factors, rank=16), low_rank),
}

"""Local gradient sharing, Eqs. (13) and (14) of arXiv 2407.06519.

The weights depend on the test image alone. Computed once, they make (13) a fixed, spatially varying
convolution: the same linear map of the gradient in every iteration.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax import lax

ROWS = 16  # of a block that `share` works on at a time


def _offsets(count: int) -> list[tuple[int, int]]:
    """Rows and columns of the neighbourhood's corners in a picture padded by its radius, row-major."""
    side = round(count**0.5)
    return [(row, column) for row in range(side) for column in range(side)]


def sharing_weights(
    image: jax.Array, *, radius: int = 5, sigma_space: float = 1.1, sigma_colour: float = 3.0
) -> jax.Array:
    """Weights w of Eq. (14), which add up to one over the neighbourhood of each pixel.

    w ∝ exp(−(i² + j²)/σ0) · exp(−‖x_neighbour − x‖²/σ1); neighbours beyond the border have weight zero.

    Args:
      image: the test image x, (H, W, 3), ImageNet-normalised.
      radius: ks, half the side of the neighbourhood in pixels.
      sigma_space: σ0 in pixels².
      sigma_colour: σ1 in squared normalised colour units.

    Returns:
      (H, K, W) float32 for the K = (2·radius + 1)² offsets in row-major order. With the offsets between the axes
      of the picture, `share` reads memory in order.
    """
    height, width = image.shape[:2]
    border = ((radius, radius), (radius, radius), (0, 0))
    padded, inside = jnp.pad(image, border), jnp.pad(jnp.ones((height, width, 1), image.dtype), border)
    weights = []
    for i, j in _offsets((2 * radius + 1) ** 2):
        here = slice(i, i + height), slice(j, j + width)
        space = ((i - radius) ** 2 + (j - radius) ** 2) / sigma_space
        colour = jnp.sum(jnp.square(padded[here] - image), axis=-1) / sigma_colour
        weights.append(jnp.exp(-space - colour) * inside[here][..., 0])
    stacked = jnp.stack(weights, axis=1)
    return stacked / jnp.sum(stacked, axis=1, keepdims=True)


def share(gradient: jax.Array, weights: jax.Array) -> jax.Array:
    """Eq. (13): each pixel's gradient becomes the weighted mean of its neighbours' gradients.

    Args:
      gradient: ∇F, (H, W, C).
      weights: of `sharing_weights`, (H, K, W) with K an odd square.

    Returns:
      (H, W, C); beyond the border the gradient counts as zero.
    """
    height, count, width = weights.shape
    radius, rows = round(count**0.5) // 2, math.gcd(height, ROWS)
    padded = jnp.pad(gradient.swapaxes(1, 2), ((radius, radius), (0, 0), (radius, radius)))

    def block(top: jax.Array) -> jax.Array:
        near = lax.dynamic_slice_in_dim(padded, top, rows + 2 * radius)
        own = lax.dynamic_slice_in_dim(weights, top, rows)
        total = jnp.zeros((rows, gradient.shape[-1], width), gradient.dtype)
        for k, (i, j) in enumerate(_offsets(count)):
            total = total + own[:, k, None] * near[i : i + rows, :, j : j + width]
        return total

    # A loop over blocks of rows: without it XLA computes the sum anew for every later use of it.
    shared = lax.map(block, jnp.arange(0, height, rows))
    return shared.reshape(height, -1, width).swapaxes(1, 2)


def share_gradients(weights: jax.Array) -> optax.GradientTransformation:
    """`share` as a stateless optax transformation for parameters of shape (H, W, C)."""
    return optax.stateless(lambda updates, params=None: jax.tree.map(lambda g: share(g, weights), updates))

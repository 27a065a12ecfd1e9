"""Local gradient sharing, Eqs. (13) and (14) of arXiv 2407.06519.

The weights depend on the test image alone. Computed once, they make (13) a fixed, spatially varying
convolution: the same linear map of the gradient in every iteration.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def _shifts(image: jax.Array, radius: int, fill: float):
    """The (2r + 1)² shifted views of an (H, W, C) array, in row-major order of the offset."""
    height, width = image.shape[:2]
    padded = jnp.pad(image, ((radius, radius), (radius, radius), (0, 0)), constant_values=fill)
    side = 2 * radius + 1
    return [padded[i : i + height, j : j + width] for i in range(side) for j in range(side)]


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
      (H, W, (2·radius + 1)²) float32, offsets in row-major order.
    """
    inside = jnp.ones(image.shape[:2] + (1,), image.dtype)
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    space = jnp.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / sigma_space).reshape(-1)
    colour = jnp.stack(
        [
            jnp.exp(-jnp.sum(jnp.square(shifted - image), axis=-1) / sigma_colour) * present[..., 0]
            for shifted, present in zip(_shifts(image, radius, 0.0), _shifts(inside, radius, 0.0), strict=True)
        ],
        axis=-1,
    )
    weights = space * colour
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def share(gradient: jax.Array, weights: jax.Array) -> jax.Array:
    """Eq. (13): each pixel's gradient becomes the weighted mean of its neighbours' gradients.

    Args:
      gradient: ∇F, (H, W, C).
      weights: of `sharing_weights`, (H, W, K) with K an odd square.

    Returns:
      (H, W, C); beyond the border the gradient counts as zero.
    """
    side = round(weights.shape[-1] ** 0.5)
    shifted = _shifts(gradient, side // 2, 0.0)
    return sum(
        (weights[..., k : k + 1] * view for k, view in enumerate(shifted)), start=jnp.zeros_like(gradient)
    )


def share_gradients(weights: jax.Array) -> optax.GradientTransformation:
    """`share` as a stateless optax transformation for parameters of shape (H, W, C)."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda g: share(g, weights), updates))

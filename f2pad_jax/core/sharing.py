"""Local gradient sharing, Eqs. (13) and (14) of arXiv 2407.06519.

The weights depend on the test image alone. Computed once, they make (13) a fixed, spatially varying
convolution: the same linear map of the gradient in every iteration.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float

ROWS = 16  # of a block that `share` works on at a time
NEGLIGIBLE = 1e-7  # relative to the pixel's own weight; float32 resolves no less

Offsets = tuple[tuple[int, int], ...]


class Sharing(struct.PyTreeNode):
    """The linear map of Eq. (13) for one image; `vmap` stacks its weights.

    Attributes:
      weights: w, (H, K, W) float32. With the offsets between the axes of the picture, `share` reads memory in order.
      offsets: the K rows and columns from a pixel to its neighbours, row-major; static.
    """

    weights: Float[Array, "h k w"]
    offsets: Offsets = struct.field(pytree_node=False)


def neighbourhood(radius: int, sigma_space: float) -> Offsets:
    """Offsets of a square whose weight in space can make a difference.

    Of the paper's 11 × 11 at σ0 = 1.1 these are 57: farther ones weigh less than float32 resolves beside the pixel
    itself, whose weight before the division is one.
    """
    farthest = -sigma_space * math.log(NEGLIGIBLE)
    side = range(-radius, radius + 1)
    return tuple((i, j) for i in side for j in side if i * i + j * j <= farthest)


def sharing_weights(
    image: Float[Array, "h w 3"], *, radius: int = 5, sigma_space: float = 1.1, sigma_colour: float = 3.0
) -> Sharing:
    """Weights w of Eq. (14), which add up to one over the neighbourhood of each pixel.

    w ∝ exp(−(i² + j²)/σ0) · exp(−‖x_neighbour − x‖²/σ1); neighbours beyond the border have weight zero.

    Args:
      image: the test image x, (H, W, 3), ImageNet-normalised.
      radius: ks, half the side of the neighbourhood in pixels; static.
      sigma_space: σ0 in pixels²; static.
      sigma_colour: σ1 in squared normalised colour units.
    """
    height, width = image.shape[:2]
    offsets = neighbourhood(radius, sigma_space)
    border = ((radius, radius), (radius, radius), (0, 0))
    padded, inside = jnp.pad(image, border), jnp.pad(jnp.ones((height, width, 1), image.dtype), border)

    def weight(offset: tuple[jax.Array, jax.Array]) -> jax.Array:
        corner = radius + offset[0], radius + offset[1], 0
        near, there = (lax.dynamic_slice(whole, corner, (height, width, whole.shape[-1])) for whole in (padded, inside))
        space = (offset[0] ** 2 + offset[1] ** 2) / sigma_space
        colour = jnp.sum(jnp.square(near - image), axis=-1) / sigma_colour
        return jnp.exp(-space - colour) * there[..., 0]

    # A loop over the offsets: written out, they took ten times as long to compile, and longer to run.
    stacked = lax.map(weight, tuple(jnp.asarray(offsets).T)).swapaxes(0, 1)
    return Sharing(stacked / jnp.sum(stacked, axis=1, keepdims=True), offsets)


def share(gradient: Float[Array, "h w c"], sharing: Sharing) -> Float[Array, "h w c"]:
    """Eq. (13): each pixel's gradient becomes the weighted mean of its neighbours' gradients.

    Args:
      gradient: ∇F, (H, W, C).
      sharing: of `sharing_weights`.

    Returns:
      (H, W, C); beyond the border the gradient counts as zero.
    """
    weights, offsets = sharing.weights, sharing.offsets
    height, _, width = weights.shape
    radius, rows = max(map(max, offsets)), math.gcd(height, ROWS)
    padded = jnp.pad(gradient.swapaxes(1, 2), ((radius, radius), (0, 0), (radius, radius)))

    def block(top: jax.Array) -> jax.Array:
        near = lax.dynamic_slice_in_dim(padded, top, rows + 2 * radius)
        own = lax.dynamic_slice_in_dim(weights, top, rows)
        total = jnp.zeros((rows, gradient.shape[-1], width), gradient.dtype)
        for k, (i, j) in enumerate(offsets):
            total = total + own[:, k, None] * near[radius + i : radius + i + rows, :, radius + j : radius + j + width]
        return total

    # A loop over blocks of rows: without it XLA computes the sum anew for every later use of it.
    shared = lax.map(block, jnp.arange(0, height, rows))
    return shared.reshape(height, -1, width).swapaxes(1, 2)


def share_gradients(sharing: Sharing) -> optax.GradientTransformation:
    """`share` as a stateless optax transformation for parameters of shape (H, W, C)."""
    return optax.stateless(lambda updates, params=None: jax.tree.map(lambda g: share(g, sharing), updates))

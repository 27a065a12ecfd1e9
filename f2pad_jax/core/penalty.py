"""Penalties on the anomaly a = x − n, which make it sparse: the LOG penalty of Eq. (8) and others.

A penalty sees the length t = ‖a_ij‖₂ of each pixel's anomaly alone. A new one is two functions of t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

EPSILON = 1e-4  # ε of Eq. (8)


class Penalty(struct.PyTreeNode):
    """A penalty φ(‖a_ij‖) and its proximal map; both act element by element and are static.

    Attributes:
      value: φ(t) for lengths t ≥ 0 of any shape.
      prox: `prox(t, weight)`, the s ≥ 0 that minimises ½(s − t)² + weight · φ(s); shapes of t. Where it is zero the
        pixel is normal.

    Examples:
      >>> half = Penalty(value=lambda t: t / 2, prox=lambda t, weight: jnp.maximum(t - weight / 2, 0))
      >>> print(half.prox(jnp.array([1.0, 3.0]), 4.0))
      [0. 1.]
    """

    value: Callable[..., Array] = struct.field(pytree_node=False)
    prox: Callable[..., Array] = struct.field(pytree_node=False)


def pixel_norm(anomaly: Float[Array, "*shape 3"]) -> Float[Array, "*shape"]:
    """‖a_ij‖₂ over the last axis, with gradient zero where a is zero."""
    squares = jnp.sum(jnp.square(anomaly), axis=-1)
    present = squares > 0
    return jnp.where(present, jnp.sqrt(jnp.where(present, squares, 1.0)), 0.0)


def shrink(
    penalty: Penalty, anomaly: Float[Array, "h w 3"], weight: Float[Array, "h w"], length: Float[Array, "h w"]
) -> Float[Array, "h w 3"]:
    """The proximal map on pictures: a keeps its direction and shrinks by the factor by which `length` does.

    Args:
      penalty: φ.
      anomaly: a, (H, W, 3).
      weight: step size × β, (H, W).
      length: (H, W), what counts as ‖a‖; that of a pixel and its neighbours makes them stay or vanish together.
    """
    return anomaly * (penalty.prox(length, weight) / jnp.where(length > 0, length, 1.0))[..., None]


def _log_value(length: Array) -> Array:
    return jnp.log(jnp.sqrt(jnp.square(length) + EPSILON) + length)


def _log_prox(length: Array, weight: Array) -> Array:
    """Zero or a root of s − t + weight/√(s² + ε) = 0.

    Newton finds the largest root from its closed form for ε = 0, and the smallest from zero, where it stays if that
    is a minimum; the cheaper of the two is the answer.
    """
    far = 0.5 * (length + jnp.sqrt(jnp.maximum(jnp.square(length) - 4 * weight, 0.0)))

    def polished(root: Array) -> Array:
        for _ in range(5):
            smooth = jnp.sqrt(jnp.square(root) + EPSILON)
            slope = 1 - weight * root / smooth**3
            root = jnp.clip(root - (root - length + weight / smooth) / jnp.maximum(slope, 0.03), 0.0, length)
        return root

    def cost(t: Array) -> Array:
        return 0.5 * jnp.square(t - length) + weight * _log_value(t)

    far, near = polished(far), polished(jnp.zeros_like(length))
    return jnp.where(cost(far) < cost(near), far, near)


LOG = Penalty(value=_log_value, prox=_log_prox)
"""l_a of Eq. (8): Σ log(√(‖a‖² + ε) + ‖a‖); its slope in ‖a‖ is 1/√(‖a‖² + ε), 100 at zero."""

L1 = Penalty(value=lambda length: length, prox=lambda length, weight: jnp.maximum(length - weight, 0.0))
"""Σ ‖a‖, the convex group penalty."""

L0 = Penalty(
    value=lambda length: (length > 0).astype(length.dtype),
    prox=lambda length, weight: jnp.where(jnp.square(length) > 2 * weight, length, 0.0),
)
"""The number of anomalous pixels; without a useful gradient, so for proximal steps only."""


@jax.jit
def log_penalty(anomaly: Float[Array, "h w 3"]) -> Float[Array, ""]:
    """l_a of Eq. (8), summed over the pixels of a picture (H, W, 3)."""
    return jnp.sum(LOG.value(pixel_norm(anomaly)))

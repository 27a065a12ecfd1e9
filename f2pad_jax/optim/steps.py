"""The pieces of a step around Adan: clipping, step sizes, valid pixels and the stop rule, each on its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from f2pad_jax.data.images import IMAGENET_MEAN, IMAGENET_STD

LOWEST, HIGHEST = -IMAGENET_MEAN / IMAGENET_STD, (1 - IMAGENET_MEAN) / IMAGENET_STD


def clip_elements(limit: jax.Array | float) -> optax.GradientTransformation:
    """Clips every element of the gradient to ±limit; unlike `optax.clip`, the limit may be traced."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda g: jnp.clip(g, -limit, limit), updates))


def adaptive_step_size(anomaly: jax.Array, rate: jax.Array | float, floor: float = 0.1) -> jax.Array:
    """γ of Eq. (15), rate · γ0/|a| with γ0 = 1, elementwise and no larger than rate/floor: shape of `anomaly`."""
    return rate / jnp.maximum(jnp.abs(anomaly), floor)


def project(normal: jax.Array, image: jax.Array, region: jax.Array) -> jax.Array:
    """The nearest n with valid pixels, RGB in [0, 1], that equals the image outside the region.

    Args:
      normal: n, (H, W, 3), ImageNet-normalised.
      image: x, like n.
      region: (H, W) bool, where n may differ from x.
    """
    return jnp.where(region[..., None], jnp.clip(normal, LOWEST, HIGHEST), image)


class Progress(NamedTuple):
    """What the stop rule remembers; scalars."""

    best: jax.Array  # float32, lowest loss so far
    stale: jax.Array  # int32, iterations since the loss last fell by the tolerance


def no_progress() -> Progress:
    """The start of the stop rule."""
    return Progress(jnp.float32(jnp.inf), jnp.int32(0))


def track_progress(progress: Progress, loss: jax.Array, tolerance: jax.Array | float) -> Progress:
    """Counts the iterations in which the loss does not fall below its best by more than the tolerance.

    The paper stops at the first such iteration; Adan's loss is not monotone, so the solver waits for several.
    """
    improved = loss < progress.best - tolerance
    return Progress(
        jnp.where(improved, loss, progress.best), jnp.where(improved, 0, progress.stale + 1).astype(jnp.int32)
    )

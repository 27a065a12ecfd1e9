"""The colours that every function of the core works in: RGB, ImageNet-normalised."""

from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)

AnyArray = TypeVar("AnyArray")


def normalize(images: AnyArray) -> AnyArray:
    """Eight-bit colours to normalised ones, (v / 255 − mean) / std.

    Args:
      images: uint8 RGB (..., 3), of NumPy or JAX.

    Returns:
      float32 of the same shape and library.

    Examples:
      >>> import numpy as np
      >>> normalize(np.zeros((1, 1, 3), np.uint8)).round(3)
      array([[[-2.118, -2.036, -1.804]]], dtype=float32)
    """
    xp, mean, std = _constants(images)
    return (xp.asarray(images, dtype=xp.float32) / 255 - mean) / std  # pyright: ignore


def denormalize(images: AnyArray) -> AnyArray:
    """The inverse of `normalize`, rounded and clipped to uint8.

    Args:
      images: float32 (..., 3), normalised, of NumPy or JAX.
    """
    xp, mean, std = _constants(images)
    return xp.clip(xp.round((images * std + mean) * 255), 0, 255).astype(xp.uint8)  # pyright: ignore


def project(
    normal: Float[Array, "h w 3"], image: Float[Array, "h w 3"], region: Bool[Array, "h w"]
) -> Float[Array, "h w 3"]:
    """The nearest n with valid pixels, RGB in [0, 1], that equals the picture outside the region.

    Args:
      normal: n, (H, W, 3), normalised.
      image: x, like n.
      region: (H, W) bool, where n may differ from x.
    """
    mean, std = jnp.asarray(MEAN), jnp.asarray(STD)
    return jnp.where(region[..., None], jnp.clip(normal, -mean / std, (1 - mean) / std), image)


def _constants(like):
    xp = like.__array_namespace__()
    return xp, xp.asarray(MEAN, dtype=xp.float32), xp.asarray(STD, dtype=xp.float32)

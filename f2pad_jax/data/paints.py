"""Paint on normal pictures: the paper's random colour, Eq. (16), and paint that is harder to tell from the picture.

A random colour on a grey photograph differs from everything in it, so that max(RGB) − min(RGB) alone finds it. Grey
paint, colours of the part's own pixels and translucent paint ask more of a method. The same generator gives every paint
the same shape, so that they can be compared.
"""

from __future__ import annotations

import numpy as np

from f2pad_jax.data.shapes import Masks, draw_mask

CONTRAST = 0.2  # least Euclidean distance between paint and n, RGB in [0, 1]
OPACITY = (0.3, 1.0)
DARKEST = 64  # least value of a paint's largest channel: `paint` multiplies colours, which cannot move black

Made = tuple[np.ndarray, np.ndarray]

_LADDER = np.array([1.0, *(1.25 ** (sign * step) for step in range(1, 8) for sign in (-1, 1)), 0.0])


def cut_paste(image: np.ndarray, rng: np.random.Generator, *, masks: Masks = None) -> Made:
    """A picture with one anomaly of one random colour, Eq. (16).

    Args:
      image: the normal picture n, uint8 (H, W, 3).
      rng: source of every choice.
      masks: bool masks (any size, none empty) of real defects. One is chosen, flipped, resized about its own
        place and shifted a little: real masks lie on the part. Without them the shape is a blob, a few
        ellipses or a scratch, anywhere.

    Returns:
      x, uint8 (H, W, 3), and the mask, bool (H, W): True exactly where x differs from n, and there the two
      are at least `CONTRAST` apart.

    Raises:
      InputError: no given mask can be resized to cover a share of the picture within `AREA`.
    """
    mask = draw_mask((image.shape[0], image.shape[1]), rng, masks=masks)
    colour = rng.integers(0, 256, 3)
    while colour.max() < DARKEST:
        colour = rng.integers(0, 256, 3)
    return paint(image, mask, colour), mask


def grey(image: np.ndarray, rng: np.random.Generator, *, masks: Masks = None) -> Made:
    """Eq. (16) with one grey level for c: no chroma tells it from a grey photograph.

    Args:
      image: n.
      rng: source of every choice.
      masks: shapes, as for `cut_paste`.
    """
    mask = draw_mask((image.shape[0], image.shape[1]), rng, masks=masks)
    return paint(image, mask, np.repeat(rng.integers(DARKEST, 256), 3)), mask


def own(image: np.ndarray, rng: np.random.Generator, *, masks: Masks = None) -> Made:
    """Eq. (16) with a colour of n itself for c, of eight drawn the one that most of the covered pixels differ from.

    Where n comes closer to it than `CONTRAST`, `paint` takes a darker or brighter shade.

    Args:
      image: n.
      rng: source of every choice.
      masks: shapes, as for `cut_paste`.
    """
    mask = draw_mask((image.shape[0], image.shape[1]), rng, masks=masks)
    drawn = image.reshape(-1, 3)[rng.integers(0, image.shape[0] * image.shape[1], 8)]
    apart = [far(colour, image[mask]).mean() for colour in drawn]
    colour = drawn[int(np.argmax(apart))].astype(int)
    return paint(image, mask, colour + max(0, DARKEST - int(colour.max()))), mask


def translucent(image: np.ndarray, rng: np.random.Generator, *, masks: Masks = None) -> Made:
    """Eq. (16) with n showing through, x = n + o·m·(p − n): the paint p of `cut_paste` at an opacity o.

    Inside the mask x and n are at least o·`CONTRAST` apart, less rounding.

    Args:
      image: n.
      rng: source of every choice.
      masks: shapes, as for `cut_paste`.
    """
    painted, mask = cut_paste(image, rng, masks=masks)
    return np.rint(mixed(image, painted, rng)).astype(np.uint8), mask


def paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Eq. (16) with the paper's contrast rule.

    Where the colour comes closer than `CONTRAST` to the picture, it is multiplied by the mildest factor of a
    ladder (1, 1.25^±1, 1.25^±2, …, 0) that keeps them apart. One always does: black and the brightest step
    lie at least one full channel apart, so no pixel is near both.

    Args:
      image: n, uint8 (H, W, 3).
      mask: bool (H, W).
      colour: three values in 0..255, the largest at least 64.

    Returns:
      x, uint8 (H, W, 3).
    """
    shades = np.clip(np.rint(colour * _LADDER[:, None]), 0, 255).astype(np.uint8)
    first = far(shades[None], image[mask][:, None]).argmax(axis=1)
    painted = image.copy()
    painted[mask] = shades[first]
    return painted


def far(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether two arrays of uint8 colours (..., 3) are at least `CONTRAST` apart, broadcast."""
    difference = one.astype(np.int32) - other
    return (difference**2).sum(axis=-1) >= (CONTRAST * 255) ** 2


def mixed(image: np.ndarray, other: np.ndarray | np.float32, rng: np.random.Generator) -> np.ndarray:
    """The picture with another picture over it, at an opacity within `OPACITY`: float (H, W, 3)."""
    return image + rng.uniform(*OPACITY) * (other - image.astype(np.float32))

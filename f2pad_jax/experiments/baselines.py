"""What a user would do without F2PAD: masks that need no network, and masks from the same score map.

None of them sees the truth. Each is a function and a line in a table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from skimage.filters import threshold_otsu
from skimage.segmentation import random_walker

from f2pad_jax.core.pixels import normalize
from f2pad_jax.core.priors import PixelMixture, pixel_mixture_distances
from f2pad_jax.fitting import fit_pixel_mixture

NORMAL = 0.999  # share of normal pixels that a statistic of colours lets pass
DRAWN = 32  # training pictures that such a statistic is taken from
SURE = 0.9, 0.5  # seeds of the random walk: of a picture's highest score, and quantile of its scores
STIFFNESS, TOLERANCE = 130, 1e-6  # of the random walk: β, scikit-image's default, and of its linear system


def _chroma(images: np.ndarray) -> np.ndarray:
    """Largest less smallest channel of uint8 pictures (..., 3)."""
    return images.max(axis=-1) - images.min(axis=-1)


def chroma(image: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pixels more colourful than nearly all normal ones, (H, W) bool.

    Args:
      image: uint8 RGB (H, W, 3).
      train: normal pictures, uint8 (N, H, W, 3).
    """
    return _chroma(image) > np.quantile(_chroma(_some(train)), NORMAL)


def mixture(image: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Pixels farther from the colours of Eq. (9) than nearly all normal ones; arguments as for `chroma`."""
    fitted, limit = _colours(_Pictures(_some(train)))
    return _distances(normalize(image), fitted) > limit


def _distances(pixels: np.ndarray, fitted: PixelMixture) -> np.ndarray:
    return np.asarray(pixel_mixture_distances(jnp.asarray(pixels), fitted))


class _Pictures:
    """Pictures that a cache can tell apart by their bytes."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self._bytes = images, images.tobytes()

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pictures) and self._bytes == other._bytes


@lru_cache(maxsize=1)
def _colours(pictures: _Pictures) -> tuple[PixelMixture, float]:
    pixels = normalize(pictures.images)
    fitted = fit_pixel_mixture(pixels)
    return fitted, float(np.quantile([_distances(each, fitted) for each in pixels], NORMAL))


def _some(train: np.ndarray) -> np.ndarray:
    return train[:: -(-len(train) // DRAWN)]


def otsu(image: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Otsu's threshold of each picture's own scores, where the picture has anything to show at all.

    Args:
      image: uint8 RGB (H, W, 3).
      scores: smoothed score map, (H, W).
      threshold: that normal pictures set; a picture that stays below it is normal.
    """
    del image
    if scores.max() <= threshold:
        return np.zeros(scores.shape, bool)
    return scores > threshold_otsu(scores)


def random_walk(image: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """A random walk over the picture's colours, from what scores highest and from the lower half of the scores.

    Grady, "Random Walks for Image Segmentation", TPAMI 2006; arguments as for `otsu`.
    """
    if scores.max() <= threshold:
        return np.zeros(scores.shape, bool)
    high, low = SURE
    seeds = np.where(
        scores >= max(threshold, high * scores.max()), 2, np.where(scores < np.quantile(scores, low), 1, 0)
    )
    return (
        np.asarray(random_walker(image / 255.0, seeds, beta=STIFFNESS, mode="cg_j", tol=TOLERANCE, channel_axis=-1))
        == 2
    )


COLOURS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"chroma": chroma, "colour mixture": mixture}
"""Without a network, from a picture and the training pictures."""

MAPS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {"Otsu": otsu, "random walk": random_walk}
"""From a picture, its score map and the detector's threshold."""

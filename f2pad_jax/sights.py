"""What one pass through the extractor tells of a picture: features, and the detector's score map."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from f2pad_jax.calibration import Limits
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.images import resize_map
from f2pad_jax.detectors import Detector, Drawing, Maps, drawing_of
from f2pad_jax.detectors.base import enlarge
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.reducing import Shape, reduce_images

BATCH = 8  # pictures whose features are computed together on an accelerator, where there are more than one
SMOOTHING = 4.0  # σ of the Gaussian that smooths score maps, in pixels that the extractor sees (PaDiM, PatchCore)
FOREIGN_SMOOTHING = 2.0  # of other detectors' maps, most of which are smooth already


class Sight(NamedTuple):
    """What one pass through the extractor tells of a picture.

    Attributes:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      seen: D x, what the extractor sees of it, (h, w, 3) float32.
      maps: its features, finest first.
      scores: the detector's smoothed score map, (h, w) float32; outside the region of interest its lowest score.
      costs: the summands s_ij of l_n on the detector's grid, (h, w) float32.
      limits: of `scores` in normal pictures, which tell their units.
      own: the model's own such map, which `scores` is unless another detector's is in its place.
    """

    image: np.ndarray
    seen: np.ndarray
    maps: Maps
    scores: np.ndarray
    costs: np.ndarray
    limits: Limits
    own: np.ndarray


@jax.jit
def apply_extractor(extractor: Extractor, images: jax.Array) -> tuple[jax.Array, ...]:
    """Feature maps of ImageNet-normalised pictures (B, S, S, 3), compiled once per shape."""
    return extractor(images)


def features(extractor: Extractor, images: np.ndarray, *, title: str | None = None) -> tuple[np.ndarray, ...]:
    """Feature maps of pictures (N, h, w, 3): one (N, H_k, W_k, C_k) array per map, finest first.

    Args:
      extractor: the network.
      images: uint8 RGB, or float32 and ImageNet-normalised already.
      title: of a progress bar; none without.
    """
    # On a CPU one at a time takes no longer, and gives the same bits whatever other pictures there are.
    batch = 1 if jax.default_backend() == "cpu" else min(BATCH, len(images))
    chunks = []
    for first in tqdm(range(0, len(images), batch), desc=title, leave=False, disable=None if title else True):
        chunk = images[first : first + batch]
        # The last batch is filled up: one shape, one compilation.
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
        maps = apply_extractor(extractor, _pixels(padded))
        chunks.append([np.asarray(m)[: len(chunk)] for m in maps])
    return tuple(np.concatenate(level) for level in zip(*chunks, strict=True))


def _pixels(images: np.ndarray) -> np.ndarray:
    return normalize(images) if images.dtype == np.uint8 else images


@jax.jit
def _scores(detector: Detector, maps: Maps) -> tuple[jax.Array, jax.Array]:
    return detector.score(maps), detector.summands(maps)


@partial(jax.jit, static_argnames=("shape", "enlarging"))
def _enlarged(grid: jax.Array, *, shape: Shape, enlarging: Literal["linear", "nearest"]) -> jax.Array:
    return enlarge(grid, shape, enlarging)


def smooth_map(grid: np.ndarray, shape: Shape, drawing: Drawing = Drawing()) -> np.ndarray:
    """Values on the detector's grid as a smoothed map of what the extractor sees, of that shape, float32."""
    enlarged = np.asarray(_enlarged(grid, shape=shape, enlarging=drawing.enlarging))
    return ndimage.gaussian_filter(enlarged, SMOOTHING, mode=drawing.border)


def look(model: Model, images: np.ndarray) -> list[Sight]:
    """Features and scores of pictures (N, H, W, 3), as for `features`: the one pass before a solve."""
    if not len(images):
        return []
    pixels, small = _pixels(images), reduce_images(images, model.seen)
    maps = features(model.extractor, small)
    sights, drawing = [], drawing_of(model.detector)
    for index, (image, seen) in enumerate(zip(pixels, pixels if small is images else small, strict=True)):
        found = tuple(m[index] for m in maps)
        scores, costs = map(np.asarray, _scores(model.detector, found))
        scores = model.scored(smooth_map(scores, model.seen, drawing))
        sights.append(Sight(image, seen, found, scores, costs, model.limits, own=scores))
    return sights


def total_costs(model: Model, images: np.ndarray) -> np.ndarray:
    """l_n of pictures (N, H, W, 3), as for `features`: the sums of their s_ij, (N,) float32."""
    maps = features(model.extractor, reduce_images(images, model.seen))
    return np.array([float(_scores(model.detector, tuple(m[k] for m in maps))[1].sum()) for k in range(len(images))])


def score_maps(model: Model, images: np.ndarray) -> np.ndarray:
    """The detector's smoothed score maps of pictures (N, H, W, 3), as for `features`: (N, h, w) float32."""
    return np.stack([sight.scores for sight in look(model, images)])


def foreign_scores(values: np.ndarray, seen: Shape) -> np.ndarray:
    """Another detector's score map (H, W) in what the extractor sees, (h, w), smoothed, in the units that it has."""
    return ndimage.gaussian_filter(resize_map(values, seen), FOREIGN_SMOOTHING)


def with_map(model: Model, sight: Sight, values: np.ndarray) -> Sight:
    """A picture as another detector scores it.

    Args:
      model: with the units of these scores.
      sight: of `look`.
      values: the score map, of any size.
    """
    assert model.units is not None
    scores = model.scored(foreign_scores(values, model.seen) - np.float32(model.units.zero))
    return sight._replace(scores=scores, limits=model.units.limits(model.limits.cost))

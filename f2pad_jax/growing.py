"""Regions that grow where the recovered picture still looks anomalous: the paper's first kind of failure.

A region that leaves a part of the anomaly out fixes n to x there, so that no solve can mark it (arXiv 2407.06519,
Figure 11). What is left out shows in the detector's scores of n, beside the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from f2pad_jax.core.pixels import normalize
from f2pad_jax.model import Model
from f2pad_jax.preparing import Start
from f2pad_jax.segmentation import Segmentation, segment_regions
from f2pad_jax.sights import Sight, score_maps

ROUNDS = 3


class Growth(NamedTuple):
    """What `let_grow` found in one picture.

    Attributes:
      result: the segmentation, `iterations` and `seconds` of all solves.
      region: the last one, (h, w) bool.
      rounds: how often the region grew.
    """

    result: Segmentation
    region: np.ndarray
    rounds: int


def grow(region: np.ndarray, scores: np.ndarray, *, threshold: float, reach: int) -> np.ndarray:
    """A region with the pieces that score high at its border.

    Args:
      region: (h, w) bool.
      scores: of the recovered picture, (h, w).
      threshold: of the scores.
      reach: pixels to both sides of the border where a piece must begin, and by which pieces are enlarged.

    Returns:
      (h, w) bool that holds the region; the region itself where nothing scores high.
    """
    reach = max(reach, 1)
    high = scores > threshold
    inner = np.asarray(ndimage.binary_erosion(region, iterations=reach), bool)
    border = ndimage.binary_dilation(region, iterations=reach) & ~inner
    pieces = ndimage.binary_propagation(high & border, mask=high)
    return region | ndimage.binary_dilation(pieces, iterations=reach)


def let_grow(
    model: Model,
    images: np.ndarray,
    sights: Sequence[Sight],
    regions: Sequence[np.ndarray],
    results: Sequence[Segmentation],
    *,
    rounds: int = ROUNDS,
) -> list[Growth]:
    """Solves again, from n, the pictures whose region grows.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, H, W, 3).
      sights: of `look`.
      regions: where n was free, (h, w) bool each.
      results: what was found there.
      rounds: how often a region may grow.
    """
    found = [Growth(result, region, 0) for result, region in zip(results, regions, strict=True)]
    for done in range(rounds):
        asked = [k for k, growth in enumerate(found) if growth.rounds == done and growth.region.any()]
        if not asked:
            break
        # Where the solve left nothing, its n is x, whatever the mask is now.
        last = {k: found[k].result for k in asked}
        normals = {k: images[k] if result.from_detector else result.normal for k, result in last.items()}
        maps = score_maps(model, np.stack(list(normals.values())))
        for k, scores in zip(asked, maps, strict=True):
            # As for the first region: a picture unlike the training pictures scores high all over.
            own = float(np.quantile(sights[k].scores, 1 - model.procedure.largest))
            threshold = max(min(model.limits.pixel, model.threshold), own)
            region = grow(found[k].region, scores, threshold=threshold, reach=model.procedure.dilation)
            region = model.inspected(region)
            if (region & ~found[k].region).any():
                found[k] = Growth(found[k].result, region, done + 1)
        grown = [k for k in asked if found[k].rounds > done]
        # The new part of a region leaves x in the warm-up.
        starts = [normalize(normals[k]) for k in grown]
        again = segment_regions(
            model,
            images[grown],
            [sights[k] for k in grown],
            [found[k].region for k in grown],
            starts=[Start(start, start, filled=False) for start in starts],
        )
        for k, result in zip(grown, again, strict=True):
            before = found[k].result
            total = {name: getattr(before, name) + getattr(result, name) for name in ("iterations", "seconds")}
            found[k] = found[k]._replace(result=replace(result, **total))
    return found

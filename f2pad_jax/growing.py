"""Regions that grow where the recovered picture still looks anomalous: the paper's first kind of failure.

A region that leaves a part of the anomaly out fixes n to x there, so that no solve can mark it (arXiv 2407.06519,
Figure 11). What is left out shows in the detector's scores of n, beside the region.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from f2pad_jax.data.images import normalize
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.pipeline import Segmentation, Start, find_region, segment_many, segment_regions

ROUNDS = 3


class Growth(NamedTuple):
    """What `segment_growing` found in one picture.

    Attributes:
      result: the segmentation, `iterations` and `seconds` of all solves.
      region: the last one, (S, S) bool.
      rounds: how often the region grew.
    """

    result: Segmentation
    region: np.ndarray
    rounds: int


def grow(region: np.ndarray, scores: np.ndarray, *, threshold: float, reach: int) -> np.ndarray:
    """A region with the pieces that score high at its border.

    Args:
      region: (S, S) bool.
      scores: of the recovered picture, (S, S).
      threshold: of the scores.
      reach: pixels to both sides of the border where a piece must begin, and by which pieces are enlarged.

    Returns:
      (S, S) bool that holds the region; the region itself where nothing scores high.
    """
    reach = max(reach, 1)
    high = scores > threshold
    inner = np.asarray(ndimage.binary_erosion(region, iterations=reach), bool)
    border = ndimage.binary_dilation(region, iterations=reach) & ~inner
    pieces = ndimage.binary_propagation(high & border, mask=high)
    return region | ndimage.binary_dilation(pieces, iterations=reach)


def segment_growing(model: Model, images: np.ndarray, *, rounds: int = ROUNDS) -> list[Growth]:
    """`segment_many`, and then again from n where the region grows; only those pictures are solved again.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, S, S, 3).
      rounds: how often a region may grow.

    Raises:
      InputError: as for `segment_many`.
    """
    found = [Growth(result, find_region(model, result.score_map), 0) for result in segment_many(model, images)]
    for done in range(rounds):
        asked = [k for k, one in enumerate(found) if one.rounds == done and one.region.any()]
        if not asked:
            break
        maps = score_maps(model, np.stack([found[k].result.normal for k in asked]))
        for k, scores in zip(asked, maps, strict=True):
            # As for the first region: a picture unlike the training pictures scores high all over.
            own = float(np.quantile(found[k].result.score_map, 1 - model.settings.largest))
            threshold = max(model.region_threshold, own)
            region = grow(found[k].region, scores, threshold=threshold, reach=model.settings.dilation)
            if (region & ~found[k].region).any():
                found[k] = Growth(found[k].result, region, done + 1)
        grown = [k for k in asked if found[k].rounds > done]
        # The new part of a region leaves x in the warm-up.
        normals = [normalize(found[k].result.normal) for k in grown]
        again = segment_regions(
            model,
            images[grown],
            [found[k].result.score_map for k in grown],
            [found[k].region for k in grown],
            starts=[Start(normal, normal, model.settings.warm_up, filled=False) for normal in normals],
        )
        for k, result in zip(grown, again, strict=True):
            before = found[k].result
            total = {name: getattr(before, name) + getattr(result, name) for name in ("iterations", "seconds")}
            found[k] = found[k]._replace(result=result._replace(**total))
    return found

"""n composed of x and of its fill, for pictures that a solve from x leaves unexplained.

A solve moves every pixel along the gradient of F. A patch of paint without contrast has none: as long as its neighbours
are paint, no pixel gains by leaving x. Here whole segments of x are exchanged for the fill, and F is what decides: over
unions M of segments the gain

    G(M) = l_n(x) − l_n(n_M) − PRICE · |M|,   n_M the fill within M and x elsewhere,

is sought that is largest: −G is F of n_M with the L0 penalty, but for a constant and the priors on pixels. The unit is
what a pixel of a normal picture costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from f2pad_jax.core.pixels import denormalize, normalize
from f2pad_jax.data.images import resize_map
from f2pad_jax.model import Model
from f2pad_jax.outcomes import Outcome, left_in
from f2pad_jax.preparing import SQUARE, Plan, usual_cost
from f2pad_jax.reducing import Shape
from f2pad_jax.sights import Sight, total_costs

PRICE = 1.0  # of a pixel of M: what a pixel of a normal picture costs
SCALES = (20.0, 60.0, 150.0, 400.0)  # of Felzenszwalb's and Huttenlocher's segmentation, from small to large segments
SMALLEST = 12  # pixels of a segment that the extractor sees
WITHIN = 0.9  # share of a segment that lies in the region
LEVELS = 10  # of the scores: what lies above each is tried as well
FIRST, EACH = 64, 24  # segments that are tried alone, and joined to or taken from M in each round
ROUNDS = 6
REACH = 2  # pixels that the extractor sees between M and a segment that is joined to it
FEWEST = 4  # pixels by which an exchange changes M
WORTH = 0.02  # share by which a round raises the gain, or it is the last
BETTER = 0.25  # share by which M gains more than the solve did, or the mask of the solve stays
TOGETHER = 8  # pictures in memory at a time


class Segment(NamedTuple):
    """Pixels of like colour, a connected set but for what lies outside the region.

    Attributes:
      place: rows and columns of the box round it.
      pixels: which of the box belong to it, (h, w) bool.
    """

    place: tuple[slice, slice]
    pixels: np.ndarray

    def mask(self, shape: Shape) -> np.ndarray:
        """It alone, (H, W) bool."""
        return self.joined(np.zeros(shape, bool))

    def joined(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) with it."""
        mask = mask.copy()
        mask[self.place] |= self.pixels
        return mask

    def taken(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) without it."""
        mask = mask.copy()
        mask[self.place] &= ~self.pixels
        return mask

    def common(self, mask: np.ndarray) -> int:
        """How many of its pixels a mask (H, W) has."""
        return int(np.count_nonzero(self.pixels & mask[self.place]))


class Composition(NamedTuple):
    """What `compose` found.

    Attributes:
      mask: M, (H, W) bool; empty where nothing gains.
      normal: n_M, or n* of the solve where that stays, (H, W, 3) float32, ImageNet-normalised.
      gain: G of it, in pixels of a normal picture.
    """

    mask: np.ndarray
    normal: np.ndarray
    gain: float


def explain(model: Model, chosen: Plan, outcome: Outcome, normal: np.ndarray) -> Outcome:
    """The outcome of a solve from x, or what `compose` finds where that leaves n unexplained and this leaves less.

    Args:
      model: as fitted or tuned.
      chosen: the plan of the solve.
      outcome: what the solve has come to.
      normal: its n*, uint8 (H, W, 3).
    """
    if chosen.start.filled or outcome.residual <= 1 or not model.procedure.composing:
        return outcome
    solved, recovered = outcome.mask, normalize(normal)
    if outcome.given_up:
        solved, recovered = np.zeros_like(outcome.mask), chosen.sight.image
    found = compose(model, chosen.sight, chosen.region, chosen.start.fill, solved, recovered)
    if not found.mask.any() or found.mask is solved:
        return outcome
    residual = left_in(model, chosen, found.normal)
    return outcome._replace(mask=found.mask, residual=residual) if residual < outcome.residual else outcome


def compose(
    model: Model, sight: Sight, region: np.ndarray, fill: np.ndarray, solved: np.ndarray, normal: np.ndarray
) -> Composition:
    """The union of segments with the largest gain that a greedy search finds.

    It begins with the best single segment, level set of the scores, or mask of the solve, and in each round joins or
    takes away the segment that gains most. The n* of the solve, which fits the picture better than a fill, stays where
    the search gains little more than it does.

    Args:
      model: as fitted or tuned.
      sight: the picture.
      region: where M may lie, (H, W) bool.
      fill: (H, W, 3) float32, ImageNet-normalised.
      solved: the mask of the solve, (H, W) bool, empty where there is none.
      normal: its n*, (H, W, 3) float32, ImageNet-normalised; x outside the mask.
    """
    unit = usual_cost(model, sight) * sight.costs.size / region.size
    before, own = float(sight.costs.sum()), 0.0
    if solved.any():
        own = (before - float(total_costs(model, normal[None])[0])) / unit - PRICE * solved.sum()
    enough = (1 + BETTER) * max(own, 0.0)
    if sight.costs.min() >= 0 and enough >= before / unit:  # no M can gain more than all that x costs
        return Composition(solved, normal, own)
    segments = find_segments(model, sight, region)

    def gains(tried: Sequence[np.ndarray]) -> np.ndarray:
        costs = [
            total_costs(model, np.stack([_composed(sight, fill, mask) for mask in tried[first : first + TOGETHER]]))
            for first in range(0, len(tried), TOGETHER)
        ]
        return (before - np.concatenate(costs)) / unit - PRICE * np.array([mask.sum() for mask in tried])

    first = [solved, *_levels(model, sight, region), *(segment.mask(region.shape) for segment in segments[:FIRST])]
    values = gains(first)
    mask, gain = first[int(values.argmax())], float(values.max())
    for _ in range(ROUNDS):
        tried = _exchanges(mask, segments, reach=round(REACH * model.scale), fewest=FEWEST * model.scale**2)
        if not tried or gain <= 0:
            break
        found = gains(tried)
        if found.max() <= (1 + WORTH) * gain:
            break
        mask, gain = tried[int(found.argmax())], float(found.max())
    if gain <= enough or not mask.any():  # nothing gains nothing, but for roundings
        return Composition(solved, normal, own)
    return Composition(mask, _composed(sight, fill, mask), gain)


def find_segments(model: Model, sight: Sight, region: np.ndarray) -> list[Segment]:
    """Segments of x that lie in the region, at all `SCALES`; those with the highest mean score come first.

    Args:
      model: as fitted or tuned.
      sight: the picture.
      region: (H, W) bool.
    """
    picture, scores = denormalize(sight.image), resize_map(sight.scores, model.shape)
    found: dict[bytes, tuple[float, Segment]] = {}
    for scale in SCALES:
        numbers = felzenszwalb(picture, scale=scale, sigma=0.5, min_size=round(SMALLEST * model.scale**2))
        every = np.arange(numbers.max() + 1)
        inside, means = ndimage.mean(region, numbers, every), ndimage.mean(scores, numbers, every)
        places = np.where(region, numbers + 1, 0)
        boxes = ndimage.find_objects(places)
        for number in np.flatnonzero(np.asarray(inside) >= WITHIN):
            segment = Segment(boxes[number], places[boxes[number]] == number + 1)
            found.setdefault(f"{segment.place}".encode() + segment.pixels.tobytes(), (float(means[number]), segment))
    return [segment for _, segment in sorted(found.values(), key=lambda entry: -entry[0])]


def _levels(model: Model, sight: Sight, region: np.ndarray) -> list[np.ndarray]:
    """What of the region scores above each of equal steps between its lowest and its highest score."""
    scores = resize_map(sight.scores, model.shape)
    steps = np.linspace(scores[region].min(), scores[region].max(), LEVELS + 2)[1:-1]
    return [region & (scores > step) for step in steps]


def _exchanges(mask: np.ndarray, segments: Sequence[Segment], *, reach: int, fewest: float) -> list[np.ndarray]:
    """M with a segment that is near, holes closed, or without one that it holds: the first `EACH`, none twice."""
    near = ndimage.binary_dilation(mask, SQUARE, iterations=max(reach, 1))
    size = np.count_nonzero(mask)
    found: dict[bytes, np.ndarray] = {}
    for segment in segments:
        held = segment.common(mask)
        if np.count_nonzero(segment.pixels) - held >= fewest and segment.common(near):
            joined = np.asarray(ndimage.binary_fill_holes(segment.joined(mask)), bool)
            found.setdefault(np.packbits(joined).tobytes(), joined)
        if held >= fewest and size - held > 2 * fewest:
            less = segment.taken(mask)
            found.setdefault(np.packbits(less).tobytes(), less)
        if len(found) >= EACH:
            break
    return list(found.values())[:EACH]


def _composed(sight: Sight, fill: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """n_M, (H, W, 3) float32."""
    return np.where(mask[..., None], fill, sight.image)

"""Knowledge-of-the-part fill: a region is taken from the normal picture that continues its surroundings best.

Every quarter turn of every normal picture is tried at every translation (Fourier correlation on a coarse
grid); the best few are aligned to a fraction of a pixel and a degree by Gauss-Newton; what still differs at the
region's border is evened out by a harmonic membrane, as in seamless cloning (Pérez et al., SIGGRAPH 2003). In large
pictures the best is chosen by reduced pictures, and aligned once more, in full, around the region.

The picture itself is tried as well, without the region: where a pattern repeats itself no other has its pose and light.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import distance_transform_edt

from f2pad_jax.boxes import Box, enclosing
from f2pad_jax.core.pixels import normalize
from f2pad_jax.fills.aligning import Pose, align
from f2pad_jax.fills.harmonic import harmonic_fill
from f2pad_jax.fills.searching import BATCH, COARSE, pool, search, spectra_of

# Lengths are in pixels, times the scale of `Normals`.
REFINED, OWN = 4, 2  # candidates that are aligned finely: of normal pictures, and of the picture itself
RING = 12.0  # over which the weight of the surroundings falls by 1/√e
GAP = 2.0  # from the region, or what else may be anomalous, up to which nothing of the picture itself is taken
FAR = 0.02  # weight of pixels far from the region, which settles a part's pose


def surroundings_weight(region: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """How much each pixel outside the region counts in a comparison: (H, W) float32, zero inside."""
    distance = np.asarray(distance_transform_edt(~region))
    return np.where(region, 0.0, FAR + np.exp(-np.square(distance / (scale * RING)) / 2)).astype(np.float32)


def own_part(distance: Any, scale: float = 1.0) -> Any:
    """What of the picture itself may be taken, by its pixels' distance from what may be anomalous: ones and zeros."""
    return (distance > scale * GAP).astype(np.float32)


def own_cells(usable: Any, cell: int) -> Any:
    """The cells of which every pixel may be taken, (h, w) float32, of NumPy or JAX."""
    return (pool(usable[..., None], cell)[..., 0] == 1).astype(np.float32)


def framed(usable: Any) -> Any:
    """The same without the outermost pixels, so that for `align` nothing beyond the picture counts."""
    return usable * np.pad(np.ones([side - 2 for side in usable.shape], np.float32), 1)


class Normals:
    """Normal training pictures, and what searches among them need, which is made when it is first used.

    Args:
      pictures: uint8 RGB (N, H, W, 3).
      scale: by which they are larger than pictures of the size that all lengths are meant for; at least 1.
    """

    def __init__(self, pictures: np.ndarray, scale: float = 1.0) -> None:
        self.pictures, self.scale = pictures, scale

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def cell(self) -> int:
        """Pixels per cell of the search grid."""
        return round(COARSE * self.scale)

    @cached_property
    def spectra(self) -> jax.Array:
        """What `search` takes of them, (N, 4, 2h, w + 1) complex64."""
        # A few at a time: all of them as floats would be many times as large as what is kept.
        chunks = [self.pictures[first : first + BATCH] for first in range(0, len(self), BATCH)]
        with jax.ensure_compile_time_eval():  # kept beyond the program that may be traced just now
            return jnp.concatenate([spectra_of(normalize(chunk), cell=self.cell) for chunk in chunks])

    def turned(self, index: int, quarters: int) -> np.ndarray:
        """One picture, (H, W, 3) float32, ImageNet-normalised, turned by so many quarters."""
        return normalize(np.rot90(self.pictures[index], quarters))


class Match(NamedTuple):
    """A filled picture and how far the surroundings of the region are from the material it was taken from.

    Attributes:
      filled: (H, W, 3) float32, equal to the image outside the region.
      error: root of the weighted mean squared difference, in normalised colour; infinite without a match. Of large
        pictures the lesser of those of reduced and of full ones: noise weighs more in these, interpolation in those.
    """

    filled: np.ndarray
    error: float


class _Candidate(NamedTuple):
    """A picture that may continue another: turned by quarters, what of it counts, and its shift in pixels."""

    picture: np.ndarray
    usable: np.ndarray
    shift: np.ndarray


class _Found(NamedTuple):
    """The candidate that matches best, its pose, what lies there, and what it costs."""

    candidate: _Candidate
    pose: Pose
    moved: np.ndarray
    cost: float


def matching_fill(
    image: np.ndarray, region: np.ndarray, normals: Normals, *, doubtful: np.ndarray | None = None
) -> Match:
    """Fills a region from the normal picture, or the part of the picture itself, that matches its surroundings best.

    Args:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      region: (H, W) bool, the pixels to replace.
      normals: training pictures; the image's own source must not be among them.
      doubtful: where else x may be anomalous, (H, W) bool: nothing is taken from there.

    Returns:
      The match. Where the region leaves too little to compare, or there are no pictures, the harmonic fill with an
      infinite error.
    """
    if not region.any():
        return Match(image.copy(), 0.0)
    reduced = round(normals.scale)
    weight = surroundings_weight(region, normals.scale)
    taken = region if doubtful is None else region | doubtful
    found = _best(image, taken, weight, normals, reduced) if len(normals) else None
    # Beyond a few lengths of the ring nothing weighs much, and the membrane needs the region and its border only.
    box = Box(0, 0, *region.shape) if reduced == 1 else enclosing(region, round(2 * RING * normals.scale))
    here, inside = box.cut(image), box.cut(region)
    if found is None:
        return Match(box.put(harmonic_fill(here, inside), image), np.inf)
    if reduced > 1:
        found = _in_full(here, box.cut(weight), found, box, reduced)
    filled = np.where(inside[..., None], found.moved + harmonic_fill(here - found.moved, inside), here)
    return Match(box.put(filled, image), found.cost**0.5)


def _best(image: np.ndarray, doubtful: np.ndarray, weight: np.ndarray, normals: Normals, reduced: int) -> _Found | None:
    """The best of all candidates, by pictures that are reduced by this whole factor."""
    small, light = _shrunk(image, reduced), _shrunk(weight[..., None], reduced)[..., 0]
    best: _Found | None = None
    for candidate in _candidates(image, doubtful, weight, normals):
        picture, usable = _shrunk(candidate.picture, reduced), _shrunk(candidate.usable[..., None], reduced)[..., 0]
        start = np.append(candidate.shift / reduced, 0.0)
        moved, pose, error = align(small, light, picture, usable, start, np.zeros(2))
        if best is None or float(error) < best.cost:
            shifted = Pose(reduced * np.asarray(pose[:2], float), float(pose[2]))
            best = _Found(candidate, shifted, np.asarray(moved), float(error))
    return best


def _candidates(image: np.ndarray, doubtful: np.ndarray, weight: np.ndarray, normals: Normals) -> Iterator[_Candidate]:
    """What is aligned finely: the best of the search among normal pictures, and within the picture itself."""
    cost, shift = (np.asarray(a) for a in search(image, weight, normals.spectra, cell=normals.cell))
    everything = np.ones(doubtful.shape, np.float32)
    for turn, index in _lowest(cost, REFINED):
        yield _Candidate(normals.turned(index, turn), everything, shift[turn, index])
    usable = own_part(np.asarray(distance_transform_edt(~doubtful)), normals.scale)
    cells = own_cells(usable, normals.cell)
    own = spectra_of(image[None], cells, cell=normals.cell)
    cost, shift = (np.asarray(a) for a in search(image, weight, own, cells, cell=normals.cell))
    for turn, _ in _lowest(cost, OWN):
        yield _Candidate(np.rot90(image, turn), np.rot90(framed(usable), turn), shift[turn, 0])


def _lowest(cost: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Turns and indices of the lowest finite costs."""
    places = np.unravel_index(np.argsort(cost, axis=None)[:count], cost.shape)
    return [(int(turn), int(index)) for turn, index in zip(*places, strict=True) if np.isfinite(cost[turn, index])]


def _shrunk(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture if factor == 1 else pool(picture, factor)


def _in_full(image: np.ndarray, weight: np.ndarray, found: _Found, box: Box, reduced: int) -> _Found:
    """The found candidate aligned anew in a box of the full pictures."""
    rough = (reduced * np.array(found.moved.shape[:2]) - 1) / 2  # the middle of the reduced picture
    corner = np.array([box.top, box.left])
    pose = found.pose.about(rough, corner + (np.array([box.height, box.width]) - 1) / 2)
    start = np.append(pose.shift, pose.angle)
    moved, _, cost = align(image, weight, *found.candidate[:2], start, corner.astype(float))
    return found._replace(moved=np.asarray(moved), cost=min(found.cost, float(cost)))

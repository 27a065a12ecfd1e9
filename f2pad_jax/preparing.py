"""From a picture and its region to the solver's problem: what stays fixed during a solve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.fitting import Model, apply_extractor
from f2pad_jax.objective import Coefficients, FeatureLoss, Problem
from f2pad_jax.optim.sharing import sharing_weights

SHARES = (1 / 6, 1 / 2, 1.0)  # of the positions that a solve may be compiled for: small, usual and all
SPREAD = 1.3  # of the cells of a map at twice the stride a share larger by this factor is met
SQUARE = np.ones((3, 3), bool)  # a pixel or cell and its neighbours


def strides_of(model: Model) -> tuple[int, ...]:
    """Strides of the detector's grid and of the coarser maps that it uses, in pixels."""
    return model.extractor.strides[get_detector(model.detector).level :]


class Affected(NamedTuple):
    """Positions of the detector's grid whose scores the region can change, padded to one of few lengths."""

    positions: np.ndarray  # (S,) int32, ascending, row-major
    present: np.ndarray  # (S,) float32, zero for padding
    coarser: tuple[np.ndarray, ...]  # (S_k,) int32, the cells of each coarser map in which they lie


def affected(region: np.ndarray, strides: Sequence[int]) -> Affected:
    """Positions whose own cell or a neighbouring one meets the region; `strides` of the grid and of coarser maps."""
    side = region.shape[0]

    def cells(wanted: np.ndarray, fine: int, coarse: int) -> np.ndarray:
        grid = side // coarse
        return np.asarray(wanted.reshape(grid, coarse // fine, grid, coarse // fine).any((1, 3)))

    near = ndimage.binary_dilation(cells(region, 1, strides[0]), SQUARE)
    wanted = [np.flatnonzero(cells(near, strides[0], stride)) for stride in strides]
    counts = [(side // stride) ** 2 for stride in strides]

    def lengths(share: float) -> list[int]:
        return [round(min(share * SPREAD**k, 1.0) * count) for k, count in enumerate(counts)]

    fitting = next(n for n in map(lengths, SHARES) if all(len(w) <= most for w, most in zip(wanted, n, strict=True)))
    padded = [
        np.pad(index, (0, length - len(index)), constant_values=count - 1).astype(np.int32)
        for index, length, count in zip(wanted, fitting, counts, strict=True)
    ]
    return Affected(padded[0], (np.arange(fitting[0]) < len(wanted[0])).astype(np.float32), tuple(padded[1:]))


@partial(jax.jit, static_argnames="detector")
def _median_summand(detector: Detector, params: dict, maps: tuple) -> jax.Array:
    return jnp.median(detector.summands(params, maps))


@partial(jax.jit, static_argnames="detector")
def _localize(detector: Detector, params: dict, maps: tuple, positions: jax.Array, coarser: tuple) -> dict:
    return detector.localize(params, maps, positions, coarser)


_sharing_weights = jax.jit(sharing_weights)


def prepare(
    model: Model, image: np.ndarray, region: np.ndarray, anchor: np.ndarray, *, beta: float, shared: bool = True
) -> Problem:
    """Everything that stays fixed during the solve of one image.

    Scores count relative to those of normal pictures, or to the picture's own median where that is higher: the normal
    pixels of a picture unlike the training pictures would otherwise pay more than sparsity can.

    Args:
      model: as fitted or tuned.
      image: x, (S, S, 3) float32, ImageNet-normalised.
      region: (S, S) bool, where n is free.
      anchor: the picture whose features choose PatchCore's candidates M_ij, like x.
      beta: weight of sparsity.
      shared: whether neighbours share at all.
    """
    detector = get_detector(model.detector)
    positions, present, coarser = affected(region, strides_of(model))
    maps, own_maps = (
        tuple(m[0] for m in apply_extractor(model.extractor, picture[None])) for picture in (anchor, image)
    )
    typical = jnp.maximum(model.scales.score, _median_summand(detector, model.params, own_maps))
    settings = model.settings
    return Problem(
        image=jnp.asarray(image),
        region=jnp.asarray(region),
        sharing=_sharing_weights(image) if shared else None,
        feature=FeatureLoss(
            jnp.asarray(positions),
            jnp.asarray(present),
            _localize(detector, model.params, maps, positions, coarser),
        ),
        mixture=model.mixture,
        scales=model.scales._replace(score=typical),
        coefficients=Coefficients(jnp.float32(settings.alpha1), jnp.float32(settings.alpha2), jnp.float32(beta)),
    )

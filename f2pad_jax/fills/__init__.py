"""Fills of a region, n⁽⁰⁾ of Algorithm 1: from its border, from normal pictures, or by a masked autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.fills.autoencoder import Inpainter, autoencoder_fill
from f2pad_jax.fills.harmonic import harmonic_fill
from f2pad_jax.fills.matching import Match, Normals, matching_fill

__all__ = ["FILLS", "Inpainter", "Match", "Normals", "autoencoder_fill", "harmonic_fill", "matching_fill"]


class Material(Protocol):
    """What fills may be made from; a `Model` has it."""

    @property
    def normals(self) -> Normals:
        """The training pictures."""
        ...

    @property
    def inpainter(self) -> Inpainter | None:
        """A masked autoencoder, where there is one."""
        ...


def _harmonic(image: np.ndarray, region: np.ndarray, material: Material, doubtful: np.ndarray | None = None) -> Match:
    del material, doubtful
    return Match(harmonic_fill(image, region), np.inf)


def _matching(image: np.ndarray, region: np.ndarray, material: Material, doubtful: np.ndarray | None = None) -> Match:
    return matching_fill(image, region, material.normals, doubtful=doubtful)


def _autoencoder(
    image: np.ndarray, region: np.ndarray, material: Material, doubtful: np.ndarray | None = None
) -> Match:
    del doubtful
    if material.inpainter is None:
        raise InputError("the model has no autoencoder", hint="fit it with --inpainter, or choose another start")
    return Match(autoencoder_fill(image, region, material.inpainter.params, material.inpainter.spec), np.inf)


FILLS: dict[str, Callable[..., Match]] = {
    "harmonic": _harmonic,
    "matching": _matching,
    "autoencoder": _autoencoder,
}
"""By the names of `Procedure.start`: functions of x (H, W, 3) float32, the region (H, W) bool, the material, and
where else x may be anomalous, (H, W) bool or None."""

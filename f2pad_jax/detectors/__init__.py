"""Detectors as pytree classes, one file each; `DETECTORS` is the table to which a new one is added."""

from __future__ import annotations

from f2pad_jax.detectors.base import Detector, Drawing, Maps, bound_of, check_options, drawing_of, options_of
from f2pad_jax.detectors.cflow import CFlow
from f2pad_jax.detectors.padim import PaDiM
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError

__all__ = [
    "DETECTORS",
    "Detector",
    "Drawing",
    "Maps",
    "bound_of",
    "check_options",
    "detector_class",
    "drawing_of",
    "options_of",
]

DETECTORS: dict[str, type[Detector]] = {each.name: each for each in (PaDiM, PatchCore, CFlow)}


def detector_class(name: str) -> type[Detector]:
    """The detector of that name; `InputError` that lists the names for any other."""
    if name not in DETECTORS:
        raise InputError(f"no detector is called {name!r}", hint=f"choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]

"""Detectors as tables of pure functions over plain parameter dicts; one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from f2pad_jax.detectors import cflow, padim, patchcore
from f2pad_jax.errors import InputError


class Detector(NamedTuple):
    """The functions that every detector offers; maps are those of one image, finest first.

    Attributes:
      name: as on the command line.
      fit: `fit(maps of all images, seed=…, options of its own) -> params`, a dict of arrays, maybe nested.
      score: `score(params, maps) -> (h, w)`, the detector's own score map.
      summands: `summands(params, maps) -> (h, w)`, the s_ij that l_n adds up, Eq. (4), (6) or (7).
      localize: `localize(params, maps of n⁽⁰⁾, positions, coarser) -> local`, what the solver needs; `coarser` are
        the cells of further maps in which the positions lie, all of them by default.
      local_scores: `local_scores(local, maps, positions) -> (S,)`, the summands of l_n.
      level: index of the feature map whose grid the scores lie on.
    """

    name: str
    fit: Callable
    score: Callable
    summands: Callable
    localize: Callable
    local_scores: Callable
    level: int


DETECTORS = {
    "padim": Detector(
        name="padim",
        fit=padim.fit,
        score=padim.score,
        summands=padim.squared_distances,
        localize=padim.localize,
        local_scores=padim.local_scores,
        level=0,
    ),
    "patchcore": Detector(
        name="patchcore",
        fit=patchcore.fit,
        score=patchcore.score,
        summands=patchcore.score,
        localize=patchcore.localize,
        local_scores=patchcore.local_scores,
        level=1,
    ),
    "cflow": Detector(
        name="cflow",
        fit=cflow.fit,
        score=cflow.score,
        summands=cflow.summands,
        localize=cflow.localize,
        local_scores=cflow.local_scores,
        level=0,
    ),
}


def get_detector(name: str) -> Detector:
    """The detector of that name; `InputError` that lists the names for any other."""
    if name not in DETECTORS:
        raise InputError(f"no detector is called {name!r}", hint=f"choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name]

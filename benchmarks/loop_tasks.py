"""What the paper's loop in torch is given, as plain arrays; free of torch, for the process that has none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from f2pad_jax import Model
from f2pad_jax.preparing import Plan, find_region, locate, plan
from f2pad_jax.sights import Sight, look

HIGHEST = 0.02  # share of a picture's pixels


class Spot(NamedTuple):
    """Where to look in a picture."""

    sight: Sight
    region: np.ndarray  # bool, of what the extractor sees
    reached: bool  # whether a score reaches the threshold


class Setup(NamedTuple):
    """A fitted model."""

    network: str  # name of the extractor
    params: Any  # of the extractor
    spec: Any
    detector: str  # "padim" or "patchcore"
    statistics: dict[str, Any]  # the detector's arrays
    mean: Any  # of the pixel mixture, (Q, 3)
    precision: Any  # (Q, 3, 3)
    scales: tuple[float, float, float]  # typical values: score, pixel, variation
    compiled: bool = False  # whether torch compiles the network


class Task(NamedTuple):
    """One picture; (H, W, 3) or (H, W)."""

    image: np.ndarray  # x
    region: np.ndarray  # where n is free
    start: np.ndarray  # n⁽⁰⁾
    fill: np.ndarray  # the filled picture, whose features choose M_ij
    share: float  # of m⁽⁰⁾ in the picture
    filled: bool  # whether n⁽⁰⁾ is a fill


def setup_of(model: Model) -> Setup:
    """The model for another process."""
    extractor, detector, (arrays, _) = model.extractor, model.detector.name, model.detector.state()
    params, statistics, mixture = jax.tree.map(np.asarray, (extractor.params, arrays, model.energy.mixture))
    scales = float(model.scales.score), float(model.scales.pixel), float(model.scales.variation)
    return Setup(extractor.name, params, extractor.spec, detector, statistics, mixture.mean, mixture.precision, scales)


def spots_of(model: Model, images: np.ndarray) -> list[Spot]:
    """Where to look in pictures, uint8 (N, S, S, 3).

    Solves are measured, not detectors: where no score reaches the threshold, the region is that of the highest scores.
    """
    return [_spot(model, sight) for sight in look(model, images)]


def _spot(model: Model, sight: Sight) -> Spot:
    region = locate(model, sight).region
    if region.any():
        return Spot(sight, region, reached=True)
    highest = float(np.quantile(sight.scores, 1 - HIGHEST))
    eager = replace(model, procedure=replace(model.procedure, threshold=highest))
    return Spot(sight, find_region(eager, sight.scores), reached=False)


def unreached(spots: Sequence[Spot]) -> dict[str, int]:
    """What a case says of pictures whose region is that of their highest scores."""
    return {"images_below_threshold": sum(not spot.reached for spot in spots)}


def given(model: Model, spots: Sequence[Spot]) -> list[tuple[Plan, Task]]:
    """The same for both sides: region, n⁽⁰⁾ and fill."""
    plans = [plan(model, spot.sight, spot.region) for spot in spots]
    return [(chosen, task_of(model, chosen)) for chosen in plans]


def task_of(model: Model, chosen: Plan) -> Task:
    """What torch is given of a plan."""
    sight, start = chosen.sight, chosen.start
    return Task(
        sight.image,
        chosen.region,
        start.normal,
        start.fill,
        float((sight.scores > model.threshold).mean()),
        start.filled,
    )

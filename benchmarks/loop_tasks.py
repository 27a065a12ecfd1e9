"""What the paper's loop in torch is given, as plain arrays; free of torch, for the process that has none of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import ndimage

from f2pad_jax import Model
from f2pad_jax.preparing import Plan, locate, plan
from f2pad_jax.sights import Sight, look


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


def given(model: Model, images: np.ndarray, truths: np.ndarray) -> list[tuple[Plan, Task]]:
    """The same for both sides: region, n⁽⁰⁾ and fill of pictures uint8 (N, S, S, 3) with their masks (N, S, S)."""
    sights = zip(look(model, images), truths, strict=True)
    plans = [plan(model, sight, region_of(model, sight, truth)) for sight, truth in sights]
    return [(chosen, task_of(model, chosen)) for chosen in plans]


def region_of(model: Model, sight: Sight, truth: np.ndarray) -> np.ndarray:
    """The region that is found, or where none is, the enlarged truth: solves are measured, not detectors."""
    region = locate(model, sight).region
    return region if region.any() else ndimage.binary_dilation(truth, iterations=model.procedure.dilation)


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

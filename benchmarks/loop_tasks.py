"""What the paper's loop in torch is given, as plain arrays; free of torch, for the process that has none of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from f2pad_jax import Model
from f2pad_jax.model import look
from f2pad_jax.preparing import Plan, find_region, plan


class Choices(NamedTuple):
    """What the paper leaves open, as a search on synthetic anomalies found it for this loop (size 112, limit 500).

    PaDiM reached IoU 98.5 in 62 iterations with these; a rate of 0.003 with a β0 of 0.1 gave 98.6 in 154, and the
    quicker of two that are equal is the fairer peer. PatchCore reached 99.9 in 67.

    Attributes:
      alpha1: α1, relative to normal pictures as in `f2pad_jax.Settings`.
      alpha2: α2, likewise.
      beta0: β is β0 over the share of m⁽⁰⁾ in the picture.
      rate: base of the step size γ.
      threshold: of ‖a‖, in normalised colour, in the mask.
      start: n⁽⁰⁾: "given" as to the solver in JAX, or "fill" as in the paper.
      warm_up: iterations without sparsity, which a start from x needs.
    """

    alpha1: float = 1.0
    alpha2: float = 0.3
    beta0: float = 0.25
    rate: float = 0.01
    threshold: float = 0.8
    start: str = "given"
    warm_up: int = 20


CHOICES = {"padim": Choices(), "patchcore": Choices()}


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


class Task(NamedTuple):
    """One picture; (H, W, 3) or (H, W)."""

    image: np.ndarray  # x
    region: np.ndarray  # where n is free
    start: np.ndarray  # n⁽⁰⁾
    fill: np.ndarray  # the filled picture, whose features choose M_ij
    share: float  # of m⁽⁰⁾ in the picture


def setup_of(model: Model) -> Setup:
    """The model for another process."""
    extractor, detector, (arrays, _) = model.extractor, model.detector.name, model.detector.state()
    params, statistics, mixture = jax.tree.map(np.asarray, (extractor.params, arrays, model.energy.mixture))
    scales = float(model.scales.score), float(model.scales.pixel), float(model.scales.variation)
    return Setup(extractor.name, params, extractor.spec, detector, statistics, mixture.mean, mixture.precision, scales)


def given(model: Model, images: np.ndarray) -> list[tuple[Plan, Task]]:
    """The same for both sides: region, n⁽⁰⁾ and fill of pictures uint8 (N, S, S, 3)."""
    plans = [plan(model, sight, find_region(model, sight.scores)) for sight in look(model, images)]
    return [(chosen, task_of(model, chosen)) for chosen in plans]


def task_of(model: Model, chosen: Plan) -> Task:
    """What torch is given of a plan."""
    sight, start = chosen.sight, chosen.start
    return Task(sight.image, chosen.region, start.normal, start.fill, float((sight.scores > model.threshold).mean()))

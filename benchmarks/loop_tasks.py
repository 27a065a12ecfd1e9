"""What the paper's loop in torch is given, as plain arrays; free of torch, for the process that has none of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from f2pad_jax.core.pixels import normalize
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.pipeline import Job, find_region, masking


class Choices(NamedTuple):
    """What the paper leaves open, as `torch_search` found it on synthetic anomalies (size 112, limit 500).

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
    statistics: dict[str, Any]  # of the detector's `fit`
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
    extractor = model.extractor
    params, statistics, mixture, scales = jax.tree.map(
        np.asarray, (extractor.params, model.params, model.mixture, model.scales)
    )
    typical = float(scales.score), float(scales.pixel), float(scales.variation)
    return Setup(
        extractor.name, params, extractor.spec, model.detector, statistics, mixture.mean, mixture.precision, typical
    )


def given(model: Model, images: np.ndarray) -> list[tuple[Job, Task]]:
    """The same for both sides: region, n⁽⁰⁾ and fill of pictures uint8 (N, S, S, 3)."""
    pairs = []
    for image, scores in zip(images, score_maps(model, images), strict=True):
        job = masking(model, normalize(image), find_region(model, scores))
        share = float((scores > model.threshold).mean())
        pairs.append((job, Task(job.image, job.region, job.start.normal, job.start.anchor, share)))
    return pairs

"""The objective F(n) of Eq. (12), a pure function of the non-defective image n.

Every smooth term is divided by its typical value per pixel of normal pictures, so that α1, α2 and β mean the
same for all parts, extractors and detectors: one is "as much as a normal picture has".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from f2pad_jax.detectors import Detector
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.optim.sharing import Sharing
from f2pad_jax.priors import PixelMixture, log_penalty, pixel_prior, total_variation


class Scales(NamedTuple):
    """Typical values on normal pictures that the detector has not seen; scalars."""

    score: jax.Array  # of s_ij, per position
    pixel: jax.Array  # of the summand of l_p¹, per pixel
    variation: jax.Array  # of l_p², per pixel


class Coefficients(NamedTuple):
    """Weights of the terms of Eq. (12); traced scalars."""

    alpha1: jax.Array  # pixel prior
    alpha2: jax.Array  # total variation
    beta: jax.Array  # sparsity


class FeatureLoss(NamedTuple):
    """What l_n needs besides the network: the detector's statistics where the region can change the scores."""

    positions: jax.Array  # (S,) int32 on the detector's grid, row-major
    present: jax.Array  # (S,) float32, one for positions that count and zero for padding
    local: dict[str, Any]  # of the detector's `localize` at these positions


class Problem(NamedTuple):
    """Everything about one image that stays as it is during the solve. Arrays only: `vmap` stacks it."""

    image: jax.Array  # x, (H, W, 3), ImageNet-normalised
    region: jax.Array  # (H, W) bool, the dilated region in which n is free
    sharing: Sharing | None  # weights of Eq. (14); None where neighbours share nothing
    feature: FeatureLoss
    mixture: PixelMixture
    scales: Scales
    coefficients: Coefficients


class Terms(NamedTuple):
    """The weighted terms, scalars that add up to F(n)."""

    feature: jax.Array  # l_n
    pixel: jax.Array  # α1 · l_p¹
    variation: jax.Array  # α2 · l_p²
    sparsity: jax.Array  # β · l_a


def feature_loss(normal: jax.Array, feature: FeatureLoss, *, extractor: Extractor, detector: Detector) -> jax.Array:
    """l_n of Eq. (5), (6) or (7) per pixel: the sum of the scores times the pixels that a position stands for."""
    maps = tuple(m[0] for m in extractor(normal[None]))
    scores = detector.local_scores(feature.local, maps, feature.positions)
    return jnp.sum(scores * feature.present) * extractor.strides[detector.level] ** 2


def terms(normal: jax.Array, problem: Problem, *, extractor: Extractor, detector: Detector) -> Terms:
    """The terms of F(n), Eq. (12).

    Args:
      normal: n, (H, W, 3), ImageNet-normalised.
      problem: the image and all that belongs to it.
      extractor: network with its parameters.
      detector: the functions of the detector that `problem.feature` was made with.
    """
    scales, coefficients = problem.scales, problem.coefficients
    return Terms(
        feature=feature_loss(normal, problem.feature, extractor=extractor, detector=detector) / scales.score,
        pixel=coefficients.alpha1 * pixel_prior(normal, problem.mixture) / scales.pixel,
        variation=coefficients.alpha2 * total_variation(normal) / scales.variation,
        sparsity=coefficients.beta * log_penalty(problem.image - normal),
    )


def objective(normal: jax.Array, problem: Problem, *, extractor: Extractor, detector: Detector) -> jax.Array:
    """F(n) of Eq. (12), a scalar; arguments as for `terms`."""
    return jnp.sum(jnp.stack(terms(normal, problem, extractor=extractor, detector=detector)))

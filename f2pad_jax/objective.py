"""The objective F(n) of Eq. (12), a pure function of the non-defective image n.

Every term is divided by its typical value per pixel of normal pictures, so that α1, α2 and β0 mean the same for
all parts, extractors and detectors: one is "as much as a normal picture has".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from f2pad_jax.priors import PixelMixture, log_penalty, pixel_prior, total_variation

LocalScores = Callable[[jax.Array], jax.Array]  # n (H, W, 3) -> summands of l_n at the solver's positions (S,)


class Scales(NamedTuple):
    """Typical values on normal pictures that the detector has not seen; all scalars."""

    score: jax.Array  # of s_ij, per position
    pixel: jax.Array  # of the summand of l_p¹, per pixel
    variation: jax.Array  # of l_p², per pixel


class Coefficients(NamedTuple):
    """Hyper-parameters of Eq. (12), traced scalars."""

    alpha1: jax.Array  # pixel prior
    alpha2: jax.Array  # total variation
    beta: jax.Array  # sparsity, β = β0 / size of the anomaly


class Terms(NamedTuple):
    """The weighted terms of F(n), scalars that add up to it."""

    feature: jax.Array  # l_n
    pixel: jax.Array  # α1 · l_p¹
    variation: jax.Array  # α2 · l_p²
    sparsity: jax.Array  # β · l_a


class Regulariser(NamedTuple):
    """What the pixel-level terms need besides n."""

    mixture: PixelMixture
    scales: Scales
    coefficients: Coefficients


def terms(
    normal: jax.Array,
    image: jax.Array,
    regulariser: Regulariser,
    *,
    scores: jax.Array,
    cell: int,
) -> Terms:
    """All terms of Eq. (12) for given summands of l_n.

    Args:
      normal: n, (H, W, 3), ImageNet-normalised.
      image: x, like n.
      regulariser: mixture, scales and coefficients.
      scores: s_ij of Eq. (4) or (7) at the positions that count, (S,); zero elsewhere.
      cell: pixels per position, so that l_n weighs like a sum over pixels.
    """
    mixture, scales, coefficients = regulariser
    return Terms(
        feature=jnp.sum(scores) * cell / scales.score,
        pixel=coefficients.alpha1 * pixel_prior(normal, mixture) / scales.pixel,
        variation=coefficients.alpha2 * total_variation(normal) / scales.variation,
        sparsity=coefficients.beta * log_penalty(image - normal),
    )

"""Fitting: everything that normal pictures teach, before any test picture is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from f2pad_jax.data.images import normalize
from f2pad_jax.data.synthesize import cut_paste
from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.errors import InputError
from f2pad_jax.fills.autoencoder import Inpainter
from f2pad_jax.metrics import f1max
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Scales
from f2pad_jax.priors import PixelMixture, fit_pixel_mixture, pixel_mixture_distances, total_variation
from f2pad_jax.settings import Settings, check_settings

BATCH = 8
SMOOTHING = 4.0  # σ of the Gaussian that smooths score maps, in pixels (PaDiM, PatchCore)
HELD_OUT, FEWEST = 8, 3  # one training picture in eight is kept from the detector; fewest pictures in all
# The region covers this share of an anomaly in all but 5 % of synthetic pictures,
COVERED, MISSED = 0.98, 0.05
SAFE = 0.999  # reaches down to the scores that only so few pixels of normal pictures exceed,
WIDEST = 0.9  # and leaves at least this share of these out.
FLOOR = 1e-6  # of a typical value: a picture without any texture has no variation


class Synthetic(NamedTuple):
    """Synthetic anomalies pasted on held-out normal pictures: what a model is calibrated and tuned on."""

    images: np.ndarray  # uint8 (K, S, S, 3)
    masks: np.ndarray  # bool (K, S, S)


@dataclass(frozen=True)
class Model:
    """A fitted detector with all that the refinement needs.

    Attributes:
      detector: name of the detector.
      extractor: the frozen network.
      size: side S of the pictures it works on, in pixels.
      params: what the detector's `fit` returned.
      normals: the detector's training pictures, uint8 (N, S, S, 3); the fill takes its material from them.
      held_out: normal pictures that the detector has not seen, uint8 (K, S, S, 3).
      mixture: Gaussians over the pixels of normal pictures.
      scales: typical values of the terms on `held_out`.
      threshold: of the backbone's score map; F1-optimal for synthetic anomalies on `held_out`.
      region_threshold: lower one, above which pixels are free in the solve.
      settings: hyper-parameters.
      tuned_on: "default", "synthetic-validation" or "oracle".
      seed: of the fit.
      inpainter: masked autoencoder for the start "autoencoder".
    """

    detector: str
    extractor: Extractor
    size: int
    params: dict[str, Any]
    normals: np.ndarray
    held_out: np.ndarray
    mixture: PixelMixture
    scales: Scales
    threshold: float
    region_threshold: float
    settings: Settings
    tuned_on: str
    seed: int
    inpainter: Inpainter | None = None


@jax.jit
def apply_extractor(extractor: Extractor, images: jax.Array) -> tuple[jax.Array, ...]:
    """Feature maps of ImageNet-normalised images (B, S, S, 3), compiled once per shape."""
    return extractor(images)


def features(extractor: Extractor, images: np.ndarray, *, title: str | None = None) -> tuple[np.ndarray, ...]:
    """Feature maps of uint8 pictures (N, S, S, 3): one (N, H_k, W_k, C_k) array per map, finest first."""
    chunks = []
    for first in tqdm(range(0, len(images), BATCH), desc=title, leave=False, disable=None if title else True):
        chunk = images[first : first + BATCH]
        # The last batch is filled up: one shape, one compilation.
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], BATCH - len(chunk), axis=0)])
        maps = apply_extractor(extractor, normalize(padded))
        chunks.append([np.asarray(m)[: len(chunk)] for m in maps])
    return tuple(np.concatenate(level) for level in zip(*chunks, strict=True))


@partial(jax.jit, static_argnames="detector")
def _score(detector: Detector, params: dict[str, Any], maps: tuple[jax.Array, ...]) -> jax.Array:
    return detector.score(params, maps)


@partial(jax.jit, static_argnames="detector")
def _mean_summand(detector: Detector, params: dict[str, Any], maps: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.mean(detector.summands(params, maps))


def score_maps(model: Model, images: np.ndarray) -> np.ndarray:
    """The backbone's smoothed score maps of uint8 pictures (N, S, S, 3): (N, S, S) float32."""
    detector = get_detector(model.detector)
    maps = features(model.extractor, images)
    smoothed = []
    for index in range(len(images)):
        scores = _score(detector, model.params, tuple(m[index] for m in maps))
        grown = jax.image.resize(scores, (model.size, model.size), "bilinear")
        smoothed.append(ndimage.gaussian_filter(np.asarray(grown), SMOOTHING))
    return np.stack(smoothed)


@jax.jit
def _mean_distance(image: jax.Array, mixture: PixelMixture) -> jax.Array:
    return jnp.mean(pixel_mixture_distances(image, mixture))


@jax.jit
def _mean_variation(image: jax.Array) -> jax.Array:
    return total_variation(image) / (image.shape[0] * image.shape[1])


def _typical_distance(pixels: np.ndarray, mixture: PixelMixture) -> jax.Array:
    """Mean summand of l_p¹ over normalised pictures (N, S, S, 3), with a floor that keeps the term finite."""
    means = [_mean_distance(x, mixture) for x in pixels]
    return jnp.maximum(jnp.mean(jnp.stack(means)), FLOOR)


def _typical(
    detector: Detector,
    params: dict[str, Any],
    maps: tuple[np.ndarray, ...],
    images: np.ndarray,
    mixture: PixelMixture,
) -> Scales:
    pixels = normalize(images)
    scores = [_mean_summand(detector, params, tuple(m[i] for m in maps)) for i in range(len(images))]
    variations = [_mean_variation(x) for x in pixels]
    return Scales(
        score=jnp.maximum(jnp.mean(jnp.stack(scores)), FLOOR),
        pixel=_typical_distance(pixels, mixture),
        variation=jnp.maximum(jnp.mean(jnp.stack(variations)), FLOOR),
    )


def synthetic_anomalies(pictures: np.ndarray, *, count: int, seed: int) -> Synthetic:
    """Cut-paste anomalies (Eq. 16) with generated shapes on normal pictures, taken in turn."""
    rng = np.random.default_rng([seed, 16])
    made = [cut_paste(pictures[k % len(pictures)], rng) for k in range(count)]
    return Synthetic(np.stack([x for x, _ in made]), np.stack([m for _, m in made]))


def _region_threshold(maps: np.ndarray, masks: np.ndarray, normal_maps: np.ndarray, growth: int) -> float:
    """A threshold whose region, after dilation, covers nearly all of nearly every anomaly, and few normal pixels."""
    needed = [
        np.quantile(ndimage.maximum_filter(one, 2 * growth + 1)[mask], 1 - COVERED)
        for one, mask in zip(maps, masks, strict=True)
    ]
    safe, widest = np.quantile(normal_maps, [SAFE, WIDEST])
    return float(max(min(np.quantile(needed, MISSED), safe), widest))


def fit(
    images: np.ndarray,
    *,
    detector: str,
    extractor: Extractor,
    seed: int = 0,
    settings: Settings = Settings(),
    options: Mapping[str, Any] | None = None,
    inpainter: Inpainter | None = None,
) -> Model:
    """Fits a detector and calibrates F2PAD on normal pictures alone.

    One picture in eight is kept from the detector. On these the typical values of the objective's terms are
    measured, and synthetic anomalies pasted on them give both thresholds.

    Args:
      images: normal pictures, uint8 RGB (N, S, S, 3), N ≥ 3.
      detector: "padim", "patchcore" or "cflow".
      extractor: of `load_extractor`.
      seed: of the split, the coreset or flow, the mixture and the synthetic anomalies.
      settings: hyper-parameters.
      options: further arguments of the detector's own `fit`.
      inpainter: masked autoencoder of the pictures' size, which the start "autoencoder" needs.

    Raises:
      InputError: unknown detector or setting, too few pictures, pictures of the wrong kind, or an inpainter that
        is missing or works at another size.
    """
    chosen = get_detector(detector)
    check_settings(settings)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise InputError(f"the pictures are {images.dtype} {images.shape}", hint="give uint8 RGB, (N, S, S, 3)")
    coarsest = extractor.strides[-1]
    if images.shape[1] % coarsest or images.shape[1] < 4 * coarsest:
        raise InputError(
            f"the pictures are {images.shape[1]} pixels wide",
            hint=f"use a multiple of {coarsest}, at least {4 * coarsest}",
        )
    if inpainter is None and settings.start == "autoencoder":
        raise InputError("the start is the autoencoder, but there is none", hint="give an inpainter")
    if inpainter is not None and inpainter.spec.size != images.shape[1]:
        raise InputError(
            f"the pictures are {images.shape[1]} pixels wide, the autoencoder's {inpainter.spec.size}",
            hint="make the sizes equal",
        )
    if len(images) < FEWEST:
        raise InputError(f"{len(images)} normal pictures are too few", hint=f"give at least {FEWEST}")
    order = np.random.default_rng(seed).permutation(len(images))
    kept = max(1, len(images) // HELD_OUT)
    held_out, normals = images[order[:kept]], images[order[kept:]]
    params = chosen.fit(features(extractor, normals, title="features"), seed=seed, **(options or {}))
    mixture = fit_pixel_mixture(normalize(normals), components=settings.components, seed=seed)
    scales = _typical(chosen, params, features(extractor, held_out), held_out, mixture)
    model = Model(
        detector, extractor, images.shape[1], params, normals, held_out, mixture, scales,
        0.0, 0.0, settings, "default", seed, inpainter,
    )  # fmt: skip
    made = synthetic_anomalies(held_out, count=max(24, len(held_out)), seed=seed)
    maps, normal_maps = score_maps(model, made.images), score_maps(model, held_out)
    return replace(
        model,
        threshold=f1max(maps, made.masks)[1],
        region_threshold=_region_threshold(maps, made.masks, normal_maps, settings.dilation),
    )


def draw_shots(count: int, shots: int, *, seed: int) -> np.ndarray:
    """Which of `count` training pictures a few-shot model is fitted to: (shots,) increasing indices."""
    return np.sort(np.random.default_rng(seed).choice(count, shots, replace=False))


def refit_mixture(model: Model, components: int) -> Model:
    """The model with another number of Gaussians over pixels, and its typical values."""
    mixture = fit_pixel_mixture(normalize(model.normals), components=components, seed=model.seed)
    return replace(
        model,
        mixture=mixture,
        scales=model.scales._replace(pixel=_typical_distance(normalize(model.held_out), mixture)),
        settings=model.settings._replace(components=components),
    )

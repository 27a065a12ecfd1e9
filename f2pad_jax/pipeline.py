"""Algorithm 1 of arXiv 2407.06519: from a picture to the exact mask of its anomaly."""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from skimage.morphology import remove_small_objects

from f2pad_jax.data.images import denormalize, normalize
from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.errors import InputError
from f2pad_jax.extractor import Extractor
from f2pad_jax.fitting import Model, apply_extractor, fit, score_maps
from f2pad_jax.inpainting import Match, autoencoder_fill, harmonic_fill, matching_fill
from f2pad_jax.objective import Coefficients, FeatureLoss, Problem
from f2pad_jax.optim.sharing import sharing_weights
from f2pad_jax.settings import Settings
from f2pad_jax.solver import CONVERGED, NON_FINITE, Method, Rates, Solution, solve

SHARES = (0.25, 0.5, 1.0)  # of the detector's positions that a solve may be compiled for
SQUARE = np.ones((3, 3), bool)
FILLS = ("harmonic", "matching", "autoencoder")
DOT = 8  # pixels; connected pieces of the mask that are no larger are removed


__all__ = ["Model", "Segmentation", "Settings", "fit", "segment"]


class Segmentation(NamedTuple):
    """What `segment` found in one picture.

    Attributes:
      mask: {a ≠ 0} without dots, (H, W) bool.
      normal: the recovered non-defective picture n*, (H, W, 3) uint8.
      anomaly: a = x − n*, (H, W, 3) float32 in [-1, 1].
      initial_mask: the backbone's mask m⁽⁰⁾, (H, W) bool.
      score_map: the backbone's smoothed scores, (H, W) float32.
      iterations: of the main solve.
      status: "converged", "iteration limit", "non-finite" or "normal" (nothing reached the region threshold).
      seconds: wall time.
    """

    mask: np.ndarray
    normal: np.ndarray
    anomaly: np.ndarray
    initial_mask: np.ndarray
    score_map: np.ndarray
    iterations: int
    status: str
    seconds: float


def find_region(model: Model, scores: np.ndarray) -> np.ndarray:
    """Step 3: where n is free, the pixels above the region threshold, dilated.

    A picture unlike the training pictures scores high all over; then only its highest pixels count.

    Args:
      model: as fitted or tuned.
      scores: smoothed score map, (S, S).

    Returns:
      (S, S) bool; nothing where no score reaches the threshold.
    """
    region = scores > max(model.region_threshold, float(np.quantile(scores, 1 - model.settings.largest)))
    return ndimage.binary_dilation(region, iterations=model.settings.dilation)


def fill(image: np.ndarray, region: np.ndarray, model: Model, *, kind: str) -> Match:
    """The picture with the region replaced.

    Args:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      region: (H, W) bool.
      model: its training pictures are the material of "matching", its inpainter makes "autoencoder".
      kind: "harmonic", "matching" or "autoencoder".

    Raises:
      InputError: the model has no inpainter.
    """
    if kind == "harmonic":
        return Match(harmonic_fill(image, region), np.inf)
    if kind == "autoencoder":
        if model.inpainter is None:
            raise InputError("the model has no autoencoder", mend="fit it with --inpainter, or choose another start")
        return Match(autoencoder_fill(image, region, model.inpainter.params, model.inpainter.spec), np.inf)
    return matching_fill(image, region, normalize(model.normals))


def _positions(region: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose own cell or a neighbouring one meets the region, padded to one of few lengths."""
    grid = region.shape[0] // stride
    cells = region.reshape(grid, stride, grid, stride).any((1, 3))
    wanted = np.flatnonzero(ndimage.binary_dilation(cells, SQUARE))
    length = next(n for n in (round(share * grid * grid) for share in SHARES) if n >= len(wanted))
    positions = np.zeros(length, np.int32)
    positions[: len(wanted)] = wanted
    return positions, (np.arange(length) < len(wanted)).astype(np.float32)


@partial(jax.jit, static_argnames="detector")
def _median_summand(detector: Detector, params: dict, maps: tuple) -> jax.Array:
    return jnp.median(detector.summands(params, maps))


@partial(jax.jit, static_argnames="detector")
def _localize(detector: Detector, params: dict, maps: tuple, positions: jax.Array) -> dict:
    return detector.localize(params, maps, positions)


_sharing_weights = jax.jit(sharing_weights, static_argnames="radius")


def prepare(model: Model, image: np.ndarray, region: np.ndarray, anchor: np.ndarray, *, beta: float) -> Problem:
    """Everything that stays fixed during the solve of one image.

    Scores count relative to those of normal pictures, or to the picture's own median where that is higher: the normal
    pixels of a picture unlike the training pictures would otherwise pay more than sparsity can.

    Args:
      model: as fitted or tuned.
      image: x, (S, S, 3) float32, ImageNet-normalised.
      region: (S, S) bool, where n is free.
      anchor: the picture whose features choose PatchCore's candidates M_ij, like x.
      beta: weight of sparsity.
    """
    detector = get_detector(model.detector)
    positions, present = _positions(region, model.extractor.strides[detector.level])
    maps, own_maps = (
        tuple(m[0] for m in apply_extractor(model.extractor, picture[None])) for picture in (anchor, image)
    )
    typical = jnp.maximum(model.scales.score, _median_summand(detector, model.params, own_maps))
    settings = model.settings
    return Problem(
        image=jnp.asarray(image),
        region=jnp.asarray(region),
        sharing=_sharing_weights(image, radius=settings.sharing_radius),
        feature=FeatureLoss(
            jnp.asarray(positions),
            jnp.asarray(present),
            _localize(detector, model.params, maps, positions),
        ),
        mixture=model.mixture,
        scales=model.scales._replace(score=typical),
        coefficients=Coefficients(jnp.float32(settings.alpha1), jnp.float32(settings.alpha2), jnp.float32(beta)),
    )


@partial(jax.jit, static_argnames=("detector", "method"))
def _solve(
    extractor: Extractor,
    start: jax.Array,
    problem: Problem,
    rates: Rates,
    limit: int,
    detector: Detector,
    method: Method,
) -> Solution:
    return solve(start, problem, rates, limit, extractor=extractor, detector=detector, method=method)


def refine(model: Model, problem: Problem, start: np.ndarray, *, limit: int, warm_up: int) -> Solution:
    """`solve` with a model's settings, compiled once for each number of positions."""
    s = model.settings
    rates = Rates(s.rate, s.clip, s.clip, warm_up, s.tolerance, s.patience)
    method = Method(s.sparsity, s.step_size)
    return _solve(model.extractor, jnp.asarray(start), problem, rates, limit, get_detector(model.detector), method)


def clean(mask: np.ndarray, *, kind: str) -> np.ndarray:
    """Removes dots from a mask (Algorithm 1): small connected pieces, or whatever a 3 × 3 opening takes."""
    if kind == "opening":
        return ndimage.binary_opening(mask, SQUARE)
    return remove_small_objects(mask, max_size=DOT, connectivity=2)


class Start(NamedTuple):
    """Where a solve begins; pictures are (S, S, 3) float32, ImageNet-normalised."""

    normal: np.ndarray  # n⁽⁰⁾
    anchor: np.ndarray  # the filled picture, whose features choose PatchCore's candidates M_ij
    warm_up: int  # iterations without sparsity


def begin(model: Model, image: np.ndarray, region: np.ndarray) -> Start:
    """Step 2: n⁽⁰⁾.

    A fill that knows the part is the better start where it is right. Where no normal picture matches, as in
    irregular textures, x itself is: its normal pixels are where they should be, and the anomalous ones leave x in
    the warm-up.
    """
    settings = model.settings
    filled, error = fill(image, region, model, kind=settings.start if settings.start in FILLS else "matching")
    from_image = settings.start == "image" or (settings.start == "auto" and error > settings.trusted)
    if from_image:
        return Start(image, filled, settings.warm_up)
    return Start(filled, filled, 0)


def find_mask(model: Model, image: np.ndarray, region: np.ndarray, start: Start) -> tuple[np.ndarray, Solution]:
    """Steps 4 and 5: solves, and reads the mask off a = x − n.

    Args:
      model: as fitted or tuned.
      image: x, (S, S, 3) float32, ImageNet-normalised.
      region: (S, S) bool, already dilated.
      start: of `begin`.

    Returns:
      The cleaned mask (S, S) bool and the solution.
    """
    settings = model.settings
    problem = prepare(model, image, region, start.anchor, beta=settings.beta0)
    solution = refine(model, problem, start.normal, limit=settings.limit, warm_up=start.warm_up)
    changed = np.linalg.norm(image - np.asarray(solution.normal), axis=-1) > settings.smallest
    return clean(changed, kind=settings.cleaning), solution


def find_normal(model: Model, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Step 6, re-estimation: minimises F without sparsity on the final mask only, from a fresh fill of it."""
    if not mask.any():
        return image
    start = fill(image, mask, model, kind="matching").filled
    problem = prepare(model, image, mask, start, beta=0.0)
    limit = model.settings.refine
    return np.asarray(refine(model, problem, start, limit=limit, warm_up=limit).normal)


def segment(model: Model, image: np.ndarray, *, initial_map: np.ndarray | None = None) -> Segmentation:
    """Algorithm 1 on one picture of the model's size.

    Args:
      model: as fitted or tuned.
      image: uint8 RGB (S, S, 3).
      initial_map: score map (S, S) of another detector, in the units of the model's thresholds; by default the
        backbone's own.

    Raises:
      InputError: the picture is of another kind or size.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape != (model.size, model.size, 3):
        raise InputError(
            f"the picture is {image.dtype} {image.shape}",
            mend=f"give uint8 RGB, ({model.size}, {model.size}, 3)",
        )
    began = time.perf_counter()
    scores = score_maps(model, image[None])[0] if initial_map is None else initial_map
    initial = scores > model.threshold
    region = find_region(model, scores)
    if not region.any():
        return Segmentation(
            np.zeros_like(initial), image, np.zeros(image.shape, np.float32), initial, scores,
            0, "normal", time.perf_counter() - began,
        )  # fmt: skip
    x = normalize(image)
    mask, solution = find_mask(model, x, region, begin(model, x, region))
    status = {CONVERGED: "converged", NON_FINITE: "non-finite"}.get(int(solution.status), "iteration limit")
    normal = np.where(mask[..., None], denormalize(find_normal(model, x, mask)), image)
    anomaly = (image.astype(np.float32) - normal.astype(np.float32)) / 255
    return Segmentation(
        mask, normal, anomaly, initial, scores, int(solution.iterations), status, time.perf_counter() - began
    )

"""Fitting: everything that normal pictures teach, before any test picture is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture

from f2pad_jax.calibration import Limits, limits_of
from f2pad_jax.checkpoint import check_arrays
from f2pad_jax.core import Energy, PixelMixture, Scales, Settings
from f2pad_jax.core.pixels import normalize
from f2pad_jax.core.priors import pixel_mixture_distances, total_variation
from f2pad_jax.data.arrays import as_stack
from f2pad_jax.data.images import resize_mask
from f2pad_jax.data.synthesize import cut_paste
from f2pad_jax.detectors import Detector, Maps, bound_of, check_options, detector_class
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Inpainter, Normals
from f2pad_jax.interest import cells_inside, check_roi
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor, map_shapes
from f2pad_jax.procedure import Procedure, check_procedure
from f2pad_jax.reducing import LEAST, Shape, largest_seen, reduce_images, scale_of
from f2pad_jax.sights import features, look, smooth_map

HELD_OUT, FEWEST = 8, 3  # one training picture in eight is kept from the detector; fewest pictures in all
FLOOR = 1e-6  # of a typical value: a picture without any texture has no variation


class Synthetic(NamedTuple):
    """Synthetic anomalies pasted on held-out normal pictures: what a model is tuned on."""

    images: np.ndarray  # uint8 (K, H, W, 3)
    masks: np.ndarray  # bool (K, H, W)


def fit_pixel_mixture(images: np.ndarray, *, components: int = 8, sample: int = 20_000, seed: int = 0) -> PixelMixture:
    """Fits Eq. (9) by EM (scikit-learn) on a random sample of pixels.

    Args:
      images: (N, H, W, 3), uint8 or float32 and ImageNet-normalised already.
      components: Q, the number of Gaussians; no more than there are colours.
      sample: pixels drawn without replacement.
      seed: of the sample and of EM's start.
    """
    pixels = images.reshape(-1, 3)
    rng = np.random.default_rng(seed)
    pixels = pixels[rng.choice(len(pixels), size=min(sample, len(pixels)), replace=False)]
    pixels = normalize(pixels) if pixels.dtype == np.uint8 else pixels
    components = min(components, len(np.unique(pixels, axis=0)))
    # Grey pictures have singular colour covariances: the floor is half a grey level in normalised units.
    mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed, max_iter=200, tol=1e-2)
    mixture.fit(pixels.astype(np.float64))
    return PixelMixture(jnp.asarray(mixture.means_, jnp.float32), jnp.asarray(mixture.precisions_, jnp.float32))


@jax.jit
def _mean_distance(image: jax.Array, mixture: PixelMixture) -> jax.Array:
    return jnp.mean(pixel_mixture_distances(image, mixture))


@jax.jit
def _mean_variation(image: jax.Array) -> jax.Array:
    return total_variation(image) / (image.shape[0] * image.shape[1])


def _typical_distance(images: np.ndarray, mixture: PixelMixture) -> jax.Array:
    """Mean summand of l_p¹ over pictures, uint8 (N, H, W, 3), with a floor that keeps the term finite."""
    means = [_mean_distance(normalize(x), mixture) for x in images]
    return jnp.maximum(jnp.mean(jnp.stack(means)), FLOOR)


@jax.jit
def _mean_summand(detector: Detector, maps: Maps) -> jax.Array:
    return jnp.mean(detector.summands(maps))


def _typical(detector: Detector, maps: tuple[np.ndarray, ...], images: np.ndarray, mixture: PixelMixture) -> Scales:
    scores = [_mean_summand(detector, tuple(m[i] for m in maps)) for i in range(len(images))]
    variations = [_mean_variation(normalize(x)) for x in images]
    return Scales(
        score=jnp.maximum(jnp.mean(jnp.stack(scores)), FLOOR),
        pixel=_typical_distance(images, mixture),
        variation=jnp.maximum(jnp.mean(jnp.stack(variations)), FLOOR),
    )


def synthetic_anomalies(pictures: np.ndarray, *, count: int, seed: int) -> Synthetic:
    """Cut-paste anomalies (Eq. 16) with generated shapes on normal pictures, taken in turn."""
    rng = np.random.default_rng([seed, 16])
    made = [cut_paste(pictures[k % len(pictures)], rng) for k in range(count)]
    return Synthetic(np.stack([x for x, _ in made]), np.stack([m for _, m in made]))


def _check_fits(detector: Detector, extractor: Extractor, seen: Shape) -> None:
    """Makes sure that a fitted detector's arrays are for these features; one that declares none is believed."""
    arrays = detector.state()[0]
    if declared := getattr(detector, "declared", None):
        try:
            check_arrays(arrays, declared(arrays, map_shapes(extractor.spec, seen)))
        except ValueError as error:
            where = f"what {extractor.name} gives of {seen[1]} × {seen[0]} pixels"
            raise InputError(f"{detector.name} does not fit {where} ({error})", hint="give its own") from error


def fit(
    images: Any,
    *,
    detector: str | Detector,
    extractor: Extractor,
    seen: Shape | None = None,
    seed: int = 0,
    settings: Settings = Settings(),
    procedure: Procedure = Procedure(),
    options: Mapping[str, Any] | None = None,
    inpainter: Inpainter | None = None,
    roi: np.ndarray | None = None,
    white_level: int | None = None,
) -> Model:
    """Fits a detector and calibrates F2PAD on normal pictures alone.

    One picture in eight is kept from the detector. On these the typical values of the objective's terms are
    measured, and what scores normal pictures reach.

    Args:
      images: N ≥ 3 normal pictures of one size, in which test pictures are worked on: uint8 RGB (N, H, W, 3), or
        pictures as `data.arrays.as_picture` takes them.
      detector: a name of `detectors.DETECTORS`: "padim", "patchcore" or "cflow"; or one that is fitted already, such as
        that of `load_trained`, to the features that the extractor gives of pictures of `seen`.
      extractor: of `load_extractor`.
      seen: (height, width) to which pictures are reduced for the extractor, such as that of `reducing.seen_shape`; by
        default it sees them as they are, or with both sides reduced to multiples of its coarsest stride.
      seed: of the split, the coreset or flow, and the mixture.
      settings: numbers of the solve.
      procedure: choices around it.
      options: further arguments of the detector's own `fit`, such as `rank` of PaDiM, within the ranges that its types
        name.
      inpainter: masked autoencoder of the pictures' size, which the start "autoencoder" needs.
      roi: region of interest, bool: (H, W), brought to the pictures' size by nearest neighbour, or one for each
        picture, (N, H, W). Thresholds are those of its pixels; the model keeps one that all pictures share.
      white_level: the level of white of pictures with more than eight bits, these and those to come.

    Raises:
      InputError: unknown detector, option or choice, an option out of range, too few pictures, pictures of the wrong
        kind or smaller than the extractor is to see them, an inpainter that is missing or works at another size, or an
        empty region of interest.
    """
    options = options or {}
    if isinstance(detector, str):
        options = check_options(detector_class(detector), options)
    elif options:
        raise InputError(f"{detector.name} is fitted already", hint="leave its options out")
    check_procedure(procedure)
    images = as_stack(images, white_level=white_level)
    shape: Shape = (images.shape[1], images.shape[2])
    seen = seen or largest_seen(shape, extractor)
    coarsest = extractor.strides[-1]
    if any(side % coarsest or side < LEAST * coarsest for side in seen):
        raise InputError(
            f"the extractor is to see {seen[1]} × {seen[0]} pixels",
            hint=f"make both sides multiples of {coarsest}, at least {LEAST * coarsest}",
        )
    if seen[0] > shape[0] or seen[1] > shape[1]:
        raise InputError(
            f"the pictures have {shape[1]} × {shape[0]} pixels, fewer than {seen[1]} × {seen[0]}",
            hint="enlarge them first, or let the extractor see less",
        )
    if inpainter is None and procedure.start == "autoencoder":
        raise InputError("the start is the autoencoder, but there is none", hint="give an inpainter")
    if inpainter is not None and shape != (inpainter.spec.size,) * 2:
        raise InputError(
            f"the pictures have {shape[1]} × {shape[0]} pixels, the autoencoder's {inpainter.spec.size} a side",
            hint="make the sizes equal",
        )
    if not isinstance(detector, str):
        _check_fits(detector, extractor, seen)
    if len(images) < FEWEST:
        raise InputError(f"{len(images)} normal pictures are too few", hint=f"give at least {FEWEST}")
    shared = None if roi is None or np.shape(roi) == images.shape[:3] else check_roi(roi)
    parts = roi if shared is None else np.broadcast_to(check_roi(resize_mask(shared, shape)), images.shape[:3])
    order = np.random.default_rng(seed).permutation(len(images))
    kept = max(1, len(images) // HELD_OUT)
    held_out, normals = images[order[:kept]], images[order[kept:]]
    if isinstance(detector, str):
        maps = features(extractor, reduce_images(normals, seen), title="features")
        detector = detector_class(detector).fit(maps, seed=seed, **options)
    mixture = fit_pixel_mixture(normals, components=procedure.components, seed=seed)
    model = Model(
        energy=Energy(extractor=extractor, detector=detector, mixture=mixture),
        settings=settings,
        procedure=procedure,
        scales=_typical(detector, features(extractor, reduce_images(held_out, seen)), held_out, mixture),
        shape=shape,
        seen=seen,
        limits=Limits(peak=1.0, spread=0.0, pixel=0.0, cost=1.0),
        normals=Normals(normals, scale_of(shape, seen)),
        held_out=held_out,
        tuned_on="default",
        seed=seed,
        inpainter=inpainter,
        white_level=white_level,
    )
    sights = look(model, held_out)
    scores, costs = [sight.scores for sight in sights], [smooth_map(sight.costs, seen) for sight in sights]
    if parts is not None:
        inside = [cells_inside(parts[k], shape, seen) for k in order[:kept]]
        scores, costs = ([values[met] for values, met in zip(maps, inside, strict=True)] for maps in (scores, costs))
    return replace(model, limits=limits_of(scores, costs, bound=bound_of(detector)), roi=shared)


def draw_shots(count: int, shots: int, *, seed: int) -> np.ndarray:
    """Which of `count` training pictures a few-shot model is fitted to: (shots,) increasing indices."""
    return np.sort(np.random.default_rng(seed).choice(count, shots, replace=False))


def refit_mixture(model: Model, components: int) -> Model:
    """The model with another number of Gaussians over pixels, and its typical values."""
    mixture = fit_pixel_mixture(model.normals.pictures, components=components, seed=model.seed)
    return replace(
        model,
        energy=model.energy.replace(mixture=mixture),
        scales=model.scales.replace(pixel=_typical_distance(model.held_out, mixture)),
        procedure=replace(model.procedure, components=components),
    )

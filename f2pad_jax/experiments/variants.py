"""Ways to segment that experiments compare: each a name, and most of them one change of the full method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from skimage.filters import threshold_otsu, threshold_triangle

from f2pad_jax.core.pixels import denormalize, normalize
from f2pad_jax.experiments.curves import trace
from f2pad_jax.experiments.sets import Category
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.growing import segment_growing
from f2pad_jax.metrics import f1max
from f2pad_jax.pipeline import Segmentation, begin, clean, find_region, find_solutions, masking, segment_many
from f2pad_jax.settings import Settings

DIFFERENT = 0.2  # L1 difference of x and n over RGB in [0, 1] that makes a mask without sparsity, as in the paper
FULL, CURVES = "full", "curves"
ABLATIONS: dict[str, dict[str, Any]] = {
    "initialisation": {},
    "no-pixel-prior": {"alpha1": 0.0},
    "no-sparsity": {"beta0": 0.0},
    "no-sharing": {"sharing": "none"},
}
OWN_RULES = {  # threshold of the backbone's mask and of the region, from one picture's scores
    "otsu": threshold_otsu,
    "triangle": threshold_triangle,
}
THRESHOLDS = ("quantile=0.99", "quantile=0.999", *OWN_RULES, "f1")
FACTORS: dict[str, tuple[str, ...]] = {  # one is changed at a time; "x3" makes it three times as large
    "alpha1": ("x0.333", "x3"),
    "beta0": ("x0.5", "x2"),
    "dilation": ("2", "8"),
    "smallest": ("0.05", "0.1", "0.2"),
    "seed": ("1", "2"),
}
SENSITIVITY = tuple(f"{name}={value}" for name, values in FACTORS.items() for value in values)
TUNINGS = ("tuning=synthetic", "tuning=default", "tuning=oracle")
GROWTH = "growth"


class Found(NamedTuple):
    """What a variant found in one picture.

    Attributes:
      result: the segmentation.
      region: where n was free, (S, S) bool.
      extra: what else there is to keep; arrays are masks.
    """

    result: Segmentation
    region: np.ndarray
    extra: dict[str, Any]


def seed_of(variant: str, seed: int) -> int:
    """The seed that the variant's model is fitted with: its own ("seed=1"), or the given one."""
    name, _, value = variant.partition("=")
    return int(value) if name == "seed" else seed


def shares_scores(variant: str) -> bool:
    """Whether the backbone's scores are those of the full method, which then keeps them."""
    return variant not in (FULL, CURVES) and not variant.startswith(("seed=", "tuning="))


def change(model: Model, variant: str, category: Category) -> Model:
    """The model of a variant, made from that of the full method.

    Args:
      model: as fitted or tuned, with the variant's own seed and tuning where it has one.
      variant: "full", or a name of this module.
      category: the pictures; "f1" knows their truth.
    """
    name, _, value = variant.partition("=")
    if variant == "f1":
        return _at(model, f1max(score_maps(model, category.images), category.masks)[1])
    if name == "quantile":
        return _at(model, float(np.quantile(score_maps(model, model.held_out), float(value))))
    changes = dict(ABLATIONS.get(variant, {}))
    if name in Settings._fields:
        own = getattr(model.settings, name)
        changes[name] = own * float(value[1:]) if value.startswith("x") else type(own)(float(value))
    return replace(model, settings=model.settings._replace(**changes))


def _at(model: Model, threshold: float) -> Model:
    return replace(model, threshold=threshold, region_threshold=threshold)


def by_difference(model: Model, images: np.ndarray, *, solve: bool) -> list[Segmentation]:
    """Masks by the difference of x and n within the region, with n from the fill alone or solved without sparsity.

    Args:
      model: as fitted; for a solve without sparsity its β0 is zero.
      images: uint8 RGB (N, S, S, 3).
      solve: whether to solve; else n is the fill n⁽⁰⁾.
    """
    began = time.perf_counter()
    maps, x = score_maps(model, images), normalize(images)
    regions = [find_region(model, scores) for scores in maps]
    suspect = [k for k, region in enumerate(regions) if region.any()]
    starts = {k: begin(model, x[k], regions[k]) for k in suspect}
    recovered, iterations = {k: start.anchor for k, start in starts.items()}, [0] * len(images)
    if solve:
        for place, solution in find_solutions([masking(model, x[k], regions[k], starts[k]) for k in suspect]):
            k = suspect[place]
            recovered[k], iterations[k] = np.asarray(solution.normal), int(solution.iterations)
    found = []
    for k, image in enumerate(images):
        normal = np.where(regions[k][..., None], denormalize(recovered[k]), image) if k in recovered else image
        anomaly = (image.astype(np.float32) - normal) / 255
        mask = np.abs(anomaly).sum(axis=-1) > DIFFERENT
        mask = clean(mask, kind=model.settings.cleaning) if solve else mask
        status = "difference" if k in recovered else "normal"
        found.append(
            Segmentation(mask, normal, anomaly, maps[k] > model.threshold, maps[k], iterations[k], status, 0.0)
        )
    seconds = (time.perf_counter() - began) / len(images)
    return [result._replace(seconds=seconds) for result in found]


def solve_variant(model: Model, variant: str, images: np.ndarray) -> Iterator[Found]:
    """Segments pictures one way.

    Args:
      model: of `change`.
      variant: its name.
      images: uint8 RGB (N, S, S, 3).
    """
    if variant == CURVES:
        for curves in trace(model, images):
            yield _found(model, curves.result, losses=curves.losses, plain=curves.plain)
    elif variant == GROWTH:
        for growth in segment_growing(model, images):
            yield Found(growth.result, growth.region, {"rounds": growth.rounds})
    elif variant in OWN_RULES:
        for image, scores in zip(images, score_maps(model, images), strict=True):
            own = _at(model, float(OWN_RULES[variant](scores)))
            (result,) = segment_many(own, image[None], initial_maps=scores[None])
            yield _found(own, result, threshold=own.threshold)
    elif variant in ("initialisation", "no-sparsity"):
        for result in by_difference(model, images, solve=variant == "no-sparsity"):
            yield _found(model, result)
    else:
        for result in segment_many(model, images):
            yield _found(model, result)


def _found(model: Model, result: Segmentation, **extra: Any) -> Found:
    return Found(result, find_region(model, result.score_map), extra)

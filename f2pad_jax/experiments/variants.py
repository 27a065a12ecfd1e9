"""Ways to segment that experiments compare; a new one is a name, and mostly nothing else.

A variant is "full", one of the special names below, or changes of the full method joined by commas, such as
"rate=x2,limit=30". What `Settings` and `Procedure` have is changed in the fitted model ("x2" makes a number
twice as large), "quantile=…" sets both thresholds, and everything else asks for another fit: "seed=…",
"tuning=…", "precision=…" of the extractor, or an option of the detector's own fit, such as "rank=16".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from skimage.filters import threshold_otsu, threshold_triangle

from f2pad_jax.core import Settings
from f2pad_jax.core.pixels import STD, denormalize
from f2pad_jax.detectors import detector_class, options_of
from f2pad_jax.experiments.curves import trace
from f2pad_jax.experiments.sets import Category
from f2pad_jax.fitting import refit_mixture
from f2pad_jax.growing import let_grow
from f2pad_jax.metrics import best_iou, f1max
from f2pad_jax.model import Model
from f2pad_jax.outcomes import clean, refined_map
from f2pad_jax.preparing import Place, locate, plan
from f2pad_jax.procedure import Procedure
from f2pad_jax.segmentation import Segmentation, segment_regions
from f2pad_jax.sights import Sight, look, score_maps
from f2pad_jax.solving import find_solutions
from f2pad_jax.tuning import at_threshold

DIFFERENT = 0.2  # L1 difference of x and n, normalised colour, that makes a mask without sparsity, as in the paper
FULL, CURVES, GROWTH, BEST, FILL = "full", "curves", "growth", "f1", "initialisation"
UNCOMPOSED, AT_BEST = "composing=False", "best-iou"
PRESETS = {
    CURVES: "sparsity=constant",  # while β rises, F changes its meaning
    "no-pixel-prior": "alpha1=0",
    "no-sparsity": "beta0=0",
    "no-sharing": "sharing=False,share_gradient=False",
}
ABLATIONS = (FILL, "no-pixel-prior", "no-sparsity", "no-sharing")
OWN_RULES: dict[str, Callable[[np.ndarray], Any]] = {  # threshold of both masks, from one picture's scores
    "otsu": threshold_otsu,
    "triangle": threshold_triangle,
}
THRESHOLDS = ("quantile=0.99", "quantile=0.999", *OWN_RULES, BEST)
FACTORS: dict[str, tuple[str, ...]] = {  # one is changed at a time
    "alpha1": ("x0.333", "x3"),
    "beta0": ("x0.5", "x2"),
    "dilation": ("2", "8"),
    "false_alarms": ("0.001", "0.05"),
    "seed": ("1", "2"),
}
SENSITIVITY = tuple(f"{name}={value}" for name, values in FACTORS.items() for value in values)
TUNINGS = ("tuning=synthetic", "tuning=default", "tuning=oracle")
CHOICES = {
    "sparsity=constant": "β0 for all pixels",
    "sparsity=constant,proximal=False,smallest=0.45": "β0 for all, penalty in the gradient, ‖a‖ > 0.45",
    "region=threshold": "region above the threshold",
    "adaptive=True,rate=0.03": "step sizes of Eq. (15)",
    "warm_up=0": "no warm-up",
    "warm_up=10": "warm-up of 10",
    "warm_up=40": "warm-up of 40",
    "hold=x2": "β0 is reached earlier",
    "rate=x0.5": "half the rate",
    "rate=x2": "twice the rate",
    "rise=1": "constant rate",
    "rise=8": "rate rises eightfold",
    "limit=30": "limit of 30",
    "limit=120": "limit of 120",
    "start=image": "start from x",
    "start=harmonic": "start from the harmonic fill",
    "start=matching": "start from the matching fill",
    "share_gradient=True": "neighbours share ‖a‖ and the gradient",
    "no-sharing": "neighbours share nothing",
    "cleaning=opening": "3 × 3 opening",
    UNCOMPOSED: "what a solve leaves unexplained stays so",
    "alpha2=0": "no total variation",
    "precision=bf16": "extractor in bfloat16",
    "rank=16": "16 eigenvectors",
    "blocks=2": "2 couplings a flow",
    "blocks=8": "8 couplings a flow",
}
UNSTATED = {  # of the paper's settings: what it does not state, and its rules, one by one
    "beta0=x0.333": "β0, a third",
    "beta0=x3": "β0, three times",
    "alpha1=x0.333": "α1, a third",
    "alpha1=x3": "α1, three times",
    "components=4": "4 Gaussians",
    "rate=x0.333": "base of the step size, a third",
    "floor=x0.333": "floor of abs(a) in Eq. (15), a third",
    "smallest=x0.5": "‖a‖ that counts as zero, half",
    "clip=x0.001": "terms are sums: of the gradient little more than its sign is left",
    "dilation=4": "region dilated by 4",
    "tolerance=x10": "ten times the change of F at which a solve ends",
    "start=harmonic": "start from the harmonic fill",
    "share_gradient=False": "plain Adan: neighbours share nothing",
    "sparsity=constant,beta0=x0.0004": "β does not depend on the size of m⁽⁰⁾",
    "quantile=0.999": "threshold from normal pictures",
}
_AFTER = {"quantile", *(field.name for kind in (Settings, Procedure) for field in fields(kind))}  # the fit


class Outcome(NamedTuple):
    """What a variant found in one picture.

    Attributes:
      result: the segmentation.
      region: where n was free, (S, S) bool.
      extra: what else there is to keep; arrays are masks.
    """

    result: Segmentation
    region: np.ndarray
    extra: dict[str, Any]


def changes(variant: str) -> dict[str, str]:
    """What a variant changes, by name; empty for special names."""
    parts = [part.partition("=") for part in PRESETS.get(variant, variant).split(",")]
    return {name: value for name, sign, value in parts if sign}


def fit_changes(variant: str) -> dict[str, str]:
    """Those changes that ask for a model of their own."""
    return {name: value for name, value in changes(variant).items() if name not in _AFTER}


def applies(variant: str, detector: str) -> bool:
    """Whether the detector has the options that a variant changes."""
    return fit_changes(variant).keys() <= {"seed", "tuning", "precision", *options_of(detector_class(detector))}


def shares_scores(variant: str) -> bool:
    """Whether the backbone's scores are those of the full method, which then keeps them."""
    return variant not in (FULL, CURVES) and not fit_changes(variant)


def change(model: Model, variant: str, category: Category) -> Model:
    """The model of a variant, made from that of the full method.

    Args:
      model: as fitted or tuned; where `fit_changes` has something, in that way.
      variant: its name.
      category: the pictures; "f1" and "best-iou" know their truth.
    """
    asked = changes(variant)
    if variant == BEST:
        return at_threshold(model, f1max(score_maps(model, category.images), category.masks)[1])
    if variant == AT_BEST:
        threshold = best_iou(score_maps(model, category.images), category.masks)[1]
        return replace(model, procedure=replace(model.procedure, threshold=threshold))
    if variant == CURVES and model.procedure.sparsity != "levels":
        return model  # its β does not rise
    if "quantile" in asked:
        return at_threshold(model, float(np.quantile(score_maps(model, model.held_out), float(asked["quantile"]))))
    changed = replace(model, settings=_changed(model.settings, asked), procedure=_changed(model.procedure, asked))
    return refit_mixture(changed, changed.procedure.components) if "components" in asked else changed


def solve_variant(model: Model, variant: str, images: np.ndarray) -> Iterator[Outcome]:
    """Segments pictures one way.

    Args:
      model: of `change`.
      variant: its name.
      images: uint8 RGB (N, S, S, 3).
    """
    began = time.perf_counter()
    sights, rule = look(model, images), OWN_RULES.get(variant)
    models = [model if rule is None else at_threshold(model, float(rule(sight.scores))) for sight in sights]
    places = [locate(own, sight) for own, sight in zip(models, sights, strict=True)]
    seeing = (time.perf_counter() - began) / len(images)
    for outcome in _solve(models, variant, images, sights, places):
        yield outcome._replace(result=replace(outcome.result, seconds=outcome.result.seconds + seeing))


def by_difference(
    model: Model, images: np.ndarray, sights: Sequence[Sight], places: Sequence[Place], *, solve: bool
) -> list[Segmentation]:
    """Masks by the difference of x and n within the region, with n from the fill alone or solved without sparsity.

    Args:
      model: as fitted; for a solve without sparsity its β0 is zero.
      images: uint8 RGB (N, S, S, 3).
      sights: of `look`.
      places: of `locate`.
      solve: whether to solve; else n is the fill n⁽⁰⁾.
    """
    began = time.perf_counter()
    plans = {k: plan(model, sights[k], *place) for k, place in enumerate(places) if place.region.any()}
    recovered, iterations = {k: each.start.fill for k, each in plans.items()}, [0] * len(images)
    for place, solution in find_solutions(model, list(plans.values())) if solve else ():
        k = list(plans)[place]
        recovered[k], iterations[k] = np.asarray(solution.normal), int(solution.iterations)
    results = []
    for k, (image, sight, (region, _)) in enumerate(zip(images, sights, places, strict=True)):
        normal = np.where(region[..., None], denormalize(recovered[k]), image) if k in recovered else image
        anomaly = (image.astype(np.float32) - normal) / 255
        mask = np.abs(anomaly / STD).sum(axis=-1) > DIFFERENT
        results.append(
            Segmentation(
                mask=clean(mask, sight.scores, region, kind=model.procedure.cleaning) if solve else mask,
                normal=normal,
                anomaly=anomaly,
                initial_mask=sight.scores > model.threshold,
                score_map=sight.scores,
                threshold=model.threshold,
                refined_map=refined_map(sight.scores, mask),
                residual=0.0,
                iterations=iterations[k],
                status="difference" if k in recovered else "normal",
                seconds=0.0,
            )
        )
    seconds = (time.perf_counter() - began) / len(images)
    return [replace(result, seconds=seconds) for result in results]


def _solve(
    models: Sequence[Model], variant: str, images: np.ndarray, sights: Sequence[Sight], places: Sequence[Place]
) -> Iterator[Outcome]:
    if variant in OWN_RULES:
        for own, image, sight, place in zip(models, images, sights, places, strict=True):
            (result,) = segment_regions(own, image[None], [sight], [place.region], starts=[place.start])
            yield Outcome(result, place.region, {"threshold": own.threshold})
        return
    model = models[0]  # of all pictures
    regions, starts = [place.region for place in places], [place.start for place in places]
    if variant in (FILL, "no-sparsity"):
        results = by_difference(model, images, sights, places, solve=variant == "no-sparsity")
    else:
        results = segment_regions(model, images, sights, regions, starts=starts)
    if variant == GROWTH:
        for growth in let_grow(model, images, sights, regions, results):
            yield Outcome(growth.result, growth.region, {"rounds": growth.rounds})
        return
    for sight, region, result in zip(sights, regions, results, strict=True):
        yield Outcome(result, region, trace(model, sight, region)._asdict() if variant == CURVES else {})


def _changed(own: Any, asked: dict[str, str]) -> Any:
    """Settings or a procedure with those values that are asked of it."""
    return replace(
        own, **{name: _value(getattr(own, name), text) for name, text in asked.items() if hasattr(own, name)}
    )


def _value(own: Any, text: str) -> Any:
    """A value of a setting, which is now `own`."""
    if isinstance(own, bool | str):
        return text == "True" if isinstance(own, bool) else text
    return own * float(text[1:]) if text.startswith("x") else type(own)(float(text))

"""Hyper-parameters chosen on synthetic anomalies pasted on normal pictures, never on a test set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import sem

from f2pad_jax.core import Settings
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import refit_mixture, synthetic_anomalies
from f2pad_jax.metrics import f1max, iou
from f2pad_jax.model import Model
from f2pad_jax.outcomes import find_outcomes
from f2pad_jax.preparing import locate, plan
from f2pad_jax.procedure import paper_settings
from f2pad_jax.sights import look, score_maps

COUNT = 8  # synthetic pictures that a setting is judged by; those that do not lead after half of them are dropped
BETA0 = (0.5, 0.75, 1.5)  # times the β0 of the defaults, or of the paper's settings
ALPHA1 = (0.5, 1.0, 2.0)
COMPONENTS = (4, 8, 16)
LEAST = 0.005  # gain in mean IoU that is worth another setting
ERRORS = 2  # standard errors that a gain must exceed: of seven settings that are tried, one gains one by chance

Reach = Callable[[Sequence[Model], slice], np.ndarray]


def judge(model: Model, images: np.ndarray, masks: np.ndarray) -> Reach:
    """A function that gives the IoU that models reach on pictures; what no setting changes is computed once.

    Args:
      model: any model that differs from those to be judged in α1, β0 and the mixture only.
      images: uint8 (K, H, W, 3).
      masks: bool (K, H, W).

    Returns:
      A function of L models and a slice of the pictures that returns (L, K') float; pictures without region are left
      out beforehand.
    """
    cases = []
    for sight, mask in zip(look(model, images), masks, strict=True):
        place, truth = locate(model, sight), model.inspected(mask)
        # A picture without region, or without anything to find, scores the same whatever the settings.
        if place.region.any() and (truth.any() or not mask.any()):
            cases.append((sight, *place, truth))

    def reach(candidates: Sequence[Model], which: slice) -> np.ndarray:
        chosen = cases[which]
        found = np.zeros((len(candidates), len(chosen)))
        for row, candidate in enumerate(candidates):
            plans = [plan(candidate, sight, region, start) for sight, region, start, _ in chosen]
            for case, outcome in find_outcomes(candidate, plans, title="tune"):
                found[row, case] = iou(outcome.mask, chosen[case][-1])
        return found

    return reach


def race(reach: Reach, candidates: Sequence[Model], highest: np.ndarray) -> list[tuple[Model, np.ndarray]]:
    """The candidates that lead after half of the pictures, with what they reach on all.

    Args:
      reach: of `judge`.
      candidates: settings to try.
      highest: (K,) IoUs of the best setting so far.
    """
    half = (len(highest) + 1) // 2
    early = reach(candidates, slice(half))
    ahead = [k for k, found in enumerate(early) if found.mean() > highest[:half].mean()]
    late = reach([candidates[k] for k in ahead], slice(half, None))
    return [(candidates[k], np.concatenate([early[k], rest])) for k, rest in zip(ahead, late, strict=True)]


def better(found: np.ndarray, than: np.ndarray) -> bool:
    """Whether IoUs are higher than others on the same pictures by more than their scatter explains.

    A few pictures tell settings apart only roughly: without this, noise would replace good defaults.

    Args:
      found: (K,) IoUs.
      than: (K,) IoUs.
    """
    gain = found - than
    return bool(len(gain) > 1 and gain.mean() > max(ERRORS * sem(gain), LEAST))


def at_threshold(model: Model, threshold: float) -> Model:
    """The model with this threshold of the smoothed scores, and with what lies above it as its regions."""
    return replace(model, procedure=replace(model.procedure, threshold=threshold, region="threshold"))


def at_best_f1(model: Model, images: np.ndarray, masks: np.ndarray) -> Model:
    """`at_threshold` with the paper's, that of the highest F1 over all pixels of the test set; marked "oracle".

    Args:
      model: as fitted.
      images: test pictures, uint8 (K, H, W, 3).
      masks: their truth, bool (K, H, W).
    """
    threshold = f1max(score_maps(model, images), masks)[1]
    return replace(at_threshold(model, threshold), tuned_on="oracle")


def tune(model: Model, *, seed: int = 0, oracle: tuple[np.ndarray, np.ndarray] | None = None) -> Model:
    """Searches β0, then α1, then the number of Gaussians, each with the best of the others so far.

    Settings that are behind after half of the pictures are not tried on the rest.

    Args:
      model: as fitted; its held-out pictures carry the synthetic anomalies.
      seed: of the synthetic anomalies.
      oracle: test pictures uint8 (K, H, W, 3) and masks (K, H, W), for the paper's way: the best on the test set.
        The model is then marked "oracle", and where its regions are what lies above the threshold, that is the one of
        `at_best_f1`.

    Returns:
      The model with the best settings; those it came with stay where none is clearly better. The model itself where no
      picture can tell settings apart.

    Raises:
      InputError: test pictures were given for a model of windows, or the model's own pictures were left out.

    Warns:
      UserWarning: no picture can tell settings apart.
    """
    if not len(model.held_out):
        raise InputError("the model holds no pictures to tune on", hint="tune it before they are left out")
    if oracle is not None and model.windowed:
        raise InputError("windows cannot be tuned on whole pictures", hint="tune on synthetic anomalies")
    images, masks = oracle or synthetic_anomalies(model.held_out, count=COUNT, seed=seed + 1)
    if oracle is not None and model.procedure.region == "threshold":
        model = at_best_f1(model, images, masks)
    reach = judge(model, images, masks)

    def weight(name: str) -> Callable[[Model, float], Model]:
        return lambda m, value: replace(m, settings=m.settings.replace(**{name: value}))

    usual = paper_settings()[0] if model.procedure.sparsity == "area" else Settings()
    axes: list[tuple[Callable[[Model], float], Sequence[float], Callable]] = [
        (lambda m: m.settings.beta0, [usual.beta0 * factor for factor in BETA0], weight("beta0")),
        (lambda m: m.settings.alpha1, ALPHA1, weight("alpha1")),
        (lambda m: m.procedure.components, COMPONENTS, refit_mixture),
    ]
    # The paper takes the best on the test set, by however little.
    wins = better if oracle is None else lambda found, than: found.mean() > than.mean()
    best, (highest,) = model, reach([model], slice(None))
    if not len(highest):
        kind = "synthetic" if oracle is None else "test"
        warnings.warn(f"no {kind} picture with a defect reaches the threshold: nothing was tuned", stacklevel=2)
        return model
    for own, values, change in axes:
        others = [change(best, value) for value in values if value != own(best)]
        for candidate, reached in race(reach, others, highest):
            if wins(reached, highest):
                best, highest = candidate, reached
    return replace(best, tuned_on="synthetic-validation" if oracle is None else "oracle")

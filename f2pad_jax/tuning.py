"""Hyper-parameters chosen on synthetic anomalies pasted on normal pictures, never on a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from f2pad_jax.data.images import normalize
from f2pad_jax.fitting import Model, refit_mixture, score_maps, synthetic_anomalies
from f2pad_jax.metrics import iou
from f2pad_jax.pipeline import begin, find_mask, find_region

COUNT = 4  # synthetic pictures that a setting is judged by
BETA0 = (2.0, 3.0, 4.5)
ALPHA1 = (0.3, 1.0, 3.0)
COMPONENTS = (4, 8, 16)


def judge(model: Model, images: np.ndarray, masks: np.ndarray) -> Callable[[Model], float]:
    """A function that gives the mean IoU a model reaches on pictures; what no setting changes is computed once.

    Args:
      model: any model that differs from those to be judged in α1, β0 and the mixture only.
      images: uint8 (K, S, S, 3).
      masks: bool (K, S, S).
    """
    cases = []
    for image, mask, scores in zip(images, masks, score_maps(model, images), strict=True):
        region = find_region(model, scores)
        if region.any():  # a picture without region scores the same whatever the settings
            x = normalize(image)
            cases.append((x, region, begin(model, x, region), mask))

    def mean_iou(candidate: Model) -> float:
        found = [iou(find_mask(candidate, x, region, start)[0], mask) for x, region, start, mask in cases]
        return float(np.mean(found)) if found else 0.0

    return mean_iou


def tune(model: Model, *, seed: int = 0, oracle: tuple[np.ndarray, np.ndarray] | None = None) -> Model:
    """Searches β0, then α1, then the number of Gaussians, each with the best of the others so far.

    Args:
      model: as fitted; its held-out pictures carry the synthetic anomalies. Others than those that gave the
        thresholds are drawn.
      seed: of the synthetic anomalies.
      oracle: test pictures uint8 (K, S, S, 3) and masks (K, S, S), for the paper's way: the best on the test set.
        The model is then marked "oracle".

    Returns:
      The model with the best settings; those it came with win ties.
    """
    images, masks = oracle or synthetic_anomalies(model.held_out, count=COUNT, seed=seed + 1)
    reach = judge(model, images, masks)
    best, highest = model, reach(model)

    def weight(name: str) -> Callable[[Model, float], Model]:
        return lambda m, value: replace(m, settings=m.settings._replace(**{name: value}))

    axes: list[tuple[str, Sequence[float], Callable]] = [
        ("beta0", BETA0, weight("beta0")),
        ("alpha1", ALPHA1, weight("alpha1")),
        ("components", COMPONENTS, refit_mixture),
    ]
    total = sum(len(values) - 1 for _, values, _ in axes)
    with tqdm(total=total, desc="tune", unit="setting", leave=False, disable=None) as bar:
        for name, values, change in axes:
            for value in values:
                if value == getattr(best.settings, name):
                    continue
                candidate = change(best, value)
                reached = reach(candidate)
                if reached > highest:
                    best, highest = candidate, reached
                bar.update()
    return replace(best, tuned_on="synthetic-validation" if oracle is None else "oracle")

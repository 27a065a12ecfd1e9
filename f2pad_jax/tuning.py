"""Hyper-parameters chosen on synthetic anomalies pasted on normal pictures, never on a test set."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from f2pad_jax.data.images import normalize
from f2pad_jax.fitting import Model, refit_mixture, score_maps, synthetic_anomalies
from f2pad_jax.metrics import iou
from f2pad_jax.pipeline import find_mask

COUNT = 8  # synthetic pictures that a setting is judged by
ALPHA1 = (0.3, 1.0, 3.0)
BETA0 = (1.5, 3.0, 6.0)
COMPONENTS = (4, 8, 16)


def mean_iou(model: Model, images: np.ndarray, masks: np.ndarray, scores: np.ndarray) -> float:
    """Mean IoU of the model's masks on pictures whose score maps are known; a picture without region counts 0."""
    found = []
    for image, mask, one in zip(images, masks, scores, strict=True):
        region = ndimage.binary_dilation(one > model.region_threshold, iterations=model.settings.dilation)
        found.append(iou(find_mask(model, normalize(image), region)[0], mask) if region.any() else 0.0)
    return float(np.mean(found))


def tune(
    model: Model, *, seed: int = 0, oracle: tuple[np.ndarray, np.ndarray] | None = None
) -> Model:
    """Grid search over α1 and β0, then over the number of Gaussians.

    Args:
      model: as fitted; its held-out pictures carry the synthetic anomalies. Others than those that gave the
        thresholds are drawn.
      seed: of the synthetic anomalies.
      oracle: test pictures uint8 (K, S, S, 3) and masks (K, S, S), for the paper's way: the best on the test set.
        The model is then marked "oracle".

    Returns:
      The model with the best settings; the ones it came with win ties.
    """
    if oracle is None:
        images, masks = synthetic_anomalies(model.held_out, count=COUNT, seed=seed + 1)
    else:
        images, masks = oracle
    scores = score_maps(model, images)
    best, highest = model, mean_iou(model, images, masks, scores)
    grid = [(a, b) for a, b in itertools.product(ALPHA1, BETA0) if (a, b) != model.settings[0:3:2]]
    with tqdm(total=len(grid) + len(COMPONENTS), desc="tune", unit="setting", leave=False, disable=None) as bar:
        for alpha1, beta0 in grid:
            candidate = replace(model, settings=model.settings._replace(alpha1=alpha1, beta0=beta0))
            reached = mean_iou(candidate, images, masks, scores)
            if reached > highest:
                best, highest = candidate, reached
            bar.update()
        winner = best
        for components in COMPONENTS:
            bar.update()
            if components == winner.settings.components:
                continue
            candidate = refit_mixture(winner, components)
            reached = mean_iou(candidate, images, masks, scores)
            if reached > highest:
                best, highest = candidate, reached
    return replace(best, tuned_on="synthetic-validation" if oracle is None else "oracle")

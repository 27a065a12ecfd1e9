"""Searches for `loop_tasks.CHOICES`: one axis after another, on synthetic anomalies of held-out normal pictures.

python benchmarks/torch_search.py --detector padim [--size N] [--images N] [--limit N]

The objective is the mean IoU over the pictures of `CATEGORIES`; no test picture is seen. The threshold of ‖a‖ costs
nothing, so each setting is judged by its best one, and ties go to what came before. The grid of `AXES` is as fine as
our own defaults were chosen from. Imports torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
import torch_loop
from loop_tasks import Choices, Setup, Task, given, setup_of
from options import Options
from problems import extractor_for, model_of

from f2pad_jax.fitting import synthetic_anomalies
from f2pad_jax.metrics import iou

EXTRACTOR, CATEGORIES = "efficientnet_lite0", ("brick", "gravel")
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
AXES = (
    [{"start": "given", "warm_up": 20}, {"start": "given", "warm_up": 0}, {"start": "fill", "warm_up": 0}],
    [{"rate": rate} for rate in (0.003, 0.01, 0.03, 0.1)],
    [{"beta0": beta0} for beta0 in (0.1, 0.25, 0.6)],
    [{"alpha1": alpha1} for alpha1 in (0.3, 1.0, 3.0)],
    [{"alpha2": alpha2} for alpha2 in (0.0, 0.3)],
)

Material = list[tuple[Setup, Task, np.ndarray]]


def judge(choices: Choices, material: Material, limit: int) -> tuple[float, float, float]:
    """Highest mean IoU × 100, its threshold, and the mean number of iterations."""
    solved = [(torch_loop.segment(task, setup, choices, limit), truth) for setup, task, truth in material]
    reached = {
        threshold: 100 * float(np.mean([iou(torch_loop.mask_of(one[0], threshold), truth) for one, truth in solved]))
        for threshold in THRESHOLDS
    }
    best = max(reached, key=lambda threshold: reached[threshold])
    return reached[best], best, float(np.mean([one[1] for one, _ in solved]))


def search(material: Material, limit: int, axes: Sequence[Sequence[dict]] = AXES) -> Choices:
    """The best values of every axis, each with the best of the axes before it."""
    best, highest = Choices(), -1.0
    for axis in axes:
        for change in axis:
            candidate = best._replace(**change)
            if candidate == best and highest >= 0:
                continue
            reached, threshold, iterations = judge(candidate, material, limit)
            print(f"{change}: IoU {reached:.1f} at ‖a‖ > {threshold}, {iterations:.0f} iterations", flush=True)
            if reached > highest:
                best, highest = candidate._replace(threshold=threshold), reached
    return best


def main() -> None:
    """Searches for one detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=tuple(torch_loop.FALLS), required=True)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--images", type=int, default=2, help="synthetic pictures a category")
    parser.add_argument("--limit", type=int, default=torch_loop.LIMIT, help="most iterations")
    arguments = parser.parse_args()
    options = Options(size=arguments.size)
    extractor, _ = extractor_for(EXTRACTOR, options)
    material: Material = []
    for category in CATEGORIES:
        model = model_of(arguments.detector, extractor, options, category=category)
        images, masks = synthetic_anomalies(model.held_out, count=arguments.images, seed=1)
        setup = torch_loop.upload(setup_of(model), torch.device("cpu"))
        material += [(setup, task, mask) for (_, task), mask in zip(given(model, images), masks, strict=True)]
    print(search(material, arguments.limit))


if __name__ == "__main__":
    main()

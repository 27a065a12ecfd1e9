"""Lane-steps that the engine runs over the iterations that the pictures need, at most eight lanes wide.

"images" are the test pictures of the textures, "grid" the same pictures with several settings each. Seconds are per
lane-step, over compiled calls, with the host's work in between; the first call of a width compiles, and "compile_s"
adds these up. `F` is the mean of the last step of each lane.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from options import DETECTORS, Options
from problems import extractor_for, model_of
from timing import spread

from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import get_detector
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.pipeline import begin, find_region, lane, masking
from f2pad_jax.solver import Lane, solve_lanes

EXTRACTOR, CATEGORY, KINDS = "efficientnet_lite0", "brick", ("images", "grid")
WIDTH = 8
GRID: tuple[dict[str, float], ...] = ({"beta0": 1.5}, {"beta0": 3.0, "rate": 0.06}, {"beta0": 6.0, "rate": 0.24})


def lanes_of(models: Sequence[Model], images: np.ndarray) -> list[Lane]:
    """Every picture with every model's settings.

    Args:
      models: alike but for their settings.
      images: uint8 (N, S, S, 3).
    """
    lanes = []
    for image, scores in zip(normalize(images), score_maps(models[0], images), strict=True):
        region = find_region(models[0], scores)
        start = begin(models[0], image, region)
        lanes += [lane(masking(model, image, region, start)) for model in models]
    return lanes


def groups_of(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Lanes of equal shapes together, as one compiled step takes them."""
    groups: dict[tuple[int, bool], list[Lane]] = {}
    for one in lanes:
        groups.setdefault((len(one.problem.feature.positions), one.problem.sharing is None), []).append(one)
    return list(groups.values())


def measured(models: Sequence[Model], images: np.ndarray) -> dict[str, Any]:
    """The figures of one case."""
    model, needed, ran = models[0], 0, 0
    seconds: list[float] = []
    losses: list[float] = []
    compiling = 0.0
    lanes = lanes_of(models, images)
    for group in groups_of(lanes):
        width = min(WIDTH, 1 << (len(group) - 1).bit_length())
        calls: list[int] = []
        marks = [time.perf_counter()]

        def note(steps: int, calls: list[int] = calls, marks: list[float] = marks) -> None:
            calls.append(steps)
            marks.append(time.perf_counter())

        solutions = solve_lanes(
            group, extractor=model.extractor, detector=get_detector(model.detector), width=width, on_chunk=note
        )
        for _, solution in solutions:
            needed += int(solution.iterations)
            losses.append(float(solution.info.loss))
        ran += sum(calls)
        # `note` comes when a call has been started, so a call's time ends at the next mark.
        marks.append(time.perf_counter())
        spans = [(after - before) / steps for before, after, steps in zip(marks[1:-1], marks[2:], calls, strict=True)]
        fresh = {calls.index(steps) for steps in calls}  # compiled in the span before
        # The first call compiles before its own mark, the others in the span before theirs.
        compiling += sum(marks[k + 1] - marks[k] for k in fresh)
        seconds += [s for k, s in enumerate(spans) if k + 1 not in fresh] or spans
    return {
        "lanes": len(lanes),
        "ratio": round(ran / needed, 3),
        "lane_steps": ran,
        "iterations": needed,
        "F": float(np.mean(losses)),
        **spread(seconds),
        "compile_s": compiling,
    }


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for."""
    extractor, weights = extractor_for(EXTRACTOR, options)
    _, pictures = texture_category(CATEGORY, train=0, test=options.images, size=options.size)
    images = np.stack([picture[0] for picture in pictures])
    for detector in DETECTORS:
        kinds = [kind for kind in KINDS if options.wanted(EXTRACTOR, detector, kind)]
        if not kinds:
            continue
        model = model_of(detector, extractor, options)
        if options.limit is not None:
            model = replace(model, settings=model.settings._replace(limit=options.limit))
        for kind in kinds:
            changes: tuple[dict[str, float], ...] = GRID if kind == "grid" else ({},)
            models = [replace(model, settings=model.settings._replace(**change)) for change in changes]
            labels = {"extractor": EXTRACTOR, "weights": weights, "detector": detector, "kind": kind}
            yield {**labels, "size": options.size, "batch": WIDTH, **measured(models, images)}

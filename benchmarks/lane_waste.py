"""Lane-steps that the engine runs over the iterations that the pictures need, at most eight lanes wide.

"images" are the test pictures of the textures, "grid" the same pictures with several settings each. Lanes advance
together, as on an accelerator; on a CPU the library lets them advance one after another, which wastes none. Seconds
are per lane-step, over compiled calls, with the host's work in between; all is run twice, and what the first pass took
longer is "compile_s". `F` is the mean of the last step of each lane. Of "images_below_threshold" the region is that of
their highest scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from loop_tasks import Spot, spots_of, unreached
from problems import DETECTORS, Options, extractor_for, model_of
from timing import spread

from f2pad_jax import Model, Settings, Solution, solve_many
from f2pad_jax.data.textures import texture_category
from f2pad_jax.preparing import Plan, build, plan

EXTRACTOR, CATEGORY, KINDS = "efficientnet_lite0", "brick", ("images", "grid")
WIDTH = 8
GRID: tuple[dict[str, float], ...] = ({"beta0": 1.5}, {"beta0": 3.0, "rate": 0.06}, {"beta0": 6.0, "rate": 0.24})


def plans_of(model: Model, spots: Sequence[Spot], settings: Sequence[Settings]) -> list[list[Plan]]:
    """Every picture (S, S, 3) with all settings; those of equal shapes together, as one compiled step takes them."""
    groups: dict[Any, list[Plan]] = {}
    for spot in spots:
        chosen = plan(model, spot.sight, spot.region)
        shape = len(chosen.affected.positions), chosen.shared
        groups.setdefault(shape, []).extend(chosen._replace(settings=numbers) for numbers in settings)
    return list(groups.values())


def measured(groups: list[list[Plan]], model: Model) -> dict[str, Any]:
    """The figures of one case, the plans of `plans_of`."""
    passes: list[float] = []
    solutions: list[Solution] = []
    marks, calls = [0.0], [0]  # when each call ended, and the lane-steps it ran

    def note(steps: int) -> None:
        calls.append(steps)
        marks.append(time.perf_counter())

    for _ in range(2):  # the first compiles
        solutions, began = [], time.perf_counter()
        marks, calls = [began], []
        for group in groups:
            cases = (build(model, chosen) for chosen in group)
            width = min(WIDTH, 1 << (len(group) - 1).bit_length())
            solved = solve_many(cases, model.energy, width=width, together=True, on_chunk=note)
            solutions += [solution for _, solution in solved]
        passes.append(time.perf_counter() - began)
    ran, needed = sum(calls), sum(int(solution.iterations) for solution in solutions)
    return {
        "lanes": len(solutions),
        "ratio": round(ran / needed, 3),
        "lane_steps": ran,
        "iterations": needed,
        "F": float(np.mean([solution.loss for solution in solutions])),
        **spread([float(seconds) for seconds in np.diff(marks) / calls]),
        "compile_s": max(passes[0] - passes[1], 0.0),
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
        settings = model.settings.replace(limit=options.limit or model.settings.limit)
        spots = spots_of(model, images)
        for kind in kinds:
            grid = [settings.replace(**change) for change in GRID] if kind == "grid" else [settings]
            labels = {"extractor": EXTRACTOR, "weights": weights, "detector": detector, "kind": kind}
            yield {
                **labels,
                "size": options.size,
                "batch": WIDTH,
                **unreached(spots),
                **measured(plans_of(model, spots, grid), model),
            }

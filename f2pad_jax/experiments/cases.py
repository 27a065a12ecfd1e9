"""Complete units with their pictures, results and scores: what tables and figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from f2pad_jax import metrics
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import measure
from f2pad_jax.experiments import paper
from f2pad_jax.experiments.models import Unit
from f2pad_jax.experiments.runs import OWN, Part, blame, load_unit, solved
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.variants import FULL

TOLERANCES = (1, 2, 4)  # pixels, of boundary F1
RESAMPLES, FEWEST = 2000, 5  # draws of an interval, and the fewest pictures of a category that one is made of
TITLES = {"patchcore": "PatchCore", "cflow": "CFLOW-AD", "padim": "PaDiM"}


class Case(NamedTuple):
    """A complete unit.

    Attributes:
      unit: what it is.
      category: its pictures, without test pictures that failed in a unit that it is compared with.
      parts: its results, one per test picture (the first ones of the variant "curves").
      run: its record, as in `metrics.json`, with "shots", "variant", "fit_seconds", "tune_seconds", "machine",
        "interval" (None of fewer than `FEWEST` pictures) and "outline".
      scores: IoU and DICE × 100 of every picture, "backbone_iou" and so on, backbones at their best threshold.
    """

    unit: Unit
    category: Category
    parts: list[Part]
    run: dict[str, Any]
    scores: dict[str, np.ndarray]

    @property
    def shown(self) -> np.ndarray:
        """Which pictures show a defect, (N,) bool."""
        return np.asarray(self.category.masks.any(axis=(1, 2)))

    @property
    def title(self) -> str:
        """The detector's name in texts."""
        return TITLES.get(self.unit.detector, self.unit.detector)

    def column(self, key: str) -> np.ndarray:
        """A number of the record of every picture, or of `scores`."""
        return self.scores[key] if key in self.scores else np.array([part.record[key] for part in self.parts])


def read_cases(
    units: Sequence[Unit],
    out: Path,
    category: Callable[[str], Category],
    on_failure: Callable[[Unit, str], None],
) -> tuple[list[Case], list[str]]:
    """Units that are there, in the paper's order of detectors, and the names of what is not.

    Pictures that failed in one unit are left out of all units of their category, so that these can be compared.

    Args:
      units: of an experiment.
      out: the results folder.
      category: gives the pictures of a category.
      on_failure: called for each unit that is not there in whole.
    """
    done: dict[Unit, list[int]] = {}
    shared: dict[str, set[int]] = {}  # pictures that all units of a category have
    absent = []

    def fail(unit: Unit, problem: str) -> None:
        on_failure(unit, problem)
        absent.append(unit.name)

    order = [*paper.DETECTORS, *sorted({unit.detector for unit in units})]
    for unit in sorted(units, key=lambda unit: (order.index(unit.detector), unit.category)):
        try:
            pictures = category(unit.category)
            done[unit], failed = solved(unit, out, pictures)
        except InputError as error:
            fail(unit, str(error))
            continue
        if failed:
            on_failure(unit, f"{unit.name}: {blame(pictures, failed)}")
            absent += [f"{unit.name} {pictures.names[index]}" for index in failed]
        shared[unit.category] = shared.get(unit.category, {*done[unit]}) & {*done[unit]}
    cases = []
    for unit, solved_ones in done.items():
        try:
            both = [index for index in solved_ones if index in shared[unit.category]]
            cases.append(read_case(unit, out, category(unit.category), both))
        except InputError as error:
            fail(unit, str(error))
    return cases, absent


def read_case(unit: Unit, out: Path, category: Category, pictures: Sequence[int]) -> Case:
    """Loads and measures a unit.

    Args:
      unit: what it is.
      out: the results folder.
      category: all pictures of its category.
      pictures: numbers of the test pictures to read.

    Raises:
      InputError: something cannot be read, or no picture is left.
    """
    if not pictures:
        raise InputError("no test picture is done in all units that are compared", where=unit.name)
    facts, parts = load_unit(unit, out, category, pictures)
    chosen = list(pictures)
    names = [category.names[index] for index in chosen]
    category = category._replace(images=category.images[chosen], masks=category.masks[chosen], names=names)
    results, truths = [part.result for part in parts], category.masks
    own = {name: facts.pop(name) for name in OWN}
    run = measure(facts, results, truths, names)
    best = run["backbone_oracle"]["threshold"]
    masks = {
        "backbone": [result.score_map > best for result in results],
        "f2pad": [result.mask for result in results],
    }
    scores = {
        f"{who}_{name}": np.array([100 * score(*pair) for pair in zip(marked, truths, strict=True)])
        for who, marked in masks.items()
        for name, score in (("iou", metrics.iou), ("dice", metrics.dice))
    }
    shown = truths.any(axis=(1, 2))  # the paper's measures are those of pictures that show a defect
    run |= {
        "shots": unit.shots,
        "variant": unit.variant,
        **own,
        "interval": {
            name: interval([values[shown]], seed=run["seed"]) if shown.sum() >= FEWEST else None
            for name, values in scores.items()
        },
        "outline": {who: outline_record(np.stack(marked)[shown], truths[shown]) for who, marked in masks.items()},
    }
    return Case(unit, category, parts, run, scores)


def outline_record(masks: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Means over pictures of boundary F1 × 100 at each tolerance, and of the 95 % Hausdorff distance in pixels."""
    pairs = list(zip(masks, truths, strict=True))
    record = {
        f"boundary_f1_{t}": round(100 * float(np.mean([metrics.boundary_f1(*pair, tolerance=t) for pair in pairs])), 2)
        for t in TOLERANCES
    }
    return record | {"hausdorff95": round(float(np.mean([metrics.hausdorff95(*pair) for pair in pairs])), 2)}


def interval(samples: Sequence[np.ndarray], *, seed: int) -> list[float]:
    """95 % bootstrap interval (percentiles) of the mean of the samples' means; each sample is drawn from by itself.

    Args:
      samples: one value per picture, for one category or several.
      seed: of the draws.

    Returns:
      Lower and upper end; both NaN where a sample has fewer than `FEWEST` pictures, which hardly vary when drawn again.
    """
    if min(len(sample) for sample in samples) < FEWEST:
        return [float("nan")] * 2

    def mean_of_means(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in drawn], axis=0)

    ends = stats.bootstrap(
        tuple(samples),
        mean_of_means,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [round(float(ends.low), 2), round(float(ends.high), 2)]


def only(cases: Sequence[Case], variant: str = FULL) -> list[Case]:
    """The units of one variant."""
    return [case for case in cases if case.unit.variant == variant]


def by_detector(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Units of each detector, in the order they come."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.unit.detector, []).append(case)
    return groups


def with_mean(cases: Sequence[Case]) -> Iterator[tuple[str, list[Case]]]:
    """A label and the units of each category, and where there are several of them all together."""
    for name in dict.fromkeys(case.unit.category for case in cases):
        yield name, [case for case in cases if case.unit.category == name]
    if len({case.unit.category for case in cases}) > 1:
        yield "**mean**", list(cases)


def mean(cases: Sequence[Case], who: str, *keys: str) -> list[float]:
    """Means over units of the measures × 100 of "backbone" (own threshold), "backbone_oracle" (best) or "f2pad"."""
    return [float(np.mean([case.run[who][key] for case in cases])) for key in keys or ("iou", "dice")]


def f2pad_interval(cases: Sequence[Case]) -> list[float]:
    """95 % interval of F2PAD's mean IoU over units, of the pictures that show a defect."""
    return interval([case.scores["f2pad_iou"][case.shown] for case in cases], seed=cases[0].run["seed"])

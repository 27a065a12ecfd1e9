"""Units of work: one category, detector, number of training pictures and variant, kept picture by picture.

A results folder holds `plan.json` (what its parts have in common), `sets/<category>` (the pictures) and
`parts/<unit>/`: `unit.json` about the model, and for each test picture `NNN.json`, `NNN_mask.png`, `NNN_normal.png`
and, for variants that are no ablation, `NNN_scores.npz`. A picture is done when its `NNN.json` is there, which is
written last. Times are measured per picture and belong to its part: whatever is made of the parts is a function of
them alone, so that it has the same bytes in one go, after interruptions, or merged from several machines.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from f2pad_jax.data.images import denormalize, normalize, read_image, read_mask, write_png
from f2pad_jax.detectors.cflow import maps_of_shots
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import describe
from f2pad_jax.experiments.curves import trace
from f2pad_jax.experiments.sets import Category
from f2pad_jax.extractor import Extractor
from f2pad_jax.fitting import Model, draw_shots, fit, score_maps
from f2pad_jax.output import make_folder, write_bytes, write_json
from f2pad_jax.pipeline import Segmentation, begin, clean, find_region, find_solutions, masking, segment_many
from f2pad_jax.tuning import tune

CHUNK = 8  # pictures that are solved together; an interruption loses no more
FEW = 3  # pictures of the variant "curves"
DIFFERENT = 0.2  # L1 difference of x and n over RGB in [0, 1] that makes a mask without sparsity, as in the paper

ABLATIONS: dict[str, dict[str, float]] = {
    "initialisation": {},
    "no-pixel-prior": {"alpha1": 0.0},
    "no-sparsity": {"beta0": 0.0},
    "no-sharing": {"sharing_radius": 0},
}
FULL, CURVES = "full", "curves"


class Unit(NamedTuple):
    """One piece of work; `shots` is None for all training pictures."""

    category: str
    detector: str
    shots: int | None
    variant: str

    @property
    def name(self) -> str:
        """Unique, and the order in which units are shared out."""
        return "-".join([self.category, self.detector, str(self.shots or "all"), self.variant])


class Part(NamedTuple):
    """What a unit found in one picture.

    Attributes:
      result: the segmentation.
      record: the rest: "image", "covered" (share of the truth inside the region) and, of "curves", "losses".
    """

    result: Segmentation
    record: dict[str, Any]


class Task(NamedTuple):
    """What `run_units` needs to know of the plan."""

    dataset: str
    images: int
    seed: int
    oracle: bool
    category: Callable[[str], Category]
    extractors: Mapping[str, Extractor]  # by detector


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


def solve_variant(model: Model, variant: str, images: np.ndarray) -> Iterator[tuple[Segmentation, dict[str, Any]]]:
    """Segments pictures one way: the results, and what else there is to keep (arrays are written as masks)."""
    if variant == CURVES:
        for curves in trace(model, images):
            yield curves.result, {"losses": curves.losses, "plain": curves.plain}
        return
    changed = replace(model, settings=model.settings._replace(**ABLATIONS.get(variant, {})))
    if variant in ("initialisation", "no-sparsity"):
        results = by_difference(changed, images, solve=variant == "no-sparsity")
    else:
        results = segment_many(changed, images)
    yield from ((result, {}) for result in results)


def run_units(units: Sequence[Unit], out: Path, task: Task, *, on_failure: Callable[[str], None]) -> list[Unit]:
    """Computes what is missing of the units, in the order given.

    Args:
      units: those of one category, detector and number of pictures side by side share a model.
      out: the results folder.
      task: pictures, networks and choices.
      on_failure: called with one line for each unit that fails; the others go on.

    Returns:
      The units that failed.
    """
    failed = []
    for _, group in groupby(units, key=lambda unit: unit[:3]):
        members = list(group)
        fitted: tuple[Model, float] | None = None
        for unit in members:
            try:
                if not missing(unit, out, task.images):
                    continue
                category = task.category(unit.category)
                if fitted is None:
                    began = time.perf_counter()
                    model = _fit(unit, category, task)
                    fitted = model, round(time.perf_counter() - began, 3)
                _run(unit, out, category, task, *fitted)
            except Exception as error:  # whatever it is, the other units are not lost
                reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                on_failure(f"{unit.name}: {' '.join(reason.split())}")
                failed.append(unit)
    return failed


def missing(unit: Unit, out: Path, images: int) -> list[int]:
    """Numbers of the unit's test pictures that are not done, of so many in the category."""
    folder = _folder(out, unit)
    return [index for index in range(_count(unit, images)) if not (folder / f"{index:03d}.json").is_file()]


def load_unit(unit: Unit, out: Path, category: Category) -> tuple[dict[str, Any], list[Part]]:
    """What the record of the unit says about its model, and its results.

    Raises:
      InputError: the unit is not complete, or a file cannot be read.
    """
    count = _count(unit, len(category.images))
    left = missing(unit, out, len(category.images))
    if left:
        raise InputError(f"{len(left)} of {count} test pictures are not done", where=unit.name)
    folder = _folder(out, unit)
    try:
        facts = json.loads((folder / "unit.json").read_text("utf-8"))
        return facts, [_load(folder, unit, out, facts, index, category) for index in range(count)]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot be read ({error})", where=folder, mend="remove the folder and run again") from error


def plain_mask(unit: Unit, out: Path, index: int) -> np.ndarray:
    """The mask without gradient sharing that the variant "curves" keeps."""
    return read_mask(_folder(out, unit) / f"{index:03d}_plain.png")


def _folder(out: Path, unit: Unit) -> Path:
    return out / "parts" / unit.name


def _count(unit: Unit, images: int) -> int:
    return min(FEW, images) if unit.variant == CURVES else images


def _fit(unit: Unit, category: Category, task: Task) -> Model:
    train = category.train
    if unit.shots is not None:
        if unit.shots > len(train):
            raise InputError(f"there are {len(train)} training pictures, not {unit.shots}")
        train = train[draw_shots(len(train), unit.shots, seed=task.seed)]
    model = fit(
        train,
        detector=unit.detector,
        extractor=task.extractors[unit.detector],
        seed=task.seed,
        options={"used": maps_of_shots(unit.shots)} if unit.detector == "cflow" else {},
    )
    return tune(model, seed=task.seed, oracle=(category.images, category.masks)) if task.oracle else model


def _run(unit: Unit, out: Path, category: Category, task: Task, model: Model, fit_seconds: float) -> None:
    folder = make_folder(_folder(out, unit))
    facts = describe(model, dataset=task.dataset, category=unit.category)
    facts["settings"] |= ABLATIONS.get(unit.variant, {})
    if (folder / "unit.json").is_file():
        begun = json.loads((folder / "unit.json").read_text("utf-8"))
        if {name: begun.get(name) for name in facts} != facts:
            raise InputError("was begun with another model or version", where=folder, mend="name a new --out")
    else:
        write_json(
            folder / "unit.json",
            facts | {"threshold": float(model.threshold), "fit_seconds": fit_seconds},
        )
    left = missing(unit, out, task.images)
    with tqdm(total=len(left), desc=unit.name, unit="image", leave=False, disable=None) as bar:
        for _, block in groupby(left, key=lambda index: index // CHUNK):
            chunk = list(block)
            solved = solve_variant(model, unit.variant, category.images[chunk])
            for index, (result, extra) in zip(chunk, solved, strict=True):
                _save(folder, index, unit, result, extra, category, find_region(model, result.score_map))
                bar.update()


def _save(
    folder: Path,
    index: int,
    unit: Unit,
    result: Segmentation,
    extra: dict[str, Any],
    category: Category,
    region: np.ndarray,
) -> None:
    stem, truth = f"{index:03d}", category.masks[index]
    write_png(folder / f"{stem}_mask.png", result.mask)
    write_png(folder / f"{stem}_normal.png", result.normal)
    for name, mask in extra.items():
        if isinstance(mask, np.ndarray):
            write_png(folder / f"{stem}_{name}.png", mask)
    if unit.variant not in ABLATIONS:  # the backbone of an ablation is that of the full method
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=result.score_map)
        write_bytes(folder / f"{stem}_scores.npz", buffer.getvalue())
    record = {
        "image": category.names[index],
        "iterations": int(result.iterations),
        "status": result.status,
        "covered": round(float(region[truth].mean()), 4) if truth.any() else 1.0,
        "seconds": round(float(result.seconds), 3),
    }
    kept = {name: value for name, value in extra.items() if not isinstance(value, np.ndarray)}
    write_json(folder / f"{stem}.json", record | kept)


def _load(folder: Path, unit: Unit, out: Path, facts: dict[str, Any], index: int, category: Category) -> Part:
    stem = f"{index:03d}"
    record = json.loads((folder / f"{stem}.json").read_text("utf-8"))
    scored = _folder(out, unit._replace(variant=FULL)) if unit.variant in ABLATIONS else folder
    with np.load(scored / f"{stem}_scores.npz") as file:
        scores = file["scores"]
    normal = read_image(folder / f"{stem}_normal.png")
    result = Segmentation(
        mask=read_mask(folder / f"{stem}_mask.png"),
        normal=normal,
        anomaly=(category.images[index].astype(np.float32) - normal.astype(np.float32)) / 255,
        initial_mask=scores > facts["threshold"],
        score_map=scores,
        iterations=record["iterations"],
        status=record["status"],
        seconds=record["seconds"],
    )
    return Part(result, record)

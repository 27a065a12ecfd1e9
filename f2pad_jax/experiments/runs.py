"""Units of work: one category, detector, number of training pictures and variant, kept picture by picture.

A results folder holds `plan.json` (what its parts have in common), `sets/<category>` (the pictures), `models/` (what
tuning chose and training that was kept, so that a run that goes on need do neither again) and `parts/<unit>/`:
`unit.json` about the model, and for each test picture `NNN.json`, `NNN_mask.png`, `NNN_normal.png` and, where the
backbone is not that of the full method, `NNN_scores.npz`. A picture is done when its `NNN.json` is there, which is
written last; `NNN_failed.json` tells why one is not; see `experiments.records`. Times are measured per picture and
belong to its part: whatever is made of the parts is a function of them alone, so that it has the same bytes in one go,
after interruptions, or merged from several machines.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import zipfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from f2pad_jax.data.images import read_image, read_mask, write_png
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import describe
from f2pad_jax.experiments.models import Unit, make_model, recipe
from f2pad_jax.experiments.records import (
    AGAIN,
    FailureFacts,
    model_of,
    plan_of,
    read_part,
    read_record,
    read_unit,
    write_record,
)
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.variants import CURVES, FULL, Outcome, change, shares_scores, solve_variant
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.outcomes import refined_map
from f2pad_jax.output import make_folder, write_bytes
from f2pad_jax.segmentation import Segmentation

CHUNK = 8  # pictures that are solved together; an interruption loses no more
FEW = 3  # pictures of the variant "curves"
OWN = ("threshold", "fit_seconds", "tune_seconds", "machine")  # of unit.json, beside what `describe` says


class Part(NamedTuple):
    """What a unit found in one picture.

    Attributes:
      result: the segmentation.
      record: the rest: "image", "covered" (share of the truth inside the region) and, of "curves", "losses".
      index: number of the picture in its category.
    """

    result: Segmentation
    record: dict[str, Any]
    index: int


class Task(NamedTuple):
    """What `run_units` needs to know of the plan."""

    dataset: str
    seed: int
    tuning: str
    category: Callable[[str], Category]
    extractors: Mapping[str, Extractor]  # by detector


class Solved(NamedTuple):
    """One more picture is done."""

    unit: Unit


class Failed(NamedTuple):
    """A unit, or some of its pictures, could not be done; `problem` is one line."""

    unit: Unit
    problem: str


def run_units(units: Sequence[Unit], out: Path, task: Task, *, tell: Callable[[Solved | Failed], None]) -> None:
    """Computes what is missing of units that share a model. Whatever fails, the others go on.

    Args:
      units: one of the groups of `by_model`.
      out: the results folder.
      task: pictures, networks and choices.
      tell: called for each picture that is done, and once for each unit that fails in whole or in part.
    """
    model: tuple[Model, dict[str, float]] | None = None
    for unit in units:
        try:
            category = task.category(unit.category)
            if not missing(unit, out, category):
                continue
            if model is None:
                made = recipe(unit, seed=task.seed, tuning=task.tuning)
                model = make_model(made, out, category, task.extractors[unit.detector])
            problem = _run(unit, out, category, task, *model, on_picture=lambda unit=unit: tell(Solved(unit)))
        except Exception as error:  # whatever it is, the other units are not lost
            problem = _reason(error)
        if problem:
            tell(Failed(unit, f"{unit.name}: {problem}"))


def missing(unit: Unit, out: Path, category: Category) -> list[int]:
    """Numbers of the unit's test pictures that are not done."""
    folder = _folder(out, unit)
    return [index for index in range(_count(unit, category)) if not (folder / f"{index:03d}.json").is_file()]


def solved(unit: Unit, out: Path, category: Category) -> tuple[list[int], dict[int, str]]:
    """Numbers of the test pictures that are done, and of those that were tried and failed, with the reason.

    Raises:
      InputError: the unit is not complete: pictures are left that were not tried, or none could be solved.
    """
    folder, left = _folder(out, unit), missing(unit, out, category)
    count = _count(unit, category)
    failed = {
        index: read_record(path, FailureFacts)["error"] for index in left if (path := _note(folder, index)).is_file()
    }
    if len(failed) < len(left) or len(failed) == count:
        raise InputError(f"{len(left)} of {count} test pictures are not done", where=unit.name)
    return [index for index in range(count) if index not in failed], failed


def load_unit(unit: Unit, out: Path, category: Category, pictures: Sequence[int]) -> tuple[dict[str, Any], list[Part]]:
    """What the record of the unit says about its model, and its results for these pictures.

    Raises:
      InputError: a file cannot be read, was changed, or is of another run.
    """
    folder, plan = _folder(out, unit), plan_of(out)
    facts, model = read_unit(folder, plan), None
    if shares_scores(unit.variant):
        model = model_of(read_unit(_folder(out, unit._replace(variant=FULL)), plan))
    try:
        parts = [_load(folder, unit, out, facts, index, category, model) for index in pictures]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read ({error})", where=folder, hint="remove the folder and run again") from error
    return {name: value for name, value in facts.items() if name not in ("unit", "plan")}, parts


def plain_mask(unit: Unit, out: Path, index: int) -> np.ndarray:
    """The mask without sharing that the variant "curves" keeps."""
    return read_mask(_folder(out, unit) / f"{index:03d}_plain.png")


def _folder(out: Path, unit: Unit) -> Path:
    return out / "parts" / unit.name


def _note(folder: Path, index: int) -> Path:
    return folder / f"{index:03d}_failed.json"


def _count(unit: Unit, category: Category) -> int:
    return min(FEW, len(category.images)) if unit.variant == CURVES else len(category.images)


def _reason(error: Exception) -> str:
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(reason.split())


def _machine() -> str:
    """What did the work: processor or accelerator, and the cores there are."""
    device, cores = jax.devices()[0], f"{os.cpu_count()} cores"
    if device.platform != "cpu":
        return f"{device.device_kind}, {cores}"
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8", "replace").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(names), platform.processor() or platform.machine())}, {cores}"


def _run(
    unit: Unit,
    out: Path,
    category: Category,
    task: Task,
    model: Model,
    seconds: dict[str, float],
    *,
    on_picture: Callable[[], None],
) -> str:
    """Solves what is missing; what went wrong with pictures, in one line, or nothing."""
    folder = make_folder(_folder(out, unit))
    model = change(model, unit.variant, category)
    plan = plan_of(out)
    facts = describe(model, dataset=task.dataset, category=unit.category)
    facts |= {"unit": unit.name, "plan": plan, "threshold": float(model.threshold)}
    if (folder / "unit.json").is_file():
        if model_of(read_unit(folder, plan)) != model_of(facts):
            raise InputError("was begun with another model or version", where=folder, hint="name a new --out")
    else:
        write_record(folder / "unit.json", facts | {**seconds, "machine": _machine()})

    def solve(chunk: Sequence[int]) -> None:
        outcomes = solve_variant(model, unit.variant, category.images[list(chunk)])
        for index, outcome in zip(chunk, outcomes, strict=True):
            _save(folder, index, unit, outcome, category, model_of(facts))
            on_picture()

    problems = {}
    for _, block in groupby(missing(unit, out, category), key=lambda index: index // CHUNK):
        chunk = list(block)
        try:
            solve(chunk)
        except Exception:  # one of them is to blame: the others are not lost
            for index in [index for index in chunk if index in missing(unit, out, category)]:
                try:
                    solve([index])
                except Exception as error:
                    problems[index] = _reason(error)
                    write_record(_note(folder, index), {"image": category.names[index], "error": problems[index]})
    return blame(category, problems)


def blame(category: Category, problems: Mapping[int, str]) -> str:
    """What went wrong with pictures in one line, after the first; empty where nothing did."""
    if not problems:
        return ""
    first = min(problems)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{category.names[first]}{more}: {problems[first]}"


def _save(folder: Path, index: int, unit: Unit, outcome: Outcome, category: Category, model: str) -> None:
    stem, truth, (result, region, extra) = f"{index:03d}", category.masks[index], outcome
    pictures = {"mask": result.mask, "normal": result.normal}
    pictures |= {name: mask for name, mask in extra.items() if isinstance(mask, np.ndarray)}
    for name, picture in pictures.items():
        write_png(folder / f"{stem}_{name}.png", picture)
    names = [f"{stem}_{name}.png" for name in pictures]
    if not shares_scores(unit.variant):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=result.score_map)
        names.append(f"{stem}_scores.npz")
        write_bytes(folder / names[-1], buffer.getvalue())
    record = {
        "model": model,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "image": category.names[index],
        "iterations": int(result.iterations),
        "status": result.status,
        "residual": round(float(result.residual), 4),
        "covered": round(float(region[truth].mean()), 4) if truth.any() else 1.0,
        "seconds": round(float(result.seconds), 3),
    }
    plain = {name: value for name, value in extra.items() if not isinstance(value, np.ndarray)}
    write_record(folder / f"{stem}.json", record | plain)
    _note(folder, index).unlink(missing_ok=True)


def _load(
    folder: Path, unit: Unit, out: Path, facts: dict[str, Any], index: int, category: Category, whole: str | None
) -> Part:
    """A picture's part; `whole` is the model of the full method, where that keeps the scores."""
    stem, scored = f"{index:03d}", folder
    record = read_part(folder / f"{stem}.json", model_of(facts))
    if record["image"] != category.names[index]:
        raise InputError(f"is of another picture ({record['image']})", where=folder / f"{stem}.json", hint=AGAIN)
    if whole is not None:
        scored = _folder(out, unit._replace(variant=FULL))
        read_part(scored / f"{stem}.json", whole)
    with np.load(scored / f"{stem}_scores.npz") as file:
        scores = file["scores"]
    normal = read_image(folder / f"{stem}_normal.png")
    mask = read_mask(folder / f"{stem}_mask.png")
    threshold = record.get("threshold", facts["threshold"])  # its own, of a rule for single pictures
    result = Segmentation(
        mask=mask,
        normal=normal,
        anomaly=(category.images[index].astype(np.float32) - normal.astype(np.float32)) / 255,
        initial_mask=scores > threshold,
        score_map=scores,
        threshold=threshold,
        refined_map=refined_map(scores, mask),
        residual=record["residual"],
        iterations=record["iterations"],
        status=record["status"],
        seconds=record["seconds"],
    )
    return Part(result, record, index)

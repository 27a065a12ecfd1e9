"""Models of the experiments: which units share one, and what tuning chose for it, kept for runs that go on."""

from __future__ import annotations

import ast
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from f2pad_jax.core import Settings
from f2pad_jax.detectors import detector_class, options_of
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import plain_settings
from f2pad_jax.experiments.records import ChosenFacts, read_record, write_record
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.variants import fit_changes
from f2pad_jax.fitting import draw_shots, fit, refit_mixture
from f2pad_jax.model import Model
from f2pad_jax.model_file import SettingsFacts
from f2pad_jax.networks.extractor import Extractor, check_precision
from f2pad_jax.output import make_folder
from f2pad_jax.procedure import Procedure, ProcedureFacts, paper_settings
from f2pad_jax.schemas import read_facts
from f2pad_jax.tuning import at_best_f1, tune

SYNTHETIC, ORACLE, DEFAULT, PRINTED = "synthetic", "oracle", "default", "paper"  # ways to choose settings


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


class Recipe(NamedTuple):
    """What the model of a unit is made from; units with the same recipe share the model.

    Attributes:
      category: whose pictures.
      detector: name.
      shots: training pictures, None for all.
      seed: of the fit.
      tuning: "synthetic" (on synthetic anomalies), "oracle" (on the test set), "default" (none) or "paper" (the paper's
        settings, and its threshold, which is the test set's).
      options: "precision" of the extractor and options of the detector's fit, with their values in words.
    """

    category: str
    detector: str
    shots: int | None
    seed: int
    tuning: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Unique."""
        words = [self.category, self.detector, str(self.shots or "all"), str(self.seed), self.tuning]
        return "-".join(words + [f"{name}={value}" for name, value in self.options])


def recipe(unit: Unit, *, seed: int, tuning: str) -> Recipe:
    """How the model of a unit is made: as the plan says, with what the variant changes of the fit."""
    asked = fit_changes(unit.variant)
    seed, tuning = int(asked.pop("seed", seed)), asked.pop("tuning", tuning)
    return Recipe(*unit[:3], seed, tuning, tuple(asked.items()))


def by_model(units: Sequence[Unit], *, seed: int, tuning: str) -> list[list[Unit]]:
    """Units that share a model, side by side: the pieces in which work is shared out."""
    groups: dict[Recipe, list[Unit]] = {}
    for unit in units:
        groups.setdefault(recipe(unit, seed=seed, tuning=tuning), []).append(unit)
    return list(groups.values())


def make_model(made: Recipe, out: Path, category: Category, extractor: Extractor) -> tuple[Model, dict[str, float]]:
    """Fits and tunes, or takes what an earlier run chose.

    Args:
      made: the recipe.
      out: the results folder; what tuning chose, and training that a detector can go on with, is kept in its
        `models/`.
      category: the recipe's pictures.
      extractor: the detector's network.

    Returns:
      The model, and "fit_seconds" and "tune_seconds" of the run that made it first.

    Raises:
      InputError: there are too few training pictures, or what was kept is of another version.
    """
    began, train = time.perf_counter(), category.train
    if made.shots is not None:
        if made.shots > len(train):
            raise InputError(f"there are {len(train)} training pictures, not {made.shots}")
        train = train[draw_shots(len(train), made.shots, seed=made.seed)]
    path = make_folder(out / "models") / f"{made.name}.json"
    printed = made.tuning == PRINTED
    options: dict[str, Any] = {**detector_class(made.detector).published} if printed else {}
    options |= {name: ast.literal_eval(value) for name, value in made.options if name != "precision"}
    if "checkpoint" in options_of(detector_class(made.detector)):
        options["checkpoint"] = path.with_suffix("")
    precision = dict(made.options).get("precision", extractor.precision)
    extractor = replace(extractor, precision=check_precision(precision))
    settings, procedure = paper_settings() if printed else (Settings(), Procedure())
    model = fit(
        train,
        detector=made.detector,
        extractor=extractor,
        seed=made.seed,
        settings=settings,
        procedure=procedure,
        options=options,
    )
    fitted = time.perf_counter()
    if path.is_file():
        return _as_chosen(model, path)
    truth = category.images, category.masks
    if printed:
        model = at_best_f1(model, *truth)
    elif made.tuning != DEFAULT:
        model = tune(model, seed=made.seed, oracle=truth if made.tuning == ORACLE else None)
    seconds = {"fit_seconds": fitted - began, "tune_seconds": time.perf_counter() - fitted}
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    write_record(path, {"settings": plain_settings(model), "tuned_on": model.tuned_on, **seconds})
    return model, seconds


def _as_chosen(model: Model, path: Path) -> tuple[Model, dict[str, float]]:
    chosen = read_record(path, ChosenFacts)
    values, parts = chosen.pop("settings"), []
    seconds = {name: chosen.pop(name) for name in ("fit_seconds", "tune_seconds")}
    for own, schema in ((model.settings, SettingsFacts), (model.procedure, ProcedureFacts)):
        asked = {name: values[name] for name in vars(own) if name in values}
        read_facts(schema, asked, kind="record", where=path, hint="name a new --out")
        parts.append(replace(own, **asked))
    settings, procedure = parts
    if procedure.components != model.procedure.components:
        model = refit_mixture(model, procedure.components)
    return replace(model, settings=settings, procedure=procedure, **chosen), seconds

"""Models of the experiments: which units share one, and what tuning chose for it, kept for runs that go on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from f2pad_jax.detectors.cflow import maps_of_shots
from f2pad_jax.errors import InputError
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.variants import seed_of
from f2pad_jax.fitting import Model, draw_shots, fit, refit_mixture
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.output import make_folder, write_json
from f2pad_jax.settings import Settings
from f2pad_jax.tuning import tune

SYNTHETIC, ORACLE, DEFAULT = "synthetic", "oracle", "default"  # ways to tune


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
      tuning: "synthetic" (on synthetic anomalies), "oracle" (on the test set, as in the paper) or "default" (none).
    """

    category: str
    detector: str
    shots: int | None
    seed: int
    tuning: str

    @property
    def name(self) -> str:
        """Unique."""
        return "-".join([self.category, self.detector, str(self.shots or "all"), str(self.seed), self.tuning])


def recipe(unit: Unit, *, seed: int, tuning: str) -> Recipe:
    """How the model of a unit is made: as the plan says, or with the variant's own seed ("seed=1") or tuning."""
    name, _, value = unit.variant.partition("=")
    return Recipe(*unit[:3], seed_of(unit.variant, seed), value if name == "tuning" else tuning)


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
      out: the results folder; what tuning chose, and the training of flows, is kept in its `models/`.
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
    options: dict[str, Any] = {}
    if made.detector == "cflow":  # the one whose training takes minutes
        options = {"used": maps_of_shots(made.shots), "checkpoint": path.with_suffix("")}
    model = fit(train, detector=made.detector, extractor=extractor, seed=made.seed, options=options)
    fitted = time.perf_counter()
    if path.is_file():
        return _as_chosen(model, path)
    if made.tuning != DEFAULT:
        oracle = (category.images, category.masks) if made.tuning == ORACLE else None
        model = tune(model, seed=made.seed, oracle=oracle)
    seconds = {"fit_seconds": fitted - began, "tune_seconds": time.perf_counter() - fitted}
    chosen = {"tuned_on": model.tuned_on, "threshold": model.threshold, "region_threshold": model.region_threshold}
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    write_json(path, {"settings": model.settings._asdict(), **chosen, **seconds})
    return model, seconds


def _as_chosen(model: Model, path: Path) -> tuple[Model, dict[str, float]]:
    try:
        chosen = json.loads(path.read_text("utf-8"))
        settings = Settings(**chosen.pop("settings"))
        seconds = {name: chosen.pop(name) for name in ("fit_seconds", "tune_seconds")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"is of another version ({error})", where=path, hint="name a new --out") from error
    if settings.components != model.settings.components:
        model = refit_mixture(model, settings.components)
    return replace(model, settings=settings, **chosen), seconds

"""`f2pad experiment`: plans the work, does it or a share of it, and writes tables and figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from f2pad_jax.detectors import detector_class
from f2pad_jax.errors import InputError
from f2pad_jax.experiments import sets
from f2pad_jax.experiments.models import DEFAULT, ORACLE, PRINTED, SYNTHETIC, Unit, by_model
from f2pad_jax.experiments.paper import DETECTORS
from f2pad_jax.experiments.records import check_parts, read_plan, write_record
from f2pad_jax.experiments.registry import EXPERIMENTS, Experiment
from f2pad_jax.experiments.results import render, write_results
from f2pad_jax.experiments.runs import Failed, Solved, Task, missing, run_units
from f2pad_jax.experiments.variants import applies
from f2pad_jax.experiments.workers import Tell, Work, share_out
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.output import make_folder, write_bytes
from f2pad_jax.startup import check_devices
from f2pad_jax.weights import load_extractor
from f2pad_jax.weights.registry import entry
from f2pad_jax.weights.weight_files import check_readable


class Request(NamedTuple):
    """What was asked for.

    Attributes:
      name: of the experiment.
      data: root of MVTec AD, or None for the textures.
      weights: file of ResNet-18, or None for the imported one.
      out: the results folder.
      images: test pictures a category; None takes 8 of textures and 54 of parts.
      detectors: only these; empty for all.
      categories: only these; empty for all.
      seed: of all random choices.
      tuning: how settings are chosen, see `models.Recipe`.
      shard: index and count: the share of the work to do.
      jobs: processes that share the work on this machine.
      extractor: network of all detectors; None for each its own.
    """

    name: str
    data: Path | None
    weights: Path | None
    out: Path
    images: int | None = None
    detectors: Sequence[str] = ()
    categories: Sequence[str] = ()
    seed: int = 0
    tuning: str = SYNTHETIC
    shard: tuple[int, int] = (0, 1)
    jobs: int = 1
    extractor: str | None = None


def experiment(request: Request, *, on_failure: Callable[[str], None], say: Callable[[str], None]) -> bool:
    """Does what is missing, and writes NAME.json, NAME.md, for figures NAME.png, and results.md of the whole folder.

    Of a share only the parts are written.

    Returns:
      Whether everything went well; each unit that failed in whole or in part was one call of `on_failure`.

    Raises:
      InputError: the request cannot be met, or nothing of it could.
    """
    index, count = request.shard
    if not 0 <= index < count:
        raise InputError(f"share {index} of {count} does not exist", hint=f"--shard-index goes from 0 to {count - 1}")
    plan = _plan(request)
    if request.jobs == 1:
        check_devices()  # of this process; others have their own
    out = make_folder(request.out)
    whole = _keep_plan(plan, request.name, out)
    category = _categories(request, whole)
    units = list_units(request.name, whole)
    share = by_model(units, seed=plan["seed"], tuning=plan["tuning"])[index::count]
    failed = _solve(share, request, whole, category, on_failure)
    if count > 1:
        done = sum(len(units) for units in share) - len(failed)
        say(f"{out}: {done} units done; join the shares with `f2pad experiment merge`")
        return not failed

    def fail(unit: Unit | None, problem: str) -> None:
        if unit not in failed:  # those have had their line
            on_failure(problem)

    return _render([request.name], whole, out, category, fail, say)


def merge(parts: Sequence[Path], out: Path, *, on_failure: Callable[[str], None], say: Callable[[str], None]) -> bool:
    """Copies the parts of several results folders into one, and writes what one run would have written.

    Returns:
      Whether nothing was missing; each unit that is was one call of `on_failure`.

    Raises:
      InputError: a folder holds no experiment, they do not belong together, or a file was changed or is of another run.
    """
    plans = [read_plan(path) for path in parts]
    for path, plan in zip(parts, plans, strict=True):
        if plan != plans[0]:
            raise InputError("holds another experiment than the first folder", where=path, hint="merge one at a time")
        check_parts(path)
    out = make_folder(out)
    for name in plans[0]["experiments"]:
        _keep_plan(_common(plans[0]) | plans[0]["experiments"][name], name, out)
    for path in parts:
        if path.resolve() != out.resolve():
            for kind in ("sets", "models", "parts"):
                _copy_missing(path / kind, out / kind)
    category = cache(lambda name: sets.read_category(out / "sets" / name))

    def fail(_: Unit | None, problem: str) -> None:
        on_failure(problem)

    return _render(list(plans[0]["experiments"]), read_plan(out), out, category, fail, say)


def join_results(folders: Sequence[Path], out: Path, *, say: Callable[[str], None]) -> None:
    """Writes results.md about several results folders, and beside it their figures and runs.

    Raises:
      InputError: a folder holds no experiment, or none that is finished.
    """
    say(str(write_results(folders, out)))


def list_units(name: str, plan: dict[str, Any]) -> list[Unit]:
    """The units of an experiment, sorted by name."""
    selection, made = plan["experiments"][name], known_experiment(name)
    units = [
        Unit(category, detector, made.shots, variant)
        for category in selection["categories"]
        for detector in selection["detectors"]
        for variant in made.variants
        if applies(variant, detector)
    ]
    return sorted(units, key=lambda unit: unit.name)


def known_experiment(name: str) -> Experiment:
    """The experiment of that name; `InputError` that lists the names for any other."""
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise InputError("no such experiment", where=name, hint=f"choose from {known}, merge or results")
    return EXPERIMENTS[name]


def _solve(
    groups: Sequence[list[Unit]],
    request: Request,
    plan: dict[str, Any],
    category: Callable[[str], sets.Category],
    on_failure: Callable[[str], None],
) -> set[Unit]:
    """Computes what is missing, here or in processes; the units that failed."""

    def left(unit: Unit) -> int:
        try:
            return len(missing(unit, request.out, category(unit.category)))
        except InputError:  # of the category; `run_units` tells
            return 1

    counts = {unit: left(unit) for units in groups for unit in units}
    groups = [units for units in groups if any(counts[unit] for unit in units)]
    networks = _networks([unit.detector for units in groups for unit in units], request, plan)
    failed: set[Unit] = set()
    with tqdm(total=sum(counts.values()), desc=request.name, unit="image", leave=False, disable=None) as bar:

        def tell(message: Solved | Failed) -> None:
            if isinstance(message, Failed):
                failed.add(message.unit)
                on_failure(message.problem)
            else:
                bar.set_postfix_str(message.unit.name, refresh=False)
                bar.update()

        def lose(units: list[Unit]) -> None:
            for unit in units:
                if left(unit) and unit not in failed:
                    tell(Failed(unit, f"{unit.name}: the process that worked on it ended"))

        if request.jobs == 1:
            for units in groups:
                run_units(units, request.out, _task(plan, category, networks), tell=tell)
        else:
            begin = partial(begin_worker, request, plan)
            share_out(groups, begin, jobs=request.jobs, tell=tell, on_loss=lose)
    return failed


def begin_worker(request: Request, plan: dict[str, Any]) -> Work:
    """What one of `request.jobs` processes does with each group of units."""
    # On a CPU pictures are solved side by side, one on each core of this process.
    jax.config.update("jax_num_cpu_devices", max(1, (os.cpu_count() or 1) // request.jobs))
    detectors = {name for selection in plan["experiments"].values() for name in selection["detectors"]}
    task = _task(plan, _categories(request, plan), _networks(detectors, request, plan))

    def work(units: list[Unit], tell: Tell) -> None:
        run_units(units, request.out, task, tell=tell)

    return work


def _task(plan: dict[str, Any], category: Callable[[str], sets.Category], networks: dict[str, Any]) -> Task:
    return Task(plan["dataset"], plan["seed"], plan["tuning"], category, networks)


def _categories(request: Request, plan: dict[str, Any]) -> Callable[[str], sets.Category]:
    folder = make_folder(request.out / "sets")
    facts = {name: plan[name] for name in ("dataset", "images", "seed", "kinds")}
    return cache(lambda name: sets.load_category(name, folder, data=request.data, **facts))


def _networks(detectors: Iterable[str], request: Request, plan: dict[str, Any]) -> dict[str, Extractor]:
    """The network of each detector."""
    asked = plan.get("extractor")
    names = {detector: asked or sets.extractor_name(detector, plan["dataset"]) for detector in detectors}
    loaded = {
        name: load_extractor(name, weights=request.weights if name == (asked or "resnet18") else None)
        for name in sorted(set(names.values()))
    }
    return {detector: loaded[name] for detector, name in names.items()}


def _plan(request: Request) -> dict[str, Any]:
    real = known_experiment(request.name).real
    if request.data is None and real:
        raise InputError("needs MVTec AD", where=request.name, hint="name its folder with --data")
    if request.data is None and request.weights is not None and request.extractor is None:
        raise InputError(
            "the textures need no weights", where=request.weights, hint="leave --weights out, or add --data"
        )
    if request.extractor is not None:
        entry(request.extractor, kind="extractor")  # before anything is kept
    if request.weights is not None:
        check_readable(request.weights)
    categories = sets.find_categories(request.data)
    for name in request.categories:
        if name not in categories:
            raise InputError("no such category", where=name, hint=f"choose from {', '.join(categories)}")
    detectors = {detector_class(name).name: None for name in request.detectors or DETECTORS}
    few = request.data is None and len(EXPERIMENTS[request.name].kinds) == 1
    default = sets.TEXTURE_IMAGES if few else sets.PART_IMAGES
    return {
        "dataset": sets.EMBEDDED if request.data is None else sets.REAL if real else sets.CUT_PASTE,
        "images": request.images or default,
        "size": sets.SIZE,
        "seed": request.seed,
        "kinds": [*EXPERIMENTS[request.name].kinds],
        "tuning": request.tuning,
        **({"extractor": request.extractor} if request.extractor else {}),
        "categories": sorted({*request.categories} or categories),
        "detectors": sorted(detectors, key=[*DETECTORS, *detectors].index),
        "command": _command(request),
    }


def _command(request: Request) -> str:
    """What to type for the same result: without folders of this machine, or the share of the work."""
    words = ["f2pad experiment", request.name]
    if request.data is not None:
        words.append("--data MVTEC_ROOT")
    if request.weights is not None:
        words.append("--weights FILE")
    words += [f"--images {request.images}"] if request.images else []
    words += [f"--extractor {request.extractor}"] if request.extractor else []
    words += [f"--detector {name}" for name in dict.fromkeys(request.detectors)]
    words += [f"--category {name}" for name in dict.fromkeys(request.categories)]
    words += [f"--seed {request.seed}"] if request.seed else []
    words += {SYNTHETIC: [], ORACLE: ["--oracle"], DEFAULT: ["--untuned"], PRINTED: ["--paper"]}[request.tuning]
    return " ".join([*words, "--out DIR"])


_OWN = ("categories", "detectors", "command")  # what an experiment does not share with the others in its folder


def _common(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key not in (*_OWN, "experiments")}


def _keep_plan(plan: dict[str, Any], name: str, out: Path) -> dict[str, Any]:
    """Adds an experiment to the plan of a results folder, and returns that."""
    whole = _common(plan) | {"experiments": {}}
    if (out / "plan.json").is_file():
        whole = read_plan(out)
        if different := [key for key in _common(plan) | _common(whole) if whole.get(key) != plan.get(key)]:
            raise InputError(
                f"holds results with another {', '.join(different)}", where=out, hint="name another folder"
            )
    whole["experiments"] = dict(sorted((whole["experiments"] | {name: {key: plan[key] for key in _OWN}}).items()))
    write_record(out / "plan.json", whole)
    return whole


def _copy_missing(source: Path, target: Path) -> None:
    for path in sorted([source, *source.rglob("*")]):
        place = target / path.relative_to(source)
        if path.is_dir():
            make_folder(place)
        elif path.is_file() and not path.name.startswith(".") and not place.exists():
            write_bytes(place, path.read_bytes())


def _render(
    names: Sequence[str],
    plan: dict[str, Any],
    out: Path,
    category: Callable[[str], sets.Category],
    on_failure: Callable[[Unit | None, str], None],
    say: Callable[[str], None],
) -> bool:
    """Writes the files of experiments and results.md; whether all their units are there."""
    whole, problems = True, []
    for name in names:
        try:
            files, complete = render(name, plan, list_units(name, plan), out, category, on_failure)
        except InputError as error:  # another experiment may have more to show
            problems.append(error)
        else:
            whole = whole and complete
            for file in files:
                say(str(file))
    if len(problems) == len(names):
        raise problems[0]
    for problem in problems:
        on_failure(None, str(problem))
    say(str(write_results([out], out)))
    return whole and not problems

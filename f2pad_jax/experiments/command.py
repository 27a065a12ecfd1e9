"""`f2pad experiment`: plans the work, does it or a share of it, and writes tables and figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from f2pad_jax import __version__, report
from f2pad_jax.detectors import get_detector
from f2pad_jax.detectors.cflow import FEW_SHOTS
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import metrics_file
from f2pad_jax.experiments import paper, sets
from f2pad_jax.experiments.figures import DRAWN, failure_table
from f2pad_jax.experiments.runs import ABLATIONS, CURVES, FULL, Task, Unit, missing, run_units
from f2pad_jax.experiments.tables import MADE, Done, read_done
from f2pad_jax.output import make_folder, write_bytes, write_json
from f2pad_jax.pretrained import load_extractor

DETECTORS = ("patchcore", "cflow", "padim")  # in the paper's order
VARIANTS: dict[str, tuple[str, ...]] = {  # that an experiment needs beside the full method
    "table3": tuple(ABLATIONS),
    "fig8": ("initialisation", "no-pixel-prior", "no-sparsity"),
    "fig9": ("no-pixel-prior",),
}
NAMES = tuple(paper.SECTIONS)
TABLES = MADE | {"fig11": failure_table}


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
      oracle: whether settings are chosen on the test set, as in the paper.
      shard: index and count: the share of the units to do.
    """

    name: str
    data: Path | None
    weights: Path | None
    out: Path
    images: int | None = None
    detectors: Sequence[str] = ()
    categories: Sequence[str] = ()
    seed: int = 0
    oracle: bool = False
    shard: tuple[int, int] = (0, 1)


def experiment(request: Request, *, on_failure: Callable[[str], None], say: Callable[[str], None]) -> bool:
    """Does what is missing, and writes NAME.json, NAME.md and for figures NAME.png, unless a share only was asked for.

    Returns:
      Whether everything went well; each unit that failed was one call of `on_failure`.

    Raises:
      InputError: the request cannot be met, or nothing of it could.
    """
    index, count = request.shard
    if not 0 <= index < count:
        raise InputError(f"share {index} of {count} does not exist", mend=f"--shard-index goes from 0 to {count - 1}")
    plan = _plan(request)
    out = make_folder(request.out)
    kept = _keep_plan(plan, request.name, out)
    folder = make_folder(out / "sets")

    @cache
    def category(name: str) -> sets.Category:
        return sets.load_category(name, folder, data=request.data, images=plan["images"], seed=plan["seed"])

    share = list_units(request.name, kept)[index::count]
    left = [unit for unit in share if missing(unit, out, plan["images"])]
    asked = {unit.detector: sets.extractor_name(unit.detector, plan["dataset"]) for unit in left}
    networks = {name: load_extractor(name, weights=_weights(name, request)) for name in set(asked.values())}
    extractors = {detector: networks[name] for detector, name in asked.items()}
    task = Task(plan["dataset"], plan["images"], plan["seed"], plan["oracle"], category, extractors)
    failed = run_units(left, out, task, on_failure=on_failure)
    if count > 1:
        say(f"{out}: {len(share) - len(failed)} units done; join the shares with `f2pad experiment merge`")
        return not failed

    def fail(unit: Unit, problem: str) -> None:
        if unit not in failed:  # those have had their line
            on_failure(problem)

    return _render(request.name, kept, out, category, fail, say)


def merge(parts: Sequence[Path], out: Path, *, on_failure: Callable[[str], None], say: Callable[[str], None]) -> bool:
    """Copies the parts of several results folders into one, and writes what one run would have written.

    Returns:
      Whether nothing was missing; each unit that is was one call of `on_failure`.

    Raises:
      InputError: a folder holds no experiment, or they do not belong together.
    """
    plans = [_read_plan(path) for path in parts]
    for path, plan in zip(parts, plans, strict=True):
        if plan != plans[0]:
            raise InputError("holds another experiment than the first folder", where=path, mend="merge one at a time")
    out = make_folder(out)
    for name in plans[0]["experiments"]:
        _keep_plan(_common(plans[0]) | plans[0]["experiments"][name], name, out)
    for path in parts:
        if path.resolve() != out.resolve():
            for kind in ("sets", "parts"):
                _copy_missing(path / kind, out / kind)
    category = cache(lambda name: sets.read_category(out / "sets" / name))
    plan = _read_plan(out)

    def fail(_: Unit, problem: str) -> None:
        on_failure(problem)

    return all([_render(name, plan, out, category, fail, say) for name in plans[0]["experiments"]])


def list_units(name: str, plan: dict[str, Any]) -> list[Unit]:
    """The units of an experiment, sorted by name."""
    selection = plan["experiments"][name]
    variants = (FULL, *VARIANTS.get(name, ())) if name != "fig10" else (CURVES,)
    shots = FEW_SHOTS if name == "table2" else None
    units = [
        Unit(category, detector, shots, variant)
        for category in selection["categories"]
        for detector in selection["detectors"]
        for variant in variants
    ]
    return sorted(units, key=lambda unit: unit.name)


def _plan(request: Request) -> dict[str, Any]:
    if request.name not in NAMES:
        raise InputError("no such experiment", where=request.name, mend=f"choose from {', '.join(NAMES)}, or merge")
    if request.data is None and request.weights is not None:
        raise InputError(
            "the textures need no weights", where=request.weights, mend="leave --weights out, or add --data"
        )
    found = sets.find_categories(request.data)
    for name in request.categories:
        if name not in found:
            raise InputError("no such category", where=name, mend=f"choose from {', '.join(found)}")
    detectors = {get_detector(name).name for name in request.detectors or DETECTORS}
    default = sets.TEXTURE_IMAGES if request.data is None else sets.PART_IMAGES
    return {
        "dataset": sets.EMBEDDED if request.data is None else sets.CUT_PASTE,
        "images": request.images or default,
        "size": sets.SIZE,
        "seed": request.seed,
        "oracle": request.oracle,
        "categories": sorted(request.categories or found),
        "detectors": [name for name in DETECTORS if name in detectors],
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
    words += [f"--detector {name}" for name in request.detectors]
    words += [f"--category {name}" for name in request.categories]
    words += [f"--seed {request.seed}"] if request.seed else []
    words += ["--oracle"] if request.oracle else []
    return " ".join([*words, "--out DIR"])


_OWN = ("categories", "detectors", "command")  # what an experiment does not share with the others in its folder


def _common(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key not in (*_OWN, "experiments")}


def _keep_plan(plan: dict[str, Any], name: str, out: Path) -> dict[str, Any]:
    """Adds an experiment to the plan of a results folder, and returns that."""
    whole = _common(plan) | {"experiments": {}}
    if (out / "plan.json").is_file():
        whole = _read_plan(out)
        if _common(whole) != _common(plan):
            different = [key for key, value in _common(plan).items() if whole.get(key) != value]
            raise InputError(
                f"holds results with another {', '.join(different)}", where=out, mend="name another folder"
            )
    whole["experiments"] = dict(sorted((whole["experiments"] | {name: {key: plan[key] for key in _OWN}}).items()))
    write_json(out / "plan.json", whole)
    return whole


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "plan.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("holds no experiment", where=folder, mend="name the --out folders of earlier runs") from error


def _weights(extractor: str, request: Request) -> Path | None:
    return request.weights if extractor == "resnet18" else None


def _copy_missing(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_file() and not path.name.startswith(".") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _render(
    name: str,
    plan: dict[str, Any],
    out: Path,
    category: Callable[[str], sets.Category],
    on_failure: Callable[[Unit, str], None],
    say: Callable[[str], None],
) -> bool:
    """Writes an experiment's files from the parts alone; whether all its units are there."""
    selection = plan["experiments"][name]
    units = list_units(name, plan)
    order = {detector: place for place, detector in enumerate(DETECTORS)}
    units.sort(key=lambda unit: (order[unit.detector], unit.category))
    done: list[Done] = []
    absent = []
    for unit in units:
        try:
            done.append(read_done(unit, out, category(unit.category)))
        except InputError as error:
            on_failure(unit, str(error))
            absent.append(unit.name)
    if not any(one.unit.variant in (FULL, CURVES) for one in done):
        raise InputError("no unit is complete", where=f"{out}: {name}", mend="see the lines above, and run it again")
    facts = _common(plan) | {
        "command": selection["command"],
        "f2pad_jax": __version__,
        "tuned_on": sorted({one.run["tuned_on"] for one in done}),
        "machines": sorted({f"{one.run['device']}, jax {one.run['jax']}" for one in done}),
        "time": _time(done),
        "absent": absent,
    }
    content = metrics_file([one.run for one in done]) | {
        "experiment": name,
        "paper": {"source": f"{paper.SOURCE}, {paper.SECTIONS[name]}", "numbers": paper.numbers(name)},
        "protocol": facts,
    }
    write_json(out / f"{name}.json", content)
    write_bytes(out / f"{name}.md", "\n".join(_page(name, done, facts)).encode())
    written = [f"{name}.json", f"{name}.md"]
    if name in DRAWN:
        write_bytes(out / f"{name}.png", report.png(DRAWN[name](done, out)))
        written.append(f"{name}.png")
    for file in written:
        say(str(out / file))
    return not absent


def _time(done: Sequence[Done]) -> float:
    """Seconds of all fits and solves; a fit serves all variants of its unit."""
    fits: dict[tuple, float] = {}
    for one in done:
        key = one.unit[:3]
        fits[key] = max(fits.get(key, 0.0), one.run["fit_seconds"])
    return round(sum(fits.values()) + sum(part.record["seconds"] for one in done for part in one.parts), 1)


def _page(name: str, done: Sequence[Done], facts: dict[str, Any]) -> Iterator[str]:
    yield f"# {paper.SECTIONS[name]}\n"
    yield f"`{facts['command']}`\n"
    if name in DRAWN:
        yield f"![{paper.SECTIONS[name]}]({name}.png)\n"
    if name in TABLES:
        yield TABLES[name](name, done)
    networks = sorted({f"{one.unit.detector} on {one.run['extractor']}" for one in done})
    train = sorted({one.run["train_images"] for one in done})
    yield (
        f"{facts['dataset']}, {facts['images']} test pictures a category of {facts['size']} × {facts['size']}, "
        f"{' or '.join(map(str, train))} for training, seed {facts['seed']}, settings: {', '.join(facts['tuned_on'])}; "
        f"{', '.join(networks)}; f2pad-jax {facts['f2pad_jax']}, {'; '.join(facts['machines'])}; "
        f"{facts['time']:.0f} s for fits and solves.\n"
    )
    if facts["absent"]:
        yield f"Not complete, and left out: {', '.join(facts['absent'])}.\n"

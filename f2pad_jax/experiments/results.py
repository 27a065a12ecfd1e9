"""Files about complete units: NAME.json, NAME.md and NAME.png of an experiment, and RESULTS.md of all together."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from f2pad_jax import __version__, report
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import metrics_file
from f2pad_jax.experiments import paper
from f2pad_jax.experiments.models import DEFAULT, ORACLE, SYNTHETIC, Unit
from f2pad_jax.experiments.registry import EXPERIMENTS, Experiment
from f2pad_jax.experiments.runs import blame, solved
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.tables import Done, markdown, read_done
from f2pad_jax.output import make_folder, write_bytes, write_json

PAGE = "RESULTS.md"
WAYS = {DEFAULT: "default settings", SYNTHETIC: "tuned on synthetic anomalies", ORACLE: "tuned on the test set"}
_LINK = re.compile(r"\]\((?![a-z]+:|#)")  # to a file beside the page


def read_plan(folder: Path) -> dict[str, Any]:
    """What `f2pad experiment` keeps of a results folder.

    Raises:
      InputError: it is none.
    """
    try:
        return json.loads((folder / "plan.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("holds no experiment", where=folder, hint="name the --out folders of earlier runs") from error


def render(
    name: str,
    plan: dict[str, Any],
    units: Sequence[Unit],
    out: Path,
    category: Callable[[str], Category],
    on_failure: Callable[[Unit, str], None],
) -> tuple[list[Path], bool]:
    """Writes an experiment's files from the parts alone.

    Pictures that failed in one unit are left out of all units of their category, so that these can be compared.

    Args:
      name: of the experiment.
      plan: of the results folder.
      units: of the experiment.
      out: the results folder.
      category: gives the pictures of a category.
      on_failure: called for each unit that is not there in whole.

    Returns:
      The files, and whether all units were there in whole.

    Raises:
      InputError: there is nothing to show.
    """
    made, common = EXPERIMENTS[name], {key: value for key, value in plan.items() if key != "experiments"}
    done, absent = _read(units, out, category, on_failure)
    if not any(one.unit.variant == made.variants[0] for one in done):
        raise InputError("no unit is complete", where=f"{out}: {name}", hint="see the lines above, and run it again")
    facts = common | {
        "command": plan["experiments"][name]["command"],
        "f2pad_jax": __version__,
        "tuned_on": sorted({one.run["tuned_on"] for one in done}),
        "machines": sorted({f"{one.run['machine']}, jax {one.run['jax']}" for one in done}),
        "time": _time(done),
        "absent": absent,
    }
    content = metrics_file([one.run for one in done]) | {"experiment": name, "protocol": facts}
    if made.printed:
        content["paper"] = {"source": f"{paper.SOURCE}, {made.section}", "numbers": paper.numbers(name)}
    files = [out / f"{name}.json", out / f"{name}.md"]
    write_json(files[0], content)
    write_bytes(files[1], "\n".join(_page(made, done, facts)).encode())
    if made.figure:
        files.append(out / f"{name}.png")
        write_bytes(files[-1], report.png(made.figure(done, out)))
    return files, not absent


def write_results(folders: Sequence[Path], out: Path) -> Path:
    """Writes RESULTS.md: all finished experiments of results folders in the paper's order, with links to their files.

    Raises:
      InputError: a folder holds no experiment, or none that is finished.
    """
    contents, sections = [], []
    machines: set[str] = set()
    for number, folder in enumerate(folders):
        wanted = [made for made in EXPERIMENTS.values() if made.name in read_plan(folder)["experiments"]]
        finished = [made for made in wanted if (folder / f"{made.name}.md").is_file()]
        if not finished:
            raise InputError("holds no finished experiment", where=folder, hint="run it again, or merge its shares")
        way = Path(os.path.relpath(folder, out)).as_posix()
        for made in finished:
            facts = json.loads((folder / f"{made.name}.json").read_text("utf-8"))["protocol"]
            machines |= {*facts["machines"]}
            title = f"{made.section}, {facts['dataset']}, {WAYS[facts['tuning']]}"
            anchor = f"{made.name}-{number + 1}"
            contents.append([f"[{title}](#{anchor})", f"`{facts['command']}`", f"{facts['time']:.0f}"])
            _, _, rest = (folder / f"{made.name}.md").read_text("utf-8").partition("\n")
            text = _LINK.sub("](" if way == "." else f"]({way}/", rest)
            sections.append(f'<a id="{anchor}"></a>\n\n## {title}\n{text}')
    head = markdown(["", "command", "seconds of fits, tuning and solves"], contents)
    page = f"# Results\n\nMade by `f2pad experiment` on {'; '.join(sorted(machines))}.\n\n{head}\n"
    make_folder(out)
    write_bytes(out / PAGE, (page + "\n".join(sections)).encode())
    return out / PAGE


def _read(
    units: Sequence[Unit],
    out: Path,
    category: Callable[[str], Category],
    on_failure: Callable[[Unit, str], None],
) -> tuple[list[Done], list[str]]:
    """Units that are there, in the paper's order of detectors, and the names of what is not."""
    order = {detector: place for place, detector in enumerate(paper.DETECTORS)}
    found: dict[Unit, list[int]] = {}
    shared: dict[str, set[int]] = {}  # pictures that all units of a category have
    absent = []
    for unit in sorted(units, key=lambda unit: (order[unit.detector], unit.category)):
        try:
            pictures = category(unit.category)
            found[unit], failed = solved(unit, out, pictures)
        except InputError as error:
            on_failure(unit, str(error))
            absent.append(unit.name)
            continue
        if failed:
            on_failure(unit, f"{unit.name}: {blame(pictures, failed)}")
            absent += [f"{unit.name} {pictures.names[index]}" for index in failed]
        shared[unit.category] = shared.get(unit.category, {*found[unit]}) & {*found[unit]}
    done = []
    for unit, pictures in found.items():
        try:
            both = [index for index in pictures if index in shared[unit.category]]
            done.append(read_done(unit, out, category(unit.category), both))
        except InputError as error:
            on_failure(unit, str(error))
            absent.append(unit.name)
    return done, absent


def _time(done: Sequence[Done]) -> float:
    """Seconds of all fits, tunings and solves; a model serves all variants of its unit."""
    models: dict[tuple, float] = {}
    for one in done:
        key = *one.unit[:3], one.run["seed"], one.run["tuned_on"]
        seconds = one.run["fit_seconds"] + one.run["tune_seconds"]
        models[key] = max(models.get(key, 0.0), seconds)
    return round(sum(models.values()) + sum(part.record["seconds"] for one in done for part in one.parts), 1)


def _page(made: Experiment, done: Sequence[Done], facts: dict[str, Any]) -> Iterator[str]:
    yield f"# {made.section}\n"
    yield f"`{facts['command']}`\n"
    if made.figure:
        yield f"![{made.section}]({made.name}.png)\n"
    if made.table:
        yield made.table(made.name, done)
    networks = sorted({f"{one.unit.detector} on {one.run['extractor']}" for one in done})
    train = sorted({one.run["train_images"] for one in done})
    tests = sorted({one.run["test_images"] for one in done})
    yield (
        f"{facts['dataset']}, {' or '.join(map(str, tests))} test pictures a category of {facts['size']} × "
        f"{facts['size']}, {' or '.join(map(str, train))} for training, seed {facts['seed']}, "
        f"settings: {', '.join(facts['tuned_on'])}; {', '.join(networks)}; f2pad-jax {facts['f2pad_jax']}, "
        f"{'; '.join(facts['machines'])}; {facts['time']:.0f} s for fits, tuning and solves.\n"
    )
    if facts["absent"]:
        yield f"Not complete, and left out: {', '.join(facts['absent'])}.\n"

"""Files about complete units: NAME.json, NAME.md and NAME.png of an experiment, and a page about all together."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans

from f2pad_jax import __version__, report
from f2pad_jax.data.decoding import opened
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import metrics_file
from f2pad_jax.experiments import paper
from f2pad_jax.experiments.cases import FEWEST, Case, read_cases
from f2pad_jax.experiments.models import DEFAULT, ORACLE, PRINTED, SYNTHETIC, Unit
from f2pad_jax.experiments.records import read_plan
from f2pad_jax.experiments.registry import EXPERIMENTS, Experiment
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.tables import UNKNOWN, markdown
from f2pad_jax.experiments.variants import fit_changes
from f2pad_jax.output import make_folder, write_bytes, write_json
from f2pad_jax.schemas import Facts, Seconds, read_facts

PAGE, BESIDE = "results.md", "results"  # the page, and the folder for its figures and runs where it is of several
WAYS = {
    DEFAULT: "default settings",
    SYNTHETIC: "tuned on synthetic anomalies",
    ORACLE: "tuned on the test set",
    PRINTED: "the paper's settings",
}
SMALL = 60_000  # bytes of a figure on a page about several folders
SHRINK = 0.9  # step in which such a figure shrinks
GREYS, COLOURS, COLOURED = 8, 32, 24  # how many it has, and the difference of its channels from which a pixel has one
DRAWN = 20_000  # pixels that its colours are chosen from
AGAIN = "run it again"
_FIGURE = re.compile(r"!\[(.*)\]\((.+)\)\n")


class _Protocol(Facts, extra="ignore"):
    dataset: str
    tuning: Literal["default", "synthetic", "oracle", "paper"]
    command: str
    machines: list[str]
    time: Seconds


class _Content(Facts, extra="ignore"):
    protocol: _Protocol
    runs: list[dict[str, Any]]


def render(
    name: str,
    plan: dict[str, Any],
    units: Sequence[Unit],
    out: Path,
    category: Callable[[str], Category],
    on_failure: Callable[[Unit, str], None],
) -> tuple[list[Path], bool]:
    """Writes an experiment's files from the parts alone.

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
    cases, absent = read_cases(units, out, category, on_failure)
    if not any(case.unit.variant == made.variants[0] for case in cases):
        raise InputError("no unit is complete", where=f"{out}: {name}", hint="see the lines above, and run it again")
    facts = common | {
        "command": plan["experiments"][name]["command"],
        "f2pad_jax": __version__,
        "tuned_on": sorted({case.run["tuned_on"] for case in cases}),
        "machines": sorted({f"{case.run['machine']}, jax {case.run['jax']}" for case in cases}),
        "time": _time(cases),
        "absent": absent,
    }
    content = metrics_file([case.run for case in cases]) | {"experiment": name, "protocol": facts}
    if made.printed:
        content["paper"] = {"source": f"{paper.SOURCE}, {made.section}", "numbers": paper.numbers(name)}
    files = [out / f"{name}.json", out / f"{name}.md"]
    write_json(files[0], content)
    write_bytes(files[1], "\n".join(_page(made, cases, facts)).encode())
    if made.figure:
        files.append(out / f"{name}.png")
        write_bytes(files[-1], report.png(made.figure(cases, out)))
    return files, not absent


def write_results(folders: Sequence[Path], out: Path) -> Path:
    """Writes the page about all finished experiments of results folders, in the paper's order.

    What is not in the page's own folder is copied to "results" beside the page: figures, made small, and in
    `runs.jsonl` each run once, whatever the number of its experiments.

    Raises:
      InputError: a folder holds no experiment, or none that is finished, or one of its files is damaged.
    """
    contents, sections = [], []
    machines: set[str] = set()
    runs: dict[str, list[str]] = {}  # the experiments of each run
    for number, folder in enumerate(folders):
        own = folder.resolve() == out.resolve()
        planned = [made for made in EXPERIMENTS.values() if made.name in read_plan(folder)["experiments"]]
        finished = [made for made in planned if (folder / f"{made.name}.md").is_file()]
        if not finished:
            raise InputError("holds no finished experiment", where=folder, hint="run it again, or merge its shares")
        for made in finished:
            content = _content(folder / f"{made.name}.json")
            facts = content.protocol
            machines |= {*facts.machines}
            title = f"{made.section}, {facts.dataset}, {WAYS[facts.tuning]}"
            anchor = f"{made.name}-{number + 1}"
            contents.append([f"[{title}](#{anchor})", f"`{facts.command}`", f"{facts.time:.0f}"])
            _, _, text = _text(folder / f"{made.name}.md").partition("\n")
            if not own:
                text = _FIGURE.sub(lambda link, folder=folder: _copied(link[1], folder / link[2], out), text)
                for run in content.runs:
                    runs.setdefault(json.dumps(run, sort_keys=True), []).append(f"{folder.name}/{made.name}")
            sections.append(f'<a id="{anchor}"></a>\n\n## {title}\n{text}')
    head = markdown(["", "command", "seconds of fits, tuning and solves"], contents)
    page = f"# Results\n\nMade by `f2pad experiment` on {'; '.join(sorted(machines))}.\n\n{head}\n"
    make_folder(out)
    if runs:
        lines = [json.dumps({"experiments": names} | json.loads(run)) + "\n" for run, names in runs.items()]
        write_bytes(make_folder(out / BESIDE) / "runs.jsonl", "".join(lines).encode())
        page += f"[`runs.jsonl`]({BESIDE}/runs.jsonl) has a line for each run behind these tables.\n\n"
    write_bytes(out / PAGE, (page + "\n".join(sections)).encode())
    return out / PAGE


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=AGAIN) from error
    except ValueError as error:
        raise InputError(f"is no UTF-8 ({error})", where=path, hint=AGAIN) from error


def _content(path: Path) -> _Content:
    """What NAME.json says, as far as the page shows it."""
    text = _text(path)
    try:
        facts = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise InputError(f"is no JSON ({error})", where=path, hint=AGAIN) from error
    return read_facts(_Content, facts, kind="results", where=path, hint=AGAIN)


def _copied(title: str, figure: Path, out: Path) -> str:
    """The link to a small copy of a figure; nothing where there is none."""
    if not figure.is_file():
        return ""
    name = f"{figure.parent.resolve().name}-{figure.name}"
    with opened(figure) as decoded:
        picture = decoded.picture.convert("RGB")
    write_bytes(make_folder(out / BESIDE) / name, small_png(picture))
    return f"![{title}]({BESIDE}/{name})\n"


def small_png(whole: Image.Image) -> bytes:
    """A figure, RGB, with few colours, and so few pixels that it takes at most `SMALL` bytes."""
    scale = 1.0
    while True:
        picture = whole.resize((round(scale * whole.width), round(scale * whole.height)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.quantize(palette=_palette(picture), dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= SMALL:
            return buffer.getvalue()
        scale *= SHRINK


def _palette(picture: Image.Image) -> Image.Image:
    """Greys and colours apart: the few pixels of masks and outlines would otherwise be lost among grey pictures."""
    pixels = np.asarray(picture).reshape(-1, 3)
    coloured = np.ptp(pixels, axis=1) > COLOURED
    centres = []
    for group, count in ((pixels[~coloured], GREYS), (pixels[coloured], COLOURS)):
        if len(group):
            drawn = group[np.random.default_rng(0).choice(len(group), min(len(group), DRAWN), replace=False)]
            clusters = KMeans(min(count, len(np.unique(drawn, axis=0))), random_state=0).fit(drawn)
            centres.append(np.round(clusters.cluster_centers_).astype(np.uint8))
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(centres).tobytes())
    return palette


def _time(cases: Sequence[Case]) -> float:
    """Seconds of all fits, tunings and solves; a model serves all variants of its unit."""
    models: dict[tuple, float] = {}
    for case in cases:
        key = *case.unit[:3], case.run["seed"], case.run["tuned_on"], *sorted(fit_changes(case.unit.variant).items())
        seconds = case.run["fit_seconds"] + case.run["tune_seconds"]
        models[key] = max(models.get(key, 0.0), seconds)
    return round(sum(models.values()) + sum(float(case.column("seconds").sum()) for case in cases), 1)


def _page(made: Experiment, cases: Sequence[Case], facts: dict[str, Any]) -> Iterator[str]:
    yield f"# {made.section}\n"
    yield f"`{facts['command']}`\n"
    if made.figure:
        yield f"![{made.section}]({made.name}.png)\n"
    if made.table:
        yield (text := made.table(made.name, cases))
        if UNKNOWN in text:
            yield f"Fewer than {FEWEST} pictures of a category or group are too few for an interval: {UNKNOWN}.\n"
    networks = sorted({f"{case.unit.detector} on {case.run['extractor']}" for case in cases})
    train, tests = (sorted({case.run[f"{kind}_images"] for case in cases}) for kind in ("train", "test"))
    yield (
        f"{facts['dataset']}, {' or '.join(map(str, tests))} test pictures a category of {facts['size']} × "
        f"{facts['size']}, {' or '.join(map(str, train))} for training, seed {facts['seed']}, "
        f"settings: {', '.join(facts['tuned_on'])}; {', '.join(networks)}; f2pad-jax {facts['f2pad_jax']}, "
        f"{'; '.join(facts['machines'])}; {facts['time']:.0f} s for fits, tuning and solves.\n"
    )
    if facts["absent"]:
        yield f"Not complete, and left out: {', '.join(facts['absent'])}.\n"

"""Commands that measure: demo, evaluate, experiment."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from f2pad_jax import report
from f2pad_jax.checkpoint import check_outside
from f2pad_jax.commands.telling import DONE, UNUSABLE, complain, open_model, results_folder, warn
from f2pad_jax.configuration import write_settings
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_category
from f2pad_jax.detectors import detector_class
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import (
    Evaluation,
    check_kinds,
    check_masks,
    evaluate,
    evaluate_images,
    metrics_file,
)
from f2pad_jax.fitting import fit
from f2pad_jax.model import Model
from f2pad_jax.output import make_folder, owned, remove_files, write_bytes, write_json
from f2pad_jax.picture_files import SPOILED, flat_stems
from f2pad_jax.picture_jobs import panel_row
from f2pad_jax.startup import check_devices
from f2pad_jax.tuning import tune
from f2pad_jax.weights import load_extractor

DEMO_CATEGORIES = ("brick", "gravel")
DEMO_TRAIN = 64
OVERVIEW_ROWS = 12


def run_demo(arguments: argparse.Namespace) -> int:
    """Fits, segments and measures two embedded textures."""
    from f2pad_jax.data.textures import texture_category

    detectors = [detector_class(name).name for name in dict.fromkeys(arguments.detector or ["patchcore"])]
    check_outside(arguments.out)
    check_devices()
    extractor = load_extractor("efficientnet_lite0")
    runs, rows = [], []
    with owned(out := results_folder(arguments.out)):
        for category in DEMO_CATEGORIES:
            normals, cases = texture_category(category, train=DEMO_TRAIN, test=arguments.images, seed=arguments.seed)
            images, masks = np.stack([case[0] for case in cases]), np.stack([case[1] for case in cases])
            names = [f"color/{index:03d}" for index in range(len(cases))]
            for detector in detectors:
                model = fit(normals, detector=detector, extractor=extractor, seed=arguments.seed)
                done = evaluate(model, images, masks, names, dataset="textures", category=category)
                runs.append(done.run)
                rows += _rows(model, done, images, masks, names)
        _write(out, arguments, runs, rows)
    return _status(runs)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measures a model on a category's test pictures."""
    category = open_category(arguments.dataset, need_masks=arguments.oracle, layout=arguments.layout)
    check_outside(arguments.out)
    model = open_model(arguments)
    images, masks, cases, failures = load_category(
        category, None if model.windowed else model.shape, white_level=model.white_level
    )
    if not cases:
        raise failures[0][1]
    defective = np.array([not case.good for case in cases])
    if masks is None:
        check_kinds(defective, arguments.dataset)
    else:
        check_masks(masks, arguments.dataset)
    names, ids = [case.id for case in cases], {case.path: case.id for case in category.test}
    about: dict[str, Any] = {
        "dataset": category.dataset,
        "category": category.name,
        "unread": [(ids[path], error) for path, error in failures],
        "memory": arguments.memory,
    }
    with owned(out := results_folder(arguments.out)):
        if arguments.oracle and masks is not None:
            model = tune(model, seed=model.seed, oracle=(images, masks))
        if masks is None:
            done = evaluate_images(model, images, defective, names, **about)
        else:
            done = evaluate(model, images, masks, names, **about)
        _write(out, arguments, [done.run], _rows(model, done, images, masks, names))
    return _status([done.run])


def run_experiment(arguments: argparse.Namespace) -> int:
    """Makes a table or figure of the paper's case study, or joins shares of one, or pages about several."""
    from f2pad_jax.experiments.command import Request, experiment, join_results, merge
    from f2pad_jax.experiments.models import DEFAULT, ORACLE, PRINTED, SYNTHETIC

    def fail(line: str) -> None:
        complain(InputError(line))

    check_outside(arguments.out)
    if arguments.name in ("merge", "results") and not arguments.parts:
        raise InputError("no folder was named", where=arguments.name, hint="name the --out folders of earlier runs")
    if arguments.name == "merge":
        return DONE if merge(arguments.parts, arguments.out, on_failure=fail, say=print) else UNUSABLE
    if arguments.name == "results":
        join_results(arguments.parts, arguments.out, say=print)
        return DONE
    if arguments.parts:
        raise InputError("takes no folders", where=arguments.name, hint="give MVTec AD with --data")
    ways = {ORACLE: arguments.oracle, DEFAULT: arguments.untuned, PRINTED: arguments.paper}
    request = Request(
        arguments.name,
        arguments.data,
        arguments.weights,
        arguments.out,
        images=arguments.images,
        detectors=arguments.detector or (),
        categories=arguments.category or (),
        seed=arguments.seed,
        tuning=next((way for way, asked in ways.items() if asked), SYNTHETIC),
        shard=(arguments.shard_index, arguments.shard_count),
        jobs=arguments.jobs,
        extractor=arguments.extractor,
    )
    done = experiment(request, on_failure=fail, say=print)
    write_settings(arguments.out, arguments)
    return DONE if done else UNUSABLE


def _rows(
    model: Model, done: Evaluation, images: np.ndarray, masks: np.ndarray | None, names: Sequence[str]
) -> Iterator[tuple[str, report.Row]]:
    """A name, which may hold slashes, and the row of every image."""
    label = f"{done.run['category']} · {model.detector.name}"
    truths = [None] * len(images) if masks is None else masks
    for name, image, mask, result in zip(names, images, truths, done.results, strict=True):
        yield _panel_name(done.run["category"], model.detector.name, name), panel_row(label, image, result, mask)


def _write(
    out: Path, arguments: argparse.Namespace, runs: list[dict[str, Any]], rows: Iterable[tuple[str, report.Row]]
) -> None:
    """Writes `metrics.json`, `overview.png`, `panels/` and `settings.toml`, and prints the table."""
    write_settings(out, arguments)
    old = _earlier_panels(out)
    write_json(out / "metrics.json", metrics_file(runs))  # first: what was measured outlasts a panel that fails
    remove_files(old)
    _draw(out, list(rows))
    for run in runs:
        warn(f"{run['category']}, {run['detector']}: {line}" for line in run["warnings"])
    console = report.Terminal()
    if masked := [run for run in runs if "iou" in run["backbone"]]:
        report.print_table(masked, console)
    for run in (run for run in runs if run not in masked):
        before, after = run["backbone"]["image_auroc"], run["f2pad"]["image_auroc"]
        line = f"{run['category']}, {run['detector']}: no masks; image AUROC {before:.1f} → {after:.1f}"
        console.print(line, markup=False)
    console.print(f"{out / 'metrics.json'}\n{out / 'overview.png'}", soft_wrap=True, highlight=False, markup=False)


def _earlier_panels(out: Path) -> list[Path]:
    """The panels that an earlier run has drawn, by its `metrics.json`; none where that cannot be read."""
    try:
        runs = json.loads((out / "metrics.json").read_bytes())["runs"]
        names = [
            _panel_name(run["category"], run["detector"], image["image"])
            for run in runs
            for image in run["per_image"]
            if image["status"] != "failed"
        ]
    except (OSError, *SPOILED):
        return []
    return [out / "panels" / f"{stem}.png" for stem in flat_stems(names)]


def _panel_name(category: str, detector: str, image: str) -> str:
    return f"{category}/{detector}/{image}"


def _draw(out: Path, rows: Sequence[tuple[str, report.Row]]) -> None:
    panels, stems = make_folder(out / "panels"), flat_stems([name for name, _ in rows])
    for stem, (_, row) in zip(stems, tqdm(rows, desc="draw", unit="image", leave=False, disable=None), strict=True):
        write_bytes(panels / f"{stem}.png", report.png(report.draw([row])))
    spread = np.unique(np.linspace(0, len(rows) - 1, min(OVERVIEW_ROWS, len(rows))).round().astype(int))
    write_bytes(out / "overview.png", report.png(report.draw([rows[index][1] for index in spread])))


def _status(runs: Sequence[dict[str, Any]]) -> int:
    """The exit status, after a line on stderr for every picture that failed."""
    errors = [image["error"] for run in runs for image in run["per_image"] if image["status"] == "failed"]
    for error in errors:
        complain(InputError(error))
    return UNUSABLE if errors else DONE

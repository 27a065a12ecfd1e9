"""What each command of the command line does; all take the parsed arguments and return an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from f2pad_jax import __version__, doubts, report
from f2pad_jax.checkpoint import check_target, is_checkpoint, seal
from f2pad_jax.configuration import write_settings
from f2pad_jax.core import Settings
from f2pad_jax.data.folders import list_images
from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_category, load_images, load_tests
from f2pad_jax.detectors import Detector, check_options, detector_class, options_of
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import (
    Evaluation,
    check_kinds,
    check_masks,
    evaluate,
    evaluate_images,
    metrics_file,
    plain_settings,
)
from f2pad_jax.fitting import draw_shots, fit
from f2pad_jax.interest import digest_of, read_roi
from f2pad_jax.maps import calibrate, check_units, list_maps, read_map
from f2pad_jax.model import Model, Procedure, paper_settings
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.output import make_folder, owned, write_bytes, write_json
from f2pad_jax.picture_files import panel_row, segment_files
from f2pad_jax.reducing import seen_shape, work_shape
from f2pad_jax.tuning import tune
from f2pad_jax.weights import fetch_weights, import_weights, list_weights, load_extractor, verify_weights
from f2pad_jax.weights.inpainters import load_inpainter
from f2pad_jax.weights.listing import describe, weights_table
from f2pad_jax.windows import training_windows

DONE, UNUSABLE = 0, 2
DEMO_CATEGORIES = ("brick", "gravel")
DEMO_TRAIN = 64
OVERVIEW_ROWS = 12


def run_demo(arguments: argparse.Namespace) -> int:
    """Fits, segments and measures two embedded textures."""
    from f2pad_jax.data.textures import texture_category

    detectors = [detector_class(name).name for name in dict.fromkeys(arguments.detector or ["patchcore"])]
    out = _results_folder(arguments.out)
    extractor = load_extractor("efficientnet_lite0")
    runs, rows = [], []
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


def run_synthesize(arguments: argparse.Namespace) -> int:
    """Makes a data set with exact masks."""
    from f2pad_jax.data.synthesize import synthesize_category
    from f2pad_jax.data.textures import make_textures

    kinds = tuple(dict.fromkeys(arguments.kind or ["colour"]))
    if arguments.normals == Path("textures") and not arguments.normals.exists():
        if arguments.masks or arguments.structural:
            raise InputError("textures take neither --masks nor --structural", hint="leave them out")
        make_textures(
            arguments.out,
            seed=arguments.seed,
            test=arguments.count or max(8, len(kinds)),
            size=arguments.size or 224,
            kinds=kinds,
        )
    else:
        synthesize_category(
            arguments.normals,
            arguments.out,
            masks=arguments.masks,
            count=arguments.count or 54,
            kinds=kinds,
            structural=arguments.structural,
            seed=arguments.seed,
            size=arguments.size,
            layout=arguments.layout,
            white_level=arguments.white_level,
        )
    return DONE


def run_fit(arguments: argparse.Namespace) -> int:
    """Fits a detector to `train/good` of a category."""
    detector = detector_class(arguments.detector)
    options = parse_options(detector, arguments.option)
    settings, procedure = Settings(), Procedure()
    if arguments.paper:
        settings, procedure = paper_settings()
        options = {**detector.published, **options}
    check_target(arguments.out, kind="model")
    white = arguments.white_level
    paths = open_category(arguments.dataset, need_test=False, layout=arguments.layout).train
    if arguments.shots is not None:
        if arguments.shots > len(paths):
            raise InputError(
                f"has {len(paths)} training pictures, not {arguments.shots}",
                where=arguments.dataset,
                hint="lower --shots",
            )
        paths = [paths[index] for index in draw_shots(len(paths), arguments.shots, seed=arguments.seed)]
    procedure = replace(procedure, false_alarms=arguments.false_alarms)
    roi = inside = None if arguments.roi is None else read_roi(arguments.roi)
    extractor = load_extractor(arguments.extractor, weights=arguments.weights, precision=arguments.precision)
    inpainter = load_inpainter(arguments.inpainter) if arguments.inpainter else None
    own = read_image(paths[0], white_level=white).shape[:2] if arguments.windows is None else (arguments.windows,) * 2
    seen = seen_shape((own[0], own[1]), arguments.size, extractor)
    shape = work_shape((own[0], own[1]), arguments.windows or arguments.work_size, seen)
    if inpainter is not None or arguments.paper:  # which know squares only
        if arguments.windows is not None:
            raise InputError("--windows goes with neither --inpainter nor --paper", hint="leave one of them out")
        shape = seen = (arguments.size, arguments.size)
    normal_maps = [] if arguments.maps is None else [read_map(path) for path in list_maps(arguments.maps).values()]
    if normal_maps and arguments.windows is not None:
        raise InputError("--windows does not go with --maps", hint="leave one of them out")
    if arguments.windows is not None:
        images, inside = training_windows(paths, shape, white_level=white, roi=roi, seed=arguments.seed)
    else:
        images, failures = load_images(paths, shape, white_level=white)
        if failures:
            raise failures[0][1]  # a model of fewer pictures than were asked for would be a surprise
    _warn(doubts.of_training(images))
    model = fit(
        images,
        detector=detector.name,
        extractor=extractor,
        seen=seen,
        seed=arguments.seed,
        settings=settings,
        procedure=replace(procedure, start="autoencoder") if inpainter else procedure,
        options=options,
        inpainter=inpainter,
        roi=inside,
        white_level=white,
    )
    if normal_maps:
        model = calibrate(model, normal_maps)
    save_model(replace(model, windowed=arguments.windows is not None, roi=roi), arguments.out)
    what = "pictures" if arguments.windows is None else "windows"
    reduced = "" if seen == shape else f", of which the extractor sees {seen[1]} × {seen[0]}"
    print(
        f"{arguments.out}: {detector.name} on {extractor.name}, "
        f"{len(images)} {what} of {shape[1]} × {shape[0]}{reduced}"
    )
    return DONE


def run_train_mae(arguments: argparse.Namespace) -> int:
    """Trains a small masked autoencoder on `train/good` of a category."""
    from f2pad_jax.fills.autoencoder import KIND as AUTOENCODER
    from f2pad_jax.fills.training import small_spec, train_to_folder

    small_spec(arguments.size)
    check_target(arguments.out, kind=AUTOENCODER)
    paths = open_category(arguments.dataset, need_test=False, layout=arguments.layout).train
    images, failures = load_images(paths, arguments.size, white_level=arguments.white_level)
    if failures:
        raise failures[0][1]
    train_to_folder(images, arguments.out, seed=arguments.seed, epochs=arguments.epochs)
    print(f"{arguments.out}: masked autoencoder, {len(images)} pictures of {arguments.size} × {arguments.size}")
    return DONE


def run_tune(arguments: argparse.Namespace) -> int:
    """Chooses the settings of a fitted model."""
    check_target(arguments.out, kind="model")
    category = open_category(
        arguments.dataset, need_test=arguments.oracle, need_masks=arguments.oracle, layout=arguments.layout
    )
    model = load_model(arguments.model, weights=arguments.weights)
    oracle = None
    if arguments.oracle:
        images, masks, _, failures = load_tests(category.test, model.shape, white_level=model.white_level)
        if failures:
            raise failures[0][1]
        oracle = (images, masks)
    tuned = tune(model, seed=arguments.seed, oracle=oracle)
    save_model(tuned, arguments.out)
    chosen = {name: plain_settings(tuned)[name] for name in ("alpha1", "beta0", "components")}
    print(f"{arguments.out}: tuned on {tuned.tuned_on}, {chosen}")
    return DONE


def run_segment(arguments: argparse.Namespace) -> int:
    """Segments pictures and folders of pictures."""
    paths = list_images(arguments.pictures)
    model = load_model(arguments.model, weights=arguments.weights)
    if arguments.threshold is not None:
        model = replace(model, procedure=replace(model.procedure, threshold=arguments.threshold))
    if arguments.roi is not None:
        model = replace(model, roi=read_roi(arguments.roi))
    options = {"smallest_defect": arguments.smallest_defect}
    if arguments.maps is None:
        options["grow"] = arguments.grow
    elif arguments.grow:
        raise InputError("--grow does not go with --maps", hint="no map tells how the recovered picture would score")
    else:
        check_units(model)
    maps = None if arguments.maps is None else list_maps(arguments.maps)
    out = _results_folder(arguments.out)
    told = [seal(arguments.model), model.threshold, digest_of(model.roi), options, arguments.pixel_size]
    made_by = " ".join([__version__, *map(repr, told)])
    with owned(out):
        records = segment_files(
            model,
            paths,
            out,
            made_by=made_by,
            maps=maps,
            options=options,
            pixel_size=arguments.pixel_size,
            resume=arguments.resume,
            on_failure=_complain,
        )
        write_settings(out, arguments)  # of a run that was refused nothing is left
    _warn(doubts.of_records(records))
    return UNUSABLE if any(record["status"] == "failed" for record in records) else DONE


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measures a model on a category's test pictures."""
    category = open_category(arguments.dataset, need_masks=arguments.oracle, layout=arguments.layout)
    model = load_model(arguments.model, weights=arguments.weights)
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
    out = _results_folder(arguments.out)
    if arguments.oracle and masks is not None:
        model = tune(model, seed=model.seed, oracle=(images, masks))
    names, ids = [case.id for case in cases], {case.path: case.id for case in category.test}
    about: dict[str, Any] = {
        "dataset": category.dataset,
        "category": category.name,
        "unread": [(ids[path], error) for path, error in failures],
    }
    if masks is None:
        done = evaluate_images(model, images, defective, names, **about)
    else:
        done = evaluate(model, images, masks, names, **about)
    _write(out, arguments, [done.run], _rows(model, done, images, masks, names))
    return _status([done.run])


def run_experiment(arguments: argparse.Namespace) -> int:
    """Makes a table or figure of the paper's case study, or joins shares of one, or pages about several."""
    from f2pad_jax.experiments.command import Request, experiment, join_results, merge
    from f2pad_jax.experiments.models import DEFAULT, ORACLE, SYNTHETIC

    def fail(line: str) -> None:
        _complain(InputError(line))

    if arguments.name in ("merge", "results") and not arguments.parts:
        raise InputError("no folder was named", where=arguments.name, hint="name the --out folders of earlier runs")
    if arguments.name == "merge":
        return DONE if merge(arguments.parts, arguments.out, on_failure=fail, say=print) else UNUSABLE
    if arguments.name == "results":
        join_results(arguments.parts, arguments.out, say=print)
        return DONE
    if arguments.parts:
        raise InputError("takes no folders", where=arguments.name, hint="give MVTec AD with --data")
    request = Request(
        arguments.name,
        arguments.data,
        arguments.weights,
        arguments.out,
        images=arguments.images,
        detectors=arguments.detector or (),
        categories=arguments.category or (),
        seed=arguments.seed,
        tuning=ORACLE if arguments.oracle else DEFAULT if arguments.untuned else SYNTHETIC,
        shard=(arguments.shard_index, arguments.shard_count),
        jobs=arguments.jobs,
    )
    done = experiment(request, on_failure=fail, say=print)
    write_settings(arguments.out, arguments)
    return DONE if done else UNUSABLE


def run_report(arguments: argparse.Namespace) -> int:
    """Writes one HTML file about a folder of results."""
    from f2pad_jax.gallery import write_report

    out = arguments.out or arguments.results / "report.html"
    print(f"{out}: {write_report(arguments.results, out)} pictures")
    return DONE


def run_export(arguments: argparse.Namespace) -> int:
    """Writes a model in a form that other programs read."""
    from f2pad_jax.export import export

    model = load_model(arguments.model, weights=arguments.weights)
    export(model, arguments.out)
    print(f"{arguments.out}: {model.detector.name} on {model.extractor.name}")
    return DONE


def run_weights(arguments: argparse.Namespace) -> int:
    """Lists, fetches, imports or checks weights."""
    match arguments.action:
        case "list":
            report.Terminal().print(weights_table(list_weights()))
            return DONE
        case "fetch":
            found = (fetch_weights(arguments.name),)
        case "import":
            found = (import_weights(arguments.name, arguments.file, sha256=arguments.sha256),)
        case _:
            found = tuple(status for status in verify_weights() if status.origin != "absent")
    for status in found:
        print(describe(status))
    broken = [status for status in found if status.problem]
    for status in broken:
        _complain(InputError(str(status.problem)))
    return UNUSABLE if broken else DONE


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": run_demo,
    "synthesize": run_synthesize,
    "fit": run_fit,
    "train-mae": run_train_mae,
    "tune": run_tune,
    "segment": run_segment,
    "report": run_report,
    "evaluate": run_evaluate,
    "export": run_export,
    "experiment": run_experiment,
    "weights": run_weights,
}


def parse_options(detector: type[Detector], texts: Sequence[str]) -> dict[str, Any]:
    """Options of a detector's `fit` from texts such as "rank=32", by the types that it declares.

    Raises:
      InputError: a text has no "=", or the detector has no such option, or not with such a value.
    """
    pairs = [text.partition("=") for text in texts]
    for name, sign, _ in pairs:
        if not sign:
            raise InputError(f"--option {name} has no value", hint="write NAME=VALUE")
    options = {name: value for name, _, value in pairs}
    check_options(detector, options)
    types = options_of(detector)
    for name, value in options.items():
        try:
            options[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(
                f"option {name} of {detector.name} is {value!r}", hint=reason[0].lower() + reason[1:]
            ) from error
    return options


def _results_folder(path: Path) -> Path:
    if is_checkpoint(path, kind="model"):
        raise InputError("is the folder of a model", where=path, hint="name another folder for results")
    return make_folder(path)


def _complain(error: InputError) -> None:
    """One line on stderr, above a progress bar where there is one."""
    tqdm.write(f"f2pad: error: {error}", file=sys.stderr)


def _rows(
    model: Model, done: Evaluation, images: np.ndarray, masks: np.ndarray | None, names: Sequence[str]
) -> Iterator[tuple[str, report.Row]]:
    """The name of the panel's file and the row of every image."""
    label = f"{done.run['category']} · {model.detector.name}"
    truths = [None] * len(images) if masks is None else masks
    for name, image, mask, result in zip(names, images, truths, done.results, strict=True):
        stem = f"{done.run['category']}_{model.detector.name}_{name.replace('/', '_')}"
        yield stem, panel_row(label, image, result, mask)


def _write(
    out: Path, arguments: argparse.Namespace, runs: list[dict[str, Any]], rows: Iterable[tuple[str, report.Row]]
) -> None:
    """Writes `metrics.json`, `overview.png`, `panels/` and `settings.toml`, and prints the table."""
    rows = list(rows)
    with owned(out):
        write_settings(out, arguments)
        _write_files(out, runs, rows)
    for run in runs:
        _warn(f"{run['category']}, {run['detector']}: {line}" for line in run["warnings"])
    console = report.Terminal()
    if masked := [run for run in runs if "iou" in run["backbone"]]:
        report.print_table(masked, console)
    for run in (run for run in runs if run not in masked):
        before, after = run["backbone"]["image_auroc"], run["f2pad"]["image_auroc"]
        console.print(f"{run['category']}, {run['detector']}: no masks; image AUROC {before:.1f} → {after:.1f}")
    console.print(f"{out / 'metrics.json'}\n{out / 'overview.png'}", soft_wrap=True, highlight=False, markup=False)


def _write_files(out: Path, runs: list[dict[str, Any]], rows: Sequence[tuple[str, report.Row]]) -> None:
    panels = make_folder(out / "panels")
    for stem, row in tqdm(rows, desc="draw", unit="image", leave=False, disable=None):
        write_bytes(panels / f"{stem}.png", report.png(report.draw([row])))
    spread = np.unique(np.linspace(0, len(rows) - 1, min(OVERVIEW_ROWS, len(rows))).round().astype(int))
    write_bytes(out / "overview.png", report.png(report.draw([rows[index][1] for index in spread])))
    write_json(out / "metrics.json", metrics_file(runs))


def _warn(lines: Iterable[str]) -> None:
    """One line on stderr for each doubt about what was found."""
    for line in lines:
        tqdm.write(f"f2pad: warning: {line}", file=sys.stderr)


def _status(runs: Sequence[dict[str, Any]]) -> int:
    """The exit status, after a line on stderr for every picture that failed."""
    errors = [image["error"] for run in runs for image in run["per_image"] if image["status"] == "failed"]
    for error in errors:
        _complain(InputError(error))
    return UNUSABLE if errors else DONE

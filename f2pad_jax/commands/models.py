"""Commands that make models: fit, train-mae, tune, export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from f2pad_jax import doubts
from f2pad_jax.checkpoint import check_target
from f2pad_jax.commands.telling import DONE, open_model, warn
from f2pad_jax.core import Settings
from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_images, load_tests
from f2pad_jax.detectors import Detector, check_options, detector_class
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import check_masks, plain_settings
from f2pad_jax.fitting import draw_shots, fit
from f2pad_jax.grouping import check_fit
from f2pad_jax.interest import brought, cells_inside, read_roi
from f2pad_jax.maps import find_units, list_maps, read_map
from f2pad_jax.model_file import save_model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.procedure import Procedure, paper_settings
from f2pad_jax.reducing import seen_shape, work_shape
from f2pad_jax.startup import check_devices
from f2pad_jax.trained import load_trained
from f2pad_jax.tuning import tune
from f2pad_jax.weights import load_extractor
from f2pad_jax.weights.inpainters import check_inpainter, load_inpainter
from f2pad_jax.weights.weight_files import check_readable
from f2pad_jax.windows import FITTED, training_windows

SIZE = 224  # side of a square with as many pixels as an extractor sees
OWN = ("detector", "extractor", "weights", "option", "windows", "inpainter", "paper")  # not for trained detectors


def run_fit(arguments: argparse.Namespace) -> int:
    """Fits a detector to `train/good` of a category."""
    check_target(arguments.out, kind="model")
    settings, procedure = paper_settings() if arguments.paper else (Settings(), Procedure())
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
    normal_maps = [] if arguments.maps is None else [read_map(path) for path in list_maps(arguments.maps).values()]
    detector, extractor, options, fixed = _choose_detector(arguments)
    inpainter = load_inpainter(arguments.inpainter) if arguments.inpainter else None
    own = read_image(paths[0], white_level=white).shape[:2] if arguments.windows is None else (arguments.windows,) * 2
    side = arguments.size or SIZE
    seen = fixed or seen_shape((own[0], own[1]), side, extractor)
    shape = work_shape((own[0], own[1]), arguments.windows or arguments.work_size, seen)
    if inpainter is not None or arguments.paper:  # which know squares only
        if arguments.windows is not None:
            raise InputError("--windows goes with neither --inpainter nor --paper", hint="leave one of them out")
        shape = seen = (side, side)
    units = None
    if arguments.maps is not None:
        if arguments.windows is not None:
            raise InputError("--windows does not go with --maps", hint="leave one of them out")
        met = None if roi is None else cells_inside(brought(roi, shape), shape, seen)
        units = find_units(normal_maps, seen, met)
    if arguments.memory is not None:
        count = len(paths) if arguments.windows is None else max(len(paths), FITTED)
        check_fit(extractor, count, shape, seen, arguments.memory)
    if arguments.windows is not None:
        images, inside = training_windows(paths, shape, white_level=white, roi=roi, seed=arguments.seed)
    else:
        images, failures = load_images(paths, shape, white_level=white)
        if failures:
            raise failures[0][1]  # a model of fewer pictures than were asked for would be a surprise
    warn(doubts.of_training(images))
    model = fit(
        images,
        detector=detector,
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
    save_model(replace(model, windowed=arguments.windows is not None, roi=roi, units=units), arguments.out)
    what = "pictures" if arguments.windows is None else "windows"
    reduced = "" if seen == shape else f", of which the extractor sees {seen[1]} × {seen[0]}"
    print(
        f"{arguments.out}: {model.detector.name} on {extractor.name}, "
        f"{len(images)} {what} of {shape[1]} × {shape[0]}{reduced}"
    )
    return DONE


def _choose_detector(
    arguments: argparse.Namespace,
) -> tuple[str | Detector, Extractor, dict[str, Any], tuple[int, int] | None]:
    """The detector by its name or as trained, its extractor, its options, and what that must see, if that is fixed."""
    if (checkpoint := vars(arguments)["from"]) is not None:
        for name in OWN:
            if getattr(arguments, name):
                raise InputError(f"--{name} does not go with --from", hint="leave one of them out")
        check_readable(checkpoint)
        check_devices()
        found = load_trained(checkpoint, size=arguments.size, precision=arguments.precision)
        return found.detector, found.extractor, {}, found.seen
    if arguments.detector is None or arguments.extractor is None:
        raise InputError("--detector and --extractor are needed", hint="name both, or a checkpoint by --from")
    detector = detector_class(arguments.detector)
    options = parse_options(detector, arguments.option)
    if arguments.paper:
        options = {**detector.published, **options}
    if arguments.weights is not None:
        check_readable(arguments.weights)
    if arguments.inpainter:
        check_inpainter(arguments.inpainter)
    check_devices()
    extractor = load_extractor(arguments.extractor, weights=arguments.weights, precision=arguments.precision)
    return detector.name, extractor, options, None


def run_train_mae(arguments: argparse.Namespace) -> int:
    """Trains a small masked autoencoder on `train/good` of a category."""
    from f2pad_jax.fills.autoencoder import KIND as AUTOENCODER
    from f2pad_jax.fills.training import small_spec, train_to_folder

    small_spec(arguments.size)
    check_target(arguments.out, kind=AUTOENCODER)
    paths = open_category(arguments.dataset, need_test=False, layout=arguments.layout).train
    check_devices()
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
    model = open_model(arguments)
    oracle = None
    if arguments.oracle:
        images, masks, _, failures = load_tests(category.test, model.shape, white_level=model.white_level)
        if failures:
            raise failures[0][1]
        check_masks(masks, arguments.dataset)
        oracle = (images, masks)
    tuned = tune(model, seed=arguments.seed, oracle=oracle)
    save_model(tuned, arguments.out)
    chosen = {name: plain_settings(tuned)[name] for name in ("alpha1", "beta0", "components")}
    how = "not tuned" if tuned.tuned_on == "default" else f"tuned on {tuned.tuned_on}"
    print(f"{arguments.out}: {how}, {chosen}")
    return DONE


def run_export(arguments: argparse.Namespace) -> int:
    """Writes a model in a form that other programs read."""
    from f2pad_jax.export import check_export, export
    from f2pad_jax.pretrained import without_pictures

    check_export(arguments.out)
    model = open_model(arguments)
    if arguments.without_pictures:
        model = without_pictures(model)
    export(model, arguments.out)
    print(f"{arguments.out}: {model.detector.name} on {model.extractor.name}")
    return DONE


def parse_options(detector: type[Detector], texts: Sequence[str]) -> dict[str, Any]:
    """Options of a detector's `fit` from texts such as "rank=32", by the types that it declares.

    Raises:
      InputError: a text has no "=", or the detector has no such option, or not with such a value.
    """
    pairs = [text.partition("=") for text in texts]
    for name, sign, _ in pairs:
        if not sign:
            raise InputError(f"--option {name} has no value", hint="write NAME=VALUE")
    return check_options(detector, {name: value for name, _, value in pairs})

"""A detector and its F2PAD refinement measured on pictures with known masks: one run of `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from f2pad_jax import doubts, metrics
from f2pad_jax.data.images import resize_mask
from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.segmentation import Segmentation, segment

SCHEMA = 1


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
      run: one entry of "runs" in `metrics.json`.
      results: one per image.
    """

    run: dict[str, Any]
    results: list[Segmentation]


def evaluate(
    model: Model,
    images: np.ndarray,
    masks: np.ndarray,
    names: Sequence[str],
    *,
    dataset: str,
    category: str,
    unread: Sequence[tuple[str, InputError]] = (),
    memory: float | None = None,
) -> Evaluation:
    """Segments every image and compares the masks of the backbone and of F2PAD with the truth.

    IoU, DICE and boundary F1 are means over the images that show a defect, as in the paper (arXiv 2407.06519,
    Eq. 17); all else is counted over the pixels of all images. Everything is multiplied by 100. Where the model has a
    region of interest, what lies outside it is taken for normal.

    Args:
      model: as fitted or tuned.
      images: uint8 (N, H, W, 3) of the model's shape.
      masks: bool (N, H, W).
      names: N names, unique in the category.
      dataset: name for the record.
      category: name for the record.
      unread: name and error of test pictures that could not even be read, for the record.
      memory: as for `segment`.

    Raises:
      InputError: as for `check_masks` and `segment`.
    """
    if model.roi is not None:
        masks = masks & resize_mask(model.roi, masks.shape[1:])
    check_masks(masks, category)
    results = segment(model, list(images), memory=memory, title=f"segment {category}")
    facts = describe(model, dataset=dataset, category=category)
    run = measure(facts, results, masks, names, unread=unread)
    return Evaluation(run | {"warnings": doubts.of_results(results, np.asarray(masks.any(axis=(1, 2))))}, results)


def evaluate_images(
    model: Model,
    images: np.ndarray,
    defective: np.ndarray,
    names: Sequence[str],
    *,
    dataset: str,
    category: str,
    unread: Sequence[tuple[str, InputError]] = (),
    memory: float | None = None,
) -> Evaluation:
    """`evaluate` of pictures without masks: how well their highest scores tell good from defective ones.

    Args:
      model: as fitted or tuned.
      images: uint8 (N, H, W, 3) of the model's shape.
      defective: bool (N,).
      names: N names, unique in the category.
      dataset: name for the record.
      category: name for the record.
      unread: as for `evaluate`.
      memory: as for `segment`.

    Returns:
      `run` has `image_auroc` and `image_f1max` alone under "backbone" and "f2pad", and for each picture whether it is
      taken for defective.

    Raises:
      InputError: as for `check_kinds` and `segment`.
    """
    check_kinds(defective, category)
    results = segment(model, list(images), memory=memory, title=f"segment {category}")
    scores = {
        "backbone": np.array([result.score_map.max() for result in results]),
        "f2pad": np.array([result.refined_map.max() for result in results]),
    }
    run = {
        **describe(model, dataset=dataset, category=category),
        "test_images": len(results),
        **{name: _pictures_record(highest, defective) for name, highest in scores.items()},
        "good_marked": sum(bool(result.mask.any()) for result, bad in zip(results, defective, strict=True) if not bad),
        "failed": len(unread),
        "seconds": _median_seconds(results),
        "per_image": [
            {"image": name, "defect": bool(bad), "marked": bool(result.mask.any()), **_result_record(result)}
            for name, bad, result in zip(names, defective, results, strict=True)
        ]
        + [_failure(name, error) for name, error in unread],
        "warnings": doubts.of_results(results, defective),
    }
    return Evaluation(run, results)


def describe(model: Model, *, dataset: str, category: str) -> dict[str, Any]:
    """What the record of a run says about its model, and about the machine."""
    return {
        "dataset": dataset,
        "category": category,
        "detector": model.detector.name,
        "extractor": model.extractor.name,
        "train_images": len(model.normals) + len(model.held_out),
        "seed": model.seed,
        "tuned_on": model.tuned_on,
        "settings": plain_settings(model),
        "device": jax.default_backend(),
        "jax": jax.__version__,
    }


def plain_settings(model: Model) -> dict[str, Any]:
    """Numbers of the solve and choices around it, as plain data."""
    return {name: _plain(value) for name, value in (vars(model.settings) | vars(model.procedure)).items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float) else np.asarray(value).item()


def measure(
    facts: dict[str, Any],
    results: Sequence[Segmentation],
    masks: np.ndarray,
    names: Sequence[str],
    *,
    unread: Sequence[tuple[str, InputError]] = (),
) -> dict[str, Any]:
    """The record of a run, as `evaluate` makes it, of results that are there already.

    Args:
      facts: of `describe`.
      results: one per image.
      masks: bool (N, H, W).
      names: N names.
      unread: as for `evaluate`.

    Raises:
      InputError: as for `check_masks`.
    """
    check_masks(masks, facts["category"])
    maps = np.stack([result.score_map for result in results])
    initial = np.stack([result.initial_mask for result in results])
    refined = np.stack([result.mask for result in results])
    _, threshold = metrics.f1max(maps, masks)
    backbone = _masks_record(initial, masks) | _maps_record(maps, masks)
    f2pad = _masks_record(refined, masks) | _maps_record(np.stack([result.refined_map for result in results]), masks)
    return {
        **facts,
        "test_images": len(results),
        "backbone": backbone,
        # At the paper's threshold, which has the highest F1 over all pixels of this very test set.
        "backbone_oracle": _masks_record(maps > threshold, masks) | {"threshold": threshold},
        "f2pad": f2pad,
        "closed": _rounded(gap_closed(backbone["iou"], f2pad["iou"])),
        "good_marked": sum(bool(mask.any()) and not truth.any() for mask, truth in zip(refined, masks, strict=True)),
        "failed": len(unread),
        "seconds": _median_seconds(results),
        "per_image": [
            _image_record(name, mask, result) for name, mask, result in zip(names, masks, results, strict=True)
        ]
        + [_failure(name, error) for name, error in unread],
    }


def check_masks(masks: np.ndarray, where: object) -> None:
    """Makes sure that test masks allow a measurement.

    Raises:
      InputError: no mask shows a defect, or all of them show nothing else.
    """
    if not masks.any() or masks.all():
        raise InputError("its masks hold one kind of pixel only", where=where, hint="test on defects")


def check_kinds(defective: np.ndarray, where: object) -> None:
    """Makes sure that pictures without masks, bool (N,), allow a measurement.

    Raises:
      InputError: they are all good or all defective.
    """
    if defective.all() or not defective.any():
        kind = "defective" if defective.any() else "good"
        hint = "add the other kind, or masks"
        raise InputError(f"has no masks, and its test pictures are all {kind}", where=where, hint=hint)


def gap_closed(backbone: float, refined: float) -> float | None:
    """Share of the backbone's distance to 100 that is closed, in per cent; None where there is none."""
    return 100 * (refined - backbone) / (100 - backbone) if backbone < 100 else None


def metrics_file(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of `metrics.json`."""
    return {"schema": SCHEMA, "runs": list(runs)}


def _masks_record(found: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    shown = truths.any(axis=(1, 2))
    pairs = list(zip(found[shown], truths[shown], strict=True))
    means = {name: np.mean([metric(*pair) for pair in pairs]) for name, metric in metrics.MASK_METRICS.items()}
    pooled = {name: metric(found, truths) for name, metric in metrics.POOLED_METRICS.items()}
    return {name: _percent(value) for name, value in (means | pooled).items()}


def _maps_record(scores: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    record = {name: metric(scores, truths) for name, metric in metrics.MAP_METRICS.items()}
    highest, defective = scores.max(axis=(1, 2)), np.asarray(truths.any(axis=(1, 2)))
    percent = {name: _percent(value) for name, value in record.items()}
    return percent if defective.all() else percent | _pictures_record(highest, defective)


def _pictures_record(highest: np.ndarray, defective: np.ndarray) -> dict[str, float]:
    return {name: _percent(metric(highest, defective)) for name, metric in metrics.IMAGE_METRICS.items()}


def _image_record(name: str, truth: np.ndarray, result: Segmentation) -> dict[str, Any]:
    return {
        "image": name,
        "defect": bool(truth.any()),
        "backbone_iou": _percent(metrics.iou(result.initial_mask, truth)),
        "f2pad_iou": _percent(metrics.iou(result.mask, truth)),
        **_result_record(result),
    }


def _result_record(result: Segmentation) -> dict[str, Any]:
    return {
        "iterations": int(result.iterations),
        "status": result.status,
        "verdict": result.verdict,
        "residual": round(float(result.residual), 4),
        "seconds": round(float(result.seconds), 3),
    }


def _median_seconds(results: Sequence[Segmentation]) -> float:
    return round(float(np.median([result.seconds for result in results])), 3)


def _failure(name: str, error: InputError) -> dict[str, Any]:
    return {"image": name, "status": "failed", "error": str(error)}


def _percent(fraction: float | np.floating) -> float:
    return round(100 * float(fraction), 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

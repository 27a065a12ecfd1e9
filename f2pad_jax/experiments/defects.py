"""How F2PAD does on defects other than pasted colours, beside what a user would do without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from f2pad_jax.data.anomalies import KINDS, folder_of
from f2pad_jax.experiments.baselines import COLOURS, MAPS
from f2pad_jax.experiments.cases import Case, by_detector, interval, mean, only, with_mean
from f2pad_jax.experiments.studies import spread
from f2pad_jax.experiments.tables import NONE, cell, markdown, span
from f2pad_jax.experiments.variants import AT_BEST, FILL, UNCOMPOSED
from f2pad_jax.metrics import MAP_METRICS, best_iou, iou
from f2pad_jax.report import Row, draw

SHOWN = 7  # rows of a figure of pictures


def _kind(case: Case, index: int) -> str:
    return case.category.names[index].split("/")[0]


def _best(case: Case) -> np.ndarray:
    """IoU × 100 of each picture at the one threshold that gives the highest mean over the category's defects."""
    return _ious(case, _at_best(case))


def _threshold(case: Case) -> float:
    """The threshold of the test set with the highest mean IoU of the detector's masks."""
    return best_iou(np.stack([part.result.score_map for part in case.parts]), case.category.masks)[1]


def _at_best(case: Case) -> list[np.ndarray]:
    """The detector's masks at that threshold."""
    threshold = _threshold(case)
    return [part.result.score_map > threshold for part in case.parts]


def _masks(case: Case) -> list[np.ndarray]:
    """F2PAD's masks."""
    return [part.result.mask for part in case.parts]


def _marked(case: Case, masks: Sequence[np.ndarray]) -> list[bool]:
    """Which good pictures have a mask."""
    return [bool(mask.any()) for mask, defect in zip(masks, case.shown, strict=True) if not defect]


def _ious(case: Case, masks: Sequence[np.ndarray]) -> np.ndarray:
    """IoU × 100 of one mask a picture."""
    return np.array([100 * iou(mask, truth) for mask, truth in zip(masks, case.category.masks, strict=True)])


def kinds(_: str, cases: Sequence[Case]) -> str:
    """IoU for each kind of anomaly that was made, of the detectors and of colours alone."""
    rows: list[list[str]] = []
    for detector, group in by_detector(cases).items():
        others = [
            {case.unit.category: case.scores["f2pad_iou"] for case in only(group, way)} for way in (FILL, UNCOMPOSED)
        ]
        measured = [
            (case, _columns(case, *(found.get(case.unit.category) for found in others))) for case in only(group)
        ]
        for name in KINDS:
            chosen = [
                {key: values[places] for key, values in columns.items()}
                for case, columns in measured
                if len(places := [k for k in range(len(case.parts)) if _kind(case, k) == folder_of(name)])
            ]
            if chosen:
                rows.append([detector, name, *_kind_cells(chosen, seed=group[0].run["seed"])])
        every = [columns for _, columns in measured]
        rows.append([detector, "**mean**", *_kind_cells(every, seed=group[0].run["seed"])])
    head = ["detector", "kind", "pictures", "detector, own threshold", "detector, best threshold", *COLOURS]
    head += ["fill alone", "F2PAD, the solve alone", "F2PAD (95 % interval)"]
    return (
        f"{markdown(head, rows)}\nIoU × 100, means over pictures, then over "
        "categories. The best threshold comes from the test set, one for all kinds of a category; all others come from "
        "normal pictures. Chroma and colour mixture need no network: they mark what is more colourful, or farther from "
        "the colours of normal pixels, than 99.9 % of these. The fill alone marks where x and n⁽⁰⁾ differ by more than "
        "0.2 (L1, normalised colour) within the region. The solve alone keeps what it leaves unexplained; F2PAD then "
        "composes n of segments of x and of its fill.\n"
    )


def _columns(case: Case, fill: np.ndarray | None, solve: np.ndarray | None) -> dict[str, np.ndarray]:
    """IoU × 100 of every picture by every way to mark it."""
    pictures, train = case.category.images, case.category.train
    return {
        "own": _ious(case, [part.result.initial_mask for part in case.parts]),
        "best": _best(case),
        **{name: _ious(case, [rule(x, train) for x in pictures]) for name, rule in COLOURS.items()},
        "fill": np.full(len(pictures), np.nan) if fill is None else fill,
        "solve": np.full(len(pictures), np.nan) if solve is None else solve,
        "f2pad": case.scores["f2pad_iou"],
    }


def _kind_cells(parts: Sequence[dict[str, np.ndarray]], *, seed: int) -> list[str]:
    means = {key: float(np.mean([part[key].mean() for part in parts])) for key in parts[0]}
    ends = interval([part["f2pad"] for part in parts], seed=seed)
    cells = [NONE if np.isnan(value) else f"{value:.1f}" for value in means.values()]
    return [str(sum(len(part["own"]) for part in parts)), *cells[:-1], f"{cells[-1]} {span(ends)}"]


def kinds_figure(cases: Sequence[Case], _: Path) -> Image.Image:
    """One picture of each kind, the middle one by F2PAD's IoU, of the first detector's first category."""
    return _middle(only(cases)[:1])


def real(_: str, cases: Sequence[Case]) -> str:
    """MVTec AD's own defects with their own truth."""
    rows, maps = [], []
    for detector, every in by_detector(cases).items():
        informed = {case.unit.category: case for case in only(every, AT_BEST)}
        blobs = {case.unit.category: _at_best(case) for case in only(every)}
        for label, members in with_mean(only(every)):
            knowing = [informed[case.unit.category] for case in members if case.unit.category in informed]
            good_best = [marked for case in members for marked in _marked(case, blobs[case.unit.category])]
            good = [marked for case in members for marked in _marked(case, _masks(case))]
            good_knowing = [marked for case in knowing for marked in _marked(case, _masks(case))]
            counts = f"{sum(int(case.shown.sum()) for case in members)} / {len(good)}"
            ways = [
                lambda case, blobs=blobs: _ious(case, blobs[case.unit.category]),
                lambda case: _ious(case, [part.result.initial_mask for part in case.parts]),
                *(partial(_mapped, rule=rule) for rule in MAPS.values()),
            ]
            means = [f"{np.mean([way(case)[case.shown].mean() for case in members]):.1f}" for way in ways]
            means.insert(1, cell(knowing))
            counted = good_best, good_knowing, good
            marked = [f"{sum(found)} of {len(found)}" if found else NONE for found in counted]
            rows.append([detector, label, counts, *means, cell(members), *marked])
            graded = all("image_auroc" in case.run["f2pad"] for case in members)  # not where none is good
            names = [*MAP_METRICS, *(["image_auroc", "image_f1max"] if graded else [])]
            pairs = zip(*(mean(members, who, *names) for who in ("backbone", "f2pad")), strict=True)
            changes = [f"{before:.1f} → {after:.1f}" for before, after in pairs]
            maps.append([detector, label, *changes, *[NONE] * (len(MAP_METRICS) + 2 - len(changes))])
    head = ["detector", "category", "defects / good", "detector, best threshold", "F2PAD, best threshold"]
    head += ["detector, own threshold", *MAPS, "F2PAD: IoU / DICE (95 % interval)"]
    head += ["good pictures marked: detector, best threshold", "F2PAD, best threshold", "F2PAD"]
    titles = ["pixel AUROC", "AUPRO 30 %", "AUPRO 5 %", "F1max", "image AUROC", "image F1max"]
    return (
        f"{markdown(head, rows)}\nOwn defects and ground truth of MVTec AD: not to be compared with cut-paste sets. "
        "IoU × 100, means over pictures with a defect. The best threshold is the one of the test set with the highest "
        "mean IoU of the detector's masks; in one column F2PAD's region knows it as well. The own threshold and the "
        "region in F2PAD's other column come from normal pictures alone. Otsu's threshold and the random walk over "
        "colours work on the same score maps, in pictures that reach the own threshold.\n\nThe detector's map → "
        "F2PAD's refined map, × 100, all pictures:\n\n"
        f"{markdown(['detector', 'category', *titles], maps)}"
    )


def _mapped(case: Case, *, rule: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> np.ndarray:
    threshold = float(case.run["threshold"])
    return _ious(
        case,
        [
            rule(image, part.result.score_map, threshold) if shown else np.zeros(image.shape[:2], bool)
            for image, part, shown in zip(case.category.images, case.parts, case.shown, strict=True)
        ],
    )


def real_figure(cases: Sequence[Case], _: Path) -> Image.Image:
    """One picture of each kind of defect, the middle one by F2PAD's IoU, of the first detector."""
    return _middle(next(iter(by_detector(only(cases)).values())))


def _middle(cases: Sequence[Case]) -> Image.Image:
    middle: list[tuple[Case, int]] = []
    for case in cases:
        members: dict[str, list[int]] = {}
        for index in np.flatnonzero(case.shown):
            members.setdefault(_kind(case, int(index)), []).append(int(index))
        for places in members.values():
            places.sort(key=lambda index: float(case.scores["f2pad_iou"][index]))
            middle.append((case, places[len(places) // 2]))
    rows = []
    for case, index in spread(middle, SHOWN):
        result, best = case.parts[index].result, _threshold(case)
        label = f"{case.unit.category} · {_kind(case, index)}"
        rows.append(
            Row(label, case.category.images[index], result.score_map, best, result.score_map > best, result.mask,
                result.normal, case.category.masks[index])
        )  # fmt: skip
    return draw(rows)

"""The paper's figures, drawn from complete units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from f2pad_jax.errors import InputError
from f2pad_jax.experiments.cases import TITLES, Case, only
from f2pad_jax.experiments.runs import plain_mask
from f2pad_jax.experiments.tables import GROUPS, by_size, curves, markdown, size_limits
from f2pad_jax.experiments.variants import CURVES, FULL
from f2pad_jax.tiles import BACKBONE, PAGE, REFINED, Tile, draw_page, draw_tile, new_figure

MOST, WORST = 10, 3  # rows of a page, and failures of each kind
COVERED, MARKED = 0.95, 0.9  # shares of the truth in the region, and of that in the mask, below which a picture failed
_WAYS = (
    ("shared", REFINED, "‖a‖ shared"),
    ("gradient", "tab:blue", "gradient shared"),
    ("plain", BACKBONE, "plain Adan"),
)
_VARIANTS = {"full": "F2PAD", "initialisation": "initial.", "no-pixel-prior": "no prior", "no-sparsity": "no sparsity"}


class Failure(NamedTuple):
    """One picture that went wrong, found without looking."""

    case: Case
    index: int
    covered: float  # share of the truth that the region covers
    marked: float  # share of the covered truth that is in the mask


def _by_category(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Full runs of every category that all detectors completed."""
    detectors = {case.unit.detector for case in cases}
    groups: dict[str, list[Case]] = {}
    for case in only(cases):
        groups.setdefault(case.unit.category, []).append(case)
    return _some({name: group for name, group in groups.items() if len(group) == len(detectors)})


def _some(complete: dict[str, Any]) -> dict[str, Any]:
    if not complete:
        raise InputError("no category is complete, so there is nothing to draw")
    return complete


def _gain(group: Sequence[Case]) -> np.ndarray:
    """What F2PAD adds to the backbone's IoU in each picture of a category, mean over detectors."""
    return np.mean([case.scores["f2pad_iou"] - case.scores["backbone_iou"] for case in group], axis=0)


def _ranked(group: Sequence[Case], shares: Sequence[float]) -> list[int]:
    """Pictures at these shares of the order of gains: 0.5 is the middle one, an ordinary picture."""
    order = np.argsort(_gain(group), kind="stable")
    return [int(order[round(share * (len(order) - 1))]) for share in shares]


def _input(case: Case, index: int, caption: str = "") -> Tile:
    return Tile(case.category.images[index], caption=caption)


def _truth(case: Case, index: int, caption: str = "IoU / DICE →") -> Tile:
    """The truth; its caption tells what the numbers below the masks are."""
    return Tile(case.category.images[index], case.category.masks[index], caption=caption)


def _backbone(case: Case, index: int, *, title: bool = False) -> Tile:
    """The backbone's mask at its best threshold, as in the paper."""
    mask = case.parts[index].result.score_map > case.run["backbone_oracle"]["threshold"]
    return _masked(case, index, mask, BACKBONE, "backbone", case.title if title else "")


def _refined(case: Case, index: int, *, title: bool = False) -> Tile:
    mask = case.parts[index].result.mask
    return _masked(case, index, mask, REFINED, "f2pad", f"F2PAD {case.title}" if title else "")


def _masked(case: Case, index: int, mask: np.ndarray, colour: str, who: str, name: str) -> Tile:
    iou, dice = (case.scores[f"{who}_{key}"][index] for key in ("iou", "dice"))
    caption = f"{name} {iou:.1f} / {dice:.1f}".strip()
    return Tile(case.category.images[index], mask, colour, case.category.masks[index], caption=caption)


def example(cases: Sequence[Case], _: Path) -> Image.Image:
    """Figure 1: the ordinary picture (median gain) of the category with the median gain."""
    groups = _by_category(cases)
    names = sorted(groups, key=lambda name: float(_gain(groups[name]).mean()))
    group = groups[names[len(names) // 2]]
    (index,) = _ranked(group, [0.5])
    first = group[0]
    return draw_page(
        [
            [_input(first, index, f"test image, {first.unit.category}")]
            + [_backbone(case, index, title=True) for case in group],
            [_truth(first, index, "truth; IoU / DICE →")] + [_refined(case, index, title=True) for case in group],
        ]
    )


def results(cases: Sequence[Case], _: Path) -> Image.Image:
    """Figure 6: pictures of every category, from those that gain little to those that gain much."""
    groups = _by_category(cases)
    count = max(1, min(3, MOST // len(groups)))
    shares = [(k + 0.5) / count for k in range(count)]
    rows, labels = [], []
    for name, group in groups.items():
        for index in dict.fromkeys(_ranked(group, shares)):
            masks = [tile for case in group for tile in (_backbone(case, index), _refined(case, index))]
            rows.append([_input(group[0], index), _truth(group[0], index), *masks])
            labels.append(name)
    titles = [text for case in next(iter(groups.values())) for text in (case.title, "F2PAD")]
    return draw_page(rows, columns=["input", "truth", *titles], labels=labels)


def size_boxes(cases: Sequence[Case], _: Path) -> Figure:
    """Figure 7: IoU by anomaly size, over all categories and detectors."""
    figure = new_figure(PAGE[0] * 0.7, 3.0)
    axes = figure.add_axes((0.11, 0.16, 0.87, 0.8))
    groups = by_size(cases)
    for shift, colour, name, place in ((-0.18, BACKBONE, "backbone", 0), (0.18, REFINED, "F2PAD", 1)):
        boxes = [(k, group[place]) for k, group in enumerate(groups) if len(group[place])]
        axes.boxplot(
            [values for _, values in boxes],
            positions=[k + shift for k, _ in boxes],
            widths=0.3,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "linewidth": 0.7},
            medianprops={"color": "black"},
            whiskerprops={"linewidth": 0.7},
            flierprops={"markersize": 3, "markeredgewidth": 0.5},
        )
        axes.bar([0], [0], color=colour, label=name)
    labels = [
        f"{name}\n{limits}\nn = {len(group[0])}"
        for name, limits, group in zip(GROUPS, size_limits(), groups, strict=True)
    ]
    axes.set_xticks(range(len(GROUPS)), labels, fontsize=7)
    axes.set_xlim(-0.5, len(GROUPS) - 0.5)
    axes.set_ylim(0, 102)
    axes.set_ylabel("IoU × 100", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=7, loc="lower right", framealpha=0.9)
    return figure


def _ablated(cases: Sequence[Case], variants: Iterable[str]) -> dict[str, dict[str, Case]]:
    """Variants of the detector that ablations are shown for, of every category that has them all."""
    names = {case.unit.detector for case in cases}
    detector = next(name for name in (*TITLES, *sorted(names)) if name in names)
    units: dict[str, dict[str, Case]] = {}
    for case in cases:
        if case.unit.detector == detector:
            units.setdefault(case.unit.category, {})[case.unit.variant] = case
    return _some({name: per for name, per in units.items() if per.keys() >= {*variants}})


def ablations(cases: Sequence[Case], _: Path) -> Image.Image:
    """Figure 8: what the initialisation and F2PAD without one of its terms recover and mark."""
    units = _ablated(cases, _VARIANTS)
    rows, title = [], ""
    for per in units.values():
        full = per[FULL]
        (index,), title = _ranked([full], [0.5]), full.title
        tiles = [_input(full, index), _truth(full, index), _backbone(full, index)]
        for variant in _VARIANTS:
            tiles += [Tile(per[variant].parts[index].result.normal), _refined(per[variant], index)]
        rows.append(tiles)
    titles = [text for name in _VARIANTS.values() for text in (f"n, {name}", "mask")]
    return draw_page(rows, columns=["input", "truth", title, *titles], labels=list(units))


def enlarged(cases: Sequence[Case], _: Path) -> Image.Image:
    """Figure 9: recovered pixels with the pixel prior and without, enlarged where the two differ most."""
    rows, labels = [], []
    for name, per in _ablated(cases, (FULL, "no-pixel-prior")).items():
        full, without = per[FULL], per["no-pixel-prior"]
        pairs = [(a.result.normal, b.result.normal) for a, b in zip(full.parts, without.parts, strict=True)]
        gaps = [np.abs(a.astype(np.float32) - b).sum(axis=-1) for a, b in pairs]
        index = int(np.argsort([gap.mean() for gap in gaps], kind="stable")[len(gaps) // 2])
        side = gaps[index].shape[0] // 4
        dense = ndimage.uniform_filter(gaps[index], side, mode="constant")
        row, column = np.unravel_index(int(dense.argmax()), dense.shape)
        top, left = (int(np.clip(place - side // 2, 0, gaps[index].shape[0] - side)) for place in (row, column))
        window = np.s_[top : top + side, left : left + side]
        tiles = [_input(full, index)]
        for picture in pairs[index]:
            tiles += [Tile(picture, box=(top, left, side)), Tile(picture[window])]
        rows.append(tiles)
        labels.append(name)
    columns = ["input", "n, F2PAD", "enlarged", "n, without pixel prior", "enlarged"]
    return draw_page(rows, columns=columns, labels=labels)


def loss_curves(cases: Sequence[Case], out: Path) -> Figure:
    """Figure 10: F during the solve, and the masks of the picture where the two ends are furthest apart."""
    traced = [(case, index, ways) for case in only(cases, CURVES) for index, ways in curves(case).items()]
    if not traced:
        raise InputError("no picture had anything to solve, so there is nothing to draw")
    present = [way for way in _WAYS if way[0] in traced[0][2]]
    first = present[0][0]
    furthest = max(traced, key=lambda solved: solved[2]["plain"][-1] - solved[2][first][-1])
    case, index, _ = furthest
    image, part = case.category.images[index], case.parts[index]
    figure = new_figure(PAGE[0], 3.0)
    masks = (
        ("input", None),
        ("truth", case.category.masks[index]),
        ("plain Adan", plain_mask(case.unit, out, part.index)),
        ("with sharing", part.result.mask),
    )
    for k, (name, mask) in enumerate(masks):
        axes = figure.add_axes((0.01 + 0.18 * (k % 2), 0.5 - 0.48 * (k // 2), 0.17, 0.42))
        axes.set_axis_off()
        axes.imshow(draw_tile(Tile(image, mask, "white" if name == "truth" else REFINED), 1.25))
        axes.set_title(name, fontsize=7, pad=2)
    axes = figure.add_axes((0.46, 0.15, 0.52, 0.77))
    for way, colour, name in present:
        for solved in traced:
            values, strong = np.asarray(solved[2][way]) / solved[2][first][0], solved is furthest
            axes.plot(values, color=colour, linewidth=1.8 if strong else 0.6, alpha=1 if strong else 0.45,
                      label=name if solved is traced[0] else None)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylabel("F over its first value", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(linewidth=0.4, alpha=0.5, which="both")
    axes.legend(fontsize=7)
    axes.set_title(f"{case.unit.category}, {case.title} (bold)", fontsize=7, pad=2)
    return figure


def find_failures(cases: Sequence[Case]) -> tuple[list[Failure], list[Failure]]:
    """The paper's two kinds of failure, each with the worst picture first.

    Returns:
      Pictures whose region, found from the backbone's scores, does not cover the truth; and pictures where it does,
      but anomalous pixels look like what F2PAD recovers.
    """
    every = []
    for case in only(cases):
        for index, part in enumerate(case.parts):
            truth, covered = case.category.masks[index], part.record["covered"]
            marked = float((part.result.mask & truth).sum() / max(truth.sum() * covered, 1))
            every.append(Failure(case, index, covered, min(marked, 1.0)))
    missed = sorted((f for f in every if f.covered < COVERED), key=lambda f: f.covered)
    alike = sorted((f for f in every if f.covered >= COVERED and f.marked < MARKED), key=lambda f: f.marked)
    return missed, alike


def failures(cases: Sequence[Case], _: Path) -> Image.Image:
    """Figure 11: the worst of both kinds; the worst masks of all where nothing failed."""
    missed, alike = find_failures(cases)
    shown = [("outside the region", f"{100 * (1 - f.covered):.0f} % outside", f) for f in missed[:WORST]]
    shown += [("looks normal", f"{100 * (1 - f.marked):.0f} % not marked", f) for f in alike[:WORST]]
    if not shown:
        every = [Failure(case, index, 1.0, 1.0) for case in only(cases) for index in range(len(case.parts))]
        worst = sorted(every, key=lambda f: float(f.case.scores["f2pad_iou"][f.index]))
        shown = [("lowest IoU", "", f) for f in worst[:WORST]]
    rows = [
        [
            _input(case, index, f"{case.unit.category} · {case.title}"),
            _truth(case, index, note),
            _backbone(case, index),
            _refined(case, index),
            Tile(case.parts[index].result.normal, truth=case.category.masks[index]),
        ]
        for _, note, (case, index, *_) in shown
    ]
    columns = ["input", "truth", "backbone, IoU / DICE", "F2PAD, IoU / DICE", "recovered n"]
    return draw_page(rows, columns=columns, labels=[label for label, *_ in shown])


def failure_table(_: str, cases: Sequence[Case]) -> str:
    """Figure 11 in numbers."""
    missed, alike = find_failures(cases)
    total = sum(len(case.parts) for case in only(cases))
    rows = [
        [f"region covers less than {100 * COVERED:.0f} % of the truth", f"{len(missed)} / {total}"],
        [f"covered, but less than {100 * MARKED:.0f} % of that is in the mask", f"{len(alike)} / {total}"],
    ]
    listed = [
        [f.case.unit.category, f.case.unit.detector, f.case.category.names[f.index], f"{100 * f.covered:.1f}",
         f"{100 * f.marked:.1f}", f"{f.case.scores['f2pad_iou'][f.index]:.1f}"]
        for f in missed + alike
    ]  # fmt: skip
    head = ["category", "detector", "picture", "covered, %", "of that marked, %", "F2PAD IoU"]
    note = "\nThe paper's two kinds; masks that hold too much are not among them.\n"
    return markdown(["failure", "pictures"], rows) + note + ("\n" + markdown(head, listed) if listed else "")

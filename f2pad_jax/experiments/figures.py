"""The paper's figures, drawn from complete units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from f2pad_jax.errors import InputError
from f2pad_jax.experiments.pictures import WIDTH, Tile, draw_grid, new_figure
from f2pad_jax.experiments.runs import plain_mask
from f2pad_jax.experiments.tables import EDGES, GROUPS, Done, by_size, curves, markdown, only
from f2pad_jax.experiments.variants import CURVES, FULL
from f2pad_jax.report import BACKBONE, REFINED

TITLES = {"patchcore": "PatchCore", "cflow": "CFLOW-AD", "padim": "PaDiM"}
MOST, WORST = 10, 3  # rows of a page, and failures of each kind
COVERED, FOUND = 0.95, 0.9  # shares of the truth in the region, and of that in the mask, below which a picture failed
_WAYS = (
    ("shared", REFINED, "‖a‖ shared"),
    ("gradient", "tab:blue", "gradient as well"),
    ("plain", BACKBONE, "plain Adan"),
)
_VARIANTS = {"full": "F2PAD", "initialisation": "initial.", "no-pixel-prior": "no prior", "no-sparsity": "no sparsity"}


class Failure(NamedTuple):
    """One picture that went wrong, found without looking."""

    one: Done
    index: int
    covered: float  # share of the truth that the region covers
    found: float  # share of the covered truth that is in the mask


def _by_category(done: Sequence[Done]) -> dict[str, list[Done]]:
    """Full runs of every category that all detectors completed."""
    detectors = {one.unit.detector for one in done}
    groups: dict[str, list[Done]] = {}
    for one in only(done):
        groups.setdefault(one.unit.category, []).append(one)
    return _some({name: group for name, group in groups.items() if len(group) == len(detectors)})


def _some(found: dict[str, Any]) -> dict[str, Any]:
    if not found:
        raise InputError("no category is complete, so there is nothing to draw")
    return found


def _gain(group: Sequence[Done]) -> np.ndarray:
    """What F2PAD adds to the backbone's IoU in each picture of a category, mean over detectors."""
    return np.mean([one.scores["f2pad_iou"] - one.scores["backbone_iou"] for one in group], axis=0)


def _ranked(group: Sequence[Done], shares: Sequence[float]) -> list[int]:
    """Pictures at these shares of the order of gains: 0.5 is the middle one, an ordinary picture."""
    order = np.argsort(_gain(group), kind="stable")
    return [int(order[round(share * (len(order) - 1))]) for share in shares]


def _backbone(one: Done, index: int, *, title: bool = False) -> Tile:
    """The backbone's mask at its best threshold, as in the paper."""
    mask = one.parts[index].result.score_map > one.run["backbone_oracle"]["threshold"]
    return _masked(one, index, mask, BACKBONE, "backbone", TITLES[one.unit.detector] if title else "")


def _refined(one: Done, index: int, *, title: bool = False) -> Tile:
    name = f"F2PAD {TITLES[one.unit.detector]}" if title else ""
    return _masked(one, index, one.parts[index].result.mask, REFINED, "f2pad", name)


def _masked(one: Done, index: int, mask: np.ndarray, colour: str, who: str, name: str) -> Tile:
    iou, dice = (one.scores[f"{who}_{key}"][index] for key in ("iou", "dice"))
    caption = f"{name} {iou:.1f} / {dice:.1f}".strip()
    return Tile(one.category.images[index], mask, colour, one.category.masks[index], caption)


def _truth(one: Done, index: int, caption: str = "IoU / DICE →") -> Tile:
    """The truth; its caption tells what the numbers below the masks are."""
    return Tile(one.category.images[index], one.category.masks[index], "white", caption=caption)


def example(done: Sequence[Done], _: Path) -> Figure:
    """Figure 1: the ordinary picture (median gain) of the category with the median gain."""
    groups = _by_category(done)
    names = sorted(groups, key=lambda name: float(_gain(groups[name]).mean()))
    group = groups[names[len(names) // 2]]
    (index,) = _ranked(group, [0.5])
    first = group[0]
    rows = [
        [Tile(first.category.images[index], caption=f"test image, {first.unit.category}")]
        + [_backbone(one, index, title=True) for one in group],
        [_truth(first, index, "truth; IoU / DICE →")] + [_refined(one, index, title=True) for one in group],
    ]
    return draw_grid(rows, columns=[""] * len(rows[0]), labels=["", ""])


def results(done: Sequence[Done], _: Path) -> Figure:
    """Figure 6: pictures of every category, from those that gain little to those that gain much."""
    groups = _by_category(done)
    count = max(1, min(3, MOST // len(groups)))
    shares = [(k + 0.5) / count for k in range(count)]
    rows, labels = [], []
    for name, group in groups.items():
        for index in dict.fromkeys(_ranked(group, shares)):
            tiles = [tile for one in group for tile in (_backbone(one, index), _refined(one, index))]
            rows.append([Tile(group[0].category.images[index]), _truth(group[0], index), *tiles])
            labels.append(name)
    titles = [text for one in next(iter(groups.values())) for text in (TITLES[one.unit.detector], "F2PAD")]
    return draw_grid(rows, columns=["input", "truth", *titles], labels=labels)


def size_boxes(done: Sequence[Done], _: Path) -> Figure:
    """Figure 7: IoU by anomaly size, over all categories and detectors."""
    figure = new_figure(WIDTH * 0.7, 3.0)
    axes = figure.add_axes((0.11, 0.16, 0.87, 0.8))
    groups = by_size(done)
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
    limits = [0.0, *EDGES]
    ranges = [f"{a:.2f} to {b:.2f}" for a, b in zip(limits, limits[1:], strict=False)] + [f"above {EDGES[-1]:.2f}"]
    labels = [
        f"{name}\n{limit}\nn = {len(group[0])}" for name, limit, group in zip(GROUPS, ranges, groups, strict=True)
    ]
    axes.set_xticks(range(len(GROUPS)), labels, fontsize=7)
    axes.set_xlim(-0.5, len(GROUPS) - 0.5)
    axes.set_ylim(0, 102)
    axes.set_ylabel("IoU × 100", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=7, loc="lower right", framealpha=0.9)
    return figure


def _ablated(done: Sequence[Done], variants: Iterable[str]) -> tuple[str, dict[str, dict[str, Done]]]:
    """The detector that ablations are shown for, and its variants of every category that has these."""
    names = {one.unit.detector for one in done}
    detector = next(name for name in (*TITLES, *sorted(names)) if name in names)
    found: dict[str, dict[str, Done]] = {}
    for one in done:
        if one.unit.detector == detector:
            found.setdefault(one.unit.category, {})[one.unit.variant] = one
    return detector, _some({name: per for name, per in found.items() if per.keys() >= {*variants}})


def ablations(done: Sequence[Done], _: Path) -> Figure:
    """Figure 8: what the initialisation and F2PAD without one of its terms recover and mark."""
    detector, found = _ablated(done, _VARIANTS)
    rows = []
    for per in found.values():
        full = per[FULL]
        (index,) = _ranked([full], [0.5])
        tiles = [Tile(full.category.images[index]), _truth(full, index), _backbone(full, index)]
        for variant in _VARIANTS:
            tiles += [Tile(per[variant].parts[index].result.normal), _refined(per[variant], index)]
        rows.append(tiles)
    titles = [text for name in _VARIANTS.values() for text in (f"n, {name}", "mask")]
    return draw_grid(rows, columns=["input", "truth", TITLES[detector], *titles], labels=list(found))


def enlarged(done: Sequence[Done], _: Path) -> Figure:
    """Figure 9: recovered pixels with the pixel prior and without, enlarged where the two differ most."""
    found = _ablated(done, (FULL, "no-pixel-prior"))[1]
    rows, labels = [], []
    for name, per in found.items():
        full, without = per[FULL], per["no-pixel-prior"]
        pairs = [(a.result.normal, b.result.normal) for a, b in zip(full.parts, without.parts, strict=True)]
        gaps = [np.abs(a.astype(np.float32) - b).sum(axis=-1) for a, b in pairs]
        index = int(np.argsort([gap.mean() for gap in gaps], kind="stable")[len(gaps) // 2])
        side = gaps[index].shape[0] // 4
        dense = ndimage.uniform_filter(gaps[index], side, mode="constant")
        row, column = np.unravel_index(int(dense.argmax()), dense.shape)
        top, left = (int(np.clip(place - side // 2, 0, gaps[index].shape[0] - side)) for place in (row, column))
        window = np.s_[top : top + side, left : left + side]
        tiles = [Tile(full.category.images[index])]
        for picture in pairs[index]:
            tiles += [Tile(picture, box=(top, left, side)), Tile(picture[window])]
        rows.append(tiles)
        labels.append(name)
    return draw_grid(
        rows, columns=["input", "n, F2PAD", "enlarged", "n, without pixel prior", "enlarged"], labels=labels
    )


def loss_curves(done: Sequence[Done], out: Path) -> Figure:
    """Figure 10: F during the solve, and the masks of the picture where the two ends are furthest apart."""
    traced = [one for one in only(done, CURVES) if curves(one)]
    ends = {
        (k, index): losses["plain"][-1] - losses["shared"][-1]
        for k, one in enumerate(traced)
        for index, losses in curves(one).items()
    }
    if not ends:
        raise InputError("no picture had anything to solve, so there is nothing to draw")
    place, index = max(ends, key=lambda key: ends[key])
    chosen = traced[place]
    truth, plain = chosen.category.masks[index], plain_mask(chosen.unit, out, chosen.parts[index].index)
    figure = new_figure(WIDTH, 3.0)
    shown = (
        ("input", chosen.category.images[index], None),
        ("truth", np.zeros_like(chosen.category.images[index]), truth),
        ("plain Adan", chosen.category.images[index], plain),
        ("with sharing", chosen.category.images[index], chosen.parts[index].result.mask),
    )
    for k, (name, picture, mask) in enumerate(shown):
        axes = figure.add_axes((0.01 + 0.18 * (k % 2), 0.5 - 0.48 * (k // 2), 0.17, 0.42))
        colour = np.array([255, 255, 255] if name == "truth" else [22, 199, 154])
        axes.imshow(picture if mask is None else np.where(mask[..., None], colour, picture).astype(np.uint8))
        axes.set_title(name, fontsize=7, pad=2)
        axes.set_axis_off()
    axes = figure.add_axes((0.46, 0.15, 0.52, 0.77))
    for way, colour, name in _WAYS:
        first = True
        for one in traced:
            for number, losses in curves(one).items():
                values = np.asarray(losses[way]) / losses["shared"][0]
                strong = one is chosen and number == index
                axes.plot(values, color=colour, linewidth=1.8 if strong else 0.6, alpha=1 if strong else 0.45,
                          label=name if first else None)  # fmt: skip
                first = False
    axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylabel("F over its first value", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(linewidth=0.4, alpha=0.5, which="both")
    axes.legend(fontsize=7)
    label = f"{chosen.unit.category}, {TITLES[chosen.unit.detector]} (bold)"
    axes.set_title(label, fontsize=7, pad=2)
    return figure


def find_failures(done: Sequence[Done]) -> tuple[list[Failure], list[Failure]]:
    """The paper's two kinds of failure, each with the worst picture first.

    Returns:
      Pictures whose region, found from the backbone's scores, does not cover the truth; and pictures where it does,
      but anomalous pixels look like what F2PAD recovers.
    """
    every = []
    for one in only(done):
        for index, part in enumerate(one.parts):
            truth, covered = one.category.masks[index], part.record["covered"]
            hit = float((part.result.mask & truth).sum() / max(truth.sum() * covered, 1))
            every.append(Failure(one, index, covered, min(hit, 1.0)))
    missed = sorted((f for f in every if f.covered < COVERED), key=lambda f: f.covered)
    alike = sorted((f for f in every if f.covered >= COVERED and f.found < FOUND), key=lambda f: f.found)
    return missed, alike


def failures(done: Sequence[Done], _: Path) -> Figure:
    """Figure 11: the worst of both kinds; the worst masks of all where nothing failed."""
    missed, alike = find_failures(done)
    shown = [("outside the region", f"{100 * (1 - f.covered):.0f} % outside", f) for f in missed[:WORST]]
    shown += [("looks normal", f"{100 * (1 - f.found):.0f} % not marked", f) for f in alike[:WORST]]
    if not shown:
        every = [Failure(one, index, 1.0, 1.0) for one in only(done) for index in range(len(one.parts))]
        worst = sorted(every, key=lambda f: float(f.one.scores["f2pad_iou"][f.index]))
        shown = [("lowest IoU", "", f) for f in worst[:WORST]]
    rows, labels = [], []
    for label, note, failure in shown:
        one, index = failure.one, failure.index
        labels.append(label)
        name = f"{one.unit.category} · {TITLES[one.unit.detector]}"
        rows.append(
            [
                Tile(one.category.images[index], caption=name),
                _truth(one, index, note),
                _backbone(one, index),
                _refined(one, index),
                Tile(one.parts[index].result.normal, truth=one.category.masks[index]),
            ]
        )
    columns = ["input", "truth", "backbone, IoU / DICE", "F2PAD, IoU / DICE", "recovered n"]
    return draw_grid(rows, columns=columns, labels=labels)


def failure_table(name: str, done: Sequence[Done]) -> str:
    """Figure 11 in numbers."""
    missed, alike = find_failures(done)
    total = sum(len(one.parts) for one in only(done))
    rows = [
        [f"region covers less than {100 * COVERED:.0f} % of the truth", f"{len(missed)} / {total}"],
        [f"covered, but less than {100 * FOUND:.0f} % of that is in the mask", f"{len(alike)} / {total}"],
    ]
    listed = [
        [f.one.unit.category, f.one.unit.detector, f.one.category.names[f.index], f"{100 * f.covered:.1f}",
         f"{100 * f.found:.1f}", f"{f.one.scores['f2pad_iou'][f.index]:.1f}"]
        for f in missed + alike
    ]  # fmt: skip
    head = ["category", "detector", "picture", "covered, %", "of that found, %", "F2PAD IoU"]
    return markdown(["failure", "pictures"], rows) + ("\n" + markdown(head, listed) if listed else "")

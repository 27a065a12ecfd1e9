"""What the paper leaves open: thresholds, sensitivity, choices, growing regions, what tuning is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from f2pad_jax.experiments.cases import Case, by_detector, f2pad_interval, mean, only, with_mean
from f2pad_jax.experiments.tables import cell, markdown, pair
from f2pad_jax.experiments.variants import BEST, CHOICES, FACTORS, FULL, GROWTH, TUNINGS, UNSTATED
from f2pad_jax.tiles import BACKBONE, PAGE, REFINED, Tile, draw_page, new_figure

RULES = {
    FULL: "ours: peaks of normal scores",
    "quantile=0.99": "99 % of normal scores",
    "quantile=0.999": "99.9 % of normal scores",
    "otsu": "Otsu, each picture alone",
    "triangle": "triangle, each picture alone",
    BEST: "best F1 on the test set",
}
SYMBOLS = {"alpha1": "α1", "beta0": "β0", "dilation": "dilation, px", "false_alarms": "false alarms", "seed": "seed"}
SHOWN = 7  # rows of a figure of pictures

Grown = tuple[Case, Case, np.ndarray]  # full and growing units of the same pictures, and how often each region grew


def thresholds(_: str, cases: Sequence[Case]) -> str:
    """How much the backbone's mask and F2PAD depend on the rule for the threshold."""
    rows, spans = [], []
    for detector, group in by_detector(cases).items():
        units = {variant: only(group, variant) for variant in RULES if only(group, variant)}
        for variant, members in units.items():
            covered = f"{100 * np.mean([case.column('covered').mean() for case in members]):.1f}"
            rows.append([detector, RULES[variant], pair(mean(members, "backbone")), covered, cell(members)])
        without_truth = [members for variant, members in units.items() if variant != BEST]
        if without_truth:
            ious = [[mean(members, who, "iou")[0] for members in without_truth] for who in ("backbone", "f2pad")]
            spans.append(f"{detector}: {np.ptp(ious[0]):.1f} and {np.ptp(ious[1]):.1f}")
    head = ["detector", "threshold", "backbone", "truth in the region, %", "F2PAD (95 % interval of IoU)"]
    return (
        f"{markdown(head, rows)}\nIoU / DICE × 100, means over pictures, then over categories. The backbone's mask is "
        "what scores above the threshold, F2PAD's region the same, enlarged; with ours the region's pieces reach down "
        "to a lower one. Normal scores are those of pictures that the detector was not fitted to. Between the best and "
        f"the worst rule that needs no truth, the IoU of the backbone and of F2PAD differ by: {'; '.join(spans)}.\n"
    )


def thresholds_figure(cases: Sequence[Case], _: Path) -> Figure:
    """IoU of the backbone and of F2PAD for every rule."""
    return _dots({label: only(cases, variant) for variant, label in RULES.items()}, backbone=True)


def _dots(rows: dict[str, list[Case]], *, backbone: bool) -> Figure:
    """IoU of F2PAD with its interval, and of the backbone where that is asked for: a column a detector."""
    rows = {label: cases for label, cases in rows.items() if cases}
    groups = by_detector([case for cases in rows.values() for case in cases])
    figure = new_figure(PAGE[0], 0.6 + 0.22 * len(rows))
    bottom, height = 0.36 / figure.get_figheight(), 1 - 0.6 / figure.get_figheight()
    step = 0.765 / len(groups)
    for k, (detector, group) in enumerate(groups.items()):
        axes = figure.add_axes((0.23 + k * step, bottom, step - 0.02, height))
        for row, cases in enumerate(rows.values()):
            members = [case for case in cases if case.unit.detector == detector]
            if not members:
                continue
            ends = [mean(members, who, "iou")[0] for who in ("backbone", "f2pad")]
            shown = slice(None) if backbone else slice(1, None)
            axes.plot(ends[shown], [row, row][shown], color="0.7", linewidth=1.5, zorder=1)
            axes.plot(f2pad_interval(members), [row, row], color="black", linewidth=0.9, zorder=2)
            style = {"s": 26, "edgecolor": "black", "linewidth": 0.4, "zorder": 3}
            axes.scatter(ends[shown], [row, row][shown], color=(BACKBONE, REFINED)[shown], **style)
        axes.set_yticks(range(len(rows)), rows if k == 0 else [""] * len(rows), fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 102)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_title(group[0].title, fontsize=8, pad=3)
        axes.set_xlabel("IoU × 100", fontsize=7, labelpad=2)
    for place, colour, name in ((0.01, REFINED, "F2PAD"), (0.09, BACKBONE, "backbone"))[: 1 + backbone]:
        figure.text(place, 0.02, f"● {name}", color=colour, fontsize=7)
    return figure


def _ladder(group: Sequence[Case], factor: str) -> dict[str, list[Case]]:
    """The units of each value of a factor, that of the full method among them, by increasing value."""
    steps = {value: only(group, f"{factor}={value}") for value in FACTORS[factor]}
    full = only(group)
    if full:
        run, relative = full[0].run, FACTORS[factor][0].startswith("x")
        own = run["seed"] if factor == "seed" else run["settings"][factor]
        steps["x1" if relative else f"{own:g}"] = full
    present = {value: members for value, members in steps.items() if members}
    return {value: present[value] for value in _increasing(present)}


def _increasing(values: Iterable[str]) -> list[str]:
    return sorted({*values}, key=lambda value: float(value.lstrip("x")))


def _text(value: str) -> str:
    return {"x0.333": "× 1/3", "x0.5": "× 1/2"}.get(value, value.replace("x", "× "))


def sensitivity(_: str, cases: Sequence[Case]) -> str:
    """IoU with one setting changed at a time."""
    groups = by_detector(cases)
    rows = []
    for factor, symbol in SYMBOLS.items():
        ladders = [_ladder(group, factor) for group in groups.values()]
        for value in _increasing(value for ladder in ladders for value in ladder):
            members = [ladder.get(value, []) for ladder in ladders]
            text = f"**{_text(value)}**" if any(only(units) for units in members) else _text(value)
            rows.append([symbol, text, *map(cell, members)])
    return (
        f"{markdown(['', 'value', *groups], rows)}\nIoU / DICE × 100 of F2PAD (95 % interval of IoU), means over "
        "pictures, then over categories; **bold** is the full method. A seed stands for another split, coreset or "
        "flow, and mixture; the rate of false alarms sets the threshold.\n"
    )


def sensitivity_figure(cases: Sequence[Case], _: Path) -> Figure:
    """IoU for each value of each setting."""
    rows: dict[str, list[Case]] = {}
    for factor, symbol in SYMBOLS.items():
        for group in by_detector(cases).values():
            for value, members in _ladder(group, factor).items():
                rows.setdefault(f"{symbol} {_text(value)}", []).extend(members)
    return _dots(rows, backbone=False)


def choices(_: str, cases: Sequence[Case]) -> str:
    """What the choices of the solver and of the detectors do to the masks, the iterations and the time."""
    return _worth(cases, {FULL: "**default**", **CHOICES})


def unstated(_: str, cases: Sequence[Case]) -> str:
    """The same for what the paper leaves open, and for its rules."""
    return _worth(cases, {FULL: "**as set**", **UNSTATED})


def _worth(cases: Sequence[Case], labels: dict[str, str]) -> str:
    groups, rows = by_detector(cases), []
    for variant, label in labels.items():
        members = only(cases, variant)
        if members:
            costs = [float(np.mean([case.column(key).mean() for case in members])) for key in ("iterations", "seconds")]
            cells = [cell(only(group, variant)) for group in groups.values()]
            rows.append([label, *cells, f"{costs[0]:.0f}", f"{costs[1]:.2f}"])
    return (
        f"{markdown(['choice', *groups, 'iterations', 'seconds'], rows)}\nIoU / DICE × 100 of F2PAD (95 % interval of "
        "IoU), iterations and seconds an image, means over pictures, then over units. Rows that concern one detector "
        "are compared with its own default.\n"
    )


def _grown(cases: Sequence[Case]) -> list[Grown]:
    full = {case.unit[:3]: case for case in only(cases)}
    growing = [case for case in only(cases, GROWTH) if case.unit[:3] in full]
    return [(full[case.unit[:3]], case, case.column("rounds")) for case in growing]


def growth(_: str, cases: Sequence[Case]) -> str:
    """Whether regions that grow help: all pictures, and those that grew."""
    rows = []
    for detector, group in by_detector(cases).items():
        pairs = _grown(group)
        if not pairs:
            continue
        grew = np.concatenate([rounds > 0 for *_, rounds in pairs])
        sides = [full for full, *_ in pairs], [growing for _, growing, _ in pairs]
        values = {
            key: factor * np.array([np.concatenate([case.column(key) for case in side]) for side in sides])
            for key, factor in (("covered", 100), ("f2pad_iou", 1), ("seconds", 1))
        }
        for label, chosen in (("all", np.ones_like(grew)), ("region grew", grew)):
            if chosen.any():
                cells = [
                    " → ".join(f"{side[chosen].mean():.{digits}f}" for side in values[key])
                    for key, digits in (("covered", 1), ("f2pad_iou", 1), ("seconds", 2))
                ]
                change = np.diff(values["f2pad_iou"], axis=0)[0][chosen]
                better, worse = int((change > 1).sum()), int((change < -1).sum())
                rows.append([detector, label, str(int(chosen.sum())), *cells, f"{better} / {worse}"])
    head = ["detector", "pictures", "number", "truth in the region, %", "F2PAD IoU", "seconds", "better / worse"]
    return (
        f"{markdown(head, rows)}\nFull method → with growing regions; better and worse by more than one point of IoU. "
        "After a solve the region takes in what scores above its threshold in n at its border, and the solve goes on "
        "from n, up to three times.\n"
    )


def growth_figure(cases: Sequence[Case], _: Path) -> Image.Image:
    """Pictures whose region grew, from those that gain most to those that lose most."""
    pairs = _grown(cases)
    grown = [(full, growing, int(k)) for full, growing, rounds in pairs for k in np.flatnonzero(rounds)]
    grown = grown or [(full, growing, 0) for full, growing, _ in pairs]
    grown.sort(key=lambda shown: float(np.subtract(*(case.scores["f2pad_iou"][shown[2]] for case in shown[:2]))))
    rows, labels = [], []
    for full, growing, index in spread(grown, SHOWN - 1):
        image, truth = full.category.images[index], full.category.masks[index]
        rows.append([Tile(image), Tile(image, truth)])
        for case in (full, growing):
            part, iou = case.parts[index], case.scores["f2pad_iou"][index]
            caption = f"region {100 * part.record['covered']:.0f} %, IoU {iou:.1f}"
            rows[-1].append(Tile(part.result.normal, truth=truth))
            rows[-1].append(Tile(image, part.result.mask, REFINED, truth, caption=caption))
        labels.append(f"{full.unit.category} · {full.unit.detector}")
    return draw_page(rows, columns=["input", "truth", "n", "F2PAD", "n, growing", "F2PAD, growing"], labels=labels)


def spread(items: Sequence, most: int) -> list:
    """At most so many, evenly over all of them."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]


def tuning(_: str, cases: Sequence[Case]) -> str:
    """Default settings, those tuned on synthetic anomalies and those chosen on the test set, side by side."""
    synthetic, default, oracle = TUNINGS
    rows = []
    for detector, group in by_detector(cases).items():
        for label, members in with_mean(group):
            rows.append([detector, label, cell(only(members, default))])
            for variant in (synthetic, oracle):
                units = only(members, variant)
                rows[-1] += [cell(units), _chosen(units[0]) if len(units) == 1 else ""]
    head = ["detector", "category", "default", "tuned on synthetic anomalies", "α1, β0, K", "chosen on the test set"]
    return (
        f"{markdown([*head, 'α1, β0, K'], rows)}\nIoU / DICE × 100 of F2PAD (95 % interval of IoU), means over "
        "pictures, and the weights of the pixel prior and of sparsity and the number of Gaussians that were chosen. "
        "The last is the paper's way, an oracle.\n"
    )


def _chosen(case: Case) -> str:
    settings = case.run["settings"]
    return ", ".join(f"{settings[name]:g}" for name in ("alpha1", "beta0", "components"))

"""What the paper leaves open: thresholds, sensitivity, growing regions, real defects, and what tuning is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from f2pad_jax.experiments.figures import TITLES
from f2pad_jax.experiments.pictures import WIDTH, Tile, draw_grid, new_figure
from f2pad_jax.experiments.tables import Done, by_detector, interval, markdown, only
from f2pad_jax.experiments.variants import FACTORS, FULL, GROWTH
from f2pad_jax.report import BACKBONE, REFINED, Row, draw

RULES = {
    FULL: "ours: synthetic anomalies",
    "quantile=0.99": "99 % of normal scores",
    "quantile=0.999": "99.9 % of normal scores",
    "otsu": "Otsu, each picture alone",
    "triangle": "triangle, each picture alone",
    "f1": "best F1 on the test set",
}
SYMBOLS = {"alpha1": "α1", "beta0": "β0", "dilation": "dilation, px", "smallest": "threshold on ‖a‖", "seed": "seed"}
COLOURS = ("#1b6ca8", "#c8553d", "#5b8c3e")  # of detectors


def _mean(members: Sequence[Done], who: str) -> tuple[float, float]:
    """IoU and DICE × 100 of a mask ("backbone" at its own threshold, "f2pad"), mean over units."""
    iou, dice = (float(np.mean([one.run[who][key] for one in members])) for key in ("iou", "dice"))
    return iou, dice


def _interval(members: Sequence[Done], values: str = "f2pad_iou") -> list[float]:
    """95 % interval of the mean over units, of the pictures that show a defect."""
    samples = [one.scores[values][defects(one)] for one in members]
    return interval(samples, seed=members[0].run["seed"])


def defects(one: Done) -> np.ndarray:
    """Which of a unit's pictures show a defect, (N,) bool."""
    return np.asarray(one.category.masks.any(axis=(1, 2)))


def _cell(members: Sequence[Done]) -> str:
    low, high = _interval(members)
    return "{:.1f} / {:.1f}".format(*_mean(members, "f2pad")) + f" ({low:.1f} to {high:.1f})"


def thresholds(_: str, done: Sequence[Done]) -> str:
    """How much the backbone's mask and F2PAD depend on the rule for the threshold."""
    rows, spans = [], []
    for detector, group in by_detector(done).items():
        reached = {"backbone": [], "f2pad": []}
        for variant, label in RULES.items():
            members = only(group, variant)
            if not members:
                continue
            covered = float(np.mean([part.record["covered"] for one in members for part in one.parts]))
            backbone = _mean(members, "backbone")
            rows.append([detector, label, "{:.1f} / {:.1f}".format(*backbone), f"{100 * covered:.1f}", _cell(members)])
            if variant != "f1":
                for who, values in reached.items():
                    values.append(_mean(members, who)[0])
        width = {who: max(values) - min(values) for who, values in reached.items() if values}
        if width:
            spans.append(f"{detector}: {width['backbone']:.1f} and {width['f2pad']:.1f}")
    head = ["detector", "threshold", "backbone", "truth in the region, %", "F2PAD (95 % interval of IoU)"]
    return (
        f"{markdown(head, rows)}\nIoU / DICE × 100, means over pictures, then over categories. The backbone's mask is "
        "what scores above the threshold, F2PAD's region the same, enlarged; ours has a lower threshold for the "
        "region. Normal scores are those of pictures that the detector was not fitted to. Between the best and the "
        f"worst rule that needs no truth, the IoU of the backbone and of F2PAD differ by: {'; '.join(spans)}.\n"
    )


def threshold_dots(done: Sequence[Done], _: Path) -> Figure:
    """IoU of the backbone and of F2PAD for every rule."""
    groups = by_detector(done)
    labels = [label for variant, label in RULES.items() if only(done, variant)]
    figure = new_figure(WIDTH, 0.6 + 0.24 * len(labels))
    bottom, height = 0.36 / figure.get_figheight(), 1 - 0.6 / figure.get_figheight()
    step = 0.765 / len(groups)
    for k, (detector, group) in enumerate(groups.items()):
        axes = figure.add_axes((0.23 + k * step, bottom, step - 0.02, height))
        for row, label in enumerate(labels):
            members = [one for one in group if RULES[one.unit.variant] == label]
            if not members:
                continue
            ends = {who: _mean(members, who)[0] for who in ("backbone", "f2pad")}
            axes.plot([*ends.values()], [row, row], color="0.7", linewidth=1.5, zorder=1)
            for who, colour, name in (("backbone", BACKBONE, "backbone"), ("f2pad", REFINED, "F2PAD")):
                axes.scatter(ends[who], row, s=26, color=colour, edgecolor="black", linewidth=0.4, zorder=3,
                             label=name if row == 0 else None)  # fmt: skip
            axes.plot(_interval(members), [row, row], color="black", linewidth=0.9, zorder=2)
        axes.set_yticks(range(len(labels)), labels if k == 0 else [""] * len(labels), fontsize=7)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, 102)
        axes.set_xticks(range(20, 101, 20))
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_title(TITLES.get(detector, detector), fontsize=8, pad=3)
        axes.set_xlabel("IoU × 100", fontsize=7, labelpad=2)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower left", ncols=2, fontsize=7, frameon=False, borderaxespad=0)
    return figure


def _ladder(group: Sequence[Done], factor: str) -> dict[str, list[Done]]:
    """The units of each value of a factor, that of the full method among them, by increasing value."""
    steps = {value: only(group, f"{factor}={value}") for value in FACTORS[factor]}
    full = only(group, FULL)
    if full:
        run, relative = full[0].run, FACTORS[factor][0].startswith("x")
        own = run["seed"] if factor == "seed" else run["settings"][factor]
        steps["x1" if relative else f"{own:g}"] = full
    present = {value: members for value, members in steps.items() if members}
    return dict(sorted(present.items(), key=lambda step: float(step[0].lstrip("x"))))


def _steps(ladders: Iterable[dict[str, list[Done]]]) -> list[str]:
    """All values of a factor, increasing."""
    return sorted({value for ladder in ladders for value in ladder}, key=lambda value: float(value.lstrip("x")))


def _text(value: str) -> str:
    return {"x0.333": "× 1/3", "x0.5": "× 1/2"}.get(value, value.replace("x", "× "))


def sensitivity(_: str, done: Sequence[Done]) -> str:
    """IoU with one setting changed at a time."""
    groups = by_detector(done)
    rows = []
    for factor, symbol in SYMBOLS.items():
        ladders = {detector: _ladder(group, factor) for detector, group in groups.items()}
        for value in _steps(ladders.values()):
            cells = [_cell(ladder[value]) if value in ladder else "–" for ladder in ladders.values()]
            default = any(one.unit.variant == FULL for ladder in ladders.values() for one in ladder.get(value, ()))
            rows.append([symbol, f"**{_text(value)}**" if default else _text(value), *cells])
    return (
        f"{markdown(['', 'value', *groups], rows)}\nIoU / DICE × 100 of F2PAD (95 % interval of IoU), means over "
        "pictures, then over categories; **bold** is the full method. A seed stands for another split, coreset or "
        "flow, mixture and other synthetic anomalies; the region's threshold stays as it is when the dilation "
        "changes.\n"
    )


def sensitivity_lines(done: Sequence[Done], _: Path) -> Figure:
    """IoU over each setting, one line per detector."""
    groups = by_detector(done)
    figure = new_figure(WIDTH, 3.6)
    ladders = [_ladder(group, factor) for group in groups.values() for factor in SYMBOLS]
    every = [_mean(members, "f2pad")[0] for ladder in ladders for members in ladder.values()]
    low = max(0.0, 10 * np.floor(min(every) / 10 - 0.5))
    for place, (factor, symbol) in enumerate(SYMBOLS.items()):
        axes = figure.add_axes((0.065 + 0.32 * (place % 3), 0.6 - 0.485 * (place // 3), 0.285, 0.37))
        _draw_factor(axes, groups, factor)
        axes.set_ylim(low, 100)
        axes.set_xlabel(symbol, fontsize=8, labelpad=1)
        axes.tick_params(labelleft=place % 3 == 0)
        if place % 3 == 0:
            axes.set_ylabel("IoU × 100", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center", bbox_to_anchor=(0.85, 0.3), fontsize=8, frameon=False)
    return figure


def _draw_factor(axes: Axes, groups: dict[str, list[Done]], factor: str) -> None:
    ladders = {detector: _ladder(group, factor) for detector, group in groups.items()}
    values = _steps(ladders.values())
    for k, (detector, ladder) in enumerate(ladders.items()):
        places = np.array([values.index(value) for value in ladder]) + 0.08 * (k - (len(groups) - 1) / 2)
        means = np.array([_mean(members, "f2pad")[0] for members in ladder.values()])
        ends = np.array([_interval(members) for members in ladder.values()])
        errors = np.maximum(0, [means - ends[:, 0], ends[:, 1] - means])
        axes.errorbar(
            places,
            means,
            errors,
            color=COLOURS[k % len(COLOURS)],
            marker="o",
            markersize=3.5,
            linewidth=0 if factor == "seed" else 1.2,
            elinewidth=0.7,
            label=TITLES.get(detector, detector),
        )
    axes.set_xticks(range(len(values)), [_text(value) for value in values])
    axes.set_xlim(-0.4, len(values) - 0.6)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _grown(done: Sequence[Done]) -> list[tuple[Done, Done, np.ndarray]]:
    """Full and growing units of the same pictures, with how often each region grew."""
    full = {one.unit[:3]: one for one in only(done)}
    return [
        (full[one.unit[:3]], one, np.array([part.record["rounds"] for part in one.parts]))
        for one in only(done, GROWTH)
        if one.unit[:3] in full
    ]


def growth(_: str, done: Sequence[Done]) -> str:
    """Whether regions that grow help: all pictures, and those that grew."""
    rows = []
    for detector in by_detector(done):
        pairs = [pair for pair in _grown(done) if pair[0].unit.detector == detector]
        if not pairs:
            continue
        grew = np.concatenate([rounds > 0 for *_, rounds in pairs])
        values = {
            key: [
                np.concatenate([_column(one, key) for one, *_ in pairs]),
                np.concatenate([_column(two, key) for _, two, _ in pairs]),
            ]
            for key in ("covered", "f2pad_iou", "seconds")
        }
        for label, chosen in (("all", np.ones_like(grew)), ("region grew", grew)):
            if chosen.any():
                cells = [
                    " → ".join(f"{side[chosen].mean():.{digits}f}" for side in values[key])
                    for key, digits in (("covered", 1), ("f2pad_iou", 1), ("seconds", 2))
                ]
                change = (values["f2pad_iou"][1] - values["f2pad_iou"][0])[chosen]
                better, worse = int((change > 1).sum()), int((change < -1).sum())
                rows.append([detector, label, str(int(chosen.sum())), *cells, f"{better} / {worse}"])
    head = ["detector", "pictures", "number", "truth in the region, %", "F2PAD IoU", "seconds", "better / worse"]
    return (
        f"{markdown(head, rows)}\nFull method → with growing regions; better and worse by more than one point of IoU. "
        "After a solve the region takes in what scores above its threshold in n at its border, and the solve goes on "
        "from n, up to three times.\n"
    )


def _column(one: Done, key: str) -> np.ndarray:
    if key == "f2pad_iou":
        return one.scores[key]
    factor = 100 if key == "covered" else 1
    return factor * np.array([part.record[key] for part in one.parts])


def growth_pictures(done: Sequence[Done], _: Path) -> Figure:
    """Pictures whose region grew, from those that gain most to those that lose most."""
    found = [
        (float(two.scores["f2pad_iou"][index] - one.scores["f2pad_iou"][index]), one, two, int(index))
        for one, two, rounds in _grown(done)
        for index in np.flatnonzero(rounds)
    ] or [(0.0, one, two, 0) for one, two, _ in _grown(done)]
    found.sort(key=lambda case: -case[0])
    kept = np.unique(np.linspace(0, len(found) - 1, min(6, len(found))).round().astype(int))
    rows, labels = [], []
    for _, one, two, index in (found[k] for k in kept):
        image, truth = one.category.images[index], one.category.masks[index]
        rows.append([Tile(image), Tile(image, truth, "white")])
        for side in (one, two):
            part, iou = side.parts[index], side.scores["f2pad_iou"][index]
            rows[-1].append(Tile(part.result.normal, truth=truth))
            caption = f"region {100 * part.record['covered']:.0f} %, IoU {iou:.1f}"
            rows[-1].append(Tile(image, part.result.mask, REFINED, truth, caption))
        labels.append(f"{one.unit.category} · {one.unit.detector}")
    return draw_grid(rows, columns=["input", "truth", "n", "F2PAD", "n, growing", "F2PAD, growing"], labels=labels)


def real(_: str, done: Sequence[Done]) -> str:
    """MVTec AD's own defects with their own truth."""
    rows = []
    for detector, group in by_detector(only(done)).items():
        for label, members in [(one.unit.category, [one]) for one in group] + [("**mean**", group)]:
            if label == "**mean**" and len(group) == 1:
                continue
            scored = [
                f"{np.mean([one.run['backbone'][k] for one in members]):.1f}" for k in ("aupro", "pixel_auroc", "f1max")
            ]
            masked = ["{:.1f} / {:.1f}".format(*_mean(members, who)) for who in ("backbone_oracle", "backbone")]
            shown = sum(int(defects(one).sum()) for one in members)
            alarms = [
                part.result.mask.mean()
                for one in members
                for part, bad in zip(one.parts, defects(one), strict=True)
                if not bad
            ]
            marked = f"{100 * np.mean(alarms):.2f}" if alarms else "–"
            rows.append([detector, label, f"{shown} / {len(alarms)}", *scored, *masked, _cell(members), marked])
    head = ["detector", "category", "defects / good", "AUPRO", "pixel AUROC", "F1max", "backbone, best threshold"]
    head += ["backbone, own threshold", "F2PAD (95 % interval of IoU)", "marked in good pictures, %"]
    return (
        f"{markdown(head, rows)}\nOwn defects and ground truth of MVTec AD: not to be compared with cut-paste sets. "
        "AUPRO (up to 30 % false positives), pixel AUROC and F1max, × 100, are those of the backbone's scores on all "
        "test pictures; IoU / DICE × 100 are means over pictures with a defect. The best threshold comes from the "
        "test set, the own one and F2PAD's region from normal pictures alone.\n"
    )


def real_pictures(done: Sequence[Done], _: Path) -> Figure:
    """One picture of each kind of defect, the middle one by F2PAD's IoU, of the first detector."""
    first = next(iter(by_detector(only(done)).values()))
    found: list[tuple[Done, int]] = []
    for one in first:
        kinds: dict[str, list[int]] = {}
        for index in np.flatnonzero(defects(one)):
            kinds.setdefault(one.category.names[index].split("/")[0], []).append(int(index))
        for members in kinds.values():
            members.sort(key=lambda index: float(one.scores["f2pad_iou"][index]))
            found.append((one, members[len(members) // 2]))
    kept = np.unique(np.linspace(0, len(found) - 1, min(7, len(found))).round().astype(int))
    rows = []
    for one, index in (found[k] for k in kept):
        result, best = one.parts[index].result, one.run["backbone_oracle"]["threshold"]
        label = f"{one.unit.category} · {one.category.names[index].split('/')[0]}"
        rows.append(
            Row(label, one.category.images[index], result.score_map, best, result.score_map > best, result.mask,
                result.normal, one.category.masks[index])
        )  # fmt: skip
    return draw(rows)


def tuning(_: str, done: Sequence[Done]) -> str:
    """Default settings, those tuned on synthetic anomalies and those chosen on the test set, side by side."""
    rows = []
    for detector, group in by_detector(done).items():
        names = list(dict.fromkeys(one.unit.category for one in group))
        for label in [*names, "mean"] if len(names) > 1 else names:
            cells = []
            for variant in ("tuning=default", "tuning=synthetic", "tuning=oracle"):
                members = [one for one in only(group, variant) if label in ("mean", one.unit.category)]
                cells.append(_cell(members) if members else "–")
                if variant != "tuning=default":
                    cells.append(_chosen(members[0]) if label != "mean" and members else "")
        rows.append([detector, f"**{label}**" if label == "mean" else label, *cells])
    head = ["detector", "category", "default", "tuned on synthetic anomalies", "α1, β0, K", "chosen on the test set"]
    return (
        f"{markdown([*head, 'α1, β0, K'], rows)}\nIoU / DICE × 100 of F2PAD (95 % interval of IoU), means over "
        "pictures, and the weights of the pixel prior and of sparsity and the number of Gaussians that were chosen. "
        "The last is the paper's way, an oracle.\n"
    )


def _chosen(one: Done) -> str:
    settings = one.run["settings"]
    return ", ".join(f"{settings[name]:g}" for name in ("alpha1", "beta0", "components"))

"""The paper's tables as Markdown, our numbers beside those that it prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from f2pad_jax.evaluation import gap_closed
from f2pad_jax.experiments import paper
from f2pad_jax.experiments.cases import TOLERANCES, Case, by_detector, f2pad_interval, interval, mean, only, with_mean
from f2pad_jax.experiments.variants import CURVES, FULL

WORSE = 2  # points of IoU
EDGES = (0.02, 0.04, 0.06, 0.08)  # of the five groups of anomaly size, shares of the picture
GROUPS = ("I", "II", "III", "IV", "V")
LABELS = {
    "initialisation": "initialisation only",
    "no-pixel-prior": "without pixel prior",
    "no-sparsity": "without sparsity",
    "no-sharing": "without sharing",
    FULL: "F2PAD",
}
NONE = "–"  # where there is no number
UNKNOWN = f"({NONE})"  # where there is no interval


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def pair(values: Iterable[float], *, signed: str = "") -> str:
    """IoU and DICE, "98.8 / 99.4"."""
    return " / ".join(f"{value:{signed}.1f}" for value in values)


def span(ends: Sequence[float]) -> str:
    """An interval, "(97.1 to 99.2)", or what stands for one of too few pictures."""
    low, high = ends
    return UNKNOWN if np.isnan(low) else f"({low:.1f} to {high:.1f})"


def cell(cases: Sequence[Case]) -> str:
    """IoU / DICE of F2PAD and the 95 % interval of IoU."""
    return f"{pair(mean(cases, 'f2pad'))} {span(f2pad_interval(cases))}" if cases else NONE


def comparison(name: str, cases: Sequence[Case]) -> str:
    """Tables I and II, and the outlines."""
    printed = paper.numbers(name)
    rows, outlines, rest = [], [], []
    for detector, group in by_detector(cases).items():
        for label, members in with_mean(group):
            best, ours = mean(members, "backbone_oracle"), mean(members, "f2pad")
            closed = gap_closed(best[0], ours[0])
            theirs = [*printed.get(detector, {}).get(label.strip("*"), {}).values()]
            rows.append([
                detector, label, pair(mean(members, "backbone")), pair(best), cell(members),
                pair(np.subtract(ours, best), signed="+"), NONE if closed is None else f"{closed:.0f}",
                *([pair(theirs[:2]), pair(theirs[2:]), pair(np.subtract(theirs[2:], theirs[:2]), signed="+")]
                  if theirs else [NONE] * 3),
            ])  # fmt: skip
            outlines.append([detector, label, *_outline_cells([case.run["outline"] for case in members])])
            images = [image for case in members for image in case.run["per_image"]]
            worse = sum(image["f2pad_iou"] < image["backbone_iou"] - WORSE for image in images)
            seconds = float(np.median([image["seconds"] for image in images]))
            scores = [f"{value:.1f}" for value in mean(members, "backbone", "pixel_auroc", "aupro")]
            rest.append([detector, label, *scores, f"{worse} / {len(images)}", f"{seconds:.1f}"])
    head = ["detector", "category", "backbone, own threshold", "backbone, best threshold"]
    head += ["F2PAD (95 % interval of IoU)", "Δ", "closed, %", "paper: backbone", "paper: F2PAD", "paper: Δ"]
    near = [f"boundary F1, {t} px" for t in TOLERANCES]
    return (
        f"{markdown(head, rows)}\nIoU / DICE × 100, means over pictures. The own threshold comes from normal pictures "
        "alone; the best one, the paper's rule, from the test set, and Δ and the share of the distance to 100 that "
        "is closed are over it. The paper's mean is that of its six categories.\n\n"
        "Backbone (best threshold) → F2PAD:\n\n"
        + markdown(["detector", "category", *near, "95 % Hausdorff distance, px"], outlines)
        + f"\nThe backbone's scores; pictures whose IoU F2PAD lowers by more than {WORSE} (own threshold):\n\n"
        + markdown(["detector", "category", "pixel AUROC", "AUPRO", "worse", "seconds an image, median"], rest)
    )


def _outline_cells(records: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    def average(who: str, key: str) -> float:
        return float(np.mean([record[who][key] for record in records]))

    return [f"{average('backbone', key):.1f} → {average('f2pad', key):.1f}" for key in records[0]["f2pad"]]


def ablation(name: str, cases: Sequence[Case]) -> str:
    """Table III: means over categories, per variant and detector."""
    printed, groups = paper.numbers(name), by_detector(cases)
    rows, each = [], []
    for variant, label in LABELS.items():
        cells = [label]
        for detector, group in groups.items():
            theirs = printed.get(variant, {}).get(detector)
            cells += [cell(only(group, variant)), pair(theirs.values()) if theirs else NONE]
        rows.append(cells)
    for detector, group in groups.items():
        for category in dict.fromkeys(case.unit.category for case in group):
            units = {case.unit.variant: case for case in group if case.unit.category == category}
            ious = [f"{mean([units[v]], 'f2pad', 'iou')[0]:.1f}" if v in units else NONE for v in LABELS]
            each.append([detector, category, *ious])
    head = ["", *(text for detector in groups for text in (detector, f"paper: {detector}"))]
    return (
        f"{markdown(head, rows)}\nIoU / DICE × 100 (95 % interval of IoU), means over pictures, then over categories. "
        "Initialisation: where x and the fill n⁽⁰⁾ differ by more than 0.2 (L1, normalised colour) within the region; "
        "without sparsity: where x and n do.\n\nIoU in each category:\n\n"
        + markdown(["detector", "category", *LABELS.values()], each)
    )


def cost(name: str, cases: Sequence[Case]) -> str:
    """Table IV: iterations and seconds."""
    printed, rows = paper.numbers(name), []
    for detector, group in by_detector(cases).items():
        iterations, seconds = (
            float(np.mean(np.concatenate([case.column(key) for case in group]))) for key in ("iterations", "seconds")
        )
        theirs = [f"{value:.1f}" for value in printed.get(detector, {}).values()] or [NONE] * 2
        rows.append([detector, f"{iterations:.1f}", f"{seconds:.2f}", *theirs])
    head = ["detector", "iterations of the main solve", "seconds an image", "paper: iterations"]
    head.append("paper: seconds (RTX 3080)")
    note = "Means. Seconds are an image's share of those it was solved together with, compilation included.\n"
    return f"{markdown(head, rows)}\n{note}"


def size_group(area: float) -> int:
    """Which of the paper's five groups (0 to 4) an anomaly is in that covers this share of the picture."""
    return int(np.searchsorted(EDGES, area, side="right"))


def by_size(cases: Sequence[Case]) -> list[tuple[np.ndarray, np.ndarray]]:
    """IoU of the backbone and of F2PAD for each of the five groups."""
    group = np.concatenate([[size_group(float(mask.mean())) for mask in case.category.masks] for case in cases])
    backbone, f2pad = (np.concatenate([case.scores[f"{who}_iou"] for case in cases]) for who in ("backbone", "f2pad"))
    return [(backbone[group == k], f2pad[group == k]) for k in range(len(GROUPS))]


def size_limits() -> list[str]:
    """The shares of the picture that each group spans."""
    inner = [f"{low:.2f} to {high:.2f}" for low, high in zip((0.0, *EDGES), EDGES, strict=False)]
    return [*inner, f"above {EDGES[-1]:.2f}"]


def sizes(_: str, cases: Sequence[Case]) -> str:
    """Figure 7 in numbers."""
    rows = []
    for group, limits, (backbone, f2pad) in zip(GROUPS, size_limits(), by_size(cases), strict=True):
        means = [NONE, NONE]
        if len(f2pad):
            ends = [interval([values], seed=cases[0].run["seed"]) for values in (backbone, f2pad)]
            means = [f"{values.mean():.1f} {span(e)}" for values, e in zip((backbone, f2pad), ends, strict=True)]
        rows.append([group, limits, str(len(f2pad)), *means])
    return markdown(
        ["group", "share of the picture", "masks, once for each detector", "backbone IoU", "F2PAD IoU"], rows
    )


def curves(case: Case) -> dict[int, dict[str, list[float]]]:
    """The losses of the pictures of a unit that were solved, by number."""
    losses = {index: part.record.get("losses", {}) for index, part in enumerate(case.parts)}
    return {index: ways for index, ways in losses.items() if ways}


def falls(_: str, cases: Sequence[Case]) -> str:
    """Figure 10 in numbers: the last F of each way, and where it is lower or higher than plain Adan's."""
    rows = []
    for detector, group in by_detector(only(cases, CURVES)).items():
        ends = [{way: F[-1] for way, F in ways.items()} for case in group for ways in curves(case).values()]
        if not ends:
            continue
        cells = [f"{np.mean([end['plain'] for end in ends]):.0f}"]
        for way in ("shared", "gradient"):
            if way not in ends[0]:
                cells += [NONE, NONE]
                continue
            gaps = np.array([end[way] - end["plain"] for end in ends])
            cells += [f"{np.mean([end[way] for end in ends]):.0f}"]
            cells += [f"{(gaps < 0).sum()} / {(gaps > 0).sum()} of {len(gaps)}"]
        rows.append([detector, *cells])
    head = ["detector", "F, plain Adan", "‖a‖ shared", "lower / higher", "gradient shared", "lower / higher"]
    return markdown(head, rows)

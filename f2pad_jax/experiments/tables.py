"""Tables of runs as Markdown, our numbers beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from f2pad_jax import metrics
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import gap_closed, measure
from f2pad_jax.experiments import paper
from f2pad_jax.experiments.models import Unit
from f2pad_jax.experiments.runs import OWN, Part, load_unit
from f2pad_jax.experiments.sets import Category
from f2pad_jax.experiments.variants import FULL

TOLERANCES = (1, 2, 4)  # pixels
RESAMPLES = 2000
WORSE = 2  # points of IoU
EDGES = (0.02, 0.04, 0.06, 0.08)  # of the five groups of anomaly size, shares of the picture
GROUPS = ("I", "II", "III", "IV", "V")
LABELS = {
    "initialisation": "initialisation only",
    "no-pixel-prior": "without pixel prior",
    "no-sparsity": "without sparsity",
    "no-sharing": "without sharing",
    "full": "F2PAD",
}


class Done(NamedTuple):
    """A complete unit.

    Attributes:
      unit: what it is.
      category: its pictures, without test pictures that failed in a unit that it is compared with.
      parts: its results, one per test picture (the first ones of the variant "curves").
      run: its record, as in `metrics.json`, with "shots", "variant", "fit_seconds", "tune_seconds", "machine",
        "interval" and "outline".
      scores: IoU and DICE × 100 of every picture, "backbone_iou" and so on, backbones at their best threshold.
    """

    unit: Unit
    category: Category
    parts: list[Part]
    run: dict[str, Any]
    scores: dict[str, np.ndarray]


def read_done(unit: Unit, out: Path, category: Category, pictures: Sequence[int]) -> Done:
    """Loads and measures a unit.

    Args:
      unit: what it is.
      out: the results folder.
      category: all pictures of its category.
      pictures: numbers of the test pictures to read.

    Raises:
      InputError: something cannot be read, or no picture is left.
    """
    if not pictures:
        raise InputError("no test picture is done in all units that are compared", where=unit.name)
    facts, parts = load_unit(unit, out, category, pictures)
    chosen = list(pictures)
    names = [category.names[index] for index in chosen]
    category = category._replace(images=category.images[chosen], masks=category.masks[chosen], names=names)
    results, truths = [part.result for part in parts], category.masks
    own = {name: facts.pop(name) for name in OWN}
    del own["threshold"]
    run = measure(facts, results, truths, names)
    best = run["backbone_oracle"]["threshold"]
    masks = {
        "backbone": [result.score_map > best for result in results],
        "f2pad": [result.mask for result in results],
    }
    scores = {
        f"{who}_{name}": np.array([100 * score(*pair) for pair in zip(found, truths, strict=True)])
        for who, found in masks.items()
        for name, score in (("iou", metrics.iou), ("dice", metrics.dice))
    }
    shown = truths.any(axis=(1, 2))  # the paper's measures are those of pictures that show a defect
    outline = {who: outline_record(np.stack(found)[shown], truths[shown]) for who, found in masks.items()}
    intervals = {name: interval([values[shown]], seed=run["seed"]) for name, values in scores.items()}
    run |= {
        "shots": unit.shots,
        "variant": unit.variant,
        **own,
        "interval": intervals,
        "outline": outline,
    }
    return Done(unit, category, parts, run, scores)


def outline_record(found: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Means over pictures of boundary F1 × 100 at each tolerance, and of the 95 % Hausdorff distance in pixels."""
    pairs = list(zip(found, truths, strict=True))
    record = {
        f"boundary_f1_{t}": round(100 * float(np.mean([metrics.boundary_f1(*pair, tolerance=t) for pair in pairs])), 2)
        for t in TOLERANCES
    }
    return record | {"hausdorff95": round(float(np.mean([metrics.hausdorff95(*pair) for pair in pairs])), 2)}


def interval(samples: Sequence[np.ndarray], *, seed: int) -> list[float]:
    """95 % bootstrap interval (percentiles) of the mean of the samples' means; each sample is drawn from by itself.

    Args:
      samples: one value per picture, for one category or several.
      seed: of the draws.

    Returns:
      Lower and upper end; both are the mean where a sample has a single picture.
    """
    if min(len(sample) for sample in samples) < 2:
        mean = float(np.mean([np.mean(sample) for sample in samples]))
        return [round(mean, 2), round(mean, 2)]

    def mean_of_means(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([one.mean(axis=axis) for one in drawn], axis=0)

    found = stats.bootstrap(
        tuple(samples),
        mean_of_means,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [round(float(found.low), 2), round(float(found.high), 2)]


def size_group(area: float) -> int:
    """Which of the paper's five groups (0 to 4) an anomaly is in that covers this share of the picture."""
    return int(np.searchsorted(EDGES, area, side="right"))


def by_size(done: Sequence[Done]) -> list[tuple[np.ndarray, np.ndarray]]:
    """IoU of the backbone and of F2PAD for each of the five groups."""
    group = np.concatenate([[size_group(float(mask.mean())) for mask in one.category.masks] for one in done])
    backbone, f2pad = (np.concatenate([one.scores[f"{who}_iou"] for one in done]) for who in ("backbone", "f2pad"))
    return [(backbone[group == k], f2pad[group == k]) for k in range(len(GROUPS))]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _pair(values: Sequence[float], *, signed: str = "") -> str:
    return " / ".join(f"{value:{signed}.1f}" for value in values)


def by_detector(done: Sequence[Done]) -> dict[str, list[Done]]:
    """Units of each detector, in the order they come."""
    groups: dict[str, list[Done]] = {}
    for one in done:
        groups.setdefault(one.unit.detector, []).append(one)
    return groups


def comparison(name: str, done: Sequence[Done]) -> str:
    """Tables I and II, and the outlines."""
    printed = paper.numbers(name)
    keys = ("backbone_iou", "backbone_dice", "f2pad_iou", "f2pad_dice")
    rows, outlines, rest = [], [], []
    for detector, group in by_detector(done).items():
        for label, members in [(one.unit.category, [one]) for one in group] + [("mean", group)]:
            if label == "mean" and len(group) == 1:
                continue
            ours = {key: float(np.mean([one.scores[key].mean() for one in members])) for key in keys}
            own = [float(np.mean([one.run["backbone"][key] for one in members])) for key in ("iou", "dice")]
            low, high = interval([one.scores["f2pad_iou"] for one in members], seed=members[0].run["seed"])
            closed = gap_closed(ours["backbone_iou"], ours["f2pad_iou"])
            theirs = printed.get(detector, {}).get(label)
            rows.append(
                [detector, f"**{label}**" if label == "mean" else label, _pair(own)]
                + _compared(ours, f" ({low:.1f} to {high:.1f})")
                + ["–" if closed is None else f"{closed:.0f}"]
                + (_compared(theirs, "") if theirs else ["–"] * 3)
            )
            outlines.append([detector, label, *_outline_cells([one.run["outline"] for one in members])])
            rest.append([detector, label, *_rest_cells([one.run for one in members])])
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
        + markdown(["detector", "category", "pixel AUROC", "AUPRO", "worse", "seconds an image"], rest)
    )


def _compared(values: dict[str, float], note: str) -> list[str]:
    backbone, f2pad = ([values[f"{who}_{key}"] for key in ("iou", "dice")] for who in ("backbone", "f2pad"))
    change = [after - before for before, after in zip(backbone, f2pad, strict=True)]
    return [_pair(backbone), _pair(f2pad) + note, _pair(change, signed="+")]


def _outline_cells(records: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    def mean(who: str, key: str) -> float:
        return float(np.mean([record[who][key] for record in records]))

    return [f"{mean('backbone', key):.1f} → {mean('f2pad', key):.1f}" for key in records[0]["f2pad"]]


def _rest_cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    images = [image for run in runs for image in run["per_image"]]
    worse = sum(image["f2pad_iou"] < image["backbone_iou"] - WORSE for image in images)
    scores = [f"{np.mean([run['backbone'][key] for run in runs]):.1f}" for key in ("pixel_auroc", "aupro")]
    return [*scores, f"{worse} / {len(images)}", f"{np.median([image['seconds'] for image in images]):.1f}"]


def ablation(name: str, done: Sequence[Done]) -> str:
    """Table III: means over categories, per variant and detector."""
    printed, rows = paper.numbers(name), []
    groups = by_detector(done)
    for variant, label in LABELS.items():
        cells = [label]
        for detector, group in groups.items():
            members = [one for one in group if one.unit.variant == variant]
            if members:
                ours = [
                    float(np.mean([one.scores[f"f2pad_{key}"].mean() for one in members])) for key in ("iou", "dice")
                ]
                low, high = interval([one.scores["f2pad_iou"] for one in members], seed=members[0].run["seed"])
                cells.append(f"{_pair(ours)} ({low:.1f} to {high:.1f})")
            else:
                cells.append("–")
            theirs = printed.get(variant, {}).get(detector)
            cells.append(_pair(tuple(theirs.values())) if theirs else "–")
        rows.append(cells)
    members = {(one.unit.detector, one.unit.category, one.unit.variant): one for one in done}
    pairs = dict.fromkeys(key[:2] for key in members)
    each = [
        [*pair, *(f"{one.scores['f2pad_iou'].mean():.1f}" if (one := members.get((*pair, v))) else "–" for v in LABELS)]
        for pair in pairs
    ]
    head = ["", *(text for detector in groups for text in (detector, f"paper: {detector}"))]
    return (
        f"{markdown(head, rows)}\nIoU / DICE × 100 (95 % interval of IoU), means over pictures, then over categories. "
        "Initialisation: where x and the fill n⁽⁰⁾ differ by more than 0.2 (L1, RGB in [0, 1]) within the region; "
        "without sparsity: where x and n do.\n\nIoU in each category:\n\n"
        + markdown(["detector", "category", *LABELS.values()], each)
    )


def cost(name: str, done: Sequence[Done]) -> str:
    """Table IV: iterations and seconds."""
    printed, rows = paper.numbers(name), []
    for detector, group in by_detector(done).items():
        parts = [part for one in group for part in one.parts]
        ours = [float(np.mean([part.record[key] for part in parts])) for key in ("iterations", "seconds")]
        theirs = printed[detector]
        rows.append([detector, f"{ours[0]:.1f}", f"{ours[1]:.2f}", *(f"{value:.1f}" for value in theirs.values())])
    head = ["detector", "iterations", "seconds an image", "paper: iterations", "paper: seconds (RTX 3080)"]
    note = "Seconds are an image's share of those it was solved together with, compilation included.\n"
    return f"{markdown(head, rows)}\n{note}"


def sizes(name: str, done: Sequence[Done]) -> str:
    """Figure 7 in numbers."""
    edges = (0.0, *EDGES)
    rows = []
    for group, low, high, (backbone, f2pad) in zip(GROUPS, edges, [*edges[1:], None], by_size(done), strict=True):
        limits = f"{low:.2f} to {high:.2f}" if high else f"above {low:.2f}"
        means = ["–", "–"]
        if len(f2pad):
            ends = [interval([values], seed=done[0].run["seed"]) for values in (backbone, f2pad)]
            means = [
                f"{values.mean():.1f} ({a:.1f} to {b:.1f})"
                for values, (a, b) in zip((backbone, f2pad), ends, strict=True)
            ]
        rows.append([group, limits, str(len(f2pad)), *means])
    return markdown(["group", "share of the picture", "masks", "backbone IoU", "F2PAD IoU"], rows)


def falls(name: str, done: Sequence[Done]) -> str:
    """Figure 10 in numbers: the last F of each way, and where it is lower or higher than plain Adan's."""
    rows = []
    for detector, group in by_detector(done).items():
        ends = [{way: values[-1] for way, values in losses.items()} for one in group for losses in curves(one).values()]
        if not ends:
            continue
        cells = [f"{np.mean([end['plain'] for end in ends]):.0f}"]
        for way in ("shared", "gradient"):
            gaps = np.array([end[way] - end["plain"] for end in ends])
            cells += [
                f"{np.mean([end[way] for end in ends]):.0f}",
                f"{(gaps < 0).sum()} / {(gaps > 0).sum()} of {len(gaps)}",
            ]
        rows.append([detector, *cells])
    head = ["detector", "F, plain Adan", "‖a‖ shared", "lower / higher", "gradient as well", "lower / higher"]
    return markdown(head, rows)


def curves(one: Done) -> dict[int, dict[str, list[float]]]:
    """The losses of the pictures of a unit that were solved, by number."""
    found = {index: part.record.get("losses", {}) for index, part in enumerate(one.parts)}
    return {index: losses for index, losses in found.items() if losses}


def only(done: Sequence[Done], variant: str = FULL) -> list[Done]:
    """The units of one variant."""
    return [one for one in done if one.unit.variant == variant]

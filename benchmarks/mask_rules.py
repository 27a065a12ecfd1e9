"""Rules that read a mask off a solve, side by side on the same solves.

`python benchmarks/mask_rules.py --data MVTEC_ROOT --weights FILE --out FOLDER` solves pictures that `f2pad experiment
real --images 16` leaves out, and pasted anomalies as in `f2pad experiment table1` with another seed, keeps what a rule
needs of each, and prints the mean IoU of every rule. What lies in the folder already is not solved again.

On real defects regions are those of a rate of false alarms of 15 %, so that faint ones are among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from skimage.measure import label

import f2pad_jax as f2
from f2pad_jax.calibration import Limits, choose_levels, piece_maxima
from f2pad_jax.core import levels_of
from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import read_test
from f2pad_jax.experiments.sets import CUT_PASTE, load_category, stratified
from f2pad_jax.experiments.tables import markdown
from f2pad_jax.metrics import iou
from f2pad_jax.outcomes import EVIDENT, clean, evidence, left_maps
from f2pad_jax.preparing import locate, plan
from f2pad_jax.sights import look, smooth_map
from f2pad_jax.solving import find_solutions

SIZE, REPORTED, SEED = 224, 16, 100
RATES = {"real": 0.15, "pasted": 0.01}
REAL, PASTED = (("grid", 41), ("pill", 40)), (("capsule", 12), ("metal_nut", 12), ("grid", 12))
SETS = [(name, "real", count) for name, count in REAL] + [(name, "pasted", count) for name, count in PASTED]
DETECTORS = ("padim", "patchcore")


class Kept(NamedTuple):
    """What rules need of one solve from a fill; maps are (S, S) of one size, as in the solve."""

    truth: np.ndarray
    image: np.ndarray
    fill: np.ndarray
    region: np.ndarray
    scores: np.ndarray
    costs: np.ndarray
    lasting: np.ndarray
    left: np.ndarray
    ends: np.ndarray
    betas: np.ndarray
    numbers: np.ndarray  # error of the fill, and the model's `Limits`

    def level(self, gain: float) -> np.ndarray:
        """The level that `choose_levels` chooses at each pixel of the region."""
        error, peak, spread, pixel, cost = map(float, self.numbers)
        limits = Limits(peak=peak, spread=spread, pixel=pixel, cost=cost)
        return choose_levels(self.region, self.costs, self.left, self.betas, limits, error=error, gain=gain).level

    def lasts(self, level: np.ndarray | int) -> np.ndarray:
        """Pixels of the region that differ from n at a level."""
        return self.region & (self.lasting >= self.ends[level])

    def evident(self, share: float, *, by_piece: bool = False) -> np.ndarray:
        """Pixels with a share of the highest evidence in the region, or in their own piece of it."""
        values = evidence(self.scores, self.image, self.fill)
        pieces = np.asarray(label(self.region, connectivity=2)) if by_piece else self.region.astype(int)
        return values > share * piece_maxima(values, pieces)[pieces]

    def cleaned(self, mask: np.ndarray) -> float:
        """IoU of a mask with the truth, once it is cleaned."""
        return iou(clean(mask & self.region, self.scores, self.region, kind="whole"), self.truth)


def by_levels(one: Kept, *, gain: float, share: float = 0.0, by_piece: bool = False, spare: bool = False) -> float:
    """What differs at the level that a piece can pay for, and has a share of the evidence or is at the highest."""
    level = one.level(gain)
    spared = spare & (level == len(one.ends) - 1)
    return one.cleaned(one.lasts(level) & (spared | one.evident(share, by_piece=by_piece)))


def by_evidence(one: Kept, *, share: float) -> float:
    """What has a share of the highest evidence, without any solve."""
    return one.cleaned(one.evident(share))


def by_oracle(one: Kept) -> float:
    """The best of the levels, which knows the truth."""
    return max(one.cleaned(one.lasts(level)) for level in range(len(one.ends)))


RULES: dict[str, Callable[[Kept], float]] = {
    "levels, gain 0.8": partial(by_levels, gain=0.8),
    "levels, gain 0.2": partial(by_levels, gain=0.2),
    **{f"gain {g}, evidence {EVIDENT} everywhere": partial(by_levels, gain=g, share=EVIDENT) for g in (0.8, 0.4, 0.2)},
    **{
        f"gain {g}, evidence {c} below β0": partial(by_levels, gain=g, share=c, spare=True)
        for g in (0.8, 0.4, 0.2, 0.1)
        for c in (0.3, EVIDENT, 0.5)
    },
    f"gain 0.2, evidence {EVIDENT} of each piece, below β0": partial(
        by_levels, gain=0.2, share=EVIDENT, by_piece=True, spare=True
    ),
    **{f"evidence {c} alone": partial(by_evidence, share=c) for c in (0.3, EVIDENT, 0.5)},
    "the best level of each picture (an oracle)": by_oracle,
}


def pictures(data: Path, name: str, kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training pictures, test pictures and masks: real defects that are not reported, or pasted anomalies."""
    if kind == "pasted":
        with TemporaryDirectory() as folder:
            made = load_category(name, Path(folder), dataset=CUT_PASTE, data=data, images=count, seed=SEED)
            return made.train, made.images, made.masks
    category = open_category(data / name, need_test=True)
    defects = [case for case in category.test if not case.good]
    reported = {case.path for case in stratified(defects, REPORTED)}
    left_out = [case for case in defects if case.path not in reported]
    read = [read_test(case, SIZE) for case in stratified(left_out, min(count, len(left_out)))]
    train = np.stack([read_image(path, SIZE) for path in category.train])
    return train, np.stack([image for image, _ in read]), np.stack([mask for _, mask in read])


def solve(model: f2.Model, images: np.ndarray, masks: np.ndarray, name: str, out: Path) -> None:
    """Writes a file for each picture whose solve starts from a fill."""
    places = [(sight, locate(model, sight)) for sight in look(model, images)]
    indices = [k for k, (_, place) in enumerate(places) if place.start is not None and place.start.filled]
    plans = [plan(model, places[k][0], places[k][1].region, places[k][1].start) for k in indices]
    for index, solution in find_solutions(model, plans, title=name):
        chosen, limits = plans[index], model.limits
        ends, factors = levels_of(chosen.start.filled, chosen.settings)
        kept = Kept(
            truth=masks[indices[index]],
            image=chosen.sight.image,
            fill=chosen.start.fill,
            region=chosen.region,
            scores=chosen.sight.scores,
            costs=smooth_map(chosen.sight.costs, model.seen),
            lasting=np.asarray(solution.lasting),
            left=left_maps(model, chosen, solution),
            ends=np.asarray(ends),
            betas=np.asarray(factors) * float(chosen.settings.beta0),
            numbers=np.array([chosen.start.error, limits.peak, limits.spread, limits.pixel, limits.cost]),
        )
        np.savez_compressed(out / f"{name}-{indices[index]:03d}.npz", **kept._asdict())


def main() -> None:
    """Solves what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MVTEC_ROOT")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of ResNet-18")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of what is kept of each solve")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many of each set")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    extractor = f2.load_extractor("resnet18", weights=asked.weights)
    columns: dict[str, list[Kept]] = {}
    for category, kind, count in SETS:
        for detector in DETECTORS:
            name, count = f"{category}-{kind}-{detector}", min(count, asked.images or count)
            if not any(asked.out.glob(f"{name}-*.npz")):
                train, images, masks = pictures(asked.data, category, kind, count)
                model = f2.fit(train, detector=detector, extractor=extractor)
                model = replace(model, procedure=replace(model.procedure, false_alarms=RATES[kind]))
                solve(model, images, masks, name, asked.out)
            columns[name] = [Kept(**np.load(path)) for path in sorted(asked.out.glob(f"{name}-*.npz"))]
    rows = []
    for name, rule in RULES.items():
        means = [100 * float(np.mean([rule(one) for one in column])) for column in columns.values()]
        rows.append([name, *(f"{mean:.1f}" for mean in means), f"{np.mean(means):.1f}"])
    heads = [f"{name.replace('-', ', ')} ({len(column)})" for name, column in columns.items()]
    print(markdown(["rule", *heads, "mean"], rows), end="")


if __name__ == "__main__":
    main()

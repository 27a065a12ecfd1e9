"""Options of PaDiM and PatchCore on MVTec AD's own defects, by their score maps alone; nothing is solved.

`python benchmarks/detector_maps.py --data MVTEC_ROOT --weights FILE` prints a table. Of categories with many defects
it takes those that `f2pad experiment real --images 16` leaves out: options can be chosen here and reported there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import f2pad_jax as f2
from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import read_test
from f2pad_jax.experiments.sets import stratified
from f2pad_jax.experiments.tables import markdown
from f2pad_jax.metrics import image_auroc, iou, pixel_auroc
from f2pad_jax.sights import score_maps

SIZE, REPORTED = 224, 16
LEVELS = 200  # thresholds that are tried for the best one
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("padim", {"plain": True}),
    ("padim", {"shared": 0.0}),
    ("padim", {"shared": 0.3}),
    ("padim", {"shared": 0.6}),
    ("padim", {"channels": 100}),
    ("padim", {"channels": 448}),
    ("patchcore", {"plain": True}),
    ("patchcore", {}),
)
HEAD = ["detector", "options", "data", "defects", "image AUROC", "pixel AUROC", "IoU, best", "IoU, own", "good marked"]


def pictures(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training pictures, test pictures and their masks."""
    category = open_category(folder, need_test=True)
    train = np.stack([read_image(path, SIZE) for path in category.train])
    cases = []
    for good in (False, True):
        kind = [case for case in category.test if case.good == good]
        reported = {case.path for case in stratified(kind, REPORTED)}
        cases += [case for case in kind if case.path not in reported] or kind
    read = [read_test(case, SIZE) for case in cases]
    return train, np.stack([x for x, _ in read]), np.stack([m for _, m in read])


def figures(model: f2.Model, images: np.ndarray, masks: np.ndarray) -> list[str]:
    """The row of a model: IoU × 100 are means over pictures with a defect, at the best threshold and at the model's."""
    scores, bad = score_maps(model, images), np.array([mask.any() for mask in masks])
    levels = np.quantile(scores, 1 - np.geomspace(1e-4, 0.5, LEVELS))
    at = [
        np.mean([iou(s > t, m) for s, m in zip(scores[bad], masks[bad], strict=True)])
        for t in (*levels, model.threshold)
    ]
    peaks = scores.max(axis=(1, 2))
    shares = (image_auroc(peaks, bad), pixel_auroc(scores, masks), max(at[:-1]), at[-1])
    marked = f"{(peaks[~bad] > model.threshold).sum()} of {(~bad).sum()}"
    return [str(bad.sum()), *(f"{100 * share:.1f}" for share in shares), marked]


def main() -> None:
    """Prints a row for each way and category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MVTEC_ROOT")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of ResNet-18")
    parser.add_argument("--category", nargs="+", default=("grid", "pill", "capsule", "metal_nut"), metavar="NAME")
    asked = parser.parse_args()
    extractor = f2.load_extractor("resnet18", weights=asked.weights)
    print(markdown(HEAD, []), end="")
    for name in asked.category:
        train, images, masks = pictures(asked.data / name)
        for detector, options in WAYS:
            model = f2.fit(train, detector=detector, extractor=extractor, options=options)
            words = ", ".join(f"{key}={value}" for key, value in options.items()) or "default"
            print("|", " | ".join([detector, words, name, *figures(model, images, masks)]), "|", flush=True)


if __name__ == "__main__":
    main()

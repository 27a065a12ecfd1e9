"""Accuracy of F2PAD and of its backbones: the tables under `benchmarks/results/`.

python benchmarks/accuracy.py textures --out benchmarks/results/textures [--tuned]
python benchmarks/accuracy.py cutpaste --data MVTEC_ROOT --weights FILE --out benchmarks/results/cutpaste
python benchmarks/accuracy.py real --data MVTEC_ROOT --weights FILE --out benchmarks/results/real

`textures` are the embedded pictures with EfficientNet-Lite0; `cutpaste` pastes anomalies on normal MVTec AD
pictures (Eq. 16 of arXiv 2407.06519), which leave the training set, with ResNet-18; `real` measures the backbones'
pixel AUROC on MVTec AD's own defects. Each writes OUT.json (the runs of `metrics.json`) and OUT.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import f2pad_jax
from f2pad_jax import metrics
from f2pad_jax.data.folder import load_images, load_tests, open_category
from f2pad_jax.data.images import denormalize, normalize
from f2pad_jax.data.synthesize import synthesize_category
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.detectors.cflow import maps_of_shots
from f2pad_jax.evaluation import metrics_file
from f2pad_jax.fitting import draw_shots, score_maps
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.pipeline import Model, fill, find_region

DETECTORS = ("padim", "patchcore", "cflow")
PARTS = {"capsule": True, "metal_nut": False, "grid": False}  # and whether structural anomalies are pasted
DIFFERENT = 0.2  # L1 difference of x and n⁽⁰⁾ over RGB in [0, 1] that counts for the fill alone, as in the paper


class Category(NamedTuple):
    """Training and test pictures of one category, all uint8 or bool."""

    dataset: str
    name: str
    train: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    names: list[str]


def textures(count: int) -> Iterator[Category]:
    """The embedded categories."""
    for name in TEXTURES:
        train, cases = texture_category(name, test=count)
        images, masks = np.stack([case[0] for case in cases]), np.stack([case[1] for case in cases])
        yield Category("textures", name, train, images, masks, [f"color/{i:03d}" for i in range(count)])


def folder(path: Path, dataset: str, size: int = 224) -> Category:
    """A category in MVTec AD's layout."""
    category = open_category(path)
    train, _ = load_images(category.train, size)
    images, masks, kept, _ = load_tests(category.test, size)
    return Category(dataset, path.name, train, images, masks, [case.id for case in kept])


def cutpaste(data: Path, count: int) -> Iterator[Category]:
    """MVTec AD parts with pasted anomalies, made in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, structural in PARTS.items():
            out = Path(scratch) / name
            synthesize_category(
                data / name,
                out,
                masks=data / name / "ground_truth",
                count=count,
                structural=structural,
                size=224,
            )
            yield folder(out, "mvtec-cutpaste")


def fill_alone(model: Model, category: Category) -> dict[str, float]:
    """Mean IoU of thresholding |x − n⁽⁰⁾| inside the region, for each fill (the paper's "initialisation")."""
    found: dict[str, list[float]] = {"harmonic": [], "matching": []}
    for image, mask, scores in zip(category.images, category.masks, score_maps(model, category.images), strict=True):
        region = find_region(model, scores)
        for kind, values in found.items():
            start = denormalize(fill(normalize(image), region, model, kind=kind).filled)
            difference = np.abs(image.astype(np.float32) - start).sum(axis=-1) / 255
            values.append(metrics.iou(difference > DIFFERENT, mask))
    return {kind: round(100 * float(np.mean(values)), 2) for kind, values in found.items()}


def measure(
    category: Category, detector: str, extractor: Any, *, tuned: bool, shots: int | None
) -> list[dict[str, Any]]:
    """The default run, and the tuned one where asked for; of `shots` training pictures drawn at random."""
    train = category.train
    if shots is not None:
        train = train[draw_shots(len(train), shots, seed=0)]
    options = {"used": maps_of_shots(shots)} if detector == "cflow" else {}
    model = f2pad_jax.fit(train, detector=detector, extractor=extractor, options=options)
    fills = fill_alone(model, category)
    runs = []
    for candidate in [model] + ([f2pad_jax.tune(model)] if tuned else []):
        if runs and candidate.settings == model.settings:  # tuning kept the default
            runs.append(runs[0] | {"tuned_on": candidate.tuned_on})
        else:
            done = f2pad_jax.evaluate(
                candidate,
                category.images,
                category.masks,
                category.names,
                dataset=category.dataset,
                category=category.name,
            )
            runs.append(done.run | {"fill_alone": fills})
        print(table(runs[-1:]), flush=True)
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """Rows of the Markdown table, means last where there are several runs of a detector and setting."""
    rows = []
    for run in runs:
        worse = sum(one["f2pad_iou"] < one["backbone_iou"] - 2 for one in run["per_image"] if "f2pad_iou" in one)
        rows.append(
            f"| {run['category']} | {run['detector']} | {run['tuned_on']} | {run['backbone']['iou']:.1f} / "
            f"{run['backbone']['dice']:.1f} | {run['backbone_oracle']['iou']:.1f} | "
            f"{run['fill_alone']['harmonic']:.1f} | {run['fill_alone']['matching']:.1f} | "
            f"{run['f2pad']['iou']:.1f} / {run['f2pad']['dice']:.1f} | "
            f"{run['closed']:.0f} | {worse} / {run['test_images']} | {run['seconds']:.1f} |"
        )
    return "\n".join(rows)


def means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a detector and setting: the mean over its categories."""
    rows = []
    for key in dict.fromkeys((run["detector"], run["tuned_on"]) for run in runs):
        group = [run for run in runs if (run["detector"], run["tuned_on"]) == key]

        def mean(part: str, name: str, group: list[dict[str, Any]] = group) -> float:
            return float(np.mean([run[part][name] for run in group]))

        rows.append(
            {
                "category": "**mean**",
                "detector": key[0],
                "tuned_on": key[1],
                "backbone": {"iou": mean("backbone", "iou"), "dice": mean("backbone", "dice")},
                "backbone_oracle": {"iou": mean("backbone_oracle", "iou")},
                "fill_alone": {k: mean("fill_alone", k) for k in ("harmonic", "matching")},
                "f2pad": {"iou": mean("f2pad", "iou"), "dice": mean("f2pad", "dice")},
                "closed": 100 * (mean("f2pad", "iou") - mean("backbone", "iou")) / (100 - mean("backbone", "iou")),
                "per_image": [one for run in group for one in run["per_image"]],
                "test_images": sum(run["test_images"] for run in group),
                "seconds": float(np.mean([run["seconds"] for run in group])),
            }
        )
    return rows


def report(runs: list[dict[str, Any]], out: Path, command: str) -> None:
    """Writes OUT.json and OUT.md."""
    head = (
        "| category | detector | settings | backbone IoU / DICE | backbone IoU, oracle threshold | smooth fill alone | "
        "matching fill alone | F2PAD IoU / DICE | distance to 100 closed, % | worse by 2 | seconds an image |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    text = f"`{command}`\n\n{head}{table(runs)}\n{table(means(runs))}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), metrics_file(runs))
    write_bytes(out.with_suffix(".md"), text.encode())


def auroc(data: Path, extractor: Any, detectors: Sequence[str], out: Path, command: str) -> None:
    """Pixel AUROC of the backbones on MVTec AD's own defects."""
    rows = []
    for name in PARTS:
        category = folder(data / name, "mvtec")
        for detector in detectors:
            model = f2pad_jax.fit(category.train, detector=detector, extractor=extractor)
            value = metrics.pixel_auroc(score_maps(model, category.images), category.masks)
            rows.append({"category": name, "detector": detector, "pixel_auroc": round(value, 4)})
            print(rows[-1], flush=True)
    lines = [f"| {row['category']} | {row['detector']} | {row['pixel_auroc']:.4f} |" for row in rows]
    head = "| category | detector | pixel AUROC, real defects |\n|---|---|---|\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), rows)
    write_bytes(out.with_suffix(".md"), (f"`{command}`\n\n{head}" + "\n".join(lines) + "\n").encode())


def main() -> None:
    """Runs one of the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["textures", "cutpaste", "real"])
    parser.add_argument("--data", type=Path, help="root of MVTec AD")
    parser.add_argument("--weights", type=Path, help="ResNet-18 weights")
    parser.add_argument("--images", type=int, help="test pictures a category (textures 8, cutpaste 20)")
    parser.add_argument("--detector", choices=DETECTORS, action="append", help="only these")
    parser.add_argument("--category", action="append", help="only these")
    parser.add_argument("--shots", type=int, metavar="N", help="fit to N training pictures only")
    parser.add_argument("--tuned", action="store_true", help="a second row a run, with tuned settings")
    parser.add_argument("--out", type=Path, required=True, help="name of the results without suffix")
    arguments = parser.parse_args()
    if arguments.what != "textures" and arguments.data is None:
        parser.error("--data is needed")
    command = f"python benchmarks/accuracy.py {arguments.what}" + (" --tuned" if arguments.tuned else "")
    if arguments.what != "textures":
        command += " --data MVTEC_ROOT --weights FILE"
    command += f" --shots {arguments.shots}" if arguments.shots else ""
    command += "".join(f" --detector {detector}" for detector in arguments.detector or ())
    name = "efficientnet_lite0" if arguments.what == "textures" else "resnet18"
    extractor = f2pad_jax.load_extractor(name, weights=arguments.weights)
    if arguments.what == "real":
        auroc(arguments.data, extractor, arguments.detector or DETECTORS, arguments.out, command)
        return
    categories = (
        textures(arguments.images or 8) if name != "resnet18" else cutpaste(arguments.data, arguments.images or 20)
    )
    runs: list[dict[str, Any]] = []
    for category in categories:
        if arguments.category and category.name not in arguments.category:
            continue
        for detector in arguments.detector or DETECTORS:
            runs += measure(category, detector, extractor, tuned=arguments.tuned, shots=arguments.shots)
            report(runs, arguments.out, command)


if __name__ == "__main__":
    main()

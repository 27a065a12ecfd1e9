"""Where the solve starts and where it ends: IoU of n⁽⁰⁾ alone and of the final mask, for every way to n⁽⁰⁾.

python benchmarks/fills.py [--category NAME]... [--images N] [--detector NAME]... [--keep DIR] [--epochs N]

Embedded textures, EfficientNet-Lite0. The autoencoder is the small one of `f2pad train-mae`, trained here on each
category's normal pictures (about 8 minutes of one core), and kept in DIR for further runs. n⁽⁰⁾ alone means:
the pixels of the region where the L1 difference of x and n⁽⁰⁾ over RGB in [0, 1] exceeds 0.2. "auto" is the default:
the matching fill where it is trusted, else x itself, whose difference is nothing. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from options import DETECTORS

import f2pad_jax
from f2pad_jax import metrics
from f2pad_jax.checkpoint import is_checkpoint
from f2pad_jax.core.pixels import denormalize, normalize
from f2pad_jax.data.textures import TEXTURES
from f2pad_jax.experiments.sets import EMBEDDED, Category, load_category
from f2pad_jax.experiments.variants import DIFFERENT
from f2pad_jax.fills import Inpainter
from f2pad_jax.fills.autoencoder import KIND
from f2pad_jax.fills.training import train_to_folder
from f2pad_jax.fitting import score_maps
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.pipeline import Model, begin, find_masks, find_region, masking
from f2pad_jax.weights.inpainters import load_inpainter

STARTS = ("harmonic", "matching", "autoencoder", "auto")


def autoencoder(category: Category, keep: Path, epochs: int | None) -> Inpainter:
    """The category's autoencoder, trained where `keep` does not hold it yet."""
    folder = keep / category.name
    if not is_checkpoint(folder, kind=KIND):
        train_to_folder(category.train, folder, epochs=epochs)
    return load_inpainter(folder)


def measure(model: Model, category: Category, start: str) -> dict[str, Any]:
    """Mean IoU × 100 of n⁽⁰⁾ alone and of the final mask, and seconds that n⁽⁰⁾ takes, of one start."""
    model = replace(model, settings=model.settings._replace(start=start))
    alone, jobs, seconds = [], [], []
    for image, mask, scores in zip(category.images, category.masks, score_maps(model, category.images), strict=True):
        x, region = normalize(image), find_region(model, scores)
        begun = time.perf_counter()
        jobs.append(masking(model, x, region, begin(model, x, region)))
        seconds.append(time.perf_counter() - begun)
        difference = np.abs(image.astype(np.float32) - denormalize(jobs[-1].start.normal)).sum(axis=-1) / 255
        alone.append(metrics.iou(difference > DIFFERENT, mask))
    final = [metrics.iou(found, category.masks[index]) for index, found, _ in find_masks(jobs)]
    return {
        "alone": round(100 * float(np.mean(alone)), 2),
        "final": round(100 * float(np.mean(final)), 2),
        "seconds": round(float(np.median(seconds)), 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a category and detector, each cell n⁽⁰⁾ alone → final mask; means last."""
    lines = ["| category | detector | " + " | ".join(STARTS) + " |", "|---" * (2 + len(STARTS)) + "|"]
    pairs = list(dict.fromkeys((row["category"], row["detector"]) for row in rows))
    groups = [(*pair, [r for r in rows if (r["category"], r["detector"]) == pair]) for pair in pairs]
    for category, detector, group in [*groups, ("**mean**", "", rows)]:
        cells = []
        for start in STARTS:
            values = [(row["alone"], row["final"]) for row in group if row["start"] == start]
            cells.append("{:.1f} → {:.1f}".format(*np.mean(values, axis=0)) if values else "")
        lines.append(f"| {category} | {detector} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", choices=TEXTURES, action="append", help="only these")
    parser.add_argument("--images", type=int, default=8, help="test pictures a category (8)")
    parser.add_argument("--detector", choices=DETECTORS, action="append", help="only these")
    parser.add_argument("--keep", type=Path, help="folder of the autoencoders; without, they are forgotten")
    parser.add_argument("--epochs", type=int, help="of the autoencoders' training, as for f2pad train-mae")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "fills", help="results without suffix"
    )
    arguments = parser.parse_args()
    command = f"python benchmarks/fills.py --images {arguments.images}"
    command += "".join(f" --category {name}" for name in arguments.category or ())
    command += "".join(f" --detector {name}" for name in arguments.detector or ())
    command += f" --epochs {arguments.epochs}" if arguments.epochs else ""
    extractor = f2pad_jax.load_extractor("efficientnet_lite0")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.category or TEXTURES:
            category = load_category(
                name, Path(scratch) / "sets", dataset=EMBEDDED, data=None, images=arguments.images, seed=0
            )
            inpainter = autoencoder(category, arguments.keep or Path(scratch), arguments.epochs)
            for detector in arguments.detector or DETECTORS:
                model = f2pad_jax.fit(category.train, detector=detector, extractor=extractor, inpainter=inpainter)
                for start in STARTS:
                    about = {"category": category.name, "detector": detector, "start": start}
                    rows.append(about | measure(model, category, start))
                    print(rows[-1], flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                facts = {"name": "fills", "device": jax.default_backend(), "jax": jax.__version__}
                facts |= {"images": arguments.images, "command": command, "runs": rows}
                write_json(arguments.out.with_suffix(".json"), facts)
                text = f"Mean IoU of n⁽⁰⁾ alone → of the final mask, {arguments.images} pictures each."
                text = f"`{command}`\n\n{text}\n\n{table(rows)}\n"
                write_bytes(arguments.out.with_suffix(".md"), text.encode())


if __name__ == "__main__":
    main()

"""What a precision does to the masks: IoU of those under "parity" and under another, with each other and the truth.

python benchmarks/precision.py [--category NAME]... [--images N] [--detector NAME]... [--precision NAME]...

Embedded textures, EfficientNet-Lite0, 224 × 224; models are fitted and pictures segmented in the precision that a row
names. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import f2pad_jax
from f2pad_jax import metrics
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.pipeline import segment_many

DETECTORS = ("padim", "patchcore", "cflow")
COLUMNS = ("mean IoU, parity", "mean IoU", "IoU with parity, mean", "least", "iterations, parity", "iterations")


def compare(
    category: str, detector: str, load: Callable[..., Extractor], precisions: list[str], count: int
) -> list[dict[str, Any]]:
    """A row for each precision; `load` takes it and gives the extractor."""
    train, cases = texture_category(category, test=count)
    images, masks = np.stack([case[0] for case in cases]), np.stack([case[1] for case in cases])
    found = {}
    for precision in ["parity", *precisions]:
        model = f2pad_jax.fit(train, detector=detector, extractor=load(precision=precision))
        found[precision] = segment_many(model, images)
    rows = []
    for precision in precisions:
        row: dict[str, Any] = {"category": category, "detector": detector, "precision": precision, "images": []}
        for exact, other, mask in zip(found["parity"], found[precision], masks, strict=True):
            row["images"].append(
                {
                    "parity_iou": round(100 * metrics.iou(exact.mask, mask), 2),
                    "iou": round(100 * metrics.iou(other.mask, mask), 2),
                    "agreement": round(100 * metrics.iou(other.mask, exact.mask), 2),
                    "parity_iterations": exact.iterations,
                    "iterations": other.iterations,
                }
            )
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a row."""
    lines = ["| category | detector | precision | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for row in rows:
        values = {name: [image[name] for image in row["images"]] for name in row["images"][0]}
        means = {name: float(np.mean(value)) for name, value in values.items()}
        cells = [means["parity_iou"], means["iou"], means["agreement"], min(values["agreement"])]
        cells += [means["parity_iterations"], means["iterations"]]
        about = f"| {row['category']} | {row['detector']} | {row['precision']} | "
        lines.append(about + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", choices=TEXTURES, action="append", help="only these (brick, gravel)")
    parser.add_argument("--images", type=int, default=3, help="test pictures a category (3)")
    parser.add_argument("--detector", choices=DETECTORS, action="append", help="only these (padim, patchcore)")
    parser.add_argument("--precision", choices=("fast", "bf16"), action="append", help="only these")
    parser.add_argument("--extractor", default="efficientnet_lite0", help="(efficientnet_lite0)")
    parser.add_argument("--weights", help="the extractor's weight file, where it is not imported")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "precision", help="results without suffix"
    )
    arguments = parser.parse_args()
    precisions = arguments.precision or ["fast", "bf16"]
    load = partial(f2pad_jax.load_extractor, arguments.extractor, weights=arguments.weights)
    command = f"python benchmarks/precision.py --images {arguments.images}"
    for option in ("category", "detector", "precision"):
        command += "".join(f" --{option} {name}" for name in getattr(arguments, option) or ())
    device = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else platform.machine()
    facts: dict[str, Any] = {"name": "precision", "device": device, "jax": jax.__version__, "command": command}
    facts |= {"extractor": arguments.extractor, "runs": []}
    for category in arguments.category or ("brick", "gravel"):
        for detector in arguments.detector or ("padim", "patchcore"):
            facts["runs"] += compare(category, detector, load, precisions, arguments.images)
            print(facts["runs"][-1], flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out.with_suffix(".json"), facts)
            text = f"`{command}`\n\nIoU × 100 of {arguments.images} pictures each, {arguments.extractor}, {device}.\n\n"
            write_bytes(arguments.out.with_suffix(".md"), f"{text}{table(facts['runs'])}\n".encode())


if __name__ == "__main__":
    main()

"""CFLOW-AD with few couplings a flow: how well it scores, and what F2PAD makes of it.

python benchmarks/couplings.py [--category NAME_OR_FOLDER]... [--couplings N]... [--images N]

EfficientNet-Lite0, 224 × 224, default settings. A category is a texture, or the folder of a data set, such as
`f2pad synthesize` makes. "held-out loss" is the mean summand of Eq. (6), −log σ(log p / C), on normal pictures that the
training has not seen. Solving includes compiling. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from problems import use_all_cores

import f2pad_jax
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.experiments.sets import Category, read_category
from f2pad_jax.metrics import iou, pixel_auroc
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.pipeline import segment_many

COUPLINGS = (1, 2, 3, 4, 8)
TRAIN = 64  # normal pictures of a texture
HEAD = "| category | couplings | held-out loss | pixel AUROC | IoU, backbone | IoU | lowest IoU | fit, s | solve, s |"


def category_of(name: str, images: int) -> Category:
    """The pictures of a texture or of a data set's folder."""
    if name not in TEXTURES:
        return read_category(Path(name))
    train, cases = texture_category(name, train=TRAIN, test=images)
    names = [f"{k:03d}" for k in range(len(cases))]
    return Category(name, train, np.stack([x for x, _, _ in cases]), np.stack([m for _, m, _ in cases]), names)


def measured(category: Category, extractor: Extractor, couplings: int, images: int) -> dict[str, Any]:
    """A row of the table."""
    began = time.perf_counter()
    model = f2pad_jax.fit(category.train, detector="cflow", extractor=extractor, seed=0, options={"blocks": couplings})
    fitted = time.perf_counter() - began
    pictures, truths = category.images[:images], category.masks[:images]
    began = time.perf_counter()
    found = segment_many(model, pictures)
    solved = (time.perf_counter() - began) / len(pictures)
    reached = [iou(result.mask, truth) for result, truth in zip(found, truths, strict=True)]
    return {
        "category": category.name,
        "couplings": couplings,
        "loss": float(model.scales.score),
        "auroc": pixel_auroc(np.stack([result.score_map for result in found]), truths),
        "backbone": float(np.mean([iou(result.initial_mask, t) for result, t in zip(found, truths, strict=True)])),
        "iou": float(np.mean(reached)),
        "lowest": min(reached),
        "fit_s": fitted,
        "solve_s": solved,
    }


def line(row: dict[str, Any]) -> str:
    """A row in Markdown; fractions × 100."""
    percent = " | ".join(f"{100 * row[name]:.1f}" for name in ("backbone", "iou", "lowest"))
    return (
        f"| {row['category']} | {row['couplings']} | {row['loss']:.3f} | {100 * row['auroc']:.2f} | {percent} "
        f"| {row['fit_s']:.0f} | {row['solve_s']:.1f} |"
    )


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", action="append", metavar="NAME_OR_FOLDER", help="only these (all textures)")
    parser.add_argument("--couplings", type=int, action="append", metavar="N", help="only these (1, 2, 3, 4, 8)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="test pictures of each (8)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "couplings", help="results without suffix"
    )
    arguments = parser.parse_args()
    use_all_cores()
    extractor = f2pad_jax.load_extractor("efficientnet_lite0")
    rows: list[dict[str, Any]] = []
    for name in arguments.category or sorted(TEXTURES):
        category = category_of(name, arguments.images)
        for couplings in arguments.couplings or COUPLINGS:
            rows.append(measured(category, extractor, couplings, arguments.images))
            print(line(rows[-1]), flush=True)
    chosen = [f"--couplings {count}" for count in arguments.couplings or ()]
    named = [f"--category {Path(name).name}" for name in arguments.category or ()]
    command = " ".join(["python benchmarks/couplings.py", *named, *chosen, f"--images {arguments.images}"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out.with_suffix(".json"), {"name": "couplings", "command": command, "runs": rows})
    table = [HEAD, "|---" * (HEAD.count("|") - 1) + "|", *map(line, rows)]
    write_bytes(arguments.out.with_suffix(".md"), (f"`{command}`\n\n" + "\n".join(table) + "\n").encode())


if __name__ == "__main__":
    main()

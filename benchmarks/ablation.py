"""What each choice of the solver is worth, on the embedded textures: one changed setting a row.

python benchmarks/ablation.py --out benchmarks/results/ablation

EfficientNet-Lite0; brick and ihc; both detectors. The rows of `VARIANTS` change the default settings one at a time;
"paper" takes the paper's rules together. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import f2pad_jax
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.tuning import judge

CATEGORIES = ("brick", "ihc")
DETECTORS = ("padim", "patchcore")
VISIBLE = 0.45  # norm of a that counts where steps give no exact zeros: half the least contrast of cut-paste
PENALISED: dict[str, Any] = {"sparsity": "gradient", "smallest": VISIBLE}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "start from the harmonic fill": {"start": "harmonic"},
    "start from the matching fill": {"start": "matching"},
    "no warm-up": {"warm_up": 0},
    "penalty as a gradient, ‖a‖ > 0.45": PENALISED,
    "adaptive step size, Eq. (15)": {"step_size": "adaptive", "rate": 0.03},
    "no gradient sharing": {"sharing_radius": 0},
    "no pixel prior": {"alpha1": 0.0},
    "no total variation": {"alpha2": 0.0},
    "no sparsity, ‖a‖ > 0.45": {"beta0": 0.0, "smallest": VISIBLE},
    "3 × 3 opening": {"cleaning": "opening"},
    "half the step size": {"rate": 0.06},
    "twice the step size": {"rate": 0.24},
    "β0 = 1.5": {"beta0": 1.5},
    "β0 = 6": {"beta0": 6.0},
    "paper: matching fill, gradient penalty, adaptive, opening": PENALISED
    | {"start": "matching", "step_size": "adaptive", "rate": 0.03, "cleaning": "opening"},
}


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="test pictures a category")
    parser.add_argument("--category", choices=CATEGORIES, action="append", help="only these")
    parser.add_argument("--detector", choices=DETECTORS, action="append", help="only these")
    parser.add_argument("--out", type=Path, required=True, help="name of the results without suffix")
    arguments = parser.parse_args()
    extractor = f2pad_jax.load_extractor("efficientnet_lite0")
    rows: dict[str, dict[str, float]] = {name: {} for name in VARIANTS}
    for category in arguments.category or CATEGORIES:
        train, cases = texture_category(category, test=arguments.images)
        images, masks = np.stack([case[0] for case in cases]), np.stack([case[1] for case in cases])
        for detector in arguments.detector or DETECTORS:
            model = fit(train, detector=detector, extractor=extractor)
            for name, changes in VARIANTS.items():
                changed = replace(model, settings=model.settings._replace(**changes))
                rows[name][f"{category} {detector}"] = round(
                    100 * float(judge(changed, images, masks)([changed]).mean()), 1
                )
                print(name, rows[name], flush=True)
    columns = list(rows["default"])
    lines = [
        f"| {name} | " + " | ".join(f"{values[c]:.1f}" for c in columns) + f" | {np.mean(list(values.values())):.1f} |"
        for name, values in rows.items()
    ]
    head = f"| mean IoU of {arguments.images} pictures | " + " | ".join(columns) + " | mean |\n"
    command = "python benchmarks/ablation.py" + "".join(f" --detector {name}" for name in arguments.detector or ())
    command += "".join(f" --category {name}" for name in arguments.category or ())
    text = f"`{command} --images {arguments.images}`\n\n{head}|---|" + "---|" * (len(columns) + 1) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out.with_suffix(".json"), rows)
    write_bytes(arguments.out.with_suffix(".md"), (text + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()

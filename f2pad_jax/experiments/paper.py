"""The numbers that arXiv 2407.06519 prints, × 100, to stand beside ours."""

from __future__ import annotations

from typing import Any

SOURCE = "arXiv 2407.06519"
DETECTORS = ("patchcore", "cflow", "padim")
CATEGORIES = ("hazelnut", "leather", "metal_nut", "capsule", "tile", "wood")

# A row: IoU and DICE of the backbone, then of F2PAD. Each printed Δ agrees with them to its rounding.
_Rows = dict[str, dict[str, tuple[float, float, float, float]]]
_ALL: _Rows = {
    "patchcore": {
        "hazelnut": (67.5, 80.1, 86.9, 92.5),
        "leather": (70.4, 82.1, 91.9, 95.7),
        "metal_nut": (71.5, 83.0, 89.4, 93.7),
        "capsule": (60.6, 74.6, 86.1, 92.4),
        "tile": (69.2, 81.4, 95.0, 97.4),
        "wood": (59.9, 73.5, 86.6, 91.8),
        "mean": (66.5, 79.1, 89.3, 93.9),
    },
    "cflow": {
        "hazelnut": (76.0, 86.1, 86.3, 91.8),
        "leather": (77.9, 87.4, 91.9, 95.4),
        "metal_nut": (78.4, 87.4, 89.3, 93.8),
        "capsule": (68.4, 80.8, 83.4, 90.3),
        "tile": (87.1, 93.0, 95.4, 97.1),
        "wood": (70.0, 81.8, 90.5, 94.3),
        "mean": (76.3, 86.1, 89.5, 93.8),
    },
    "padim": {
        "hazelnut": (65.3, 78.5, 88.3, 93.6),
        "leather": (61.6, 75.6, 93.2, 96.4),
        "metal_nut": (68.9, 81.3, 91.1, 95.0),
        "capsule": (55.3, 70.4, 85.5, 92.0),
        "tile": (64.5, 78.0, 96.7, 98.3),
        "wood": (51.2, 66.6, 87.5, 92.2),
        "mean": (61.1, 75.1, 90.4, 94.6),
    },
}
_FEW: _Rows = {
    "patchcore": {
        "hazelnut": (66.9, 79.6, 85.8, 92.2),
        "leather": (70.3, 82.1, 90.9, 94.7),
        "metal_nut": (70.9, 82.6, 91.1, 95.3),
        "capsule": (60.1, 74.2, 83.6, 90.3),
        "tile": (68.7, 81.1, 94.8, 97.3),
        "wood": (59.7, 73.2, 87.8, 92.3),
        "mean": (66.1, 78.8, 89.0, 93.7),
    },
    "cflow": {
        "hazelnut": (67.3, 79.9, 84.5, 90.7),
        "leather": (70.6, 82.5, 91.2, 94.8),
        "metal_nut": (63.4, 76.6, 87.5, 92.5),
        "capsule": (44.9, 60.8, 69.0, 78.2),
        "tile": (73.6, 84.5, 93.4, 96.3),
        "wood": (63.2, 77.0, 89.2, 93.4),
        "mean": (63.8, 76.9, 85.8, 91.0),
    },
    "padim": {
        "hazelnut": (63.8, 77.5, 88.2, 92.7),
        "leather": (66.9, 79.7, 89.5, 92.9),
        "metal_nut": (67.9, 80.5, 88.8, 92.6),
        "capsule": (57.1, 71.9, 86.1, 92.4),
        "tile": (66.5, 79.5, 89.1, 93.7),
        "wood": (57.4, 71.6, 86.0, 91.3),
        "mean": (63.3, 76.8, 88.0, 92.6),
    },
}
# IoU and DICE, means over the six categories.
_ABLATION: dict[str, dict[str, tuple[float, float]]] = {
    "initialisation": {"patchcore": (71.9, 82.0), "cflow": (71.9, 82.0), "padim": (71.9, 82.0)},
    "no-pixel-prior": {"patchcore": (72.6, 82.0), "cflow": (71.4, 80.8), "padim": (69.9, 79.7)},
    "no-sparsity": {"patchcore": (32.6, 48.6), "cflow": (32.5, 48.5), "padim": (28.8, 44.2)},
    "full": {"patchcore": (89.3, 93.9), "cflow": (89.5, 93.8), "padim": (90.4, 94.6)},
}
# Iterations and seconds an image, on an RTX 3080.
_COST: dict[str, tuple[float, float]] = {"patchcore": (202.3, 17.8), "cflow": (204.0, 8.7), "padim": (398.1, 40.8)}


def numbers(name: str) -> dict[str, Any]:
    """What the paper prints in a table, as plain data; empty where it prints pictures only."""
    match name:
        case "table1" | "table2":
            keys = ("backbone_iou", "backbone_dice", "f2pad_iou", "f2pad_dice")
            rows = _ALL if name == "table1" else _FEW
            return {d: {c: dict(zip(keys, row, strict=True)) for c, row in per.items()} for d, per in rows.items()}
        case "table3":
            return {
                variant: {d: {"iou": iou, "dice": dice} for d, (iou, dice) in per.items()}
                for variant, per in _ABLATION.items()
            }
        case "table4":
            return {d: {"iterations": count, "seconds": seconds} for d, (count, seconds) in _COST.items()}
    return {}

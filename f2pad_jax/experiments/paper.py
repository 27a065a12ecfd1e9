"""The numbers that arXiv 2407.06519 prints, × 100, to stand beside ours; they are in `paper.toml`."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

_PRINTED = tomllib.loads((files("f2pad_jax.experiments") / "paper.toml").read_text("utf-8"))
SOURCE: str = _PRINTED["source"]
DETECTORS: tuple[str, ...] = tuple(_PRINTED["detectors"])
CATEGORIES: tuple[str, ...] = tuple(_PRINTED["categories"])

_COLUMNS = {
    "table1": ("backbone_iou", "backbone_dice", "f2pad_iou", "f2pad_dice"),
    "table2": ("backbone_iou", "backbone_dice", "f2pad_iou", "f2pad_dice"),
    "table3": ("iou", "dice"),
    "table4": ("iterations", "seconds"),
}


def numbers(name: str) -> dict[str, Any]:
    """What the paper prints in a table, as plain data; empty where it prints pictures only.

    Tables I and II are by detector and category, "mean" among them, Table III by variant and detector, Table IV by
    detector.
    """
    return _named(_PRINTED[name], _COLUMNS[name]) if name in _COLUMNS else {}


def _named(node: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(node, dict):
        return {key: _named(value, columns) for key, value in node.items()}
    return dict(zip(columns, node, strict=True))

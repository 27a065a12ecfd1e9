"""What people see: a row of pictures per image, an overview of many, and a table on the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from f2pad_jax import metrics
from f2pad_jax.data.images import resize_image, resize_mask
from f2pad_jax.evaluation import gap_closed

TILE = 1.3  # height of a picture, inches
GAP = 0.05  # between pictures, inches
LABEL = 24  # characters that fit beside a row
DPI = 200  # twice what a page shows, so that outlines stay sharp
BACKBONE, REFINED = "#ff9f1c", "#16c79a"  # fills of the two masks

_LABEL, _HEAD = 0.24, 0.23  # margins for the labels of rows and the names of columns, inches
_HEAT = colormaps["inferno"]


class Row(NamedTuple):
    """One image and what became of it; arrays of one height and width.

    Attributes:
      label: name of the row, such as "brick · patchcore".
      image: x, uint8 (H, W, 3).
      score_map: the backbone's, float32 (H, W).
      threshold: of the score map.
      initial_mask: the backbone's, bool (H, W).
      mask: F2PAD's, bool (H, W).
      normal: the recovered n*, uint8 (H, W, 3).
      truth: bool (H, W), or None where it is not known.
    """

    label: str
    image: np.ndarray
    score_map: np.ndarray
    threshold: float
    initial_mask: np.ndarray
    mask: np.ndarray
    normal: np.ndarray
    truth: np.ndarray | None = None


class _Tile(NamedTuple):
    name: str
    picture: np.ndarray  # uint8 (h, w, 3)
    fill: np.ndarray | None = None
    colour: str = "black"
    badge: str = ""


def draw(rows: Sequence[Row]) -> Figure:
    """A grid with one row per image: input, truth, backbone map and mask, F2PAD mask, n* and a.

    The outline of the truth is drawn over the map and the masks, and each mask's IoU stands in its corner.
    The column of the truth is left out where no row has one. All rows are equally high; their pictures keep
    the shape of their image.
    """
    known = any(row.truth is not None for row in rows)
    lines = [[tile for tile in _tiles(row) if known or tile.name != "truth"] for row in rows]
    widths = np.max([[TILE * tile.picture.shape[1] / tile.picture.shape[0] for tile in line] for line in lines], 0)
    width = _LABEL + widths.sum() + GAP * len(widths)
    height = _HEAD + len(rows) * (TILE + GAP)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        bottom = height - _HEAD - (index + 1) * TILE - index * GAP
        middle = (bottom + TILE / 2) / height
        figure.text(
            _LABEL / 2 / width,
            middle,
            row.label if len(row.label) <= LABEL else f"…{row.label[1 - LABEL :]}",
            rotation=90,
            ha="center",
            va="center",
            fontsize=7,
            color="0.25",
        )
        left = _LABEL
        for tile, span in zip(line, widths, strict=True):
            axes = figure.add_axes((left / width, bottom / height, span / width, TILE / height))
            _paint(axes, tile, None if tile.name in ("input", "recovered n*", "anomaly a") else row.truth)
            if index == 0:
                axes.set_title(tile.name, fontsize=8, pad=3)
            left += span + GAP
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def print_table(runs: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Prints one line per run of `metrics.json`, and their mean where there are several."""
    table = Table(title="backbone → F2PAD, mean over images × 100", title_style="dim", header_style="bold")
    table.add_column("category")
    table.add_column("detector")
    for name in ("images", "IoU", "DICE", "closed", "s/image"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(run["category"], run["detector"], *_cells(run))
    if len(runs) > 1:
        table.add_section()
        table.add_row("mean", "", *_cells(_mean(runs)), style="bold")
    (console or Console()).print(table)


def _cells(run: dict[str, Any]) -> Iterator[str]:
    backbone, refined, closed = run["backbone"], run["f2pad"], run["closed"]
    yield str(run["test_images"])
    for key in ("iou", "dice"):
        before, after = backbone[key], refined[key]
        yield (f"{before:.1f} → [{'green' if after > before else 'red'}]{after:.1f}[/]" if run["test_images"] else "–")
    yield "–" if closed is None else f"{closed:.0f} %"
    yield f"{run['seconds']:.1f}"


def _mean(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def over(group: str) -> dict[str, float]:
        return {key: float(np.mean([run[group][key] for run in runs])) for key in ("iou", "dice")}

    backbone, refined = over("backbone"), over("f2pad")
    return {
        "test_images": sum(run["test_images"] for run in runs),
        "backbone": backbone,
        "f2pad": refined,
        "closed": gap_closed(backbone["iou"], refined["iou"]),
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def _tiles(row: Row) -> Iterator[_Tile]:
    side = round(TILE * DPI)
    height, width = row.image.shape[:2]
    shape = (side, max(1, round(side * width / height)))
    image = resize_image(row.image, shape)
    # Fills stand out best on a pale grey picture.
    grey = np.repeat(image.mean(axis=-1, keepdims=True) * 0.6 + 80, 3, axis=-1).astype(np.uint8)
    found, refined = resize_mask(row.initial_mask, shape), resize_mask(row.mask, shape)
    difference = row.image.astype(np.int16) - row.normal

    yield _Tile("input", image)
    empty = np.zeros((*shape, 3), np.uint8)
    yield _Tile(
        "truth",
        empty if row.truth is not None else np.full_like(empty, 255),
        _sized(row.truth, shape),
        "white",
    )
    yield _Tile("backbone map", resize_image(_heat(row.score_map, row.threshold), shape))
    yield _Tile("backbone mask", grey, found, BACKBONE, _agreement(row.initial_mask, row.truth))
    yield _Tile("F2PAD mask", grey, refined, REFINED, _agreement(row.mask, row.truth))
    yield _Tile("recovered n*", resize_image(row.normal, shape))
    yield _Tile("anomaly a", resize_image((128 + difference / 2).clip(0, 255).astype(np.uint8), shape))


def _sized(mask: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
    return None if mask is None else resize_mask(mask, shape)


def _agreement(mask: np.ndarray, truth: np.ndarray | None) -> str:
    return "" if truth is None else f"IoU {100 * metrics.iou(mask, truth):.1f}"


def _heat(scores: np.ndarray, threshold: float) -> np.ndarray:
    """The score map in colours; a map that stays below the threshold stays dark."""
    low, high = float(scores.min()), max(float(scores.max()), 1.5 * threshold)
    scaled = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    return (_HEAT(scaled)[..., :3] * 255).astype(np.uint8)


def _paint(axes: Axes, tile: _Tile, truth: np.ndarray | None) -> None:
    shape = tile.picture.shape[:2]
    picture = tile.picture
    if tile.fill is not None:
        colour = np.array(Image.new("RGB", (1, 1), tile.colour))[0, 0]
        strength = 1.0 if tile.name == "truth" else 0.75
        mixed = (strength * colour + (1 - strength) * picture).astype(np.uint8)
        picture = np.where(tile.fill[..., None], mixed, picture)
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    outline = None if tile.name == "truth" else _sized(truth, (shape[0], shape[1]))
    if outline is not None and outline.any() and not outline.all():
        axes.contour(outline, levels=[0.5], colors="black" if tile.fill is not None else "white", linewidths=0.7)
    if tile.badge:
        axes.text(
            0.03, 0.035, tile.badge, transform=axes.transAxes, fontsize=7, color="white", weight="bold",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "black", "alpha": 0.65, "linewidth": 0},
        )  # fmt: skip

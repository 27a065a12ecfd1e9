"""Pictures in rows with masks, outlines and captions: what draws panels, overviews and the figures of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from f2pad_jax.data.images import resize_image, resize_mask

HEIGHT = 1.3  # of a picture, inches
GAP = 0.05  # between pictures, inches
DPI = 200  # twice what a page shows, so that outlines stay sharp
PAGE = (7.4, 9.8)  # width and height of the text of a page, inches
LARGEST = 1.6  # height of a picture on a page with few of them, inches
BACKBONE, REFINED = "#ff9f1c", "#16c79a"  # fills of the two masks
HEAT = "inferno"  # matplotlib's name of the colours of score maps
ROOM = 0.8  # inches of both sides of a picture from which on a bar of colours has room
EDGE = [withStroke(linewidth=1, foreground="black")]  # so that white numbers are read over bright maps
MANY = 9  # columns from which on texts are smaller

_LABEL, _HEAD, _LINE = 0.24, 0.23, 0.14  # margins for labels, names of columns and captions, inches
_PAD = 3 / 72  # between a picture and the name above it, inches


class Scale(NamedTuple):
    """What the colours of a map say, in the units of its scores."""

    low: float
    high: float
    threshold: float


class Tile(NamedTuple):
    """One picture.

    Attributes:
      picture: uint8 (H, W, 3).
      mask: bool (H, W), laid over the greyed picture, or where it is white over black; None for the picture alone.
      colour: of the mask.
      truth: bool (H, W), whose outline is drawn.
      badge: a few words in its corner.
      caption: a line below it.
      box: (top, left, side) in pixels of a square to be framed.
      scale: of a map, drawn as a bar of colours where the picture has room for it.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    colour: str = "white"
    truth: np.ndarray | None = None
    badge: str = ""
    caption: str = ""
    box: tuple[int, int, int] | None = None
    scale: Scale | None = None


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_page(rows: Sequence[Sequence[Tile]], *, columns: Sequence[str] = (), labels: Sequence[str] = ()) -> Figure:
    """`draw_tiles` of square pictures that are as large as fits a page."""
    below = _LINE if _captioned(rows) else 0.0
    across = (PAGE[0] - (_LABEL if any(labels) else 0)) / len(rows[0])
    down = (PAGE[1] - (_HEAD if any(columns) else 0)) / len(rows) - below
    return draw_tiles(rows, columns=columns, labels=labels, height=min(LARGEST, across - GAP, down - GAP))


def draw_tiles(
    rows: Sequence[Sequence[Tile]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    height: float = HEIGHT,
) -> Figure:
    """Draws rows of pictures of one height, each in the shape of its own.

    Args:
      rows: equally long.
      columns: name of each column, or nothing.
      labels: beside each row, or nothing.
      height: of the pictures, inches.
    """
    spans = np.max([[height * t.picture.shape[1] / t.picture.shape[0] for t in row] for row in rows], axis=0)
    margin, head = (_LABEL if any(labels) else 0.0), (_HEAD if any(columns) else 0.0)
    step = height + GAP + (_LINE if _captioned(rows) else 0.0)
    whole = margin + spans.sum() + GAP * len(spans), head + len(rows) * step
    figure = new_figure(*whole)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all: making axes takes longer than drawing a picture
    axes.set(xlim=(0, whole[0]), ylim=(0, whole[1]), autoscale_on=False)
    axes.set_axis_off()
    size = 6 if len(spans) >= MANY else 7
    for number, row in enumerate(rows):
        bottom = whole[1] - head - number * step - height
        if any(labels):
            place = (_LABEL / 2 / whole[0], (bottom + height / 2) / whole[1])
            # labels are names of files, and "$" in them no mathematics
            style: dict[str, Any] = {"fontsize": 7, "color": "0.25", "parse_math": False}
            figure.text(*place, labels[number], rotation=90, ha="center", va="center", **style)
        left = margin
        for column, (tile, span) in enumerate(zip(row, spans, strict=True)):
            paint(axes, tile, (left, bottom, span, height))
            middle = left + span / 2
            if number == 0 and any(columns):
                axes.text(middle, bottom + height + _PAD, columns[column], fontsize=size, ha="center", va="baseline")
            if tile.caption:
                place = (middle / whole[0], (bottom - _LINE / 2) / whole[1])
                figure.text(*place, tile.caption, fontsize=size - 0.5, ha="center", va="center")
            left += span + GAP
    return figure


def _captioned(rows: Sequence[Sequence[Tile]]) -> bool:
    return any(tile.caption for row in rows for tile in row)


def paint(axes: Axes, tile: Tile, place: tuple[float, float, float, float]) -> None:
    """Draws a picture into axes whose unit is an inch: left, bottom, width and height of its place."""
    left, bottom, width, height = place
    extent = left, left + width, bottom, bottom + height
    scale = min(1.0, height * DPI / tile.picture.shape[0])  # matplotlib enlarges well, and does not shrink well
    shape = round(scale * tile.picture.shape[0]), max(1, round(scale * tile.picture.shape[1]))
    picture = resize_image(tile.picture, shape)
    if tile.mask is not None:
        picture = _masked(picture, resize_mask(tile.mask, shape), tile.colour)
    axes.imshow(picture, interpolation="nearest", extent=extent, aspect="auto")
    outline = None if tile.truth is None else resize_mask(tile.truth, shape)
    if outline is not None and outline.any() and not outline.all():
        colour = "black" if tile.mask is not None else "white"
        axes.contour(outline, levels=[0.5], colors=colour, linewidths=0.7, extent=extent, origin="upper")
    if tile.box is not None:
        top, first, side = (length * height / tile.picture.shape[0] for length in tile.box)
        across, down = np.array([0, side, side, 0, 0]) + first, np.array([0, 0, side, side, 0]) + top
        axes.plot(left + across, bottom + height - down, color="white", linewidth=1)
    if tile.scale is not None and min(width, height) >= ROOM:
        _bar(axes, tile.scale, (left + 0.05 * width, bottom + 0.04, 0.9 * width, 0.04))
    if tile.badge:
        axes.text(
            left + 0.03 * width, bottom + 0.035 * height, tile.badge, fontsize=7, color="white", weight="bold",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "black", "alpha": 0.65, "linewidth": 0},
        )  # fmt: skip


def _bar(axes: Axes, scale: Scale, place: tuple[float, float, float, float]) -> None:
    """Draws the colours of a map with the scores at both ends and a stroke at the threshold; `place` as for `paint`."""
    left, bottom, width, height = place
    extent = left, left + width, bottom, bottom + height
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=HEAT, extent=extent, aspect="auto")
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor="white", linewidth=0.4))
    at = left + width * (scale.threshold - scale.low) / ((scale.high - scale.low) or 1)
    axes.plot([at, at], [bottom, bottom + height], color="white", linewidth=1)
    style: dict[str, Any] = {"fontsize": 4.5, "color": "white", "va": "bottom", "path_effects": EDGE}
    for score, place_of, align in ((scale.low, left, "left"), (scale.high, left + width, "right")):
        axes.text(place_of, bottom + height + 0.015, f"{score:.3g}", ha=align, **style)


def _masked(picture: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """White masks, which are the truth, stand on black; coloured ones stand out best on a pale grey picture."""
    fill = 255 * np.array(to_rgb(colour))
    if colour == "white":
        return np.where(mask[..., None], fill, 0).astype(np.uint8)
    grey = np.repeat(picture.mean(axis=-1, keepdims=True) * 0.6 + 80, 3, axis=-1)
    return np.where(mask[..., None], 0.75 * fill + 0.25 * grey, grey).astype(np.uint8)

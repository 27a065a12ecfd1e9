"""A grid of labelled pictures that stays readable on a printed page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from f2pad_jax.report import DPI

WIDTH, HEIGHT = 7.4, 9.8  # inches, the text of a page
_GAP, _LABEL, _HEAD, _LINE = 0.05, 0.22, 0.2, 0.14  # inches


class Tile(NamedTuple):
    """One picture of the grid.

    Attributes:
      picture: uint8 (H, W, 3).
      mask: bool (H, W), laid over the greyed picture; None for the picture alone.
      colour: of the mask.
      truth: outline drawn over it, bool (H, W).
      caption: below it.
      box: (top, left, side) of a square to be framed.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    colour: str = "white"
    truth: np.ndarray | None = None
    caption: str = ""
    box: tuple[int, int, int] | None = None


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_grid(rows: Sequence[Sequence[Tile | None]], *, columns: Sequence[str], labels: Sequence[str]) -> Figure:
    """Draws square pictures in rows.

    Args:
      rows: equally long; None leaves a place empty.
      columns: title of each column, or nothing.
      labels: beside each row, or nothing.
    """
    left, head = (_LABEL if any(labels) else 0.0), (_HEAD if any(columns) else 0.0)
    count = len(rows[0])
    below = _LINE if any(tile and tile.caption for row in rows for tile in row) else 0.0
    side = min(1.6, (WIDTH - left) / count - _GAP, (HEIGHT - head) / len(rows) - below - _GAP)
    width = left + count * (side + _GAP)
    height = head + len(rows) * (side + below + _GAP)
    figure = new_figure(width, height)
    for r, row in enumerate(rows):
        bottom = height - head - r * (side + below + _GAP) - side
        if any(labels):
            figure.text(_LABEL / 2 / width, (bottom + side / 2) / height, labels[r], rotation=90, fontsize=7,
                        ha="center", va="center", color="0.25")  # fmt: skip
        for c, tile in enumerate(row):
            start = left + c * (side + _GAP)
            if r == 0 and any(columns):
                place = ((start + side / 2) / width, (height - head / 2) / height)
                figure.text(*place, columns[c], fontsize=7 if count < 9 else 6, ha="center", va="center")
            if tile is None:
                continue
            axes = figure.add_axes((start / width, bottom / height, side / width, side / height))
            axes.imshow(_painted(tile), interpolation="nearest")
            axes.set_axis_off()
            if tile.truth is not None and tile.truth.any() and not tile.truth.all():
                axes.contour(tile.truth, levels=[0.5], colors="black" if tile.mask is not None else "white",
                             linewidths=0.6)  # fmt: skip
            if tile.box is not None:
                top, edge, length = tile.box
                axes.plot(
                    np.array([0, length, length, 0, 0]) + edge, np.array([0, 0, length, length, 0]) + top,
                    color="white", linewidth=1,
                )  # fmt: skip
            if tile.caption:
                place = ((start + side / 2) / width, (bottom - below / 2) / height)
                figure.text(*place, tile.caption, fontsize=6.5 if count < 9 else 5.5, ha="center", va="center")
    return figure


def _painted(tile: Tile) -> np.ndarray:
    if tile.mask is None:
        return tile.picture
    colour = 255 * np.array(to_rgb(tile.colour))
    if tile.colour == "white":  # the truth, on black
        return np.where(tile.mask[..., None], colour, 0).astype(np.uint8)
    grey = np.repeat(tile.picture.mean(axis=-1, keepdims=True) * 0.6 + 80, 3, axis=-1)
    return np.where(tile.mask[..., None], 0.75 * colour + 0.25 * grey, grey).astype(np.uint8)

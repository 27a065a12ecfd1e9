"""What people see: a row of pictures per image, an overview of many, and a table on the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from f2pad_jax import metrics
from f2pad_jax.data.images import resize_image, resize_map, resize_mask
from f2pad_jax.evaluation import gap_closed
from f2pad_jax.tiles import BACKBONE, DPI, HEAT, HEIGHT, PAGE, REFINED, Scale, Tile, draw_tiles

LABEL = 24  # characters that fit beside a row
REPLACED = "\N{REPLACEMENT CHARACTER}"  # a sign that cannot be drawn
LONG = 3.0  # longer over shorter side of pictures that are drawn otherwise
MOST = 1600  # pixels of the longer side that are drawn
SLIMMEST = 50  # longer over shorter side up to which pictures are drawn in their own shape
COLUMNS = ("input", "truth", "backbone map", "backbone mask", "F2PAD mask", "recovered n*", "anomaly a")


class Terminal(Console):
    """A console that leaves to its caller what happens where nobody reads."""

    def on_broken_pipe(self) -> None:
        """Goes on with the error that is being handled."""
        raise BrokenPipeError


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


def draw(rows: Sequence[Row]) -> Image.Image:
    """A grid with one row per image: input, truth, backbone map and mask, F2PAD mask, n* and a.

    The outline of the truth is drawn over the map and the masks, and each mask's IoU stands in its corner.
    The column of the truth is left out where no row has one. All rows are equally high; their pictures keep
    the shape of their image. Of long pictures the columns are drawn one below the other.
    """
    known = any(row.truth is not None for row in rows)
    columns = [name for name in COLUMNS if known or name != "truth"]
    tiles = [[tile for tile, name in zip(_tiles(row), COLUMNS, strict=True) if name in columns] for row in rows]
    aspects = [row[0].picture.shape[1] / row[0].picture.shape[0] for row in tiles]
    if max(aspects) > LONG:
        named = [
            [tile._replace(caption=f"{_label(row.label)} · {name}")]
            for row, group in zip(rows, tiles, strict=True)
            for tile, name in zip(group, columns, strict=True)
        ]
        return draw_tiles(named, height=PAGE[0] / max(aspects))
    height = min(HEIGHT * max(1.0, 1 / (LONG * min(aspects))), PAGE[1])
    return draw_tiles(tiles, columns=columns, labels=[_label(row.label) for row in rows], height=height)


def png(figure: Figure | Image.Image) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    if isinstance(figure, Figure):
        figure.savefig(buffer, format="png")
    else:  # the least compression takes a third of the time, and a tenth more room
        figure.save(buffer, format="PNG", dpi=(DPI, DPI), compress_level=1)
    return buffer.getvalue()


def print_table(runs: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Prints one line per run of `metrics.json`, and their mean where there are several."""
    table = Table(title="backbone → F2PAD, mean over images × 100", title_style="dim", header_style="bold")
    table.add_column("category")
    table.add_column("detector")
    for name in ("images", "IoU", "DICE", "closed", "s/image"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(escape(run["category"]), run["detector"], *_cells(run))
    if len(runs) > 1:
        table.add_section()
        table.add_row("mean", "", *_cells(_mean(runs)), style="bold")
    (console or Terminal()).print(table)


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


def _label(text: str) -> str:
    """The end of a name, of signs that can be drawn."""
    shown = "".join(sign if sign.isprintable() and ord(sign) in _signs() else REPLACED for sign in text)
    return shown if len(shown) <= LABEL else f"…{shown[1 - LABEL :]}"


@cache
def _signs() -> frozenset[int]:
    """The signs that the font of panels has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _tiles(row: Row) -> list[Tile]:
    """The columns of a row."""
    agreements = _agreement(row.initial_mask, row.truth), _agreement(row.mask, row.truth)
    row = _bounded(row)
    difference = row.image.astype(np.int16) - row.normal
    scale = colour_scale(row.score_map, row.threshold)
    return [
        Tile(row.image),
        Tile(row.image, row.truth) if row.truth is not None else Tile(np.full_like(row.image, 255)),
        Tile(heat(row.score_map, scale), truth=row.truth, scale=scale),
        Tile(row.image, row.initial_mask, BACKBONE, row.truth, agreements[0]),
        Tile(row.image, row.mask, REFINED, row.truth, agreements[1]),
        Tile(row.normal),
        Tile((128 + difference / 2).clip(0, 255).astype(np.uint8)),
    ]


def _bounded(row: Row) -> Row:
    """A row of no more pixels than are drawn, and thick enough to be seen."""
    longest = max(row.mask.shape)
    factor, least = min(1.0, MOST / longest), longest / SLIMMEST
    height, width = (round(factor * max(side, least)) for side in row.mask.shape)
    if (shape := (height, width)) == row.mask.shape:
        return row
    return row._replace(
        image=resize_image(row.image, shape),
        score_map=resize_map(row.score_map, shape),
        initial_mask=resize_mask(row.initial_mask, shape),
        mask=resize_mask(row.mask, shape),
        normal=resize_image(row.normal, shape),
        truth=None if row.truth is None else resize_mask(row.truth, shape),
    )


def _agreement(mask: np.ndarray, truth: np.ndarray | None) -> str:
    return "" if truth is None else f"IoU {100 * metrics.iou(mask, truth):.1f}"


def colour_scale(scores: np.ndarray, threshold: float) -> Scale:
    """From the lowest score to the highest; a map that stays below the threshold stays dark."""
    return Scale(float(scores.min()), max(float(scores.max()), 1.5 * threshold), threshold)


def heat(scores: np.ndarray, scale: Scale) -> np.ndarray:
    """The score map in the colours of a scale, uint8 (H, W, 3)."""
    low, high, _ = scale
    scaled = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    return (colormaps[HEAT](scaled)[..., :3] * 255).astype(np.uint8)

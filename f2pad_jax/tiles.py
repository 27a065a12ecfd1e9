"""Pictures in rows with masks, outlines and captions: what draws panels, overviews and the figures of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from f2pad_jax.data.images import resize_image, resize_mask

HEIGHT = 1.3  # of a picture, inches
GAP = 0.05  # between pictures, inches
DPI = 200  # twice what a page shows, so that outlines stay sharp
PAGE = (7.4, 9.8)  # width and height of the text of a page, inches
LARGEST = 1.6  # height of a picture on a page with few of them, inches
BACKBONE, REFINED = "#ff9f1c", "#16c79a"  # fills of the two masks
HEAT = "inferno"  # matplotlib's name of the colours of score maps
ROOM = 0.8  # inches of both sides of a picture from which on a bar of colours has room
MANY = 9  # columns from which on texts are smaller

_LABEL, _HEAD, _LINE = 0.24, 0.23, 0.14  # margins for labels, names of columns and captions, inches
_PAD = 3 / 72  # between a picture and the name above it, inches
_SHADE = (0, 0, 0, 166)  # behind a badge


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


def draw_page(
    rows: Sequence[Sequence[Tile]], *, columns: Sequence[str] = (), labels: Sequence[str] = ()
) -> Image.Image:
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
) -> Image.Image:
    """Draws rows of pictures of one height, each in the shape of its own, in RGB.

    Args:
      rows: equally long.
      columns: name of each column, or nothing.
      labels: beside each row, or nothing.
      height: of the pictures, inches.
    """
    side, gap = _pixels(height), _pixels(GAP)
    margin, head = _pixels(_LABEL) if any(labels) else 0, _pixels(_HEAD) if any(columns) else 0
    step = side + gap + (_pixels(_LINE) if _captioned(rows) else 0)
    drawn = [[draw_tile(tile, height) for tile in row] for row in rows]
    spans = [max(picture.width for picture in column) for column in zip(*drawn, strict=True)]
    page = Image.new("RGB", (margin + sum(spans) + gap * len(spans), head + len(rows) * step), "white")
    pen, size = ImageDraw.Draw(page), 6 if len(spans) >= MANY else 7
    for number, row in enumerate(rows):
        top, left = head + number * step, margin
        if any(labels):
            _write_upwards(page, labels[number], (margin // 2, top + side // 2))
        for column, (tile, span) in enumerate(zip(row, spans, strict=True)):
            picture, middle = drawn[number][column], left + span // 2
            page.paste(picture, (middle - picture.width // 2, top))
            if number == 0 and any(columns):
                pen.text((middle, top - _pixels(_PAD)), columns[column], "black", _font(size), anchor="ms")
            below = middle, top + side + _pixels(_LINE) // 2
            pen.text(below, tile.caption, "black", _font(size - 0.5), anchor="mm")
            left += span + gap
    return page


def draw_tile(tile: Tile, height: float) -> Image.Image:
    """A picture with what lies over it; height in inches."""
    down, across = tile.picture.shape[0], tile.picture.shape[1]
    shape = _pixels(height), max(1, round(_pixels(height) * across / down))
    own = shape if shape[0] < down else (down, across)  # pixels of small pictures stay to be seen
    picture = resize_image(tile.picture, own)
    if tile.mask is not None:
        picture = _masked(picture, resize_mask(tile.mask, own), tile.colour)
    drawn = Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    if tile.truth is not None:
        line = Image.fromarray(find_boundaries(resize_mask(tile.truth, shape), mode="thick"))
        drawn.paste("white" if tile.mask is None else "black", mask=line)
    pen = ImageDraw.Draw(drawn, "RGBA")  # which mixes colours
    if tile.box is not None:
        top, left, side = (length * shape[0] / down for length in tile.box)
        pen.rectangle((left, top, left + side, top + side), outline="white", width=_pixels(1 / 72))
    if tile.scale is not None and min(shape) >= _pixels(ROOM):
        _bar(drawn, tile.scale)
    if tile.badge:
        font, place = _font(7, bold=True), (0.03 * shape[1], 0.965 * shape[0])
        left, top, right, bottom = pen.textbbox(place, tile.badge, font, anchor="ls")
        pad = font.size / 4
        pen.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad, fill=_SHADE)
        pen.text(place, tile.badge, "white", font, anchor="ls")
    return drawn


def _bar(picture: Image.Image, scale: Scale) -> None:
    """Draws the colours of a map low in it, with the scores at both ends and a stroke at the threshold."""
    left, right, height = round(0.05 * picture.width), round(0.95 * picture.width), _pixels(0.04)
    top, bottom = picture.height - 2 * height, picture.height - height
    colours = (colormaps[HEAT](np.linspace(0, 1, right - left))[None, :, :3] * 255).astype(np.uint8)
    picture.paste(Image.fromarray(colours).resize((right - left, height)), (left, top))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left - 1, top - 1, right, bottom), outline="white")
    at = left + (right - left) * (scale.threshold - scale.low) / ((scale.high - scale.low) or 1)
    pen.line((at, top, at, bottom), "white", _pixels(1 / 72))
    # the black edge is for bright maps
    edged = {"font": _font(4.5), "fill": "white", "stroke_width": 1, "stroke_fill": "black"}
    for score, place, anchor in ((scale.low, left, "ls"), (scale.high, right, "rs")):
        pen.text((place, top - _pixels(0.02)), f"{score:.3g}", anchor=anchor, **edged)


def _pixels(inches: float) -> int:
    return max(1, round(inches * DPI))


@cache
def _font(points: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along, which is the same everywhere."""
    return ImageFont.truetype(findfont(FontProperties(weight="bold" if bold else "normal")), points / 72 * DPI)


def _write_upwards(page: Image.Image, text: str, middle: tuple[int, int]) -> None:
    font = _font(7)
    line = Image.new("L", (round(font.getlength(text)) + 2, 2 * round(font.size)))
    ImageDraw.Draw(line).text((line.width / 2, line.height / 2), text, 255, font, anchor="mm")
    turned = line.transpose(Image.Transpose.ROTATE_90)
    page.paste((64, 64, 64), (middle[0] - turned.width // 2, middle[1] - turned.height // 2), turned)


def _captioned(rows: Sequence[Sequence[Tile]]) -> bool:
    return any(tile.caption for row in rows for tile in row)


def _masked(picture: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """White masks, which are the truth, stand on black; coloured ones stand out best on a pale grey picture."""
    fill = np.array(ImageColor.getrgb(colour), np.float32)
    if colour == "white":
        return np.where(mask[..., None], fill, 0).astype(np.uint8)
    grey = picture.mean(axis=-1, keepdims=True, dtype=np.float32) * 0.6 + 80
    return np.where(mask[..., None], 0.75 * fill + 0.25 * grey, grey).astype(np.uint8)

"""Shapes of anomalies: drawn at random, or masks of real defects changed a little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.measure import label

from f2pad_jax.errors import InputError

AREA = (0.003, 0.13)  # least and greatest share of the picture that a mask covers; the paper's reach 13 %

Masks = Sequence[np.ndarray] | None  # shapes of real defects to draw from; without, shapes are made up

_TRIES = 200


def draw_mask(shape: tuple[int, int], rng: np.random.Generator, *, masks: Masks = None) -> np.ndarray:
    """A defect mask, bool `shape`, covering a share of the picture within `AREA`; see `paints.cut_paste`."""
    for _ in range(_TRIES):
        if masks is not None:
            mask = _resized(masks[int(rng.integers(len(masks)))], shape, rng)
        else:
            mask = _SHAPES[int(rng.integers(len(_SHAPES)))](shape, rng)
        if AREA[0] <= mask.mean() <= AREA[1]:
            return mask
    raise InputError("no mask could be resized to a fitting area", hint="give masks of compact defects")


def noise_patches(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Patches of three octaves of smooth noise, bool `shape`, in several pieces anywhere.

    Together they cover a share of the picture of up to twice the greatest of `AREA`.
    """
    cell = min(shape) * rng.uniform(0.15, 0.4)
    rim = int(cell) + 1  # of smooth noise the outermost cells vary most
    wide = (shape[0] + 2 * rim, shape[1] + 2 * rim)
    noise = np.sum([smooth_noise(wide, rng, cell / 2**k) / 2**k for k in range(3)], axis=0)[rim:-rim, rim:-rim]
    return noise > np.quantile(noise, 1 - 2 * np.exp(rng.uniform(*np.log(AREA))))


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask, bool (H, W); an empty one stays empty."""
    pieces = np.asarray(label(mask, connectivity=2))
    sizes = np.bincount(pieces.ravel())[1:]
    return pieces == 1 + sizes.argmax() if sizes.size else mask


def cropped(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest rectangle that holds a mask, and its upper left corner (row, column)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return crop, np.array([rows[0], columns[0]])


def placed(piece: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A mask, bool `shape`, that is a piece (h, w) with its upper left corner (row, column) at `corner`."""
    mask = np.zeros(shape, bool)
    mask[corner[0] : corner[0] + piece.shape[0], corner[1] : corner[1] + piece.shape[1]] = piece
    return mask


def smooth_noise(shape: tuple[int, int], rng: np.random.Generator, cell: float | tuple[float, float]) -> np.ndarray:
    """Noise, float32 `shape`, of about unit variance, smooth over cells of so many pixels (down, across)."""
    cells = np.broadcast_to(cell, 2)
    coarse = rng.standard_normal([int(side / one) + 3 for side, one in zip(shape, cells, strict=True)])
    picture = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def stroke(path: np.ndarray, width: float, shape: tuple[int, int]) -> np.ndarray:
    """The pixels, bool `shape`, within `width`/2 of a line through points (N, 2), each (column, row)."""
    picture = Image.new("1", (shape[1], shape[0]), 1)
    ImageDraw.Draw(picture).line([(x, y) for x, y in path.tolist()], fill=0)
    return np.asarray(ndimage.distance_transform_edt(np.asarray(picture))) <= width / 2


def _resized(mask: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A mask flipped, zoomed by 1/2 to 2 (kept within `AREA` and the frame) and shifted by up to a tenth."""
    for axis in (0, 1):
        if rng.random() < 0.5:
            mask = np.flip(mask, axis)
    crop, corner = cropped(mask)
    unit = np.array(shape) / mask.shape
    span = crop.shape * unit
    share = mask.mean()
    zoom = np.clip(2 ** rng.uniform(-1, 1), np.sqrt(AREA[0] / share), np.sqrt(AREA[1] / share))
    zoom = min(zoom, *(np.array(shape) / span))
    height, width = np.maximum(np.floor(span * zoom), 1).astype(int)
    picture = Image.fromarray(crop.astype(np.uint8) * 255)
    piece = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) > 127
    centre = corner * unit + span / 2 + rng.uniform(-0.1, 0.1, 2) * shape
    top, left = np.clip(centre - np.array(piece.shape) / 2, 0, np.array(shape) - piece.shape).astype(int)
    return placed(piece, (top, left), shape)


def _noise_blob(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A round hill plus smooth noise, cut at the level that leaves the wanted area: stains, spills, chips."""
    area = np.exp(rng.uniform(*np.log(AREA)))
    distance, radius = _distance(shape, rng, area, stretch=rng.uniform(1, 2.5))
    noise = smooth_noise(shape, rng, radius * rng.uniform(0.5, 1))
    field = rng.uniform(0.3, 0.9) * noise - distance
    mask = field > np.quantile(field, 1 - area)
    return np.asarray(ndimage.binary_fill_holes(largest_piece(mask)))


def _ellipses(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One to four ellipses that overlap: droplets, dents, holes."""
    area = np.exp(rng.uniform(*np.log(AREA)))
    pieces = int(rng.integers(1, 5))
    centre = rng.uniform(0.15, 0.85, 2) * shape
    mask = np.zeros(shape, bool)
    for _ in range(pieces):
        stretch = rng.uniform(1, 3)
        distance, radius = _distance(shape, rng, area / pieces, stretch=stretch, centre=centre)
        mask |= distance < 1
        centre = centre + rng.normal(0, radius * 0.8, 2)
    return largest_piece(mask)


def _scratch(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A curved stroke, 1.5 to 5 hundredths of the side wide."""
    side = min(shape)
    steps = 24
    length = side * rng.uniform(0.2, 0.8)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(rng.normal(0, 0.05), 0.1, steps))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * (length / steps)
    path += rng.uniform(0.2, 0.8, 2) * shape[::-1] - path.mean(axis=0)
    width = side * rng.uniform(0.015, 0.05)
    return largest_piece(stroke(path, width, shape))


_SHAPES = (_noise_blob, _noise_blob, _ellipses, _scratch)


def _distance(
    shape: tuple[int, int],
    rng: np.random.Generator,
    area: float,
    *,
    stretch: float,
    centre: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Distance from a centre, 1 on a turned ellipse that covers `area` of the whole, and its mean radius."""
    radius = float(np.sqrt(area * shape[0] * shape[1] / np.pi))
    centre = rng.uniform(0.15, 0.85, 2) * shape if centre is None else centre
    turn = rng.uniform(0, np.pi)
    y, x = np.ogrid[: shape[0], : shape[1]]
    y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch)), radius

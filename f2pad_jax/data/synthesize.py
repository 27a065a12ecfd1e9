"""Anomalies with exact masks, made from normal pictures: the paper's cut-paste generator, Eq. (16).

Hand-drawn masks of real defects are too loose to measure outlines with, so the paper (arXiv 2407.06519,
Section IV-A) makes its test pictures: x = (1 − m) ⊙ n + m ⊙ c, with a normal picture n, the mask m of a real
defect, resized at random, and one random colour c.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.measure import label

from f2pad_jax.data.images import read_image, read_mask, write_png
from f2pad_jax.data.layouts import find_images, list_images, new_folder, open_category
from f2pad_jax.errors import InputError

CONTRAST = 0.2  # least Euclidean distance between x and n inside the mask, RGB in [0, 1]
AREA = (0.003, 0.13)  # least and greatest share of the picture that a mask covers; the paper's reach 13 %

_BRIGHTEST = 64  # least value of a colour's largest channel: multiplying cannot move black
_LADDER = np.array([1.0, *(1.25 ** (sign * step) for step in range(1, 8) for sign in (-1, 1)), 0.0])
_TRIES = 200


def cut_paste(
    image: np.ndarray, rng: np.random.Generator, *, masks: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A picture with one anomaly of one random colour, Eq. (16).

    Args:
      image: the normal picture n, uint8 (H, W, 3).
      rng: source of every choice.
      masks: bool masks (any size, none empty) of real defects. One is chosen, flipped, resized about its own
        place and shifted a little: real masks lie on the part. Without them the shape is a blob, a few
        ellipses or a scratch, anywhere.

    Returns:
      x, uint8 (H, W, 3), and the mask, bool (H, W): True exactly where x differs from n, and there the two
      are at least `CONTRAST` apart.

    Raises:
      InputError: no given mask can be resized to cover a share of the picture within `AREA`.
    """
    mask = draw_mask((image.shape[0], image.shape[1]), rng, masks=masks)
    colour = rng.integers(0, 256, 3)
    while colour.max() < _BRIGHTEST:
        colour = rng.integers(0, 256, 3)
    return paint(image, mask, colour), mask


def half_swap(
    image: np.ndarray,
    donor: np.ndarray,
    rng: np.random.Generator,
    *,
    masks: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A structural anomaly, for parts whose halves differ: some of one half of `donor` on the other half.

    The region lies anywhere in its half and moves to the place that mirrors its own, without being mirrored
    itself, so that what lies on the part stays there. Only its largest piece that differs from n by
    `CONTRAST` is pasted, after a 3 × 3 opening: background pasted on the same background is no anomaly.

    Args:
      image: the normal picture n, uint8 (H, W, 3).
      donor: another normal picture of the same shape.
      rng: source of every choice.
      masks: shapes of the region, as for `cut_paste`.

    Returns:
      x and its mask, as from `cut_paste`.

    Raises:
      InputError: the shapes differ, or the halves look too much alike.
    """
    if image.shape != donor.shape:
        raise InputError("two normal pictures differ in size", hint="resize all pictures to one size")
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        piece = _cropped(draw_mask((height, width), rng, masks=masks))[0]
        spare = width // 2 - piece.shape[1]
        if spare < 0:
            continue
        top = int(rng.integers(height - piece.shape[0] + 1))
        left = int(rng.integers(spare + 1) + rng.integers(2) * (width - width // 2))
        moved = np.roll(donor, 2 * left + piece.shape[1] - width, axis=1)  # in the region nothing wraps around
        region = _placed(piece, (top, left), (height, width))
        mask = _largest(ndimage.binary_opening(region & _far(moved, image), np.ones((3, 3), bool)))
        if AREA[0] <= mask.mean() <= AREA[1]:
            return np.where(mask[..., None], moved, image), mask
    raise InputError("the left and right halves look too much alike", hint="leave out --structural")


def paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Eq. (16) with the paper's contrast rule.

    Where the colour comes closer than `CONTRAST` to the picture, it is multiplied by the mildest factor of a
    ladder (1, 1.25^±1, 1.25^±2, …, 0) that keeps them apart. One always does: black and the brightest step
    lie at least one full channel apart, so no pixel is near both.

    Args:
      image: n, uint8 (H, W, 3).
      mask: bool (H, W).
      colour: three values in 0..255, the largest at least 64.

    Returns:
      x, uint8 (H, W, 3).
    """
    shades = np.clip(np.rint(colour * _LADDER[:, None]), 0, 255).astype(np.uint8)
    first = _far(shades[None], image[mask][:, None]).argmax(axis=1)
    painted = image.copy()
    painted[mask] = shades[first]
    return painted


def draw_mask(
    shape: tuple[int, int], rng: np.random.Generator, *, masks: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """A defect mask, bool `shape`, covering a share of the picture within `AREA`; see `cut_paste`."""
    for _ in range(_TRIES):
        if masks is not None:
            mask = _resized(masks[int(rng.integers(len(masks)))], shape, rng)
        else:
            mask = _SHAPES[int(rng.integers(len(_SHAPES)))](shape, rng)
        if AREA[0] <= mask.mean() <= AREA[1]:
            return mask
    raise InputError("no mask could be resized to a fitting area", hint="give masks of compact defects")


def synthesize_category(
    normals: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    count: int = 54,
    structural: bool = False,
    seed: int = 0,
    size: int | None = None,
) -> None:
    """Writes a category in MVTec AD's layout, its test pictures made by `cut_paste` (and `half_swap`).

    The normal pictures that test pictures are made from leave the training set, and donors of half-swaps come
    from among them: 219 pictures of Capsule become 165 for training and 54 for testing, as in the paper.
    `manifest.json` tells which picture became which. The same arguments give the same files.

    Args:
      normals: a folder of normal pictures, or a category in MVTec AD's layout, whose `train/good` is taken.
      out: the new category; must not exist, or be empty.
      masks: a folder of defect masks, searched with all folders below it; without it shapes are generated.
      count: how many test pictures.
      structural: whether every second test picture gets a half-swap (`test/structural`) in place of a colour
        (`test/color`).
      seed: of all random choices.
      size: side of the square that pictures are resized to first; None keeps their own size.

    Raises:
      InputError: a folder or picture is missing or cannot be used, too few pictures are there, or `out` holds
        something.
    """
    root = Path(normals)
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="name a folder of normal pictures")
    layout = (root / "train" / "good").is_dir()
    paths = list(open_category(root, need_test=False).train) if layout else list_images([root])
    least = 2 if structural else 1
    if not least <= count < len(paths):
        raise InputError(
            f"{count} test pictures cannot be made from {len(paths)} normal ones",
            where=root,
            hint=f"ask for {least} to {len(paths) - 1}",
        )
    shapes = None if masks is None else _read_masks(Path(masks))
    chosen = np.sort(np.random.default_rng(seed).choice(len(paths), count, replace=False))
    held = [paths[index] for index in chosen]
    kept = [path for index, path in enumerate(paths) if index not in chosen]
    records: list[dict[str, Any]] = []

    def tests() -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        for index, path in enumerate(held):
            rng = np.random.default_rng([seed, index])
            image = read_image(path, size)
            record = {"source": path.name}
            if structural and index % 2:
                donor = held[(index + int(rng.integers(1, count))) % count]
                defect, record["donor"] = "structural", donor.name
                x, mask = half_swap(image, read_image(donor, size), rng, masks=shapes)
            else:
                defect = "color"
                x, mask = cut_paste(image, rng, masks=shapes)
            records.append({"image": f"{defect}/{index:03d}", **record})
            yield defect, f"{index:03d}", x, mask

    with new_folder(out) as folder:
        write_category(folder, (read_image(path, size) for path in kept), tests())
        write_manifest(
            folder,
            generator="cut-paste, arXiv 2407.06519 Eq. (16)",
            seed=seed,
            size=size,
            masks="generated" if masks is None else "given",
            train=[path.name for path in kept],
            test=records,
        )


def write_category(
    folder: Path, train: Iterable[np.ndarray], tests: Iterable[tuple[str, str, np.ndarray, np.ndarray]]
) -> None:
    """Writes MVTec AD's layout: the normal pictures, and (defect, stem, picture, mask) of each test one.

    Test pictures whose defect is "good" have no mask there.
    """
    good = folder / "train" / "good"
    good.mkdir(parents=True)
    for index, image in enumerate(train):
        write_png(good / f"{index:03d}.png", image)
    for defect, stem, image, mask in tests:
        pictures, truths = folder / "test" / defect, folder / "ground_truth" / defect
        pictures.mkdir(parents=True, exist_ok=True)
        write_png(pictures / f"{stem}.png", image)
        if defect != "good":
            truths.mkdir(parents=True, exist_ok=True)
            write_png(truths / f"{stem}_mask.png", mask)


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes `manifest.json`: how the category was made."""
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _read_masks(folder: Path) -> list[np.ndarray]:
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, hint="name a folder of defect masks")
    masks = [mask for mask in map(read_mask, find_images(folder)) if mask.any()]
    if not masks:
        raise InputError("holds no mask with a defect", where=folder, hint="name a folder of defect masks")
    return masks


def _far(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether two arrays of uint8 colours (..., 3) are at least `CONTRAST` apart, broadcast."""
    difference = one.astype(np.int32) - other
    return (difference**2).sum(axis=-1) >= (CONTRAST * 255) ** 2


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask; an empty one stays empty."""
    pieces = np.asarray(label(mask, connectivity=2))
    sizes = np.bincount(pieces.ravel())[1:]
    return pieces == 1 + sizes.argmax() if sizes.size else mask


def _resized(mask: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A mask flipped, zoomed by 1/2 to 2 (kept within `AREA` and the frame) and shifted by up to a tenth."""
    for axis in (0, 1):
        if rng.random() < 0.5:
            mask = np.flip(mask, axis)
    crop, corner = _cropped(mask)
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
    return _placed(piece, (top, left), shape)


def _cropped(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest rectangle that holds a mask, and its upper left corner (row, column)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return crop, np.array([rows[0], columns[0]])


def _placed(piece: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[corner[0] : corner[0] + piece.shape[0], corner[1] : corner[1] + piece.shape[1]] = piece
    return mask


def _noise_blob(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A round hill plus smooth noise, cut at the level that leaves the wanted area: stains, spills, chips."""
    area = np.exp(rng.uniform(*np.log(AREA)))
    distance, radius = _distance(shape, rng, area, stretch=rng.uniform(1, 2.5))
    cell = radius * rng.uniform(0.5, 1)
    coarse = rng.standard_normal([int(side / cell) + 3 for side in shape]).astype(np.float32)
    noise = np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    field = rng.uniform(0.3, 0.9) * noise - distance
    mask = field > np.quantile(field, 1 - area)
    return np.asarray(ndimage.binary_fill_holes(_largest(mask)))


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
    return _largest(mask)


def _scratch(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A curved stroke, 1.5 to 5 hundredths of the side wide."""
    side = min(shape)
    steps = 24
    length = side * rng.uniform(0.2, 0.8)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(rng.normal(0, 0.05), 0.1, steps))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * (length / steps)
    path += rng.uniform(0.2, 0.8, 2) * shape[::-1] - path.mean(axis=0)
    width = side * rng.uniform(0.015, 0.05)
    picture = Image.new("1", (shape[1], shape[0]), 1)
    ImageDraw.Draw(picture).line([(x, y) for x, y in path.tolist()], fill=0)
    return _largest(np.asarray(ndimage.distance_transform_edt(np.asarray(picture))) <= width / 2)


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

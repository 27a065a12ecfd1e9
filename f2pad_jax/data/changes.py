"""Changes of normal pictures that resemble real defects: pieces that are moved or bent, blur, scratches, missing parts.

`alter` makes an anomaly of a change, a function of (n, region, rng) that gives a picture; only what can be seen counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage, special

from f2pad_jax.data.paints import Made, far, mixed
from f2pad_jax.data.shapes import (
    AREA,
    Masks,
    cropped,
    draw_mask,
    largest_piece,
    noise_patches,
    placed,
    smooth_noise,
    stroke,
)
from f2pad_jax.errors import InputError

VISIBLE = 8  # least difference of a pixel in grey levels of its most different channel
PLAIN = 16  # root mean square of these that an anomaly is to reach
TRIES = 200
SQUARE = np.ones((3, 3), bool)

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
Draw = Callable[[np.ndarray, np.random.Generator, Masks], np.ndarray]


def half_swap(
    image: np.ndarray,
    donor: np.ndarray,
    rng: np.random.Generator,
    *,
    masks: Masks = None,
) -> Made:
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
    for _ in range(TRIES):
        piece = cropped(draw_mask((height, width), rng, masks=masks))[0]
        spare = width // 2 - piece.shape[1]
        if spare < 0:
            continue
        top = int(rng.integers(height - piece.shape[0] + 1))
        left = int(rng.integers(spare + 1) + rng.integers(2) * (width - width // 2))
        moved = np.roll(donor, 2 * left + piece.shape[1] - width, axis=1)  # in the region nothing wraps around
        region = placed(piece, (top, left), (height, width))
        mask = largest_piece(ndimage.binary_opening(region & far(moved, image), SQUARE))
        if AREA[0] <= mask.mean() <= AREA[1]:
            return np.where(mask[..., None], moved, image), mask
    raise InputError("the left and right halves look too much alike", hint="leave out --structural")


def anywhere(image: np.ndarray, rng: np.random.Generator, masks: Masks) -> np.ndarray:
    """A region for `alter`: a shape of `draw_mask`."""
    return draw_mask((image.shape[0], image.shape[1]), rng, masks=masks)


def patches(image: np.ndarray, rng: np.random.Generator, masks: Masks) -> np.ndarray:
    """A region for `alter`: patches of noise, or a given shape."""
    return noise_patches((image.shape[0], image.shape[1]), rng) if masks is None else anywhere(image, rng, masks)


def edge_stroke(image: np.ndarray, rng: np.random.Generator, masks: Masks) -> np.ndarray:
    """A region for `alter`: a thin stroke that starts on an edge of the part and runs along it.

    It is 0.2 to 0.7 sides long and 0.5 to 1.5 hundredths of the side wide, at least 1.5 pixels. Strong edges are
    chosen more often. Given shapes are not used.
    """
    del masks
    side = min(image.shape[:2])
    smooth = ndimage.gaussian_filter(image.mean(axis=-1), 1 + side / 150)
    slope = np.stack([np.gradient(smooth, axis=axis) for axis in (0, 1)], axis=-1)
    strength = np.linalg.norm(slope, axis=-1) + 1e-6
    chances = np.square(strength).ravel()
    start = np.unravel_index(rng.choice(chances.size, p=chances / chances.sum()), strength.shape)
    angle = rng.uniform(0, 2 * np.pi)
    place, heading, path = np.array(start, float), np.array([np.sin(angle), np.cos(angle)]), [start]
    for _ in range(int(rng.uniform(20, 70))):  # steps of a hundredth of the side
        if (place < 0).any() or (place > np.array(strength.shape) - 1).any():
            break
        at = tuple(np.rint(place).astype(int))
        back = slope[at] * (smooth[start] - smooth[at]) / strength[at] ** 2  # to the grey level where it started
        place = place + back / max(1.0, float(np.linalg.norm(back)))
        path.append(place)
        along = slope[at][::-1] * (1, -1) / strength.max()  # the edge's own direction
        heading = heading + 3 * along * np.sign(along @ heading) + rng.normal(0, 0.05, 2)
        heading /= np.linalg.norm(heading)
        place = place + heading * side / 100
    return stroke(np.array(path)[:, ::-1], max(1.5, side * rng.uniform(0.005, 0.015)), strength.shape)


def alter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    masks: Masks = None,
    changes: Sequence[Change],
    draw: Draw = anywhere,
    thin: bool = False,
) -> Made:
    """The picture changed within a region, as far as the change is visible: every kind but paint.

    The mask is the largest piece of the region whose pixels differ by `VISIBLE`, small gaps closed: at least half of
    its pixels do. Regions are drawn until it covers a share of the picture within `AREA` and differs by `PLAIN`; after
    a quarter of the tries the plainest yet is taken.

    Args:
      image: n.
      rng: source of every choice.
      masks: shapes, as for `cut_paste`.
      changes: functions of (n, region, rng), one of which is chosen. Each gives a picture (H, W, 3), which is rounded
        and clipped here and used within the mask.
      draw: gives the region, bool (H, W), from (n, rng, masks).
      thin: whether lines thinner than three pixels count.

    Raises:
      InputError: none of many tries can be seen, as when pieces are moved in a picture that is the same all over.
    """
    plainest, best = 0.0, None
    for attempt in range(TRIES):
        region = draw(image, rng, masks)
        change = changes[int(rng.integers(len(changes)))]
        other = np.clip(np.rint(change(image, region, rng)), 0, 255).astype(np.uint8)
        levels = np.abs(other.astype(int) - image).max(axis=-1)
        seen = region & (levels >= VISIBLE)
        closed = seen | (region & ndimage.binary_closing(seen, SQUARE))
        mask = largest_piece(closed if thin else ndimage.binary_opening(closed, SQUARE))
        if AREA[0] <= mask.mean() <= AREA[1] and seen[mask].mean() >= 0.5:
            plain = float(np.sqrt(np.square(levels[mask]).mean()))
            if plain > plainest:
                plainest, best = plain, (np.where(mask[..., None], other, image), mask)
        if best is not None and (plainest >= PLAIN or attempt >= TRIES // 4):
            return best
    raise InputError("no such anomaly can be seen on the picture", hint="choose another kind")


def move(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture shifted so that the region shows another place of it, at least a tenth of the side away."""
    lines = [np.flatnonzero(region.any(axis)) for axis in (1, 0)]
    sides, least = np.array(region.shape), np.array(region.shape) // 10
    low, high = -np.array([line[0] for line in lines]), sides - np.array([line[-1] for line in lines])
    if (np.maximum(-low, high - 1) < least).all():  # the region fills the frame
        return image
    while True:
        shift = rng.integers(low, high)
        if (np.abs(shift) >= least).any():
            return np.roll(image, tuple(-shift), (0, 1))


def turn(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture turned by 30° to 330° about the region's centre."""
    angle = rng.uniform(np.pi / 6, 11 * np.pi / 6)
    grid = np.indices(region.shape)
    row, column = (grid[axis] - np.nonzero(region)[axis].mean() for axis in (0, 1))
    return _read(
        image,
        region,
        grid[0] - row + row * np.cos(angle) - column * np.sin(angle),
        grid[1] - column + row * np.sin(angle) + column * np.cos(angle),
    )


def bend(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture read at p + d(p): d pushes to one side, up to a quarter of the region's extent, not at its border."""
    depth = np.asarray(ndimage.distance_transform_edt(region))
    angle, length = rng.uniform(0, 2 * np.pi), np.sqrt(region.sum()) * rng.uniform(0.1, 0.25)
    push = length * np.sin(np.pi / 2 * depth / max(float(depth.max()), 1.0))
    row, column = np.indices(region.shape)
    return _read(image, region, row + push * np.sin(angle), column + push * np.cos(angle))


def blur(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture under three means over squares, nearly a Gaussian filter, of 3 to 9 hundredths of the side."""
    width = max(3, round(min(region.shape) * rng.uniform(0.03, 0.09)))
    smooth = image.astype(np.float32)
    for _ in range(3):
        smooth = ndimage.uniform_filter(smooth, width, axes=(0, 1), mode="nearest")
    return smooth


def brighten(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture brighter or darker by 20 to 90 grey levels, less towards the region's border.

    Bright regions rather become darker, dark ones brighter.
    """
    depth = np.asarray(ndimage.distance_transform_edt(region))
    ramp = np.clip(depth / max(1.0, rng.uniform(0, 1) * float(depth.max())), 0, 1)
    sign = -1 if rng.random() < image[region].mean() / 255 else 1
    return image + sign * rng.uniform(20, 90) * ramp[..., None]


def texture(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A foreign pattern laid over n at an opacity: grain, streaks or spots of noise, in shades of a colour of n.

    The hue is the part's own, so that only the pattern is foreign.
    """
    cells = np.maximum(min(region.shape) * np.exp(rng.uniform(np.log(0.01), np.log(0.1), 2)), 1.5)
    noise = smooth_noise(region.shape, rng, (cells[0], cells[1]))
    levels = special.expit(rng.uniform(1, 8) * noise)[..., None]
    colour = image.reshape(-1, 3)[rng.integers(region.size)].astype(float)
    return mixed(image, levels * (colour + 255 - colour.max()), rng)


def shade(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture mixed with white or black, as scratches look under light from one side."""
    del region
    return mixed(image, np.float32(rng.choice([0, 255])), rng)


def remove(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture shifted, of 32 ways the one that brings most background into the region.

    Background is the median colour of the picture's frame; what leaves at one side comes in at the other, where
    parts have background too.
    """
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    foreign = np.abs(image - np.median(frame, axis=0)).sum(axis=-1)
    rows, columns = np.nonzero(region)
    shifts = rng.integers(0, image.shape[:2], (32, 2))
    height, width = region.shape
    costs = [foreign[(rows + down) % height, (columns + right) % width].mean() for down, right in shifts]
    down, right = shifts[int(np.argmin(costs))]
    return np.roll(image, (-down, -right), (0, 1))


def _read(image: np.ndarray, region: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The picture within a region read at places between pixels, (H, W) each, by linear interpolation: (H, W, 3)."""
    picture = image.astype(np.float32)
    places = np.stack([rows[region], columns[region]])
    for plane in np.moveaxis(picture, -1, 0):
        plane[region] = ndimage.map_coordinates(plane, places, order=1, mode="nearest")
    return picture

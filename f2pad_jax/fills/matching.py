"""Knowledge-of-the-part fill: a region is taken from the normal picture that continues its surroundings best.

Every quarter turn of every normal picture is tried at every translation (Fourier correlation on a coarse
grid); the best few are aligned to a fraction of a pixel and a degree by Gauss-Newton; what still differs at the
region's border is evened out by a harmonic membrane, as in seamless cloning (Pérez et al., SIGGRAPH 2003). In large
pictures the best is chosen by reduced pictures, and aligned once more, in full, around the region.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from scipy.ndimage import distance_transform_edt

from f2pad_jax.boxes import Box, enclosing
from f2pad_jax.core.pixels import normalize
from f2pad_jax.fills.harmonic import harmonic_fill

COARSE = 4  # pixels per cell of the search grid; this and all lengths below times the scale of `Normals`
REFINED = 4  # candidates that are aligned finely
RING = 12.0  # pixels over which the weight of the surroundings falls by 1/√e
BATCH = 8  # normal pictures that are transformed or compared at a time
FAR = 0.02  # weight of pixels far from the region, which settles a part's pose


def surroundings_weight(region: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """How much each pixel outside the region counts in a comparison: (H, W) float32, zero inside."""
    distance = np.asarray(distance_transform_edt(~region))
    return np.where(region, 0.0, FAR + np.exp(-np.square(distance / (scale * RING)) / 2)).astype(np.float32)


def pool(images: Any, cell: int) -> Any:
    """Means over cells of so many rows and columns, (..., H // cell, W // cell, C), of NumPy or JAX."""
    height, width = (side // cell for side in images.shape[-3:-1])
    cut = images[..., : height * cell, : width * cell, :]
    shape = cut.shape[:-3] + (height, cell, width, cell, cut.shape[-1])
    return cut.reshape(shape).mean((-4, -2))


class Normals:
    """Normal training pictures, and what searches among them need, which is made when it is first used.

    Args:
      pictures: uint8 RGB (N, H, W, 3).
      scale: by which they are larger than pictures of the size that all lengths are meant for; at least 1.
    """

    def __init__(self, pictures: np.ndarray, scale: float = 1.0) -> None:
        self.pictures, self.scale = pictures, scale

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def cell(self) -> int:
        """Pixels per cell of the search grid."""
        return round(COARSE * self.scale)

    @cached_property
    def spectra(self) -> jax.Array:
        """Transforms of the coarse pictures' three colours and of their squared length, (N, 4, 2h, w + 1) complex64."""
        # A few at a time: all of them as floats would be many times as large as what is kept.
        chunks = [self.pictures[first : first + BATCH] for first in range(0, len(self), BATCH)]
        with jax.ensure_compile_time_eval():  # kept beyond the program that may be traced just now
            return jnp.concatenate([_spectra(normalize(chunk), cell=self.cell) for chunk in chunks])

    def turned(self, index: int, quarters: int) -> np.ndarray:
        """One picture, (H, W, 3) float32, ImageNet-normalised, turned by so many quarters."""
        return normalize(np.rot90(self.pictures[index], quarters))


@partial(jax.jit, static_argnames="cell")
def _spectra(pictures: jax.Array, *, cell: int) -> jax.Array:
    small = pool(pictures, cell)
    planes = jnp.concatenate([small, jnp.sum(jnp.square(small), axis=-1, keepdims=True)], axis=-1)
    return _transform(jnp.moveaxis(planes, -1, 1))


def _transform(planes: jax.Array) -> jax.Array:
    """Of planes (..., h, w), padded to twice their size so that shifts do not wrap."""
    height, width = planes.shape[-2:]
    return jnp.fft.rfft2(planes, (2 * height, 2 * width))


@partial(jax.jit, static_argnames="cell")
def search(
    image: jax.Array, weight: jax.Array, spectra: jax.Array, *, cell: int = COARSE
) -> tuple[jax.Array, jax.Array]:
    """The best translation of every quarter turn of every normal picture, to the coarse grid.

    Args:
      image: (H, W, 3), ImageNet-normalised; one that is no square is turned by halves only.
      weight: (H, W), zero where the picture is to be replaced.
      spectra: of `Normals`, (N, 4, 2h, w + 1).
      cell: pixels per cell of the grid.

    Returns:
      cost (4, N): weighted mean squared difference; shift (4, N, 2): rows and columns, in pixels, such that
      the turned normal picture at p + shift is compared with the image at p. Turns that were not tried cost
      infinitely much.
    """
    mass = pool(weight[..., None], cell)[..., 0]
    wanted = pool((weight == 0).astype(jnp.float32)[..., None], cell)[..., 0]
    # Colours are averaged over the pixels that count, so the region does not bleed into its border cells.
    colours = pool(image * weight[..., None], cell) / jnp.maximum(mass, 1e-6)[..., None]
    planes = jnp.concatenate([jnp.moveaxis(colours * mass[..., None], -1, 0), mass[None]])
    length = mass * jnp.sum(jnp.square(colours), axis=-1)

    def one_turn(quarters: int) -> tuple[jax.Array, jax.Array]:
        if quarters % 2 and mass.shape[0] != mass.shape[1]:
            return jnp.full(len(spectra), jnp.inf), jnp.zeros((len(spectra), 2), jnp.int32)

        # The picture is turned back in place of every normal picture: the same comparisons, a quarter of the memory.
        def back(plane: jax.Array) -> jax.Array:
            return jnp.rot90(plane, -quarters, axes=(-2, -1))

        cost, shift = _search_upright(back(planes), back(length), back(wanted), spectra)
        for _ in range(quarters):
            shift = jnp.stack([-shift[:, 1], shift[:, 0]], axis=-1)
        # Cells of a turned picture begin where those of the upright one end.
        down, right = image.shape[0] % cell, image.shape[1] % cell
        ends = jnp.asarray(((0, 0), (down, 0), (down, right), (0, right))[quarters])
        return cost, shift * cell + ends

    costs, shifts = zip(*map(one_turn, range(4)), strict=True)
    return jnp.stack(costs), jnp.stack(shifts)


def _search_upright(
    planes: jax.Array, length: jax.Array, wanted: jax.Array, spectra: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Costs (N,) and shifts (N, 2), in coarse cells, of the normal pictures as they stand.

    Args:
      planes: weighted colours and the weight, (4, h, w).
      length: weighted squared colours, (h, w).
      wanted: which cells must be covered, (h, w).
      spectra: (N, 4, 2h, w + 1).
    """
    height, width = wanted.shape
    grid = (2 * height, 2 * width)

    def correlate(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.fft.irfft2(jnp.conj(first) * second, grid)

    present = _transform(jnp.ones((height, width)))
    queries = _transform(planes)
    overlap = correlate(queries[3], present)
    covered = correlate(_transform(wanted), present) > jnp.sum(wanted) - 1e-2
    allowed = covered & (overlap > 0.7 * jnp.sum(planes[3]))
    energy = correlate(_transform(length), present)
    # Σ w‖x − n‖² = Σ w‖x‖² − 2 Σ w x·n + Σ w‖n‖²: the last two are one correlation.
    weights = jnp.conj(queries) * jnp.array([-2.0, -2.0, -2.0, 1.0])[:, None, None]

    def best(normal: jax.Array) -> tuple[jax.Array, jax.Array]:
        cost = energy + jnp.fft.irfft2(jnp.sum(weights * normal, axis=0), grid)
        cost = jnp.where(allowed, cost / jnp.maximum(overlap, 1e-6), jnp.inf)
        flat = jnp.argmin(cost)
        row, column = flat // grid[1], flat % grid[1]
        row = jnp.where(row >= height, row - grid[0], row)
        column = jnp.where(column >= width, column - grid[1], column)
        return cost.reshape(-1)[flat], jnp.stack([row, column])

    return jax.lax.map(best, spectra, batch_size=BATCH)


class Pose(NamedTuple):
    """How a normal picture is laid under a part of another: turned about the part's middle, and moved.

    Attributes:
      shift: rows and columns, pixels.
      angle: radians.
    """

    shift: np.ndarray
    angle: float

    def about(self, middle: np.ndarray, other: np.ndarray) -> Pose:
        """The same for a turn about another point; points are (row, column)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        moved = (np.array([[cos, -sin], [sin, cos]]) - np.eye(2)) @ (other - middle)
        return Pose(self.shift + moved, self.angle)


def _moved(picture: jax.Array, pose: jax.Array, corner: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A part of the picture turned about its middle by pose[2] (radians) and read at p + pose[:2] (pixels)."""
    height, width = shape[:2]
    row, column = jnp.meshgrid(jnp.arange(height) + 0.0, jnp.arange(width) + 0.0, indexing="ij")
    middle = (height - 1) / 2, (width - 1) / 2
    cos, sin = jnp.cos(pose[2]), jnp.sin(pose[2])
    y = cos * (row - middle[0]) - sin * (column - middle[1]) + middle[0] + pose[0] + corner[0]
    x = sin * (row - middle[0]) + cos * (column - middle[1]) + middle[1] + pose[1] + corner[1]
    sample = partial(map_coordinates, coordinates=[y, x], order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(picture)


@jax.jit
def align(image: jax.Array, weight: jax.Array, picture: jax.Array, start: jax.Array, corner: jax.Array):
    """Gauss-Newton on translation and rotation of a normal picture.

    Args:
      image: a part of a picture, (h, w, 3).
      weight: (h, w).
      picture: (H, W, 3), already turned by quarters.
      start: (3,), rows, columns and angle, pixels and radians.
      corner: (2,), where the part lies.

    Returns:
      The moved picture there, (h, w, 3), its pose (3,), and its weighted mean squared difference ().
    """
    # Rotation is measured at the border, so that all three unknowns are in pixels.
    unit = jnp.asarray([1.0, 1.0, 2.0 / image.shape[0]])

    def moved(pose):
        return _moved(picture, pose * unit, corner, image.shape)

    def residual(pose):
        return jnp.sqrt(weight)[..., None] * (moved(pose) - image)

    def step(_, carry):
        pose, best_pose, best_cost = carry
        value = residual(pose)
        cost = jnp.sum(jnp.square(value))
        better = cost < best_cost
        best_pose, best_cost = jnp.where(better, pose, best_pose), jnp.where(better, cost, best_cost)
        jacobian = jax.jacfwd(residual)(pose).reshape(-1, 3)
        normal = jacobian.T @ jacobian + 1e-3 * jnp.eye(3)
        change = jnp.linalg.solve(normal, jacobian.T @ value.reshape(-1))
        return pose - jnp.clip(change, -2.0, 2.0), best_pose, best_cost

    start = start.astype(jnp.float32) / unit
    _, pose, cost = jax.lax.fori_loop(0, 8, step, (start, start, jnp.inf))
    return moved(pose), pose * unit, cost / jnp.sum(weight)


class Match(NamedTuple):
    """A filled picture and how far the surroundings of the region are from the material it was taken from.

    Attributes:
      filled: (H, W, 3) float32, equal to the image outside the region.
      error: root of the weighted mean squared difference, in normalised colour; infinite without a match. Of large
        pictures the lesser of those of reduced and of full ones: noise weighs more in these, interpolation in those.
    """

    filled: np.ndarray
    error: float


class _Found(NamedTuple):
    """The normal picture that matches best: which, how turned, its pose, and what it costs."""

    index: int
    turn: int
    pose: Pose
    moved: np.ndarray
    cost: float


def matching_fill(image: np.ndarray, region: np.ndarray, normals: Normals) -> Match:
    """Fills a region from the normal picture that matches its surroundings best.

    Args:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      region: (H, W) bool, the pixels to replace.
      normals: training pictures; the image's own source must not be among them.

    Returns:
      The match. Where the region leaves too little to compare, or there are no pictures, the harmonic fill with an
      infinite error.
    """
    if not region.any():
        return Match(image.copy(), 0.0)
    reduced = round(normals.scale)
    weight = surroundings_weight(region, normals.scale)
    found = _best(image, weight, normals, reduced) if len(normals) else None
    # Beyond a few lengths of the ring nothing weighs much, and the membrane needs the region and its border only.
    box = Box(0, 0, *region.shape) if reduced == 1 else enclosing(region, round(2 * RING * normals.scale))
    here, inside = box.cut(image), box.cut(region)
    if found is None:
        return Match(box.put(harmonic_fill(here, inside), image), np.inf)
    if reduced > 1:
        found = _in_full(here, box.cut(weight), normals, found, box, reduced)
    filled = np.where(inside[..., None], found.moved + harmonic_fill(here - found.moved, inside), here)
    return Match(box.put(filled, image), found.cost**0.5)


def _best(image: np.ndarray, weight: np.ndarray, normals: Normals, reduced: int) -> _Found | None:
    """The best of all normal pictures, by pictures that are reduced by this whole factor."""
    cost, shift = (np.asarray(a) for a in search(image, weight, normals.spectra, cell=normals.cell))
    small, light = _shrunk(image, reduced), _shrunk(weight[..., None], reduced)[..., 0]
    order = np.argsort(cost, axis=None)[:REFINED]
    best: _Found | None = None
    for turn, index in zip(*np.unravel_index(order, cost.shape), strict=True):
        if not np.isfinite(cost[turn, index]):
            continue
        picture, start = _shrunk(normals.turned(index, turn), reduced), np.append(shift[turn, index] / reduced, 0.0)
        moved, pose, error = align(small, light, picture, start, np.zeros(2))
        if best is None or float(error) < best.cost:
            shifted = Pose(reduced * np.asarray(pose[:2], float), float(pose[2]))
            best = _Found(index, turn, shifted, np.asarray(moved), float(error))
    return best


def _shrunk(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture if factor == 1 else pool(picture, factor)


def _in_full(image: np.ndarray, weight: np.ndarray, normals: Normals, found: _Found, box: Box, reduced: int) -> _Found:
    """The found picture aligned anew in a box of the full pictures."""
    rough = (reduced * np.array(found.moved.shape[:2]) - 1) / 2  # the middle of the reduced picture
    corner = np.array([box.top, box.left])
    pose = found.pose.about(rough, corner + (np.array([box.height, box.width]) - 1) / 2)
    picture, start = normals.turned(found.index, found.turn), np.append(pose.shift, pose.angle)
    moved, _, cost = align(image, weight, picture, start, corner.astype(float))
    return found._replace(moved=np.asarray(moved), cost=min(found.cost, float(cost)))

"""Which normal picture, how turned and how shifted, continues a picture best: Fourier correlation on a coarse grid."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

COARSE = 4  # pixels per cell of the search grid
BATCH = 8  # normal pictures that are transformed or compared at a time
SHARED = 0.7  # share of the weight that must meet what counts of a normal picture


def pool(images: Any, cell: int) -> Any:
    """Means over cells of so many rows and columns, (..., H // cell, W // cell, C), of NumPy or JAX."""
    height, width = (side // cell for side in images.shape[-3:-1])
    cut = images[..., : height * cell, : width * cell, :]
    shape = cut.shape[:-3] + (height, cell, width, cell, cut.shape[-1])
    return cut.reshape(shape).mean((-4, -2))


@partial(jax.jit, static_argnames="cell")
def spectra_of(pictures: jax.Array, usable: jax.Array | None = None, *, cell: int) -> jax.Array:
    """What `search` takes of pictures.

    Args:
      pictures: (N, H, W, 3), ImageNet-normalised.
      usable: cells that count, (h, w), one or zero; all without.
      cell: pixels per cell.

    Returns:
      Transforms of the coarse pictures' three colours and of their squared length, (N, 4, 2h, w + 1) complex64.
    """
    small = pool(pictures, cell)
    if usable is not None:
        small = small * usable[..., None]
    planes = jnp.concatenate([small, jnp.sum(jnp.square(small), axis=-1, keepdims=True)], axis=-1)
    return _transform(jnp.moveaxis(planes, -1, 1))


def _transform(planes: jax.Array) -> jax.Array:
    """Of planes (..., h, w), padded to twice their size so that shifts do not wrap."""
    height, width = planes.shape[-2:]
    return jnp.fft.rfft2(planes, (2 * height, 2 * width))


@partial(jax.jit, static_argnames="cell")
def search(
    image: jax.Array, weight: jax.Array, spectra: jax.Array, usable: jax.Array | None = None, *, cell: int = COARSE
) -> tuple[jax.Array, jax.Array]:
    """The best translation of every quarter turn of every normal picture, to the coarse grid.

    Args:
      image: (H, W, 3), ImageNet-normalised; one that is no square is turned by halves only.
      weight: (H, W), zero where the picture is to be replaced.
      spectra: of `spectra_of`, (N, 4, 2h, w + 1).
      usable: cells of the normal pictures that count, (h, w), one or zero, as for `spectra_of`.
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

        cost, shift = _search_upright(back(planes), back(length), back(wanted), spectra, usable)
        for _ in range(quarters):
            shift = jnp.stack([-shift[:, 1], shift[:, 0]], axis=-1)
        # Cells of a turned picture begin where those of the upright one end.
        down, right = image.shape[0] % cell, image.shape[1] % cell
        ends = jnp.asarray(((0, 0), (down, 0), (down, right), (0, right))[quarters])
        return cost, shift * cell + ends

    costs, shifts = zip(*map(one_turn, range(4)), strict=True)
    return jnp.stack(costs), jnp.stack(shifts)


def _search_upright(
    planes: jax.Array, length: jax.Array, wanted: jax.Array, spectra: jax.Array, usable: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Costs (N,) and shifts (N, 2), in coarse cells, of the normal pictures as they stand.

    Args:
      planes: weighted colours and the weight, (4, h, w).
      length: weighted squared colours, (h, w).
      wanted: which cells must be covered, (h, w).
      spectra: (N, 4, 2h, w + 1).
      usable: (h, w), one or zero.
    """
    height, width = wanted.shape
    grid = (2 * height, 2 * width)

    def correlate(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.fft.irfft2(jnp.conj(first) * second, grid)

    present = _transform(jnp.ones((height, width)) if usable is None else usable)
    queries = _transform(planes)
    overlap = correlate(queries[3], present)
    covered = correlate(_transform(wanted), present) > jnp.sum(wanted) - 1e-2
    allowed = covered & (overlap > SHARED * jnp.sum(planes[3]))
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

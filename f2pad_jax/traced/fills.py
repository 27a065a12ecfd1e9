"""The fills of `f2pad_jax.fills` as functions that JAX traces; each gives the filled picture and its error."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from f2pad_jax.core.pixels import normalize
from f2pad_jax.fills.aligning import align
from f2pad_jax.fills.autoencoder import removed_tokens
from f2pad_jax.fills.matching import FAR, OWN, REFINED, RING, framed, own_cells, own_part
from f2pad_jax.fills.searching import pool, search, spectra_of
from f2pad_jax.model import Model
from f2pad_jax.networks.mae import reconstruct
from f2pad_jax.traced.pieces import squared_distance

TINY = 1e-6  # share of their weight that pixels far from the region keep
RESIDUAL = 1e-6  # of the membrane's equations, relative to their right side
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))

Filled = tuple[Array, Array]  # the picture (H, W, 3), and the error ()


def harmonic_fill(image: Float[Array, "h w c"], region: Bool[Array, "h w"]) -> Float[Array, "h w c"]:
    """`fills.harmonic_fill` by conjugate gradients; arguments and result as there."""
    height, width = region.shape
    unknown = region[..., None]

    def neighbours(values: Array) -> Array:
        padded = jnp.pad(values, ((1, 1), (1, 1), (0, 0)))
        return sum(
            (padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in NEIGHBOURS),
            start=jnp.zeros_like(values),
        )

    degree = neighbours(jnp.ones((height, width, 1)))

    def laplacian(values: Array) -> Array:
        return jnp.where(unknown, degree * values - neighbours(jnp.where(unknown, values, 0)), values)

    known = jnp.where(unknown, neighbours(jnp.where(unknown, 0, image)), 0)
    most = 4 * (height + width)
    solved, _ = jax.scipy.sparse.linalg.cg(laplacian, known, tol=RESIDUAL, maxiter=most)
    solved = jnp.where(jnp.all(region), jnp.mean(image, axis=(0, 1)), solved)
    return jnp.where(unknown, solved, image)


def _harmonic(model: Model, image: Array, region: Array, doubtful: Array) -> Filled:
    del model, doubtful
    return harmonic_fill(image, region), jnp.float32(jnp.inf)


def _autoencoder(model: Model, image: Array, region: Array, doubtful: Array) -> Filled:
    del doubtful
    inpainter = model.inpainter
    assert inpainter is not None  # `fit` sees to it
    removed = removed_tokens(region, inpainter.spec.patch)
    made = reconstruct(inpainter.params, image[None], removed[None], spec=inpainter.spec)[0]
    return jnp.where(region[..., None], made, image), jnp.float32(jnp.inf)


def matching_fill(
    model: Model, image: Float[Array, "h w 3"], region: Bool[Array, "h w"], doubtful: Bool[Array, "h w"]
) -> Filled:
    """`fills.matching_fill`; what was matched reduced is aligned anew by all that is near the region, not by a box.

    Args:
      model: whose normal pictures count.
      image: x, ImageNet-normalised.
      region: the pixels to replace.
      doubtful: where else x may be anomalous.
    """
    normals = model.normals
    if not len(normals):
        return _harmonic(model, image, region, doubtful)
    reduced = round(normals.scale)
    width = normals.scale * RING
    squares = squared_distance(region)
    weight = jnp.where(region, 0.0, FAR + jnp.exp(-squares / (2 * width**2)))
    usable = own_part(jnp.sqrt(squared_distance(region | doubtful)), normals.scale)
    cells = own_cells(usable, normals.cell)
    own = spectra_of(image[None], cells, cell=normals.cell)
    costs, shifts = search(image, weight, normals.spectra, cell=normals.cell)
    own_costs, own_shifts = search(image, weight, own, cells, cell=normals.cell)
    lowest, order = jax.lax.top_k(-costs.ravel(), min(REFINED, costs.size))
    own_lowest, own_order = jax.lax.top_k(-own_costs.ravel(), OWN)
    count = len(normals)
    # the picture itself is one more, behind the others
    lowest, turns = jnp.append(lowest, own_lowest), jnp.append(order // count, own_order)
    order = jnp.append(order % count, jnp.full(OWN, count))
    shifts = jnp.concatenate([shifts, own_shifts], axis=1)
    small, light = pool(image, reduced), pool(weight[..., None], reduced)[..., 0]
    pictures = jnp.asarray(normals.pictures)

    def source(index: Array, turn: Array) -> tuple[Array, Array]:
        mine = index == count
        picture = jnp.where(mine, image, normalize(pictures[jnp.minimum(index, count - 1)]))
        return _turned(picture, turn), _turned(jnp.where(mine, framed(usable), 1.0)[..., None], turn)

    def candidate(place: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        index, turn = place
        picture, there = (pool(each, reduced) for each in source(index, turn))
        return align(small, light, picture, there[..., 0], jnp.append(shifts[turn, index] / reduced, 0.0), jnp.zeros(2))

    moved, poses, errors = jax.lax.map(candidate, (order, turns))
    errors = jnp.where(jnp.isfinite(lowest) & jnp.isfinite(errors), errors, jnp.inf)
    best = jnp.argmin(errors)
    error, shown = errors[best], moved[best]
    if reduced > 1:
        picture, there = source(order[best], turns[best])
        start = _enlarged(poses[best], small.shape[:2], region.shape, reduced)
        around = jnp.where(squares <= (2 * width) ** 2, weight, TINY * weight)
        shown, _, full = align(image, around, picture, there[..., 0], start, jnp.zeros(2))
        error = jnp.minimum(error, full)
    found = jnp.isfinite(errors[best])
    shown = jnp.where(found, shown, 0.0)  # then the membrane alone is the fill
    filled = jnp.where(region[..., None], shown + harmonic_fill(image - shown, region), image)
    return filled, jnp.where(found, jnp.sqrt(error), jnp.inf)


def _turned(picture: Array, quarters: Array) -> Array:
    """A picture (H, W, C) turned by quarters; one that is no square by halves only, for the search tries no others."""
    height, width = picture.shape[:2]
    turns = [0, 1, 2, 3] if height == width else [0, 0, 2, 2]
    return jax.lax.switch(quarters, [lambda p, k=k: jnp.rot90(p, k) for k in turns], picture)


def _enlarged(pose: Array, small: tuple[int, ...], large: tuple[int, ...], factor: int) -> Array:
    """A pose about the middle of a reduced picture, (3,), about that of the picture itself; see `Pose.about`."""
    offset = (np.array(large) - 1) / 2 - (factor * np.array(small) - 1) / 2
    cos, sin = jnp.cos(pose[2]), jnp.sin(pose[2])
    moved = (jnp.array([[cos, -sin], [sin, cos]]) - jnp.eye(2)) @ offset
    return jnp.append(factor * pose[:2] + moved, pose[2])


FILLS: dict[str, Callable[[Model, Array, Array, Array], Filled]] = {
    "harmonic": _harmonic,
    "matching": matching_fill,
    "autoencoder": _autoencoder,
}
"""By the names of `fills.FILLS`."""

"""How a normal picture is laid under a part of another, to a fraction of a pixel and a degree: Gauss-Newton."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

WHOLE = 0.999  # of a pixel, less rounding


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
def align(
    image: jax.Array, weight: jax.Array, picture: jax.Array, usable: jax.Array, start: jax.Array, corner: jax.Array
):
    """Gauss-Newton on translation and rotation of a normal picture.

    Args:
      image: a part of a picture, (h, w, 3).
      weight: (h, w), zero where the normal picture is to be taken.
      picture: (H, W, 3), already turned by quarters.
      usable: pixels of it that count, (H, W), one or zero; beyond the picture its outermost pixels go on.
      start: (3,), rows, columns and angle, pixels and radians.
      corner: (2,), where the part lies.

    Returns:
      The moved picture there, (h, w, 3), its pose (3,), and its weighted mean squared difference (): infinite where
      what would be taken may not be used.
    """
    # Rotation is measured at the border, so that all three unknowns are in pixels.
    unit = jnp.asarray([1.0, 1.0, 2.0 / image.shape[0]])

    def moved(pose):
        return _moved(picture, pose * unit, corner, image.shape)

    def usable_at(pose):
        return _moved(usable[..., None], pose * unit, corner, image.shape)[..., 0] > WHOLE

    def counting(pose):
        return jnp.where(usable_at(pose), weight, 0.0)

    def residual(pose):
        return jnp.sqrt(counting(pose))[..., None] * (moved(pose) - image)

    def step(_, carry):
        pose, best_pose, best_cost = carry
        value = residual(pose)
        cost = jnp.sum(jnp.square(value)) / jnp.maximum(jnp.sum(counting(pose)), 1e-6)
        cost = jnp.where(jnp.all((weight > 0) | usable_at(pose)), cost, jnp.inf)
        better = cost < best_cost
        best_pose, best_cost = jnp.where(better, pose, best_pose), jnp.where(better, cost, best_cost)
        jacobian = jax.jacfwd(residual)(pose).reshape(-1, 3)
        normal = jacobian.T @ jacobian + 1e-3 * jnp.eye(3)
        change = jnp.linalg.solve(normal, jacobian.T @ value.reshape(-1))
        return pose - jnp.clip(change, -2.0, 2.0), best_pose, best_cost

    start = start.astype(jnp.float32) / unit
    _, pose, cost = jax.lax.fori_loop(0, 8, step, (start, start, jnp.inf))
    return moved(pose), pose * unit, cost

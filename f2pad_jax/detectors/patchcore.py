"""PatchCore (Roth et al., arXiv 2106.08265): distance to the nearest of a bank of normal patch features.

Patches are 3 × 3 averages; coarser maps are resized bilinearly to the finest grid used; the bank is a greedy
k-center coreset chosen in a random projection (amazon-science/patchcore-inspection, `sampler.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from f2pad_jax.detectors.base import Arrays, Facts, Maps, Shape, enlarge

CANDIDATES = 50  # |M_ij| of Eq. (4)
PROJECTED = 64  # dimensions in which the coreset is chosen


def _average3(features: jax.Array) -> jax.Array:
    """3 × 3 mean with the border repeated, as separable sums: (H, W, C)."""
    # Concatenated and not padded, because jax2onnx 0.17 takes an axis that is not padded for one that is.
    tall = jnp.concatenate([features[:1], features, features[-1:]])
    rows = tall[:-2] + tall[1:-1] + tall[2:]
    wide = jnp.concatenate([rows[:, :1], rows, rows[:, -1:]], axis=1)
    return (wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]) / 9


def embed(maps: Maps, scale: jax.Array) -> jax.Array:
    """Locally averaged features of the second and deeper maps on the second map's grid: (H_2, W_2, D).

    Args:
      maps: at least two feature maps of one image; the finest is left out.
      scale: (D,) divisors, one per channel.
    """
    used = [_average3(m) for m in maps[1:]]
    height, width = used[0].shape[:2]
    grown = [used[0]] + [enlarge(m, (height, width, m.shape[-1])) for m in used[1:]]
    return jnp.concatenate(grown, axis=-1) / scale


@partial(jax.jit, static_argnames="size")
def greedy_coreset(points: jax.Array, size: int, first: jax.Array) -> jax.Array:
    """Greedy k-center: repeatedly takes the point farthest from those taken.

    Args:
      points: (N, D).
      size: how many to take, at most N.
      first: () int32, the point to start with.

    Returns:
      (size,) int32 indices in the order taken; ties go to the lower index.
    """

    def take(k, carry):
        distance, taken = carry
        newest = points[taken[k - 1]]
        distance = jnp.minimum(distance, jnp.sum(jnp.square(points - newest), axis=-1))
        return distance, taken.at[k].set(jnp.argmax(distance).astype(jnp.int32))

    start = jnp.zeros(size, jnp.int32).at[0].set(first)
    _, taken = jax.lax.fori_loop(1, size, take, (jnp.full(len(points), jnp.inf), start))
    return taken


class Local(struct.PyTreeNode):
    """The candidates M_ij of Eq. (4) at some positions: `candidates` (S, M, D), `norm` (S, M) squared lengths."""

    positions: jax.Array
    candidates: jax.Array
    norm: jax.Array


class PatchCore(struct.PyTreeNode):
    """A bank of normal features.

    Attributes:
      scale: (D,), root mean variance of each map, repeated for its channels, so that no map outweighs another.
      bank: (B, D).
      norm: (B,), the bank's squared lengths.
    """

    name: ClassVar[str] = "patchcore"
    level: ClassVar[int] = 1
    anchored: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any]] = {}

    scale: jax.Array
    bank: jax.Array
    norm: jax.Array

    @classmethod
    def fit(cls, maps: tuple[np.ndarray, ...], *, ratio: float = 0.1, limit: int = 8192, seed: int = 0) -> Self:
        """Chooses the bank.

        Args:
          maps: features of the training images, (N, H_k, W_k, C_k) each, finest first.
          ratio: size of the coreset relative to all patches.
          limit: largest size of the coreset.
          seed: of the random projection and of the first point.
        """
        deviation = [np.sqrt(m.astype(np.float64).var(axis=(0, 1, 2)).mean()) for m in maps[1:]]
        scale = jnp.asarray(np.repeat(np.maximum(deviation, 1e-12), [m.shape[-1] for m in maps[1:]]), jnp.float32)
        embed_all = jax.jit(lambda batch: jax.lax.map(lambda one: embed(one, scale), batch))
        patches = embed_all(tuple(jnp.asarray(m) for m in maps)).reshape(-1, len(scale))
        size = max(1, min(limit, round(ratio * len(patches))))
        key_projection, key_first = jax.random.split(jax.random.key(seed))
        narrow = min(PROJECTED, patches.shape[1])
        projection = jax.random.normal(key_projection, (patches.shape[1], narrow)) / np.sqrt(narrow)
        first = jax.random.randint(key_first, (), 0, len(patches))
        narrowed = jnp.matmul(patches, projection, precision="highest")
        bank = patches[greedy_coreset(narrowed, size, first)]
        return cls(scale, bank, jnp.sum(jnp.square(bank), axis=-1))

    def score(self, maps: Maps) -> jax.Array:
        """Squared distance to the nearest feature of the whole bank: (H_2, W_2)."""
        features = embed(maps, self.scale)
        nearest = jnp.min(self._to_bank(features.reshape(-1, features.shape[-1])), axis=-1)
        return nearest.reshape(features.shape[:2])

    def summands(self, maps: Maps) -> jax.Array:
        """The same: Eq. (4) with the whole bank for M_ij."""
        return self.score(maps)

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> Local:
        """The candidates M_ij of Eq. (4): the 50 bank features nearest to those of n⁽⁰⁾ at some positions.

        Args:
          maps: features of n⁽⁰⁾.
          positions: (S,) int32 in row-major order on the second map's grid.
          coarser: unused, part of the detectors' common signature.
        """
        del coarser
        features = self._embedded(maps, positions)
        _, nearest = jax.lax.top_k(-self._to_bank(features), min(CANDIDATES, len(self.bank)))
        return Local(positions, self.bank[nearest], self.norm[nearest])

    def local_scores(self, local: Local, maps: Maps) -> jax.Array:
        """Eq. (4) at the positions of `localize`: (S,).

        The nearest candidate is found by products; only its difference is formed, so the gradient is exact and cheap.
        """
        features = self._embedded(maps, local.positions)
        fixed = jax.lax.stop_gradient(features)
        products = jnp.einsum("smd,sd->sm", local.candidates, fixed, precision="highest")
        nearest = jnp.argmin(local.norm - 2 * products, axis=-1)
        chosen = jnp.take_along_axis(local.candidates, nearest[:, None, None], axis=1)[:, 0]
        return jnp.sum(jnp.square(features - chosen), axis=-1)

    def stale(self, local: Local, maps: Maps) -> jax.Array:
        """Where the nearest feature of the whole bank is none of the candidates: there Eq. (4) is above `score`.

        Args:
          local: of `localize`, whose candidates may be those of another picture.
          maps: features of the picture that is asked about, such as the n that a solve has reached.

        Returns:
          (S,) bool.
        """
        nearest = self.bank[jnp.argmin(self._to_bank(self._embedded(maps, local.positions)), axis=-1)]
        return ~jnp.any(jnp.all(local.candidates == nearest[:, None], axis=-1), axis=-1)

    def state(self) -> tuple[Arrays, Facts]:
        """Arrays by name."""
        return {"scale": self.scale, "bank": self.bank, "norm": self.norm}, {}

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        del facts
        return cls(**arrays)

    @classmethod
    def declared(cls, arrays: Arrays, maps: Sequence[Shape]) -> Arrays:
        """Shapes of the arrays of `state`; the size of the bank is theirs to say."""
        count, dims = len(arrays["bank"]), sum(m.shape[-1] for m in maps[1:])
        if not count or not (arrays["scale"] > 0).all():
            raise ValueError("the bank is empty, or scale is not positive")
        shapes = {"scale": (dims,), "bank": (count, dims), "norm": (count,)}
        return {name: Shape(shape, jnp.float32) for name, shape in shapes.items()}

    def _embedded(self, maps: Maps, positions: jax.Array) -> jax.Array:
        features = embed(maps, self.scale)
        return features.reshape(-1, features.shape[-1])[positions]

    def _to_bank(self, features: jax.Array) -> jax.Array:
        """All squared distances, (S, B), by one matrix product; clamped at zero."""
        products = jnp.matmul(features, self.bank.T, precision="highest")
        lengths = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
        return jnp.maximum(lengths - 2 * products + self.norm, 0.0)

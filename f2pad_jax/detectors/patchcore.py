"""PatchCore (Roth et al., arXiv 2106.08265): distance to the nearest of a bank of normal patch features.

Patches are 3 × 3 averages; coarser maps are resized bilinearly to the finest grid used; the bank is a greedy
k-center coreset chosen in a random projection (amazon-science/patchcore-inspection, `sampler.py`). anomalib averages
over zeros beyond the border, takes the distance itself for the score, and repeats it for the pixels of a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy import ndimage

from f2pad_jax.detectors.base import Arrays, Convention, Count, Drawing, Facts, Maps, PositiveShare, Shape, enlarge

CANDIDATES = 50  # |M_ij| of Eq. (4)
PROJECTED = 64  # dimensions in which the coreset is chosen
RIDGE = 0.5  # of the mean variance of normal features
JUDGED, ORDINARY = 32, 0.8  # training pictures that tell usual distances; quantile of positions that is taken for one


def _average3(features: jax.Array, convention: Convention) -> jax.Array:
    """3 × 3 mean with the border repeated, or zeros beyond it for anomalib's, as separable sums: (H, W, C)."""
    beyond = 0.0 if convention == "anomalib" else 1.0
    # Concatenated and not padded, because jax2onnx 0.17 takes an axis that is not padded for one that is.
    tall = jnp.concatenate([beyond * features[:1], features, beyond * features[-1:]])
    rows = tall[:-2] + tall[1:-1] + tall[2:]
    wide = jnp.concatenate([beyond * rows[:, :1], rows, beyond * rows[:, -1:]], axis=1)
    return (wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]) / 9


def used_maps(maps: Sequence[Any]) -> Sequence[Any]:
    """The maps without those of the finest grid, which tell edges rather than parts; all where there is one grid."""
    finest = maps[0].shape[-3:-1]
    return [m for m in maps if m.shape[-3:-1] != finest] or maps


def embed(maps: Maps, metric: jax.Array, convention: Convention = "own") -> jax.Array:
    """Locally averaged features of the maps that are used, on the finest grid of these: (H, W, D).

    Args:
      maps: all feature maps of one image.
      metric: what features are multiplied by: (D,) factors of the channels, or a matrix (D, D).
      convention: of the average.
    """
    used = [_average3(m, convention) for m in used_maps(maps)]
    height, width = used[0].shape[:2]
    grown = [used[0]] + [enlarge(m, (height, width, m.shape[-1])) for m in used[1:]]
    features = jnp.concatenate(grown, axis=-1)
    return features * metric if metric.ndim == 1 else jnp.matmul(features, metric, precision="highest")


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


def whiten(points: np.ndarray) -> np.ndarray:
    """The matrix V (Λ + ε)^−½ for the covariance V Λ Vᵀ of points (N, D), ε `RIDGE` times their mean variance: (D, D).

    Distances after it are Mahalanobis distances with a ridge.
    """
    covariance = np.cov(points.astype(np.float64), rowvar=False, bias=True)
    value, vector = np.linalg.eigh(np.atleast_2d(covariance))
    return (vector / np.sqrt(value + max(RIDGE * value.mean(), 1e-12))).astype(np.float32)


def usual_distances(patches: jax.Array, bank: jax.Array, owner: jax.Array) -> np.ndarray:
    """How far normal patches are from the bank at each position, relative to what is usual: (H, W), at least 1.

    Mean squared distances over up to `JUDGED` pictures, a picture's own part of the bank left out, smoothed, over their
    quantile `ORDINARY`, so that only positions where normal pictures differ unusually much are weighed less.

    Args:
      patches: (N, H, W, D).
      bank: (B, D).
      owner: the picture from which each of the bank comes, (B,).
    """
    count, height, width, dims = patches.shape
    norm, rows = jnp.sum(jnp.square(bank), axis=-1), []
    for index in np.unique(np.linspace(0, count - 1, min(count, JUDGED)).astype(int)):
        own = owner == index
        if not own.all():
            rows.append(np.asarray(_nearest_other(patches[index].reshape(-1, dims), bank, norm, own)))
    if not rows:
        return np.ones((height, width))
    mean = ndimage.gaussian_filter(np.mean(rows, axis=0).reshape(height, width), 1.0)
    return np.maximum(mean / max(float(np.quantile(mean, ORDINARY)), 1e-12), 1.0)


@jax.jit
def _embed_all(maps: Maps, metric: jax.Array) -> jax.Array:
    return jax.lax.map(lambda one: embed(one, metric), maps)


@jax.jit
def _nearest_other(features: jax.Array, bank: jax.Array, norm: jax.Array, own: jax.Array) -> jax.Array:
    return jnp.min(jnp.where(own, jnp.inf, _distances(features, bank, norm)), axis=-1)


def _distances(features: jax.Array, bank: jax.Array, norm: jax.Array) -> jax.Array:
    """All squared distances, (S, B), by one matrix product; clamped at zero."""
    products = jnp.matmul(features, bank.T, precision="highest")
    lengths = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return jnp.maximum(lengths - 2 * products + norm, 0.0)


class Local(struct.PyTreeNode):
    """The candidates M_ij of Eq. (4) at some positions: `candidates` (S, M, D), `norm` (S, M) squared lengths."""

    positions: jax.Array
    candidates: jax.Array
    norm: jax.Array
    usual: jax.Array


class PatchCore(struct.PyTreeNode):
    """A bank of normal features.

    Attributes:
      metric: as `embed` takes it.
      usual: what squared distances are divided by at each position, (P,).
      bank: (B, D).
      norm: (B,), the bank's squared lengths.
      convention: of the local average, the score and its map; static.
    """

    name: ClassVar[str] = "patchcore"
    level = 1
    anchored: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any]] = {"plain": True}

    metric: jax.Array
    usual: jax.Array
    bank: jax.Array
    norm: jax.Array
    convention: Convention = struct.field(pytree_node=False, default="own")

    @property
    def drawing(self) -> Drawing:
        """How the score map is drawn."""
        return Drawing("nearest", "mirror") if self.convention == "anomalib" else Drawing()

    @classmethod
    def fit(
        cls,
        maps: tuple[np.ndarray, ...],
        *,
        ratio: PositiveShare = 0.1,
        limit: Count = 8192,
        plain: bool = False,
        seed: int = 0,
    ) -> Self:
        """Chooses the bank.

        Two things differ from the original. Features are whitened: a direction in which normal patches hardly vary
        counts for more than one in which they do. And distances are divided by `usual_distances`: at some positions
        normal pictures are far from the bank as well, and would set the threshold for all others.

        Args:
          maps: features of the training images, (N, H_k, W_k, C_k) each, finest first.
          ratio: size of the coreset relative to all patches.
          limit: largest size of the coreset.
          plain: the original's distances, of features that are divided by the root mean variance of their map.
          seed: of the random projection and of the first point.
        """
        used = used_maps(maps)
        deviation = [np.sqrt(m.astype(np.float64).var(axis=(0, 1, 2)).mean()) for m in used]
        scale = np.repeat(np.maximum(deviation, 1e-12), [m.shape[-1] for m in used])
        patches = _embed_all(maps, jnp.asarray(1 / scale, jnp.float32))
        if plain:
            metric = 1 / scale
        else:
            whitening = whiten(np.asarray(patches).reshape(-1, len(scale)))
            metric, patches = whitening / scale[:, None], jnp.matmul(patches, whitening, precision="highest")
        count, height, width, dims = patches.shape
        points = patches.reshape(-1, dims)
        size = max(1, min(limit, round(ratio * len(points))))
        key_projection, key_first = jax.random.split(jax.random.key(seed))
        narrow = min(PROJECTED, dims)
        projection = jax.random.normal(key_projection, (dims, narrow)) / np.sqrt(narrow)
        first = jax.random.randint(key_first, (), 0, len(points))
        taken = greedy_coreset(jnp.matmul(points, projection, precision="highest"), size, first)
        bank = points[taken]
        usual = np.ones((height, width)) if plain else usual_distances(patches, bank, taken // (height * width))
        return cls(
            jnp.asarray(metric, jnp.float32),
            jnp.asarray(usual.ravel(), jnp.float32),
            bank,
            jnp.sum(jnp.square(bank), axis=-1),
        )

    def score(self, maps: Maps) -> jax.Array:
        """Squared distance to the nearest feature of the whole bank, or anomalib's, the distance: (H, W)."""
        squares = self.summands(maps)
        return jnp.sqrt(squares) if self.convention == "anomalib" else squares

    def summands(self, maps: Maps) -> jax.Array:
        """Squared distances, Eq. (4) with the whole bank for M_ij: (H_2, W_2)."""
        features = embed(maps, self.metric, self.convention)
        nearest = jnp.min(self._to_bank(features.reshape(-1, features.shape[-1])), axis=-1)
        return (nearest / self.usual).reshape(features.shape[:2])

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> Local:
        """The candidates M_ij of Eq. (4): the 50 bank features nearest to those of n⁽⁰⁾ at some positions.

        Args:
          maps: features of n⁽⁰⁾.
          positions: (S,) int32 in row-major order on the grid of `embed`.
          coarser: unused, part of the detectors' common signature.
        """
        del coarser
        features = self._embedded(maps, positions)
        _, nearest = jax.lax.top_k(-self._to_bank(features), min(CANDIDATES, len(self.bank)))
        return Local(positions, self.bank[nearest], self.norm[nearest], self.usual[positions])

    def local_scores(self, local: Local, maps: Maps) -> jax.Array:
        """Eq. (4) at the positions of `localize`: (S,).

        The nearest candidate is found by products; only its difference is formed, so the gradient is exact and cheap.
        """
        features = self._embedded(maps, local.positions)
        fixed = jax.lax.stop_gradient(features)
        products = jnp.einsum("smd,sd->sm", local.candidates, fixed, precision="highest")
        nearest = jnp.argmin(local.norm - 2 * products, axis=-1)
        chosen = jnp.take_along_axis(local.candidates, nearest[:, None, None], axis=1)[:, 0]
        return jnp.sum(jnp.square(features - chosen), axis=-1) / local.usual

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
        """Arrays by name, and the convention."""
        arrays = {"metric": self.metric, "usual": self.usual, "bank": self.bank, "norm": self.norm}
        return arrays, {"convention": self.convention}

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        return cls(**arrays, **facts)

    @classmethod
    def declared(cls, arrays: Arrays, maps: Sequence[Shape]) -> Arrays:
        """Shapes of the arrays of `state`; the size of the bank is theirs to say."""
        used = used_maps(maps)
        count, dims = len(arrays["bank"]), sum(m.shape[-1] for m in used)
        if not count or not (arrays["usual"] > 0).all():
            raise ValueError("the bank is empty, or usual is not positive")
        metric = (dims,) * max(1, arrays["metric"].ndim)
        places = used[0].shape[0] * used[0].shape[1]
        shapes = {"metric": metric, "usual": (places,), "bank": (count, dims), "norm": (count,)}
        return {name: Shape(shape, jnp.float32) for name, shape in shapes.items()}

    def _embedded(self, maps: Maps, positions: jax.Array) -> jax.Array:
        features = embed(maps, self.metric, self.convention)
        return features.reshape(-1, features.shape[-1])[positions]

    def _to_bank(self, features: jax.Array) -> jax.Array:
        return _distances(features, self.bank, self.norm)

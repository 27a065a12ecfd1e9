"""PaDiM (Defard et al., arXiv 2011.08785): one Gaussian of features at every position of a grid.

The plain form follows the code that the F2PAD paper builds on (xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-
master, `main.py`): the finest grid, coarser maps repeated, a fixed random subset of channels, the unbiased covariance
and a regulariser. By default the grid is the second map's, channels are mixed and not dropped, and positions share a
part of their covariance.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from tqdm import tqdm

from f2pad_jax.detectors.base import Arrays, Convention, Count, Drawing, Facts, Maps, Shape, Share
from f2pad_jax.errors import InputError

REFERENCE_CHANNELS, DIMENSIONS = 100, 200  # kept of ResNet-18's 448 channels: by the reference code, and here
SHARED = 0.3  # weight of the covariance that all positions share
REGULARISER = 0.01  # added to the covariance, times the mean channel variance relative to one
MAX_RANK = 256  # keeps the bases of 448 channels on a 56 × 56 grid under 1.5 GiB


def channel_subset(total: int, *, kept: int | None = None) -> np.ndarray:
    """The reference code's random channels: `random.seed(1024); random.sample(range(total), kept)`.

    All channels, in order, where there are no more than twice as many as `kept`: dropping few saves little.
    """
    kept = REFERENCE_CHANNELS if kept is None else kept
    if total <= 2 * kept:
        return np.arange(total)
    return np.array(random.Random(1024).sample(range(total), kept))


def mixing_columns(total: int, *, kept: int | None = None, seed: int = 0) -> np.ndarray:
    """Random orthonormal columns, (total, kept) float32; all channels, (total,), where dropping few saves little."""
    kept = DIMENSIONS if kept is None else kept
    if total <= 2 * kept:
        return np.arange(total)
    drawn = np.random.default_rng(seed).standard_normal((total, kept))
    return np.linalg.qr(drawn)[0].astype(np.float32)


def embed(maps: Maps, mixing: jax.Array, level: int) -> jax.Array:
    """Features of all maps on one grid, finer maps averaged and coarser ones repeated: (H, W, D).

    Args:
      maps: of one image, finest first.
      mixing: which of all channels count, (D,) int, or a matrix (C, D) that mixes them.
      level: of the grids of the maps, finest first; the coarsest where there are fewer.
    """
    height, width = _grid(maps, level)
    grown = []
    for m in _reduced(maps, height, width):
        grown.append(jnp.repeat(jnp.repeat(m, height // m.shape[0], axis=0), width // m.shape[1], axis=1))
    return _mixed(jnp.concatenate(grown, axis=-1), mixing)


def _grid(maps: Sequence[Any], level: int) -> tuple[int, int]:
    grids = sorted({m.shape[-3:-1] for m in maps}, reverse=True)
    return grids[min(level, len(grids) - 1)]


def _reduced(maps: Sequence[Any], height: int, width: int) -> list[Any]:
    """Maps (..., H_k, W_k, C_k) of which none is finer than a grid: means of the cells that lie in one of its."""
    reduced = []
    for m in maps:
        down, across = max(m.shape[-3] // height, 1), max(m.shape[-2] // width, 1)
        if (down, across) != (1, 1):
            cells = (*m.shape[:-3], m.shape[-3] // down, down, m.shape[-2] // across, across, m.shape[-1])
            m = m.reshape(cells).mean((-4, -2))
        reduced.append(m)
    return reduced


def _mixed(features: Any, mixing: Any) -> Any:
    if mixing.ndim == 1:
        return features[..., mixing]
    return features @ mixing if isinstance(features, np.ndarray) else _product("...c,cd->...d", features, mixing)


def _rows(maps: Sequence[np.ndarray], grid: tuple[int, int], mixing: np.ndarray, row: int) -> np.ndarray:
    """Embedded features of one grid row of all images: (W, N, D) float64, without growing whole maps."""
    height, width = grid
    parts = []
    for m in maps:
        tall = max(m.shape[1] // height, 1)
        first = row * m.shape[1] // height
        (strip,) = _reduced([m[:, first : first + tall]], 1, width)
        parts.append(np.repeat(strip[:, 0], width // strip.shape[2], axis=1))  # (N, W, C_k)
    return _mixed(np.concatenate(parts, axis=-1).astype(np.float64), mixing).transpose(1, 0, 2)


class Dense(struct.PyTreeNode):
    """Inverse covariances as they are.

    Attributes:
      precision: Λ⁻¹, (P, D, D).
    """

    precision: jax.Array

    def whiten(self, delta: jax.Array) -> jax.Array:
        """Λ⁻¹δ at every position, (P, D)."""
        return _product("pde,pe->pd", self.precision, delta)


class LowRank(struct.PyTreeNode):
    """Inverse covariances (I − V diag(gain) Vᵀ)/ε.

    Attributes:
      basis: Vᵀ, (P, R, D): rows are eigenvectors, so that both products read them in order.
      gain: λ/(λ + ε), (P, R).
      floor: ε, (P, 1).
    """

    basis: jax.Array
    gain: jax.Array
    floor: jax.Array

    def whiten(self, delta: jax.Array) -> jax.Array:
        """Λ⁻¹δ at every position, (P, D)."""
        inside = self.gain * _product("prd,pd->pr", self.basis, delta)
        return (delta - _product("prd,pr->pd", self.basis, inside)) / self.floor


_product = partial(jnp.einsum, precision="highest")


class Local(struct.PyTreeNode):
    """The statistics at some positions: `mean` (S, D) and `inverse` of these alone."""

    positions: jax.Array
    mean: jax.Array
    inverse: Dense | LowRank


class PaDiM(struct.PyTreeNode):
    """One Gaussian a position, P = H·W of them in row-major order.

    Attributes:
      mixing: which channels of all maps count, (D,) int32, or a matrix that mixes them, (C, D).
      mean: μ, (P, D).
      inverse: Λ⁻¹, in full or, with fewer pictures than channels, of low rank.
      level: of which map the grid is, see `embed`; static.
      convention: of the score map; static.
    """

    name: ClassVar[str] = "padim"
    anchored: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Any]] = {"plain": True}

    mixing: jax.Array
    mean: jax.Array
    inverse: Dense | LowRank
    level: Literal[0, 1] = struct.field(pytree_node=False, default=1)
    convention: Convention = struct.field(pytree_node=False, default="own")

    @property
    def drawing(self) -> Drawing:
        """How the score map is drawn: anomalib's Gaussian mirrors the border."""
        return Drawing(border="mirror" if self.convention == "anomalib" else "reflect")

    @classmethod
    def fit(
        cls,
        maps: tuple[np.ndarray, ...],
        *,
        channels: Count | None = None,
        rank: Count | None = None,
        shared: Share | None = None,
        plain: bool = False,
        seed: int = 0,
    ) -> Self:
        """Means and inverse covariances at every position.

        Many channels are mixed by random orthonormal columns, which keep distances better than a subset does. With the
        mean S of the positions' covariances C_ij, Λ_ij = (1 − w) C_ij + w S + εI: few pictures say little about
        one position alone.

        Without a shared part and with fewer images than channels the inverse is kept in its exact low-rank form: Σ =
        V diag(λ) Vᵀ + εI gives Λ⁻¹δ = (δ − V diag(λ/(λ + ε)) Vᵀδ)/ε, so no D × D matrix is ever built. Beyond
        `MAX_RANK` + 1 images the smallest eigenvalues count as zero, which never lowers a distance.

        With `rank` only so many eigenvectors are kept at every position, the F2PAD paper's future work; the other
        eigenvalues count as their mean, as in probabilistic PCA (Tipping and Bishop, 1999).

        Args:
          maps: features of the training images, (N, H_k, W_k, C_k) each, finest first; N ≥ 2.
          channels: D; by default 200 where there are more than 400 channels, else all of them.
          rank: how many eigenvectors to keep; all by default.
          shared: w, in [0, 1]; 0.3 by default, or 0 with a rank.
          plain: as the reference code does: on the finest grid, w = 0, and the same random 100 channels as there
            where there are more than 200.
          seed: of the random columns.

        Raises:
          InputError: the rank is no positive number, w is not in [0, 1], or both are given.
        """
        if rank is not None and rank < 1:
            raise InputError(f"a rank of {rank} keeps nothing", hint="give at least 1")
        weight = shared if shared is not None else 0.0 if plain or rank is not None else SHARED
        if not 0 <= weight <= 1:
            raise InputError(f"a share of {weight} of the covariance makes no sense", hint="give 0 to 1")
        if weight and rank is not None:
            raise InputError("a shared covariance has no rank", hint="give shared=0 or no rank")
        level: Literal[0, 1] = 0 if plain else 1
        total = sum(m.shape[-1] for m in maps)
        mixing = channel_subset(total, kept=channels) if plain else mixing_columns(total, kept=channels, seed=seed)
        height, width = grid = _grid(maps, level)
        count, dims = len(maps[0]), mixing.shape[-1]
        first, second, common = np.zeros(dims), np.zeros(dims), np.zeros((dims, dims))
        for row in range(height):
            features = _rows(maps, grid, mixing, row)
            first, second = first + features.sum((0, 1)), second + np.square(features).sum((0, 1))
            if weight:
                delta = (features - features.mean(axis=1, keepdims=True)).reshape(-1, dims)
                common += delta.T @ delta / ((count - 1) * height * width)
        places = height * width
        # One regulariser for all extractors: relative to the mean variance, so linear bottlenecks fit as well.
        variance = second / (count * places) - np.square(first / (count * places))
        floor = REGULARISER * float(variance.mean())
        held = min(count - 1, dims)  # eigenvalues other than zero
        cut = rank is not None and rank < held
        full = bool(weight) or (count > dims and not cut)
        kept = min(held, rank if rank is not None and cut else MAX_RANK)
        mean = np.empty((places, dims), np.float32)
        inner = np.empty((places, dims if full else kept, dims), np.float32)
        gain = np.empty((places, kept), np.float32)
        floors = np.empty((places, 1), np.float32)
        for row in tqdm(range(height), desc="fit padim", leave=False, disable=None):
            here = slice(row * width, (row + 1) * width)
            features = _rows(maps, grid, mixing, row)
            mean[here] = features.mean(axis=1)
            delta = features - features.mean(axis=1, keepdims=True)
            if full:
                covariance = np.einsum("pnd,pne->pde", delta, delta, optimize=True) / (count - 1)
                inner[here] = np.linalg.inv((1 - weight) * covariance + weight * common + floor * np.eye(dims))
            else:
                value, vector = _eigenpairs(delta)
                rest = value[:, :-kept].sum(axis=1, keepdims=True) / (dims - kept) if cut else 0.0
                inner[here] = vector[:, :, -kept:].transpose(0, 2, 1)
                gain[here] = (value[:, -kept:] - rest) / (value[:, -kept:] + floor)
                floors[here] = rest + floor
        if full:
            inverse = Dense(jnp.asarray(inner))
        else:
            inverse = LowRank(jnp.asarray(inner), jnp.asarray(gain), jnp.asarray(floors))
        kind = jnp.int32 if mixing.ndim == 1 else jnp.float32
        return cls(jnp.asarray(mixing, kind), jnp.asarray(mean), inverse, level)

    def summands(self, maps: Maps) -> jax.Array:
        """Squared Mahalanobis distance at every position, Eq. (7) of F2PAD: (H, W)."""
        features = embed(maps, self.mixing, self.level)
        delta = features.reshape(-1, features.shape[-1]) - self.mean
        return _quadratic_form(self.inverse, delta).reshape(features.shape[:2])

    def score(self, maps: Maps) -> jax.Array:
        """PaDiM's own score, the Mahalanobis distance (the root of Eq. 7): (H, W)."""
        return jnp.sqrt(jnp.maximum(self.summands(maps), 0.0))

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> Local:
        """The statistics of some positions only; `positions` is (S,) int32 in row-major order."""
        del maps, coarser
        return Local(positions, *jax.tree.map(lambda leaf: leaf[positions], (self.mean, self.inverse)))

    def local_scores(self, local: Local, maps: Maps) -> jax.Array:
        """Eq. (7) at the positions of `localize`: (S,)."""
        height, width = _grid(maps, self.level)
        rows, columns = local.positions // width, local.positions % width
        # As `embed`, but of these positions only: the gradient then never fills a whole grid of all channels.
        reduced = _reduced(maps, height, width)
        features = [m[rows // (height // m.shape[0]), columns // (width // m.shape[1])] for m in reduced]
        delta = _mixed(jnp.concatenate(features, axis=-1), self.mixing) - local.mean
        return _quadratic_form(local.inverse, delta)

    def state(self) -> tuple[Arrays, Facts]:
        """Arrays by name, of the inverse "precision", or "basis", "gain" and "floor"; level and convention."""
        facts = {"level": self.level, "convention": self.convention}
        return {"mixing": self.mixing, "mean": self.mean, **vars(self.inverse)}, facts

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        own = {name: leaf for name, leaf in arrays.items() if name not in ("mixing", "mean")}
        return cls(arrays["mixing"], arrays["mean"], (Dense if "precision" in own else LowRank)(**own), **facts)

    @classmethod
    def declared(cls, arrays: Arrays, maps: Sequence[Shape]) -> Arrays:
        """Shapes of the arrays of `state`; the channels and the rank are theirs to say."""
        mixing, total = arrays["mixing"], sum(m.shape[-1] for m in maps)
        dims = mixing.shape[-1]
        places = next((h * w for h, w in {m.shape[:2] for m in maps} if h * w == len(arrays["mean"])), 0)
        if mixing.ndim == 1 and (not dims or not 0 <= mixing.min() <= mixing.max() < total):
            raise ValueError("channels name some that the extractor has not")
        inverse = {"precision": Shape((places, dims, dims), jnp.float32)}
        if "precision" not in arrays:
            rank = arrays["basis"].shape[1]
            shapes = {"basis": (places, rank, dims), "gain": (places, rank), "floor": (places, 1)}
            inverse = {name: Shape(shape, jnp.float32) for name, shape in shapes.items()}
            if not (arrays["floor"] > 0).all():
                raise ValueError("floor is not positive")
        shape = Shape((dims,), jnp.int32) if mixing.ndim == 1 else Shape((total, dims), jnp.float32)
        return {"mixing": shape, "mean": Shape((places, dims), jnp.float32), **inverse}


def _eigenpairs(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of the covariance of centred (P, N, D): (P, K), (P, D, K)."""
    _, count, dims = delta.shape
    turned = delta.transpose(0, 2, 1)
    if count > dims:
        return np.linalg.eigh(turned @ delta / (count - 1))
    # Eigenvectors of the small Gram matrix give those of the covariance; one of its eigenvalues is zero.
    value, vector = np.linalg.eigh(delta @ turned / (count - 1))
    value, vector = np.maximum(value[:, 1:], 1e-12), vector[:, :, 1:]
    return value, turned @ vector / np.sqrt((count - 1) * value)[:, None, :]


@jax.custom_vjp
def _quadratic_form(inverse: Dense | LowRank, delta: jax.Array) -> jax.Array:
    return jnp.sum(delta * inverse.whiten(delta), axis=-1)


def _quadratic_forward(inverse: Dense | LowRank, delta: jax.Array):
    whitened = inverse.whiten(delta)
    return jnp.sum(delta * whitened, axis=-1), (inverse, whitened)


def _quadratic_backward(residuals, cotangent):
    # Λ⁻¹ is symmetric: its one product with δ serves value and gradient, and memory is read once.
    inverse, whitened = residuals
    return jax.tree.map(jnp.zeros_like, inverse), 2 * cotangent[:, None] * whitened


_quadratic_form.defvjp(_quadratic_forward, _quadratic_backward)

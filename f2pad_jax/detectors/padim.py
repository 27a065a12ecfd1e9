"""PaDiM (Defard et al., arXiv 2011.08785): one Gaussian of features at every position of the finest map.

Facts follow the code that the F2PAD paper builds on (xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master,
`main.py`): coarser maps are repeated to the finest grid, a fixed random subset of channels is used, the
covariance is unbiased and regularised.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from tqdm import tqdm

from f2pad_jax.detectors.base import Arrays, Convention, Drawing, Facts, Maps, Shape
from f2pad_jax.errors import InputError

REFERENCE_CHANNELS = 100  # kept of ResNet-18's 448 by the reference code
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


def embed(maps: Maps, channels: jax.Array) -> jax.Array:
    """The chosen channels of all maps on the finest grid, coarser maps repeated: (H_1, W_1, D)."""
    height, width = maps[0].shape[:2]
    grown = [jnp.repeat(jnp.repeat(m, height // m.shape[0], axis=0), width // m.shape[1], axis=1) for m in maps]
    return jnp.concatenate(grown, axis=-1)[..., channels]


def _rows(maps: tuple[np.ndarray, ...], channels: np.ndarray, row: int) -> np.ndarray:
    """Embedded features of one grid row of all images: (W_1, N, D) float64, without growing whole maps."""
    height, width = maps[0].shape[1:3]
    parts = [np.repeat(m[:, row * m.shape[1] // height], width // m.shape[2], axis=1) for m in maps]  # (N, W_1, C_k)
    return np.concatenate(parts, axis=-1)[..., channels].transpose(1, 0, 2).astype(np.float64)


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
    """One Gaussian a position, P = H_1·W_1 of them in row-major order.

    Attributes:
      channels: which channels of all maps count, (D,) int32.
      mean: μ, (P, D).
      inverse: Λ⁻¹, in full or, with fewer pictures than channels, of low rank.
      convention: of the score map; static.
    """

    name: ClassVar[str] = "padim"
    level: ClassVar[int] = 0
    anchored: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Any]] = {}

    channels: jax.Array
    mean: jax.Array
    inverse: Dense | LowRank
    convention: Convention = struct.field(pytree_node=False, default="own")

    @property
    def drawing(self) -> Drawing:
        """How the score map is drawn: anomalib's Gaussian mirrors the border."""
        return Drawing(border="mirror" if self.convention == "anomalib" else "reflect")

    @classmethod
    def fit(
        cls, maps: tuple[np.ndarray, ...], *, channels: int | None = None, rank: int | None = None, seed: int = 0
    ) -> Self:
        """Means and inverse covariances at every position.

        With fewer images than channels the inverse is kept in its exact low-rank form: Σ = V diag(λ) Vᵀ + εI gives
        Λ⁻¹δ = (δ − V diag(λ/(λ + ε)) Vᵀδ)/ε, so no D × D matrix is ever built. Beyond
        `MAX_RANK` + 1 images the smallest eigenvalues count as zero, which never lowers a distance.

        With `rank` only so many eigenvectors are kept at every position, the F2PAD paper's future work; the other
        eigenvalues count as their mean, as in probabilistic PCA (Tipping and Bishop, 1999).

        Args:
          maps: features of the training images, (N, H_k, W_k, C_k) each, finest first; N ≥ 2.
          channels: how many channels to keep; the reference's 100 where there are more than 200, else all.
          rank: how many eigenvectors to keep; all by default.
          seed: unused, the subset is the reference's; part of the detectors' common signature.

        Raises:
          InputError: the rank is no positive number.
        """
        del seed
        if rank is not None and rank < 1:
            raise InputError(f"a rank of {rank} keeps nothing", hint="give at least 1")
        subset = channel_subset(sum(m.shape[-1] for m in maps), kept=channels)
        count, height, width = maps[0].shape[:3]
        dims = len(subset)
        # One regulariser for all extractors: relative to the mean variance, so linear bottlenecks fit as well.
        variance = np.concatenate([m.astype(np.float64).var(axis=(0, 1, 2)) for m in maps])[subset]
        floor = REGULARISER * float(variance.mean())
        held = min(count - 1, dims)  # eigenvalues other than zero
        cut = rank is not None and rank < held
        full = count > dims and not cut
        kept = min(held, rank if rank is not None and cut else MAX_RANK)
        mean = np.empty((height * width, dims), np.float32)
        first = np.empty((height * width, dims if full else kept, dims), np.float32)
        gain = np.empty((height * width, kept), np.float32)
        floors = np.empty((height * width, 1), np.float32)
        for row in tqdm(range(height), desc="fit padim", leave=False, disable=None):
            here = slice(row * width, (row + 1) * width)
            features = _rows(maps, subset, row)
            mean[here] = features.mean(axis=1)
            delta = features - features.mean(axis=1, keepdims=True)
            if full:
                covariance = np.einsum("pnd,pne->pde", delta, delta, optimize=True) / (count - 1)
                first[here] = np.linalg.inv(covariance + floor * np.eye(dims))
            else:
                value, vector = _eigenpairs(delta)
                rest = value[:, :-kept].sum(axis=1, keepdims=True) / (dims - kept) if cut else 0.0
                first[here] = vector[:, :, -kept:].transpose(0, 2, 1)
                gain[here] = (value[:, -kept:] - rest) / (value[:, -kept:] + floor)
                floors[here] = rest + floor
        if full:
            inverse = Dense(jnp.asarray(first))
        else:
            inverse = LowRank(jnp.asarray(first), jnp.asarray(gain), jnp.asarray(floors))
        return cls(jnp.asarray(subset, jnp.int32), jnp.asarray(mean), inverse)

    def summands(self, maps: Maps) -> jax.Array:
        """Squared Mahalanobis distance at every position, Eq. (7) of F2PAD: (H_1, W_1)."""
        features = embed(maps, self.channels)
        delta = features.reshape(-1, features.shape[-1]) - self.mean
        return _quadratic_form(self.inverse, delta).reshape(features.shape[:2])

    def score(self, maps: Maps) -> jax.Array:
        """PaDiM's own score, the Mahalanobis distance (the root of Eq. 7): (H_1, W_1)."""
        return jnp.sqrt(jnp.maximum(self.summands(maps), 0.0))

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> Local:
        """The statistics of some positions only; `positions` is (S,) int32 in row-major order."""
        del maps, coarser
        return Local(positions, *jax.tree.map(lambda leaf: leaf[positions], (self.mean, self.inverse)))

    def local_scores(self, local: Local, maps: Maps) -> jax.Array:
        """Eq. (7) at the positions of `localize`: (S,)."""
        height, width = maps[0].shape[:2]
        rows, columns = local.positions // width, local.positions % width
        # As `embed`, but of these positions only: the gradient then never fills a whole grid of all channels.
        features = [m[rows // (height // m.shape[0]), columns // (width // m.shape[1])] for m in maps]
        delta = jnp.concatenate(features, axis=-1)[:, self.channels] - local.mean
        return _quadratic_form(local.inverse, delta)

    def state(self) -> tuple[Arrays, Facts]:
        """Arrays by name, of the inverse "precision", or "basis", "gain" and "floor"; and the convention."""
        return {"channels": self.channels, "mean": self.mean, **vars(self.inverse)}, {"convention": self.convention}

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        own = {name: leaf for name, leaf in arrays.items() if name not in ("channels", "mean")}
        return cls(arrays["channels"], arrays["mean"], (Dense if "precision" in own else LowRank)(**own), **facts)

    @classmethod
    def declared(cls, arrays: Arrays, maps: Sequence[Shape]) -> Arrays:
        """Shapes of the arrays of `state`; the channels and the rank are theirs to say."""
        places, dims = maps[0].shape[0] * maps[0].shape[1], len(arrays["channels"])
        if not dims or not 0 <= arrays["channels"].min() <= arrays["channels"].max() < sum(m.shape[-1] for m in maps):
            raise ValueError("channels name some that the extractor has not")
        inverse = {"precision": Shape((places, dims, dims), jnp.float32)}
        if "precision" not in arrays:
            rank = arrays["basis"].shape[1]
            shapes = {"basis": (places, rank, dims), "gain": (places, rank), "floor": (places, 1)}
            inverse = {name: Shape(shape, jnp.float32) for name, shape in shapes.items()}
            if not (arrays["floor"] > 0).all():
                raise ValueError("floor is not positive")
        return {"channels": Shape((dims,), jnp.int32), "mean": Shape((places, dims), jnp.float32), **inverse}


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

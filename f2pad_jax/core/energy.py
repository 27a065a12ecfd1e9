"""The objective F(n) of Eq. (12), a pure function of the non-defective picture n.

Every smooth term is divided by its typical value per pixel of normal pictures, so that α1, α2 and β mean the
same for all parts, extractors and detectors: one is "as much as a normal picture has".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from f2pad_jax.core.penalty import LOG, Penalty, pixel_norm
from f2pad_jax.core.priors import PixelMixture, pixel_prior, total_variation
from f2pad_jax.core.reduction import Reduction, reduce
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.sharing import Sharing

Maps = tuple[Float[Array, "_ _ _"], ...]  # features of one picture: (H_k, W_k, C_k), finest first


class Features(Protocol):
    """What F needs of an extractor, a pytree: pictures (B, H, W, 3) to maps (B, H_k, W_k, C_k), finest first."""

    @property
    def strides(self) -> Sequence[int]:
        """Pixels per position of each map, finest first."""
        ...

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Array, ...]:
        """Feature maps of a batch."""
        ...


class Scores(Protocol):
    """What F needs of a detector, a pytree; `detectors.Detector` is all that the library needs."""

    @property
    def level(self) -> int:
        """Which grid the scores lie on, see `scored_stride`."""
        ...

    def local_scores(self, local: Any, maps: Maps) -> Float[Array, " s"]:
        """s_ij of Eq. (4), (6) or (7) at the positions that `local` is about, as many as `Problem.present`."""
        ...


def scored_stride(strides: Sequence[int], level: int) -> int:
    """Stride of the grid with the scores: of the grids of all maps, finest first, that of `level`, or the coarsest."""
    grids = sorted(set(strides))
    return grids[min(level, len(grids) - 1)]


class Energy(struct.PyTreeNode, kw_only=True):
    """What all pictures of a model share: a pytree whose leaves are network, statistics and colours.

    Attributes:
      extractor: the frozen network, see `Features`.
      detector: what it learned of normal features, see `Scores`.
      mixture: colours of normal pictures, Eq. (9).
      penalty: l_a; the LOG penalty of Eq. (8) by default.
    """

    extractor: Any
    detector: Any
    mixture: PixelMixture
    penalty: Penalty = LOG


class Scales(struct.PyTreeNode, kw_only=True):
    """Typical values of the terms on normal pictures that the detector has not seen, by which they are divided.

    Attributes:
      score: of s_ij, per position.
      pixel: of the summand of l_p¹, per pixel.
      variation: of l_p², per pixel.
    """

    score: Float[Array, ""]
    pixel: Float[Array, ""]
    variation: Float[Array, ""]


class Problem(struct.PyTreeNode, kw_only=True):
    """One picture, and all that stays as it is while it is solved; arrays only, so `vmap` stacks it.

    Attributes:
      image: x, or the part of it that is solved for, (H, W, 3) float32, ImageNet-normalised.
      region: (H, W) bool, the dilated region in which n is free.
      sparsity: (H, W) float32 that multiplies β0 place by place; one everywhere by default, 1/Σm⁽⁰⁾ in the paper.
      local: the detector's statistics at the positions whose scores the region can change.
      present: (S,) float32, one for positions that count and zero for padding.
      scales: the terms' units.
      filled: () bool, whether n⁽⁰⁾ is a fill of the region; else it is x, and a warm-up without sparsity comes first.
      sharing: weights of Eq. (14); None where neighbours share nothing.
      reduction: D, where the extractor sees fewer pixels than n has, or `image` is a part of the picture; else None.
    """

    image: Float[Array, "h w 3"]
    region: Bool[Array, "h w"]
    sparsity: Float[Array, "h w"]
    local: Any
    present: Float[Array, " s"]
    scales: Scales
    filled: Bool[Array, ""]
    sharing: Sharing | None
    reduction: Reduction | None = None


class Terms(NamedTuple):
    """The weighted terms, scalars that add up to F(n).

    Attributes:
      feature: l_n.
      pixel: α1 · l_p¹.
      variation: α2 · l_p².
      sparsity: β · l_a.
    """

    feature: Float[Array, ""]
    pixel: Float[Array, ""]
    variation: Float[Array, ""]
    sparsity: Float[Array, ""]


def terms_and_scores(
    normal: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings
) -> tuple[Terms, Float[Array, " s"]]:
    """`terms`, and the scores s_ij that l_n adds up, (S,); arguments as there."""
    extractor, detector, scales = energy.extractor, energy.detector, problem.scales
    pixels, seen = scored_stride(extractor.strides, detector.level) ** 2, normal
    if (reduction := problem.reduction) is not None:
        pixels, seen = pixels * reduction.area, reduce(normal, problem.image, reduction)
    maps = tuple(m[0] for m in extractor(seen[None]))
    scores = detector.local_scores(problem.local, maps)
    parts = Terms(
        feature=jnp.sum(scores * problem.present) * pixels / scales.score,
        pixel=settings.alpha1 * pixel_prior(normal, energy.mixture) / scales.pixel,
        variation=settings.alpha2 * total_variation(normal) / scales.variation,
        sparsity=sparsity(normal, energy, problem, settings),
    )
    return parts, scores


def terms(normal: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings) -> Terms:
    """The terms of F(n), Eq. (12).

    l_n of Eq. (5), (6) or (7) is the sum of the scores of D n times the pixels of n that a position stands for.

    Args:
      normal: n, (H, W, 3), ImageNet-normalised.
      energy: what all pictures share.
      problem: this picture.
      settings: α1, α2 and β0 count.
    """
    return terms_and_scores(normal, energy, problem, settings)[0]


def sparsity(normal: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings) -> Float[Array, ""]:
    """β · l_a(x − n), Σ β0 · `Problem.sparsity` · φ(‖a_ij‖); arguments as for `terms`."""
    lengths = pixel_norm(problem.image - normal)
    return settings.beta0 * jnp.sum(problem.sparsity * energy.penalty.value(lengths))


def objective(normal: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings) -> Float[Array, ""]:
    """F(n) of Eq. (12), the sum of `terms`; arguments as there.

    Examples:
      >>> F, slope = jax.value_and_grad(objective)(start, energy, problem, settings)  # doctest: +SKIP
    """
    return jnp.sum(jnp.stack(terms(normal, energy, problem, settings)))

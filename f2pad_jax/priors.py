"""The pixel-level terms of F(n): mixture prior, total variation and the LOG sparsity penalty.

Each is one small pure function; equation numbers are those of arXiv 2407.06519. Images are (H, W, 3),
ImageNet-normalised; every function returns the sum over pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture

LOG_EPSILON = 1e-4  # ε of Eq. (8)


class PixelMixture(NamedTuple):
    """Mixture of Gaussians over the pixels of normal images (Eq. 9); its weights are not used by Eq. (10)."""

    mean: jax.Array  # (Q, 3)
    precision: jax.Array  # (Q, 3, 3), inverse covariances


def fit_pixel_mixture(images: np.ndarray, *, components: int = 8, sample: int = 20_000, seed: int = 0) -> PixelMixture:
    """Fits Eq. (9) by EM (scikit-learn) on a random sample of pixels.

    Args:
      images: (N, H, W, 3) float32, ImageNet-normalised.
      components: Q, the number of Gaussians; no more than there are colours.
      sample: pixels drawn without replacement.
      seed: of the sample and of EM's start.
    """
    pixels = images.reshape(-1, 3)
    rng = np.random.default_rng(seed)
    pixels = pixels[rng.choice(len(pixels), size=min(sample, len(pixels)), replace=False)]
    components = min(components, len(np.unique(pixels, axis=0)))
    # Grey pictures have singular colour covariances: the floor is half a grey level in normalised units.
    mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed, max_iter=200, tol=1e-2)
    mixture.fit(pixels.astype(np.float64))
    return PixelMixture(jnp.asarray(mixture.means_, jnp.float32), jnp.asarray(mixture.precisions_, jnp.float32))


@jax.custom_vjp
def pixel_mixture_distances(image: jax.Array, mixture: PixelMixture) -> jax.Array:
    """Squared Mahalanobis distance of each pixel to its nearest Gaussian, (H, W): the summand of Eq. (10).

    Its gradient in the image, 2Λδ of the nearest Gaussian, is kept from the search. There is no forward mode.
    """
    return _nearest_gaussian(image, mixture)[0]


def _nearest_gaussian(image: jax.Array, mixture: PixelMixture) -> tuple[jax.Array, jax.Array]:
    """The distances, (H, W), and Λδ of the nearest Gaussian, (H, W, 3)."""
    nearest = jnp.full(image.shape[:-1], jnp.inf, image.dtype)
    index = jnp.zeros(image.shape[:-1], jnp.int32)
    # Unrolled over the Gaussians and with products written out, it is one pass over the picture.
    for q, (mean, precision) in enumerate(zip(mixture.mean, mixture.precision, strict=True)):
        delta = image - mean
        product = _product(delta, precision)
        distance = sum((delta[..., k] * product[..., k] for k in range(3)), start=jnp.zeros_like(nearest))
        closer = distance < nearest
        nearest, index = jnp.where(closer, distance, nearest), jnp.where(closer, q, index)
    # Carrying Λδ along with the distance would write that of every Gaussian to memory.
    mean, precision = mixture.mean[0], mixture.precision[0]
    for q in range(1, len(mixture.mean)):
        chosen = (index == q)[..., None]
        mean = jnp.where(chosen, mixture.mean[q], mean)
        precision = jnp.where(chosen[..., None], mixture.precision[q], precision)
    return nearest, _product(image - mean, precision)


def _product(delta: jax.Array, precision: jax.Array) -> jax.Array:
    """Λδ, (H, W, 3), with Λ (3, 3) or (H, W, 3, 3)."""
    return sum((delta[..., k, None] * precision[..., k, :] for k in range(3)), start=jnp.zeros_like(delta))


def _distances_forward(image: jax.Array, mixture: PixelMixture):
    nearest, whitened = _nearest_gaussian(image, mixture)
    return nearest, (whitened, image, mixture)


def _distances_backward(residuals, cotangent: jax.Array):
    whitened, image, mixture = residuals
    (mixture_cotangent,) = jax.vjp(lambda m: _nearest_gaussian(image, m)[0], mixture)[1](cotangent)
    return 2 * cotangent[..., None] * whitened, mixture_cotangent


pixel_mixture_distances.defvjp(_distances_forward, _distances_backward)


def pixel_prior(image: jax.Array, mixture: PixelMixture) -> jax.Array:
    """l_p¹ of Eq. (10)."""
    return jnp.sum(pixel_mixture_distances(image, mixture))


def total_variation(image: jax.Array) -> jax.Array:
    """l_p² of Eq. (11): sum of absolute differences of neighbouring pixels, over channels and both axes."""
    rows = jnp.abs(image[1:] - image[:-1])
    columns = jnp.abs(image[:, 1:] - image[:, :-1])
    return jnp.sum(rows) + jnp.sum(columns)


def pixel_norm(anomaly: jax.Array) -> jax.Array:
    """‖a_ij‖₂ over channels, (H, W), with gradient zero where a is zero."""
    squares = jnp.sum(jnp.square(anomaly), axis=-1)
    present = squares > 0
    return jnp.where(present, jnp.sqrt(jnp.where(present, squares, 1.0)), 0.0)


def log_penalty(anomaly: jax.Array, epsilon: float = LOG_EPSILON) -> jax.Array:
    """l_a of Eq. (8): Σ log(√(‖a‖² + ε) + ‖a‖). Its slope in ‖a‖ is 1/√(‖a‖² + ε)."""
    norm = pixel_norm(anomaly)
    return jnp.sum(jnp.log(jnp.sqrt(jnp.square(norm) + epsilon) + norm))


def prox_log_penalty(
    anomaly: jax.Array, weight: jax.Array, length: jax.Array | None = None, epsilon: float = LOG_EPSILON
) -> jax.Array:
    """Proximal map of `weight · l_a`: argmin_b ½‖b − a‖² + weight · log(√(‖b‖² + ε) + ‖b‖), per pixel.

    b is parallel to a, and its length t is zero or a root of t − ‖a‖ + weight/√(t² + ε) = 0. Newton finds the
    largest root from its closed form for ε = 0, and the smallest from zero, where it stays if that is a
    minimum; the cheaper of the two is the answer.
    Small anomalies become exactly zero, so the mask {a ≠ 0} of Eq. (2) needs no threshold.

    Args:
      anomaly: a, (H, W, 3).
      weight: step size × β, a scalar or (H, W).
      length: (H, W), what counts as ‖a‖: a then shrinks by the factor by which this length does. By default ‖a‖
        itself; that of a pixel and its neighbours makes them stay or vanish together.
      epsilon: ε of Eq. (8).
    """
    length = pixel_norm(anomaly) if length is None else length
    far = 0.5 * (length + jnp.sqrt(jnp.maximum(jnp.square(length) - 4 * weight, 0.0)))

    def polished(root):
        for _ in range(5):
            smooth = jnp.sqrt(jnp.square(root) + epsilon)
            slope = 1 - weight * root / smooth**3
            root = jnp.clip(root - (root - length + weight / smooth) / jnp.maximum(slope, 0.03), 0.0, length)
        return root

    def cost(t):
        return 0.5 * jnp.square(t - length) + weight * jnp.log(jnp.sqrt(jnp.square(t) + epsilon) + t)

    far, near = polished(far), polished(jnp.zeros_like(length))
    kept = jnp.where(cost(far) < cost(near), far, near)
    return anomaly * (kept / jnp.where(length > 0, length, 1.0))[..., None]

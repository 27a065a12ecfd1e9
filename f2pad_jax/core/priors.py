"""The priors on pixels in F(n): a mixture of colours, Eqs. (9) and (10), and the total variation, Eq. (11).

Pictures are (H, W, 3), ImageNet-normalised; sums are over their pixels.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


class PixelMixture(struct.PyTreeNode):
    """Mixture of Gaussians over the pixels of normal pictures (Eq. 9); its weights are not used by Eq. (10).

    Attributes:
      mean: (Q, 3).
      precision: (Q, 3, 3), inverse covariances.
    """

    mean: Float[Array, "q 3"]
    precision: Float[Array, "q 3 3"]


@jax.custom_vjp
def pixel_mixture_distances(image: Float[Array, "h w 3"], mixture: PixelMixture) -> Float[Array, "h w"]:
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


def pixel_prior(image: Float[Array, "h w 3"], mixture: PixelMixture) -> Float[Array, ""]:
    """l_p¹ of Eq. (10)."""
    return jnp.sum(pixel_mixture_distances(image, mixture))


def total_variation(image: Float[Array, "h w 3"]) -> Float[Array, ""]:
    """l_p² of Eq. (11): sum of absolute differences of neighbouring pixels, over channels and both axes."""
    rows = jnp.abs(image[1:] - image[:-1])
    columns = jnp.abs(image[:, 1:] - image[:, :-1])
    return jnp.sum(rows) + jnp.sum(columns)

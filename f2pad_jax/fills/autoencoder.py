"""Fill by a masked autoencoder: the paper's way to n⁽⁰⁾ (arXiv 2407.06519, Section III-D)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.networks.mae import MAESpec, reconstruct

LARGEST = 2**14  # of a network's sides, widths and depths
OWN = "own"  # name of autoencoders that the user trained
KIND, VERSION = "autoencoder", 1  # of the folder that keeps one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inpainter:
    """A masked autoencoder that is done training.

    Attributes:
      params: a tree like `networks.mae.shapes(spec)`.
      spec: the network's definition.
      name: name in the registry of weights, or "own".
      digest: SHA-256 of the file the parameters came from; "" where they are one's own.
    """

    params: dict[str, Any]
    spec: MAESpec = field(metadata={"static": True})
    name: str = field(metadata={"static": True}, default=OWN)
    digest: str = field(metadata={"static": True}, default="")


def spec_of(facts: Any, where: object) -> MAESpec:
    """The definition that a JSON file states.

    Raises:
      InputError: it does not make sense.
    """
    try:
        spec = MAESpec(**facts)
        sound = all(type(number) is int and 0 < number <= LARGEST for number in facts.values())
        fitting = sound and not (spec.size % spec.patch or spec.width % spec.heads)
        if not fitting or spec.decoder_width % spec.decoder_heads:
            raise ValueError(f"its network is {facts}")
    except (TypeError, ValueError) as error:
        raise InputError(f"damaged {KIND} ({error})", where=where, hint="train it again") from error
    return spec


@partial(jax.jit, static_argnames="spec")
def _reconstruct(params: dict[str, Any], images: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    return reconstruct(params, images, removed, spec=spec)


def removed_tokens(region: Any, patch: int) -> Any:
    """The tokens any of whose pixels lies in a region (H, W): (H/patch · W/patch,) bool, row by row; NumPy or JAX."""
    height, width = region.shape
    return region.reshape(height // patch, patch, width // patch, patch).any((1, 3)).reshape(-1)


def autoencoder_fill(image: np.ndarray, region: np.ndarray, params: dict[str, Any], spec: MAESpec) -> np.ndarray:
    """Removes every token that touches the region and takes the region's pixels from the reconstruction.

    Args:
      image: x, (size, size, 3) float32, ImageNet-normalised.
      region: (size, size) bool, the pixels to replace.
      params: a tree like `networks.mae.shapes(spec)`.
      spec: which network.

    Returns:
      (size, size, 3) float32, equal to the image outside the region.

    Raises:
      InputError: the picture is not of the network's size.
    """
    if region.shape != (spec.size, spec.size):
        raise InputError(
            f"the autoencoder works on {spec.size} × {spec.size} pixels, the picture has {region.shape[1]} × "
            f"{region.shape[0]}",
            hint=f"work at --size {spec.size}, or train one of this size",
        )
    removed = removed_tokens(region, spec.patch)
    made = _reconstruct(params, image[None], removed[None], spec=spec)[0]
    return np.where(region[..., None], np.asarray(made), image)

"""Masked autoencoder (He et al., arXiv 2111.06377) in the form of facebookresearch/mae, at fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.networks.layers import Params
from f2pad_jax.networks.transformer import (
    array_shape,
    block_shapes,
    dense,
    dense_shapes,
    layer_norm,
    norm_shapes,
    patchify,
    run_blocks,
)

EPSILON = 1e-6  # of every layer norm


@dataclass(frozen=True)
class MAESpec:
    """One member of the family.

    Attributes:
      size: side of the pictures in pixels.
      patch: side of the square of pixels that makes one token.
      width: channels of the encoder.
      depth: blocks of the encoder.
      heads: attention heads of the encoder.
      decoder_width: channels of the decoder.
      decoder_depth: blocks of the decoder.
      decoder_heads: attention heads of the decoder.
    """

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture."""
        return self.size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of a picture, row by row."""
        return self.grid**2

    @property
    def pixels(self) -> int:
        """Numbers of a patch vector (p, q, c)."""
        return 3 * self.patch**2


VIT_BASE = MAESpec()
VIT_LARGE = MAESpec(width=1024, depth=24, heads=16)
FAMILY = {"mae_vit_base": VIT_BASE, "mae_vit_large": VIT_LARGE, "mae_vit_large_ganloss": VIT_LARGE}


def shapes(spec: MAESpec) -> Params:
    """The tree of parameter shapes that `reconstruct` takes; blocks are stacked along the first axis."""
    return {
        "patch": dense_shapes(spec.pixels, spec.width),
        "cls": array_shape(spec.width),
        "positions": array_shape(spec.tokens + 1, spec.width),
        "blocks": block_shapes(spec.width, spec.depth),
        "norm": norm_shapes(spec.width),
        "decoder_embed": dense_shapes(spec.width, spec.decoder_width),
        "mask_token": array_shape(spec.decoder_width),
        "decoder_positions": array_shape(spec.tokens + 1, spec.decoder_width),
        "decoder_blocks": block_shapes(spec.decoder_width, spec.decoder_depth),
        "decoder_norm": norm_shapes(spec.decoder_width),
        "decoder_pred": dense_shapes(spec.decoder_width, spec.pixels),
    }


def position_code(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of the column, then of the row, (grid² + 1, width) float32; the class token's row is zero.

    Each half is [sin(p·ω), cos(p·ω)] with ω_k = 10000^(−k/(width/4)).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.indices((grid, grid)).reshape(2, -1, 1)
    code = [wave(place * frequencies) for place in (column, row) for wave in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(code, axis=1)]).astype(np.float32)


def unpatchify(vectors: jax.Array, *, patch: int) -> jax.Array:
    """The inverse of `patchify` for square pictures."""
    batch, tokens, _ = vectors.shape
    grid = round(tokens**0.5)
    cut = vectors.reshape(batch, grid, grid, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, grid * patch, grid * patch, -1)


def encode(params: Params, images: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """Tokens after the encoder, the class token first: (B, tokens + 1, width).

    Those of removed places mean nothing; no other depends on them.
    """
    tokens = dense(params["patch"], patchify(images, patch=spec.patch)) + params["positions"][1:]
    first = jnp.broadcast_to(params["cls"] + params["positions"][0], (len(images), 1, spec.width))
    visible = jnp.concatenate([jnp.ones((len(images), 1), bool), ~removed], axis=1)
    hidden = jnp.concatenate([first, tokens], axis=1)
    hidden, _ = run_blocks(params["blocks"], hidden, heads=spec.heads, epsilon=EPSILON, visible=visible)
    return layer_norm(params["norm"], hidden, epsilon=EPSILON)


def decode(params: Params, encoded: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """Patch vectors (B, tokens, pixels) from `encode`'s tokens, removed ones replaced by the mask token."""
    hidden = dense(params["decoder_embed"], encoded)
    hidden = hidden.at[:, 1:].set(jnp.where(removed[..., None], params["mask_token"], hidden[:, 1:]))
    hidden = hidden + params["decoder_positions"]
    hidden, _ = run_blocks(params["decoder_blocks"], hidden, heads=spec.decoder_heads, epsilon=EPSILON)
    return dense(params["decoder_pred"], layer_norm(params["decoder_norm"], hidden[:, 1:], epsilon=EPSILON))


def reconstruct(params: Params, images: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """The autoencoder's idea of whole pictures from the tokens that are left.

    Equal to dropping the removed tokens before the encoder, at shapes that no mask changes.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, size, size, 3) float32 RGB, ImageNet-normalised.
      removed: (B, tokens) bool, row by row; pixels of removed tokens have no influence.
      spec: which network.

    Returns:
      (B, size, size, 3) float32, ImageNet-normalised; only removed tokens were trained to mean anything.
    """
    vectors = decode(params, encode(params, images, removed, spec=spec), removed, spec=spec)
    return unpatchify(vectors, patch=spec.patch)

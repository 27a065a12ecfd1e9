"""Masked autoencoder (He et al., arXiv 2111.06377) in the form of facebookresearch/mae, at fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.networks.layers import Params

EPSILON = 1e-6  # of every layer norm
EXPANSION = 4  # hidden channels of a block's perceptron over its width


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

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def dense(inputs: int, outputs: int, *stack: int) -> Params:
        return {"kernel": array(*stack, inputs, outputs), "bias": array(*stack, outputs)}

    def norm(width: int, *stack: int) -> Params:
        return {"scale": array(*stack, width), "bias": array(*stack, width)}

    def blocks(width: int, depth: int) -> Params:
        return {
            "norm1": norm(width, depth),
            "qkv": dense(width, 3 * width, depth),
            "proj": dense(width, width, depth),
            "norm2": norm(width, depth),
            "fc1": dense(width, EXPANSION * width, depth),
            "fc2": dense(EXPANSION * width, width, depth),
        }

    return {
        "patch": dense(spec.pixels, spec.width),
        "cls": array(spec.width),
        "positions": array(spec.tokens + 1, spec.width),
        "blocks": blocks(spec.width, spec.depth),
        "norm": norm(spec.width),
        "decoder_embed": dense(spec.width, spec.decoder_width),
        "mask_token": array(spec.decoder_width),
        "decoder_positions": array(spec.tokens + 1, spec.decoder_width),
        "decoder_blocks": blocks(spec.decoder_width, spec.decoder_depth),
        "decoder_norm": norm(spec.decoder_width),
        "decoder_pred": dense(spec.decoder_width, spec.pixels),
    }


def position_code(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of the column, then of the row, (grid² + 1, width) float32; the class token's row is zero.

    Each half is [sin(p·ω), cos(p·ω)] with ω_k = 10000^(−k/(width/4)).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.indices((grid, grid)).reshape(2, -1, 1)
    code = [wave(place * frequencies) for place in (column, row) for wave in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(code, axis=1)]).astype(np.float32)


def patchify(images: jax.Array, *, patch: int) -> jax.Array:
    """(B, H, W, 3) to patch vectors (B, H/patch · W/patch, patch · patch · 3), channel last."""
    batch, height, width, channels = images.shape
    cut = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def unpatchify(vectors: jax.Array, *, patch: int) -> jax.Array:
    """The inverse of `patchify` for square pictures."""
    batch, tokens, _ = vectors.shape
    grid = round(tokens**0.5)
    cut = vectors.reshape(batch, grid, grid, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, grid * patch, grid * patch, -1)


def dense(params: Params, x: jax.Array) -> jax.Array:
    """Matrix product plus bias over the last axis."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON) * params["scale"] + params["bias"]


def attention(params: Params, x: jax.Array, *, heads: int, visible: jax.Array | None = None) -> jax.Array:
    """Self-attention of (B, T, D); tokens that are not `visible` (B, T) are seen by none, yet see the others."""
    batch, tokens, width = x.shape
    query, key, value = jnp.moveaxis(dense(params["qkv"], x).reshape(batch, tokens, 3, heads, -1), 2, 0)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // heads) ** -0.5
    if visible is not None:
        logits = jnp.where(visible[:, None, None, :], logits, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)
    return dense(params["proj"], mixed.reshape(x.shape))


def block(params: Params, x: jax.Array, *, heads: int, visible: jax.Array | None = None) -> jax.Array:
    """Attention and perceptron, each after a layer norm and added to its input."""
    x = x + attention(params, layer_norm(params["norm1"], x), heads=heads, visible=visible)
    hidden = jax.nn.gelu(dense(params["fc1"], layer_norm(params["norm2"], x)), approximate=False)
    return x + dense(params["fc2"], hidden)


def _blocks(params: Params, x: jax.Array, *, heads: int, visible: jax.Array | None = None) -> jax.Array:
    # a scan traces and compiles one block, however many there are
    return jax.lax.scan(lambda x, one: (block(one, x, heads=heads, visible=visible), None), x, params)[0]


def encode(params: Params, images: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """Tokens after the encoder, the class token first: (B, tokens + 1, width).

    Those of removed places mean nothing; no other depends on them.
    """
    tokens = dense(params["patch"], patchify(images, patch=spec.patch)) + params["positions"][1:]
    first = jnp.broadcast_to(params["cls"] + params["positions"][0], (len(images), 1, spec.width))
    visible = jnp.concatenate([jnp.ones((len(images), 1), bool), ~removed], axis=1)
    hidden = _blocks(params["blocks"], jnp.concatenate([first, tokens], axis=1), heads=spec.heads, visible=visible)
    return layer_norm(params["norm"], hidden)


def decode(params: Params, encoded: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """Patch vectors (B, tokens, pixels) from `encode`'s tokens, removed ones replaced by the mask token."""
    hidden = dense(params["decoder_embed"], encoded)
    hidden = hidden.at[:, 1:].set(jnp.where(removed[..., None], params["mask_token"], hidden[:, 1:]))
    hidden = _blocks(params["decoder_blocks"], hidden + params["decoder_positions"], heads=spec.decoder_heads)
    return dense(params["decoder_pred"], layer_norm(params["decoder_norm"], hidden[:, 1:]))


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

"""Blocks of vision transformers (Dosovitskiy et al., arXiv 2010.11929), which autoencoders and extractors share.

Dense layers compute in the type of their kernel, and give it to their output; sums of blocks, norms and the weights of
attention stay as they came.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from f2pad_jax.networks.layers import Params

EXPANSION = 4  # hidden channels of a block's perceptron over its width

Turns = tuple[jax.Array, jax.Array]  # cosines and sines, (T, D/heads) each, by which queries and keys are turned


def array_shape(*shape: int) -> jax.ShapeDtypeStruct:
    """Shape of one array of parameters."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense_shapes(inputs: int, outputs: int, *stack: int) -> Params:
    """Shapes of a dense layer, or of a stack of them."""
    return {"kernel": array_shape(*stack, inputs, outputs), "bias": array_shape(*stack, outputs)}


def norm_shapes(width: int, *stack: int) -> Params:
    """Shapes of a layer norm, or of a stack of them."""
    return {"scale": array_shape(*stack, width), "bias": array_shape(*stack, width)}


def block_shapes(width: int, depth: int) -> Params:
    """Shapes of blocks, stacked along the first axis."""
    return {
        "norm1": norm_shapes(width, depth),
        "qkv": dense_shapes(width, 3 * width, depth),
        "proj": dense_shapes(width, width, depth),
        "norm2": norm_shapes(width, depth),
        "fc1": dense_shapes(width, EXPANSION * width, depth),
        "fc2": dense_shapes(EXPANSION * width, width, depth),
    }


def patchify(images: jax.Array, *, patch: int) -> jax.Array:
    """(B, H, W, 3) to patch vectors (B, H/patch · W/patch, patch · patch · 3), row by row, channel last."""
    batch, height, width, channels = images.shape
    cut = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def dense(params: Params, x: jax.Array) -> jax.Array:
    """Matrix product plus bias over the last axis."""
    kernel = params["kernel"]
    products = x.astype(kernel.dtype) @ kernel
    return (products + params["bias"]).astype(products.dtype)


def layer_norm(params: Params, x: jax.Array, *, epsilon: float) -> jax.Array:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * params["scale"] + params["bias"]


def attention(
    params: Params, x: jax.Array, *, heads: int, visible: jax.Array | None = None, turns: Turns | None = None
) -> jax.Array:
    """Self-attention of (B, T, D).

    Args:
      params: of a block.
      x: tokens.
      heads: among which the channels are divided.
      visible: (B, T) bool; the other tokens are seen by none, yet see these.
      turns: rotary code of each token's place (Su et al., arXiv 2104.09864); pairs are half a head apart.
    """
    batch, tokens, _ = x.shape
    query, key, value = jnp.moveaxis(dense(params["qkv"], x).reshape(batch, tokens, 3, heads, -1), 2, 0)
    if turns is not None:
        query, key = _turned(query, turns), _turned(key, turns)
    mask = None if visible is None else visible[:, None, None, :]
    return dense(params["proj"], jax.nn.dot_product_attention(query, key, value, mask=mask).reshape(x.shape))


def _turned(x: jax.Array, turns: Turns) -> jax.Array:
    """(B, T, heads, D) with the pairs (k, k + D/2) of each token turned."""
    cosines, sines = (table[:, None] for table in turns)
    first, second = jnp.split(x, 2, axis=-1)
    return (x * cosines + jnp.concatenate([-second, first], axis=-1) * sines).astype(x.dtype)


def block(
    params: Params,
    x: jax.Array,
    *,
    heads: int,
    epsilon: float,
    visible: jax.Array | None = None,
    turns: Turns | None = None,
) -> jax.Array:
    """Attention and perceptron, each after a layer norm and added to its input; arguments as for `attention`."""
    seen = layer_norm(params["norm1"], x, epsilon=epsilon)
    x = x + attention(params, seen, heads=heads, visible=visible, turns=turns)
    hidden = jax.nn.gelu(dense(params["fc1"], layer_norm(params["norm2"], x, epsilon=epsilon)), approximate=False)
    return x + dense(params["fc2"], hidden)


def run_blocks(
    params: Params,
    x: jax.Array,
    *,
    heads: int,
    epsilon: float,
    visible: jax.Array | None = None,
    turns: Turns | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Tokens (B, T, D) after the last of a stack of blocks, and after each of them, (depth, B, T, D)."""

    def one(x: jax.Array, own: Params) -> tuple[jax.Array, jax.Array]:
        x = block(own, x, heads=heads, epsilon=epsilon, visible=visible, turns=turns)
        return x, x

    # a scan traces and compiles one block, however many there are
    return jax.lax.scan(one, x, params)

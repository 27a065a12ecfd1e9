"""Conditional normalising flow of CFLOW-AD (gudovskiy/cflow-ad, `model.py`), in the form of FrEIA's blocks.

A decoder is a chain of affine couplings, each followed by a trained scale and offset per channel and a fixed
rotation or permutation. The condition is the code of a position, so what it adds to a block's first layer depends on
the position alone: these terms are computed apart, once for as many calls as use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# inner (B, C₁, 2d), condition (B, 128, 2d), inner_bias (B, 2d), outer (B, 2d, 2·C₂), outer_bias (B, 2·C₂), scale
# and offset (B, C), and rotation (B, C, C) or order (B, C) int32; B blocks, C₂ = ⌊C/2⌋, C₁ = C − C₂, d = C₁ + 128.
Params = dict[str, Any]
Pair = tuple[jax.Array, jax.Array]

CONDITION = 128  # channels of the position code
FIXED = ("rotation", "order")  # parameters that are drawn once and not trained
_UNIT_SCALE = 2 * float(np.log(np.expm1(5.0)))  # the raw scale that stands for one


@dataclass(frozen=True)
class FlowSpec:
    """Definition of a decoder; static under `jit`.

    Attributes:
      channels: C of the feature map.
      blocks: couplings in a row.
      clamp: how log-scales are limited to ±alpha: "tanh" (FrEIA's `AllInOneBlock`, so CFLOW-AD and anomalib) or
        "atan" (0.636·atan, of FrEIA's other couplings).
      alpha: the limit.
      permutation: "soft", a random rotation, or "hard", a random order of the channels.
    """

    channels: int
    blocks: int = 8
    clamp: Literal["tanh", "atan"] = "tanh"
    alpha: float = 1.9
    permutation: Literal["soft", "hard"] = "soft"


def shapes(spec: FlowSpec) -> Params:
    """Shapes of the parameters of one decoder."""
    count, channels = spec.blocks, spec.channels
    active = channels // 2
    passive = channels - active
    hidden = 2 * (passive + CONDITION)

    def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    trained = {
        "inner": leaf(passive, hidden),
        "condition": leaf(CONDITION, hidden),
        "inner_bias": leaf(hidden),
        "outer": leaf(hidden, 2 * active),
        "outer_bias": leaf(2 * active),
        "scale": leaf(channels),
        "offset": leaf(channels),
    }
    if spec.permutation == "soft":
        return trained | {"rotation": leaf(channels, channels)}
    return trained | {"order": leaf(channels, dtype=jnp.int32)}


def init(key: jax.Array, spec: FlowSpec) -> Params:
    """Random parameters: linear layers uniform within ±1/√fan-in, scale 1, offset 0, rotations of SO(C)."""
    keys = jax.random.split(key, 5)
    shape = {name: leaf.shape for name, leaf in shapes(spec).items()}
    fan_in = {"inner": shape["outer"][1] // 2, "outer": shape["outer"][1]}

    def uniform(draw: jax.Array, name: str, layer: str) -> jax.Array:
        return jax.random.uniform(draw, shape[name], minval=-1, maxval=1) / np.sqrt(fan_in[layer])

    # One draw for the first layer, cut into what the features and what the condition multiply.
    first = jax.random.uniform(keys[0], (spec.blocks, *shape["inner"][1:]), minval=-1, maxval=1)
    params = {
        "inner": first / np.sqrt(fan_in["inner"]),
        "condition": uniform(keys[1], "condition", "inner"),
        "inner_bias": uniform(keys[2], "inner_bias", "inner"),
        "outer": uniform(keys[3], "outer", "outer"),
        "outer_bias": uniform(jax.random.fold_in(keys[3], 1), "outer_bias", "outer"),
        "scale": jnp.full(shape["scale"], _UNIT_SCALE, jnp.float32),
        "offset": jnp.zeros(shape["offset"]),
    }
    if spec.permutation == "hard":
        order = [jax.random.permutation(k, spec.channels) for k in jax.random.split(keys[4], spec.blocks)]
        return params | {"order": jnp.stack(order).astype(jnp.int32)}
    rotation = jax.random.orthogonal(keys[4], spec.channels, (spec.blocks,))
    return params | {"rotation": rotation.at[:, 0].multiply(jnp.linalg.det(rotation)[:, None].round())}


def axis_code(length: int) -> np.ndarray:
    """Half of the position code: 32 sines and cosines of the coordinates 0, 1, … of one axis: (length, 64)."""
    half = CONDITION // 2
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, half, 2) / half)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, half).astype(np.float32)


def position_code(height: int, width: int) -> np.ndarray:
    """The condition at every position, column first and row second: (height, width, 128)."""
    across, down = axis_code(width)[None], axis_code(height)[:, None]
    return np.concatenate(np.broadcast_arrays(across, down), axis=-1)


def condition_terms(params: Params, condition: jax.Array) -> jax.Array:
    """What conditions (P, 128) add to the first layer of each block, its bias included: (B, P, 2d)."""
    return jnp.matmul(condition, params["condition"]) + params["inner_bias"][:, None]


def position_tables(params: Params, height: int, width: int) -> Pair:
    """The parts of `condition_terms` that columns (B, width, 2d) and rows (B, height, 2d) of a grid account for."""
    half = CONDITION // 2
    across = jnp.matmul(axis_code(width), params["condition"][:, :half])
    down = jnp.matmul(axis_code(height), params["condition"][:, half:])
    return across, down + params["inner_bias"][:, None]


def position_terms(tables: Pair, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`condition_terms` at some positions: (B, P, 2d)."""
    across, down = tables
    return across[:, columns] + down[:, rows]


def _coupling(block: Params, passive: jax.Array, terms: jax.Array, spec: FlowSpec) -> tuple[jax.Array, jax.Array]:
    """Log-scales and shifts (P, C₂) of the active channels."""
    hidden = jax.nn.relu(passive @ block["inner"] + terms)
    raw = 0.1 * (hidden @ block["outer"] + block["outer_bias"])
    logs, shifts = jnp.split(raw, 2, axis=-1)
    limited = jnp.tanh(logs) if spec.clamp == "tanh" else 0.636 * jnp.arctan(logs)
    return spec.alpha * limited, shifts


def _scale(raw: jax.Array) -> jax.Array:
    """A tenth of the softplus with β = ½."""
    return 0.2 * jax.nn.softplus(0.5 * raw)


def forward(params: Params, features: jax.Array, terms: jax.Array, *, spec: FlowSpec) -> tuple[jax.Array, jax.Array]:
    """The latent z (P, C) of features (P, C), and log|det ∂z/∂f| (P,).

    Args:
      params: of one decoder.
      features: (P, C) float32.
      terms: (B, P, 2d), of `condition_terms` or `position_terms`.
      spec: definition of the decoder.
    """
    passive = spec.channels - spec.channels // 2
    scales = _scale(params["scale"])

    def couple(carry: Pair, block: Params) -> tuple[Pair, None]:
        features, determinant = carry
        kept, changed = features[:, :passive], features[:, passive:]
        logs, shifts = _coupling(block, kept, block["terms"], spec)
        features = jnp.concatenate([kept, changed * jnp.exp(logs) + shifts], axis=-1)
        features = features * block["scale"] + block["offset"]
        features = features @ block["rotation"].T if "rotation" in block else features[:, block["order"]]
        return (features, determinant + jnp.sum(logs, axis=-1)), None

    # As fast as blocks written out one after the other, and compiled in half the time.
    start = features, jnp.full(len(features), jnp.sum(jnp.log(scales)))
    return jax.lax.scan(couple, start, params | {"scale": scales, "terms": terms})[0]


def inverse(params: Params, latent: jax.Array, terms: jax.Array, *, spec: FlowSpec) -> jax.Array:
    """The features whose latent is given; arguments and shapes as for `forward`."""
    passive = spec.channels - spec.channels // 2
    for index in reversed(range(spec.blocks)):
        block = {name: leaf[index] for name, leaf in params.items()}
        turned = latent @ block["rotation"] if "rotation" in block else latent[:, jnp.argsort(block["order"])]
        features = (turned - block["offset"]) / _scale(block["scale"])
        kept, changed = features[:, :passive], features[:, passive:]
        logs, shifts = _coupling(block, kept, terms[index], spec)
        latent = jnp.concatenate([kept, (changed - shifts) * jnp.exp(-logs)], axis=-1)
    return latent


def log_prob(params: Params, features: jax.Array, terms: jax.Array, *, spec: FlowSpec) -> jax.Array:
    """Log-likelihood of features (P, C) under the flow, with a standard normal latent: (P,)."""
    latent, determinant = forward(params, features, terms, spec=spec)
    constant = -0.5 * spec.channels * float(np.log(2 * np.pi))
    return constant - 0.5 * jnp.sum(jnp.square(latent), axis=-1) + determinant

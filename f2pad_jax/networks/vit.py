"""Vision transformers as extractors: DINOv2 (arXiv 2304.07193, with registers 2309.16588) and DINOv3 (2508.10104).

DINOv2 adds a learned table of positions, interpolated where the picture has another grid; DINOv3 turns queries and keys
by their place. Layer scale is folded into the layer before it. All maps have one stride, and every position sees the
whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.networks.layers import Params
from f2pad_jax.networks.transformer import (
    Turns,
    array_shape,
    block_shapes,
    dense,
    dense_shapes,
    layer_norm,
    norm_shapes,
    patchify,
    run_blocks,
)

PERIOD = 100.0  # base of the periods of the rotary code


@dataclass(frozen=True)
class ViTSpec:
    """One member of the family, cut after its deepest feature map.

    Attributes:
      patch: side of the square of pixels that makes one token.
      width: channels.
      heads: attention heads.
      taps: the blocks, counted from 1, whose outputs are feature maps.
      registers: tokens beside the class token that belong to no place.
      table: side of the grid of learned positions; None for the rotary code.
      antialias: whether the table is smoothed where it is reduced.
      epsilon: of every layer norm.
    """

    patch: int = 14
    width: int = 384
    heads: int = 6
    taps: tuple[int, ...] = (4, 8, 12)
    registers: int = 0
    table: int | None = 37
    antialias: bool = False
    epsilon: float = 1e-6

    @property
    def depth(self) -> int:
        """Blocks that are computed."""
        return max(self.taps)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, that of the earliest block first."""
        return (self.width,) * len(self.taps)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side."""
        return (self.patch,) * len(self.taps)

    @property
    def everywhere(self) -> bool:
        """Whether each position sees the whole picture."""
        return True


_SIZES = {"s": (384, 6, (4, 8, 12)), "b": (768, 12, (4, 8, 12)), "l": (1024, 16, (8, 16, 24))}
FAMILY = (
    {f"dinov2_vit{name}14": ViTSpec(14, *size) for name, size in _SIZES.items()}
    | {f"dinov2_vit{name}14_reg": ViTSpec(14, *size, registers=4, antialias=True) for name, size in _SIZES.items()}
    | {
        f"dinov3_vit{name}16": ViTSpec(16, *size, registers=4, table=None, epsilon=1e-5)
        for name, size in _SIZES.items()
    }
)


def shapes(spec: ViTSpec) -> Params:
    """The tree of parameter shapes that `apply` takes; blocks are stacked along the first axis."""
    tree = {
        "patch": dense_shapes(3 * spec.patch**2, spec.width),
        "cls": array_shape(spec.width),
        "blocks": block_shapes(spec.width, spec.depth),
        "norm": norm_shapes(spec.width),
    }
    if spec.registers:
        tree["registers"] = array_shape(spec.registers, spec.width)
    if spec.table:
        tree["positions"] = array_shape(spec.table, spec.table, spec.width)
    return tree


def cubic_weights(length: int, target: int, *, antialias: bool) -> np.ndarray:
    """Bicubic interpolation along one axis as PyTorch does it, (target, length) float32.

    Keys' kernel with a = −0.75 and the ends repeated; antialiased with a = −0.5, as wide as a pixel of the target, and
    cut off at the ends.
    """
    ratio = length / target
    centres = ((np.arange(target) + 0.5) * ratio - 0.5)[:, None]
    if antialias:
        weights = _keys((np.arange(length) - centres) / max(ratio, 1.0), -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    taps = np.floor(centres).astype(int) + np.arange(-1, 3)
    weights = np.zeros((target, length))
    np.add.at(weights, (np.arange(target)[:, None], np.clip(taps, 0, length - 1)), _keys(taps - centres, -0.75))
    return weights.astype(np.float32)


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys, 1981)."""
    x = np.abs(distance)
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resized_table(table: jax.Array, grid: tuple[int, int], *, antialias: bool) -> jax.Array:
    """A table of positions (S, S, D) for a grid of other rows and columns: (rows, columns, D)."""
    if grid == table.shape[:2]:
        return table
    down, across = (cubic_weights(table.shape[0], side, antialias=antialias) for side in grid)
    return jnp.einsum("ij,jkd,lk->ild", down, table, across)


def rotary_turns(grid: tuple[int, int], spec: ViTSpec) -> Turns:
    """Cosines and sines of all tokens, (1 + registers + rows · columns, width/heads) each; the first ones stay.

    A place is −1 to 1 along both axes, whatever their lengths. The channels of half a head are the row's angles
    2π y / 100^(4k/d), then the column's.
    """
    quarter = spec.width // spec.heads // 4
    places = [2 * (np.arange(side) + 0.5) / side - 1 for side in grid]
    rows, columns = np.meshgrid(*places, indexing="ij")
    periods = PERIOD ** (np.arange(quarter) / quarter)
    half = [2 * np.pi * place.reshape(-1, 1) / periods for place in (rows, columns)]
    angles = np.concatenate([*half, *half], axis=1)
    angles = np.concatenate([np.zeros((1 + spec.registers, 4 * quarter)), angles])
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def apply(params: Params, images: jax.Array, *, spec: ViTSpec) -> tuple[jax.Array, ...]:
    """Feature maps after each tapped block and the last layer norm, without class and register tokens.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, H, W, 3) float32 RGB, ImageNet-normalised; H and W are multiples of the patch.
      spec: which network, which maps.

    Returns:
      (B, H/patch, W/patch, width) float32 for each tap.
    """
    batch, height, width, _ = images.shape
    grid = height // spec.patch, width // spec.patch
    tokens = dense(params["patch"], patchify(images, patch=spec.patch)).astype(images.dtype)
    if spec.table:
        tokens = tokens + resized_table(params["positions"], grid, antialias=spec.antialias).reshape(-1, spec.width)
    first = [params["cls"][None], *([params["registers"]] if spec.registers else [])]
    first = jnp.broadcast_to(jnp.concatenate(first), (batch, 1 + spec.registers, spec.width))
    turns = None if spec.table else rotary_turns(grid, spec)
    _, hidden = run_blocks(
        params["blocks"],
        jnp.concatenate([first, tokens], axis=1),
        heads=spec.heads,
        epsilon=spec.epsilon,
        turns=turns,
    )
    places = hidden[:, :, 1 + spec.registers :].reshape(-1, batch, *grid, spec.width)
    return tuple(layer_norm(params["norm"], places[tap - 1], epsilon=spec.epsilon) for tap in sorted(spec.taps))

"""From the names of DINOv2's and DINOv3's files to a parameter tree: a bijection, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from f2pad_jax.networks.vit import ViTSpec, shapes
from f2pad_jax.weights.key_maps import Intake


@dataclass(frozen=True)
class Layout:
    """The names of one publisher; those of a block follow `blocks` and its number.

    Attributes:
      patch: convolution that makes tokens of patches.
      cls: class token.
      registers: register tokens.
      positions: table of positions.
      blocks: what is before a block's number.
      norm: the last layer norm.
      kernels: of query, key and value, or of all three in one.
      biases: likewise; None where there is none.
      layers: names of the layers proj, fc1 and fc2.
      scales: layer scales after attention and perceptron.
      placed: whether the table's first row is the class token's, as in timm's files too where there are no registers;
        else the class token has it already.
    """

    patch: str
    cls: str
    registers: str
    positions: str
    blocks: str
    norm: str
    kernels: tuple[str, ...]
    biases: tuple[str | None, ...]
    layers: Mapping[str, str]
    scales: tuple[str, str]
    placed: bool = True


_PARTS = ("query", "key", "value")
_META = Layout(
    patch="patch_embed.proj",
    cls="cls_token",
    registers="register_tokens",
    positions="pos_embed",
    blocks="blocks.",
    norm="norm",
    kernels=("attn.qkv.weight",),
    biases=("attn.qkv.bias",),
    layers={"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    scales=("ls1.gamma", "ls2.gamma"),
)
_TIMM = replace(_META, registers="reg_token", placed=False)
_TIMM_ROTARY = replace(_TIMM, biases=(None,), scales=("gamma_1", "gamma_2"))
_HUB = Layout(
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    registers="embeddings.register_tokens",
    positions="embeddings.position_embeddings",
    blocks="encoder.layer.",
    norm="layernorm",
    kernels=tuple(f"attention.attention.{part}.weight" for part in _PARTS),
    biases=tuple(f"attention.attention.{part}.bias" for part in _PARTS),
    layers={"proj": "attention.output.dense", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
_HUB_ROTARY = replace(
    _HUB,
    patch="embeddings.patch_embeddings",
    blocks="layer.",
    norm="norm",
    kernels=tuple(f"attention.{part}_proj.weight" for part in "qkv"),
    biases=("attention.q_proj.bias", None, "attention.v_proj.bias"),
    layers={"proj": "attention.o_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"},
)
_LEARNED = (_HUB, _META, _TIMM)
_ROTARY = (
    _HUB_ROTARY,
    _TIMM_ROTARY,
    replace(_TIMM_ROTARY, biases=("attn.q_bias", None, "attn.v_bias")),
    replace(_META, registers="storage_tokens"),
)
_UNUSED = ("mask_token", "embeddings.mask_token", "rope_embed.", "head.")
_RENAMED = {"model.layer.": "layer."}  # as transformers 5 has DINOv3's blocks in memory

KNOWN = frozenset(
    name
    for layout in (*_LEARNED, *_ROTARY)
    for name in (f"{layout.patch}.weight", layout.cls, layout.positions, layout.registers)
)
"""Names of arrays by which a file is recognised."""


def _choose(state: Mapping[str, np.ndarray], spec: ViTSpec) -> Layout:
    """The layout that finds most of its names in a file; the first of equals."""

    def found(layout: Layout) -> int:
        own = (*layout.kernels, *layout.biases, *layout.scales, *(f"{name}.weight" for name in layout.layers.values()))
        names = [f"{layout.blocks}0.{name}" for name in own if name]
        return sum(name in state for name in (*names, layout.cls, layout.registers, f"{layout.patch}.weight"))

    return max(_LEARNED if spec.table else _ROTARY, key=found)


def convert(state: Mapping[str, np.ndarray], spec: ViTSpec) -> dict[str, Any]:
    """The parameter tree of an extractor, layer scales folded in float64 and stored in float32.

    Args:
      state: arrays by the names of Hugging Face's `Dinov2Model`, `Dinov2WithRegistersModel` or `DINOv3ViTModel`, of
        timm, or of Meta's own files.
      spec: which network is expected.

    Raises:
      ValueError: all that is wrong, together: names missing or left over, shapes, non-finite values.
    """
    for old, new in _RENAMED.items():
        state = {name.replace(old, new, 1) if name.startswith(old) else name: leaf for name, leaf in state.items()}
    layout, intake, width = _choose(state, spec), Intake(state), spec.width

    def joined(names: tuple[str | None, ...], prefix: str, *inputs: int) -> np.ndarray:
        """Query, key and value one after the other; zeros where the layout has none."""
        shape = (3 * width // len(names), *inputs)
        return np.concatenate([intake.take(prefix + name, shape) if name else np.zeros(shape) for name in names])

    def dense(name: str, inputs: int, outputs: int, scale: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
        kernel, bias = intake.take(f"{name}.weight", (outputs, inputs)), intake.take(f"{name}.bias", (outputs,))
        return {"kernel": kernel.T * scale, "bias": bias * scale}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": intake.take(f"{name}.weight", (width,)), "bias": intake.take(f"{name}.bias", (width,))}

    def block(index: int) -> dict[str, Any]:
        prefix = f"{layout.blocks}{index}."
        after, last = (intake.take(prefix + name, (width,)) for name in layout.scales)
        bias = joined(layout.biases, prefix)
        if not spec.table:
            bias[width : 2 * width] = 0  # Meta's files hold one of keys that the network leaves out
            intake.skip(f"{prefix}attn.qkv.bias_mask")
        layers = {own: prefix + name for own, name in layout.layers.items()}
        own = {
            "norm1": norm(f"{prefix}norm1"),
            "qkv": {"kernel": joined(layout.kernels, prefix, width).T, "bias": bias},
            "proj": dense(layers["proj"], width, width, after),
            "norm2": norm(f"{prefix}norm2"),
            "fc1": dense(layers["fc1"], width, hidden),
            "fc2": dense(layers["fc2"], hidden, width, last),
        }
        return jax.tree.map(np.float32, own)

    wanted = shapes(spec)
    hidden = wanted["blocks"]["fc1"]["bias"].shape[-1]
    kernel = intake.take(f"{layout.patch}.weight", (width, 3, spec.patch, spec.patch))
    params: dict[str, Any] = {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width),
            "bias": intake.take(f"{layout.patch}.bias", (width,)),
        },
        "cls": intake.take(layout.cls, (1, 1, width))[0, 0],
        "norm": norm(layout.norm),
    }
    if spec.registers:
        params["registers"] = intake.take(layout.registers, (1, spec.registers, width))[0]
    if spec.table:
        table = intake.take(layout.positions, (1, layout.placed + spec.table**2, width))[0]
        params["positions"] = table[layout.placed :].reshape(spec.table, spec.table, width)
        params["cls"] = params["cls"] + (table[0] if layout.placed else 0)
    params["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *(block(k) for k in range(spec.depth)))
    deeper = {name.removeprefix(layout.blocks).partition(".")[0] for name in state if name.startswith(layout.blocks)}
    beyond = (f"{layout.blocks}{number}." for number in deeper if number.isdecimal() and int(number) >= spec.depth)
    intake.finish((*_UNUSED, *beyond))
    return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf, np.float32), params)

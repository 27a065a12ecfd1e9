"""From the names of masked autoencoders' checkpoints to a parameter tree: a bijection, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.networks.mae import MAESpec, shapes
from f2pad_jax.weights.key_maps import Intake

# Tree paths and names of facebookresearch/mae; "{}" is a block's number.
_PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_BLOCK = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_FACEBOOK = {
    "patch": "patch_embed.proj",
    "cls": "cls_token",
    "positions": "pos_embed",
    "decoder_positions": "decoder_pos_embed",
}
# The same parts in Hugging Face's `ViTMAEForPreTraining`, where query, key and value are apart.
_HUGGING_FACE = {
    "patch": "vit.embeddings.patch_embeddings.projection",
    "cls": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "blocks": "vit.encoder.layer",
    "norm": "vit.layernorm",
    "decoder_embed": "decoder.decoder_embed",
    "mask_token": "decoder.mask_token",
    "decoder_positions": "decoder.decoder_pos_embed",
    "decoder_blocks": "decoder.decoder_layers",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
_HUGGING_FACE_BLOCK = {
    "norm1": ("layernorm_before",),
    "qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "fc1": ("intermediate.dense",),
    "fc2": ("output.dense",),
}


KNOWN = frozenset(
    name
    for top in (_FACEBOOK, _HUGGING_FACE)
    for name in (f"{top['patch']}.weight", top["cls"], top["positions"], top["decoder_positions"])
)
"""Names of arrays by which a file is recognised."""


def _is_hugging_face(state: Mapping[str, Any]) -> bool:
    return any(name.startswith("vit.") for name in state)


def _names(path: tuple[str, ...], index: int, *, hugging_face: bool) -> list[str]:
    """Names in the file, joined along their first axis, of one leaf (of block `index` where there are blocks)."""
    top = (_HUGGING_FACE if hugging_face else _FACEBOOK).get(path[0], path[0])
    if len(path) == 1:
        return [top]
    if len(path) == 2:
        return [f"{top}.{_PARTS[path[1]]}"]
    parts = _HUGGING_FACE_BLOCK[path[1]] if hugging_face else (_BLOCK[path[1]],)
    return [f"{top}.{index}.{part}.{_PARTS[path[2]]}" for part in parts]


def check_targets(state: Mapping[str, Any], path: Path) -> None:
    """Refuses checkpoints whose decoder predicts each patch minus its mean over its deviation, or no pixels at all.

    The tensors do not tell: Hugging Face's layout says it in the config.json beside the file, facebookresearch's
    in the file's name.

    Raises:
      InputError: such a checkpoint, or one of which nothing can be known.
    """
    visualize = "get an mae_visualize checkpoint, which predicts pixels"
    normalised = "predicts pixels normalised patch by patch, whose colours and contrast are lost"
    if _is_hugging_face(state):
        config = path.with_name("config.json")
        try:
            known = json.loads(config.read_text("utf-8"))["norm_pix_loss"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "no config.json beside it that says whether it predicts pixels or normalised patches (norm_pix_loss)",
                where=path,
                hint="put the checkpoint's config.json there",
            ) from error
        if known is not False:
            raise InputError(f"{normalised} (norm_pix_loss in {config.name})", where=path, hint=visualize)
    elif path.name.startswith("mae_pretrain_") and "_full" in path.name:
        raise InputError(normalised, where=path, hint=visualize)
    elif not any(name.startswith("decoder_") for name in state):
        raise InputError("holds no decoder", where=path, hint=visualize)


def convert(state: Mapping[str, np.ndarray], spec: MAESpec) -> dict[str, Any]:
    """The parameter tree of a masked autoencoder, in float32.

    Args:
      state: arrays by the names of facebookresearch/mae or of Hugging Face's `ViTMAEForPreTraining`.
      spec: which network is expected.

    Raises:
      ValueError: all that is wrong, together: names missing or left over, shapes, non-finite values.
    """
    hugging_face = _is_hugging_face(state)
    # transformers 5 writes the decoder's blocks under another name than those before it
    renamed = {name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): state[name] for name in state}
    intake = Intake(renamed)

    def leaf(path: tuple[str, ...], shape: tuple[int, ...], index: int = 0) -> np.ndarray:
        names = _names(path, index, hugging_face=hugging_face)
        if path == ("patch", "kernel"):
            stored = (spec.width, 3, spec.patch, spec.patch)
            return intake.take(names[0], stored).transpose(2, 3, 1, 0).reshape(shape)
        if len(path) == 1:  # tokens and position codes come with axes of one before them
            return intake.take(names[0], (1,) * (3 - len(shape)) + shape).reshape(shape)
        first = shape[-1] // len(names)
        stored = (first, shape[0]) if path[-1] == "kernel" else (first,)
        return np.concatenate([intake.take(name, stored) for name in names]).T

    def whole(path: tuple[Any, ...], target: jax.ShapeDtypeStruct) -> np.ndarray:
        keys, shape = tuple(key.key for key in path), target.shape
        if len(keys) < 3:
            return np.ascontiguousarray(leaf(keys, shape), np.float32)
        return np.stack([leaf(keys, shape[1:], index) for index in range(shape[0])]).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(whole, shapes(spec))
    intake.finish()
    return params

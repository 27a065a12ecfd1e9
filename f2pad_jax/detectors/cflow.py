"""CFLOW-AD (Gudovskiy et al., arXiv 2107.12571): one conditional normalising flow per feature map.

Facts follow gudovskiy/cflow-ad (`model.py`, `train.py`). Its score map compares with the likeliest position of the
whole test set; here that reference is the likeliest position of the training pictures, so that one picture is
enough. Its training pictures are turned by up to 5° at random; here features are computed once, of pictures as they
are. Its flows have eight couplings; three score as well and are smoother, so n descends farther and in less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from f2pad_jax.detectors.cflow_training import EPOCHS, RATE, Progress, train
from f2pad_jax.errors import InputError
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec

# "map0", "map1", …: one decoder each, see `Decoder`. "atan" and "undivided", without elements, are choices that
# change the compiled code: what counts is whether the key is there.
Params = dict[str, Any]
Decoder = dict[str, Any]  # mean, deviation (C,), reference () and flow, of `networks.flow`
Maps = tuple[jax.Array, ...]  # of one image: (H_k, W_k, C_k), finest first

BLOCKS, PUBLISHED_BLOCKS = 3, 8  # couplings of each flow, here and in the reference; see docs/decisions.md
FEW_SHOTS, FEW_SHOT_MAPS = 16, 2  # with 16 training pictures the F2PAD paper uses two maps


def maps_of_shots(shots: int | None) -> int | None:
    """`used` of `fit` for a number of training pictures that was asked for; None stands for all, of either."""
    return FEW_SHOT_MAPS if shots is not None and shots <= FEW_SHOTS else None


def fit(
    maps: tuple[np.ndarray, ...],
    *,
    used: int | None = None,
    divided: bool = True,
    imported: Sequence[tuple[flow.Params, FlowSpec]] | None = None,
    epochs: int = EPOCHS,
    rate: float = RATE,
    blocks: int = BLOCKS,
    checkpoint: Path | None = None,
    seed: int = 0,
) -> Params:
    """Trains a flow per map on standardised features, or takes imported ones.

    Args:
      maps: features of the training images, (N, H_k, W_k, C_k) each, finest first; N ≥ 2.
      used: how many maps, finest first; all by default.
      divided: whether log p in Eq. (6) is divided by the number of channels, as in the training loss.
      imported: trained flows in place of training, one for each map used; they see features as they are.
      epochs: meta-epochs of the training, see `cflow_training.train`.
      rate: highest learning rate.
      blocks: couplings per flow; the reference's are 8.
      checkpoint: folder that keeps unfinished training; `fit` goes on from what it finds there.
      seed: of initial parameters, the choice of held-out pictures and the order of the features.

    Raises:
      InputError: too few pictures or maps, imported flows for other channels, or a checkpoint of another training.
    """
    if len(maps[0]) < 2:
        raise InputError("one picture is too few to train a flow", hint="give at least 2")
    used = len(imported or maps) if used is None else used
    if not 1 <= used <= len(maps):
        raise InputError(f"{used} maps are asked for, the extractor has {len(maps)}", hint=f"use 1 to {len(maps)}")
    maps = maps[:used]
    choices = {} if divided else {"undivided": jnp.zeros(0)}
    if imported is None:
        progress = Progress(checkpoint, maps, epochs=epochs, rate=rate, blocks=blocks, seed=seed)
        decoders = [_standardise(m) for m in maps]
        with tqdm(total=used * epochs, desc="fit cflow", unit="epoch", leave=False, disable=None) as bar:
            for level, (m, decoder) in enumerate(zip(maps, decoders, strict=True)):
                features = (m - np.asarray(decoder["mean"])) / np.asarray(decoder["deviation"])
                spec = FlowSpec(m.shape[-1], blocks)
                decoder["flow"] = train(features, spec, level=level, progress=progress, bar=bar)
    else:
        decoders = _accept(maps, imported)
        choices |= {"atan": jnp.zeros(0)} if imported[0][1].clamp == "atan" else {}
    params = {f"map{index}": decoder for index, decoder in enumerate(decoders)} | choices
    for index, m in enumerate(maps):
        decoders[index]["reference"] = _likeliest(params, index, m)
    return params


def _standardise(m: np.ndarray) -> Decoder:
    """Mean and deviation of each channel: features of linear bottlenecks are not of unit scale."""
    mean, deviation = m.mean(axis=(0, 1, 2), dtype=np.float64), m.std(axis=(0, 1, 2), dtype=np.float64)
    deviation = np.maximum(deviation, 1e-6 * max(float(deviation.max()), 1e-6))
    return {"mean": jnp.asarray(mean, jnp.float32), "deviation": jnp.asarray(deviation, jnp.float32)}


def _accept(maps: tuple[np.ndarray, ...], imported: Sequence[tuple[flow.Params, FlowSpec]]) -> list[Decoder]:
    wanted, found = [m.shape[-1] for m in maps], [spec.channels for _, spec in imported][: len(maps)]
    if wanted != found:
        raise InputError(
            f"the flows are of maps with {', '.join(map(str, found))} channels, not {', '.join(map(str, wanted))}",
            hint="use the extractor that they were trained with",
        )
    return [
        {"mean": jnp.zeros(spec.channels), "deviation": jnp.ones(spec.channels), "flow": params}
        for params, spec in imported[: len(maps)]
    ]


def _likeliest(params: Params, level: int, m: np.ndarray) -> jax.Array:
    """The highest log-likelihood per channel that any training feature of a map reaches, ()."""
    terms = _terms(params, level, m.shape[1:3])
    highest = jax.jit(lambda one: jnp.max(_per_channel(params, level, one.reshape(-1, one.shape[-1]), terms)))
    return jnp.max(jnp.stack([highest(one) for one in m]))


def _decoders(params: Params) -> list[Decoder]:
    return [params[f"map{index}"] for index in range(sum(name.startswith("map") for name in params))]


def _per_channel(params: Params, level: int, features: jax.Array, terms: jax.Array) -> jax.Array:
    """Log-likelihood per channel, log p / C, of features (P, C) of a map: (P,)."""
    decoder = params[f"map{level}"]
    blocks, channels = decoder["flow"]["scale"].shape
    spec = FlowSpec(channels, blocks, clamp="atan" if "atan" in params else "tanh")
    standard = (features - decoder["mean"]) / decoder["deviation"]
    with jax.default_matmul_precision("highest"):
        return flow.log_prob(decoder["flow"], standard, terms, spec=spec) / channels


def _terms(params: Params, level: int, shape: tuple[int, ...], cells: jax.Array | None = None) -> jax.Array:
    """What the condition adds in some cells of a map of this height and width, by default in all: (B, P, 2d)."""
    height, width = shape
    cells = jnp.arange(height * width) if cells is None else cells
    with jax.default_matmul_precision("highest"):
        tables = flow.position_tables(params[f"map{level}"]["flow"], height, width)
    return flow.position_terms(tables, cells // width, cells % width)


def _cost(params: Params, per_channel: jax.Array, channels: int) -> jax.Array:
    """−s of Eq. (6), −log σ(log p)."""
    return jax.nn.softplus(-per_channel * (channels if "undivided" in params else 1))


def _stretch(length: int, target: int) -> np.ndarray:
    """Linear interpolation between the corners of an axis as a matrix (target, length)."""
    place = np.linspace(0, length - 1, target)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(length)), 0).astype(np.float32)


def score(params: Params, maps: Maps) -> jax.Array:
    """CFLOW-AD's score, from 0 (all maps as likely as their references) to the number of maps: (H_1, W_1).

    Each map adds 1 − exp(log p / C − reference), at least 0, resized to the finest grid corner to corner.
    """
    height, width = maps[0].shape[:2]
    missing = jnp.zeros((height, width))
    for level, decoder in enumerate(_decoders(params)):
        m = maps[level]
        terms = _terms(params, level, m.shape[:2])
        found = _per_channel(params, level, m.reshape(-1, m.shape[-1]), terms).reshape(m.shape[:2])
        lost = -jnp.expm1(jnp.minimum(found - decoder["reference"], 0.0))
        with jax.default_matmul_precision("highest"):
            missing = missing + _stretch(m.shape[0], height) @ lost @ _stretch(m.shape[1], width).T
    return missing


def summands(params: Params, maps: Maps) -> jax.Array:
    """−s_kij of Eq. (6) on the finest grid, (H_1, W_1): each position has its share of the coarser maps' positions.

    The sum is that of all maps and positions, each of weight one.
    """
    height, width = maps[0].shape[:2]
    positions = jnp.arange(height * width)
    return local_scores(localize(params, maps, positions), maps, positions).reshape(height, width)


def localize(
    params: Params, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None
) -> dict[str, Any]:
    """What the solver needs: `params`, and of each map the cells that count and what their condition adds.

    Args:
      params: of `fit`.
      maps: features of any picture of the same size.
      positions: (S,) int32 in row-major order on the finest grid.
      coarser: for each further map the cells in which the positions lie, (S_k,) int32, ascending, with others among
        them or not; by default all cells.

    Returns:
      The parameters, and of each map "cells" (S_k,), "places" (S,), which of these cells a position lies in, and
      "terms" (B, S_k, 2d), what the condition adds to every block's first layer.
    """
    width = maps[0].shape[1]
    rows, columns = positions // width, positions % width
    local: dict[str, Any] = {"params": params}
    for level, m in enumerate(maps[: len(_decoders(params))]):
        tall, wide = m.shape[:2]
        if level == 0:
            cells, places = positions, jnp.arange(len(positions))
        else:
            cells = jnp.arange(tall * wide) if coarser is None else coarser[level - 1]
            own = rows * tall // maps[0].shape[0] * wide + columns * wide // width
            places = jnp.searchsorted(cells, own)
        local[f"map{level}"] = {"cells": cells, "places": places, "terms": _terms(params, level, (tall, wide), cells)}
    return local


def local_scores(local: dict[str, Any], maps: Maps, positions: jax.Array) -> jax.Array:
    """`summands` at the positions that `localize` was given: (S,)."""
    params, total = local["params"], jnp.zeros(len(positions))
    height, width = maps[0].shape[:2]
    for level in range(len(_decoders(params))):
        m, own = maps[level], local[f"map{level}"]
        found = _per_channel(params, level, m.reshape(-1, m.shape[-1])[own["cells"]], own["terms"])
        shared = (height // m.shape[0]) * (width // m.shape[1])  # the positions that a cell counts for
        total = total + _cost(params, found, m.shape[-1])[own["places"]] / shared
    return total

"""Trained flows of CFLOW-AD from torch files, and back to FrEIA's keys.

Both gudovskiy/cflow-ad (`decoder_state_dict`, a list of state dicts) and anomalib (`model.decoders.K.…` of its
`state_dict`) chain FrEIA's `AllInOneBlock`s in a `SequenceINN`, whose keys are `module_list.N.…`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.weights.weight_files import read_weights

State = dict[str, np.ndarray]

_DECODER = re.compile(r"(?:model\.)?decoders\.(\d+)\.(.+)")
_BLOCK = re.compile(r"module_list\.(\d+)\.(.+)")
_SLACK = 1e-3  # by which w_perm·w_perm_inv may differ from one in a file of rounded numbers


def read_flows(path: Path, *, clamp: Literal["tanh", "atan"] = "tanh") -> list[tuple[flow.Params, FlowSpec]]:
    """The decoders of a file, finest map first, for `cflow.fit`'s `imported`.

    Args:
      path: a checkpoint of gudovskiy/cflow-ad or a file of anomalib's state dict; torch, .safetensors or .npz.
      clamp: how the blocks limit log-scales; no file tells. Both codes use "tanh".

    Raises:
      InputError: the file is damaged, or holds no flows of this form.
    """
    state, _ = read_weights(path)
    decoders: dict[int, State] = defaultdict(dict)
    for name, array in state.items():
        if found := _DECODER.fullmatch(name):
            decoders[int(found[1])][found[2]] = array
    if sorted(decoders) != list(range(len(decoders))) or not decoders:
        raise InputError(
            f"holds flows {sorted(decoders)}" if decoders else "holds no flows",
            where=path,
            hint="give a checkpoint of cflow-ad or the state_dict of anomalib's Cflow",
        )
    flows = []
    for index in range(len(decoders)):
        try:
            params, spec = from_freia(decoders[index])
        except ValueError as error:
            raise InputError(f"flow {index}: {error}", where=path) from error
        flows.append((params, replace(spec, clamp=clamp)))
    return flows


def from_freia(state: Mapping[str, np.ndarray]) -> tuple[flow.Params, FlowSpec]:
    """One decoder from the state dict of a `SequenceINN`.

    Raises:
      ValueError: keys are missing or unknown, or shapes, permutations or numbers do not fit.
    """
    blocks: dict[int, State] = defaultdict(dict)
    for name, array in state.items():
        found = _BLOCK.fullmatch(name)
        if not found:
            raise ValueError(f"unknown key {name!r}")
        blocks[int(found[1])][found[2]] = np.asarray(array, np.float32)
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise ValueError(f"has blocks {sorted(blocks)}")
    ordered = [blocks[index] for index in range(len(blocks))]
    if ordered[0].get("global_scale", np.empty(0)).ndim != 2:
        raise ValueError("global_scale of block 0 is missing or not (1, C)")
    channels = ordered[0]["global_scale"].shape[1]
    for index, block in enumerate(ordered):
        _check(index, block, channels)
    matrices = np.stack([block["w_perm"] for block in ordered])
    hard = bool(np.isin(matrices, (0, 1)).all())
    passive = channels - channels // 2
    inner = np.stack([block["subnet.0.weight"].T for block in ordered])
    params = {
        "inner": inner[:, :passive],
        "condition": inner[:, passive:],
        "inner_bias": np.stack([block["subnet.0.bias"] for block in ordered]),
        "outer": np.stack([block["subnet.2.weight"].T for block in ordered]),
        "outer_bias": np.stack([block["subnet.2.bias"] for block in ordered]),
        "scale": np.concatenate([block["global_scale"] for block in ordered]),
        "offset": np.concatenate([block["global_offset"] for block in ordered]),
        **({"order": matrices.argmax(axis=-1).astype(np.int32)} if hard else {"rotation": matrices}),
    }
    spec = FlowSpec(channels, len(ordered), permutation="hard" if hard else "soft")
    return {name: jnp.asarray(leaf) for name, leaf in params.items()}, spec


def to_freia(params: flow.Params) -> State:
    """The state dict of a `SequenceINN` with the parameters of one decoder."""
    arrays = {name: np.asarray(leaf) for name, leaf in params.items()}
    channels = arrays["scale"].shape[1]
    rotations = arrays["rotation"] if "rotation" in arrays else np.eye(channels, dtype=np.float32)[arrays["order"]]
    state: State = {}
    for index, rotation in enumerate(rotations):
        block = {
            "global_scale": arrays["scale"][index][None],
            "global_offset": arrays["offset"][index][None],
            "w_perm": rotation,
            "w_perm_inv": rotation.T,
            "subnet.0.weight": np.concatenate([arrays["inner"][index], arrays["condition"][index]]).T,
            "subnet.0.bias": arrays["inner_bias"][index],
            "subnet.2.weight": arrays["outer"][index].T,
            "subnet.2.bias": arrays["outer_bias"][index],
        }
        state |= {f"module_list.{index}.{name}": np.ascontiguousarray(leaf) for name, leaf in block.items()}
    return state


def _check(index: int, block: State, channels: int) -> None:
    active = channels // 2
    width = channels - active + flow.CONDITION
    wanted = {
        "global_scale": (1, channels),
        "global_offset": (1, channels),
        "w_perm": (channels, channels),
        "w_perm_inv": (channels, channels),
        "subnet.0.weight": (2 * width, width),
        "subnet.0.bias": (2 * width,),
        "subnet.2.weight": (2 * active, 2 * width),
        "subnet.2.bias": (2 * active,),
    }
    if odd := sorted(wanted.keys() ^ block.keys()):
        raise ValueError(f"{odd[0]} of block {index} is {'missing' if odd[0] in wanted else 'unknown'}")
    for name, shape in wanted.items():
        if block[name].shape != shape:
            raise ValueError(f"{name} of block {index} is {block[name].shape}, not {shape}")
        if not np.isfinite(block[name]).all():
            raise ValueError(f"{name} of block {index} holds non-finite values")
    if np.abs(block["w_perm"] @ block["w_perm_inv"] - np.eye(channels)).max() > _SLACK:
        raise ValueError(f"w_perm_inv of block {index} is not the inverse of w_perm")
    if np.abs(block["w_perm"] @ block["w_perm"].T - np.eye(channels)).max() > _SLACK:
        raise ValueError(f"w_perm of block {index} is no rotation")

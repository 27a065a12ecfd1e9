"""Detectors that anomalib 2 has trained: its PaDiM and PatchCore, with the network they were trained on.

Read off anomalib 2.7: pictures are brought to one size by an antialiased bilinear filter whatever their aspect; PaDiM
repeats coarser maps and takes the root of its distance; PatchCore averages over 3 × 3 positions with zeros beyond the
border, interpolates coarser maps and takes the distance; maps are enlarged, PaDiM's linearly and PatchCore's by
repeating, and smoothed by a Gaussian of σ = 4 with 33 taps that mirrors the border.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from f2pad_jax.core.pixels import MEAN, STD
from f2pad_jax.detectors.padim import Dense, PaDiM
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError
from f2pad_jax.networks.extractor import Extractor, check_precision, map_shapes
from f2pad_jax.networks.resnet import FAMILY
from f2pad_jax.reducing import Shape
from f2pad_jax.sights import SMOOTHING
from f2pad_jax.weights.key_maps import Intake
from f2pad_jax.weights.loading import convert_state, make_extractor
from f2pad_jax.weights.torch_file import read_checkpoint
from f2pad_jax.weights.weight_files import read_file

SIDE = 256  # of the pictures, where a checkpoint does not tell, as those before anomalib 2.7
RADIUS = 16  # of the Gaussian

_NETWORK = "model.feature_extractor.feature_extractor."
_MEAN, _BANK, _KERNEL = "model.gaussian.mean", "model.memory_bank", "model.anomaly_map_generator.blur.kernel"
_LAYERS = {_MEAN: ["layer1", "layer2", "layer3"], _BANK: ["layer2", "layer3"]}

State = Mapping[str, np.ndarray]


class Trained(NamedTuple):
    """What `fit` takes.

    Attributes:
      detector: as anomalib has fitted it.
      extractor: with the checkpoint's own weights, which go into the model folder.
      seen: height and width of what the extractor sees.
    """

    detector: PaDiM | PatchCore
    extractor: Extractor
    seen: Shape


def load_trained(path: str | os.PathLike[str], *, size: int | None = None, precision: str = "parity") -> Trained:
    """A detector that anomalib 2 has trained.

    Args:
      path: the Lightning checkpoint (`.ckpt`) of a `Padim` or `Patchcore` on ResNet-18, 34 or 50 or Wide ResNet-50-2,
        with the layers that anomalib uses by default.
      size: side of the pictures, where the checkpoint does not tell and it is not that of PaDiM's grid or 256.
      precision: of the extractor, as for `load_extractor`.

    Raises:
      InputError: the file is damaged or holds another detector, or one on another network, on other layers, or with
        other steps before or after it.

    Examples:
      >>> trained = load_trained("padim.ckpt")  # doctest: +SKIP
      >>> fit(pictures, **trained._asdict())  # doctest: +SKIP
    """
    path, profile = Path(path), check_precision(precision)
    (state, beside), digest = read_file(path, read_checkpoint, hint="give a checkpoint of anomalib 2")
    try:
        kind = next((name for name in _LAYERS if name in state), None)
        if kind is None:
            raise ValueError("holds neither PaDiM nor PatchCore of anomalib 2")
        name = _network(beside.get("hyper_parameters"), _LAYERS[kind])
        _check_kernel(state)
        seen = _seen(beside, size, _places(state) * FAMILY[name].strides[0] ** 2 if kind == _MEAN else None)
        extractor = {key.removeprefix(_NETWORK): array for key, array in state.items() if key.startswith(_NETWORK)}
        made = make_extractor(name, convert_state(name, extractor, path), digest, profile, kept=True)
        maps = map_shapes(made.spec, seen)
        if kind == _MEAN:
            detector = _padim(state, maps[0].shape[0] * maps[0].shape[1], sum(made.channels))
        else:
            detector = _patchcore(state, sum(made.channels[1:]), maps[1].shape[0] * maps[1].shape[1])
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(error), where=path) from error
    return Trained(detector, made, seen)


def _network(facts: Any, layers: list[str]) -> str:
    """The name of the network, of a checkpoint's hyper parameters."""
    facts = facts if isinstance(facts, dict) else {}
    name, used = facts.get("backbone"), facts.get("layers", layers)
    name = name.partition(".")[0] if isinstance(name, str) else name  # timm's names end in those of the weights
    if not isinstance(name, str) or name not in FAMILY:
        raise ValueError(f"was trained on {name}, not on {', '.join(FAMILY)}")
    if not isinstance(used, list | tuple) or list(used) != layers:
        raise ValueError(f"was trained on the layers {used}, not on {', '.join(layers)}")
    return name


def _check_kernel(state: State) -> None:
    weights = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SMOOTHING**2))
    wanted = np.outer(weights, weights) / weights.sum() ** 2
    found = state.get(_KERNEL, wanted).squeeze()
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-3, atol=1e-8):
        raise ValueError(f"smooths its maps by another Gaussian than that of σ = {SMOOTHING:g}")


def _seen(beside: Mapping[str, Any], size: int | None, pixels: int | None) -> Shape:
    """The size of the pictures: what the checkpoint tells, else a square of `pixels`, else of `size` or `SIDE`."""
    if (config := beside.get("anomalib_pre_processor_config")) is not None:
        seen = _resized(config)
        if size is not None and seen != (size, size):
            raise ValueError(f"was trained on pictures of {seen[1]} × {seen[0]} pixels, not {size} × {size}")
        return seen
    size = size or (SIDE if pixels is None else math.isqrt(pixels))
    return size, size


def _resized(config: Any) -> Shape:
    """The size to which anomalib's pre-processor brings pictures; a `ValueError` where it does anything else."""
    try:
        transform = config["transform"]
        steps = [transform]
        if transform["class_path"].endswith(".Compose"):
            steps = transform["init_args"]["transforms"]
        done = {step["class_path"].rpartition(".")[2]: step["init_args"] for step in steps}
        if [*done] != ["Resize", "Normalize"] or len(steps) != len(done):
            raise ValueError(f"prepares its pictures by {', '.join(done)}, not by Resize and Normalize alone")
        sides, colours = done["Resize"], done["Normalize"]
        if sides["interpolation"] != "bilinear" or sides["antialias"] is not True:
            raise ValueError("resizes its pictures otherwise than bilinearly and antialiased")
        if [*colours["mean"]] != [*MEAN] or [*colours["std"]] != [*STD]:
            raise ValueError("does not normalise its pictures as ImageNet's")
        size = sides["size"]
        if len(size) != 2 or not all(type(side) is int and 0 < side < 2**15 for side in size):
            raise ValueError(f"brings its pictures to the size {size}")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("does not tell how its pictures are prepared") from error
    return size[0], size[1]


def _places(state: State) -> int:
    return state[_MEAN].shape[-1] if state[_MEAN].ndim else 0


def _padim(state: State, places: int, total: int) -> PaDiM:
    channels = state.get("model.idx", np.empty(0))
    if channels.ndim != 1 or channels.dtype.kind != "i" or not channels.size:
        raise ValueError("does not tell which channels count")
    if not 0 <= channels.min() <= channels.max() < total:
        raise ValueError(f"its channels are not among the {total} of its network")
    count, intake = len(channels), Intake(state)
    mean = intake.take(_MEAN, (count, places))
    inverse = intake.take("model.gaussian.inv_covariance", (places, count, count))
    intake.finish(ignored=("",))  # what else there is belongs to others
    # Only the symmetric part makes a difference to distances, and gradients count on it.
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return PaDiM(_int(channels), _float(mean.T), Dense(_float(inverse)), 0, "anomalib")


def _patchcore(state: State, width: int, places: int) -> PatchCore:
    intake = Intake(state)
    bank = _float(intake.take(_BANK, (max(len(np.atleast_1d(state[_BANK])), 1), width)))
    intake.finish(ignored=("",))
    return PatchCore(jnp.ones(width), jnp.ones(places), bank, jnp.sum(jnp.square(bank), axis=-1), "anomalib")


def _float(array: np.ndarray) -> Any:
    return jnp.asarray(array, jnp.float32)


def _int(array: np.ndarray) -> Any:
    return jnp.asarray(array, jnp.int32)

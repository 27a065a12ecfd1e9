"""From a source file's names and layouts to a network's parameter tree: a bijection, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from f2pad_jax.networks.efficientnet import EfficientNetSpec
from f2pad_jax.networks.resnet import ResNetSpec

NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Source:
    """Where one convolution comes from.

    Attributes:
      path: its place in the parameter tree.
      conv: name of the source's convolution or dense layer.
      norm: name of the batch norm that follows it, or None where it has a bias of its own.
    """

    path: tuple[str, ...]
    conv: str
    norm: str | None


@dataclass(frozen=True)
class KeyMap:
    """Every convolution of a network, and what else a file may hold.

    Attributes:
      sources: one entry per convolution.
      ignored: prefixes of names that belong to parts of the network that are not computed.
      epsilon: what the batch norms add to the variance.
    """

    sources: tuple[Source, ...]
    ignored: tuple[str, ...]
    epsilon: float


def torchvision_resnet(spec: ResNetSpec) -> KeyMap:
    """Names of torchvision's ResNet of basic blocks."""

    def sources() -> Iterator[Source]:
        yield Source(("conv1",), "conv1", "bn1")
        inputs = spec.stem
        for layer in spec.layers:
            for index in range(spec.depths[layer - 1]):
                path, name = (f"layer{layer}", str(index)), f"layer{layer}.{index}"
                for number in (1, 2):
                    yield Source((*path, f"conv{number}"), f"{name}.conv{number}", f"{name}.bn{number}")
                if inputs != spec.widths[layer - 1]:
                    yield Source((*path, "downsample"), f"{name}.downsample.0", f"{name}.downsample.1")
                inputs = spec.widths[layer - 1]

    beyond = tuple(f"layer{layer}." for layer in range(spec.layers.stop, len(spec.depths) + 1))
    return KeyMap(tuple(sources()), ("fc.", *beyond), 1e-5)


def efficientnet_pytorch(spec: EfficientNetSpec) -> KeyMap:
    """Names of the `efficientnet_pytorch` package and its Lite relatives."""

    def sources() -> Iterator[Source]:
        yield Source(("stem",), "_conv_stem", "_bn0")
        for index, block in enumerate(spec.blocks[: spec.depth]):
            path, name = ("blocks", str(index)), f"_blocks.{index}"
            if block.expansion != 1:
                yield Source((*path, "expand"), f"{name}._expand_conv", f"{name}._bn0")
            yield Source((*path, "depthwise"), f"{name}._depthwise_conv", f"{name}._bn1")
            yield Source((*path, "project"), f"{name}._project_conv", f"{name}._bn2")
        if spec.classes:
            yield Source(("head",), "_conv_head", "_bn1")
            yield Source(("classifier",), "_fc", None)

    beyond = tuple(f"_blocks.{index}." for index in range(spec.depth, len(spec.blocks)))
    return KeyMap(tuple(sources()), beyond if spec.classes else ("_conv_head.", "_bn1.", "_fc.", *beyond), 1e-3)


def _fold(kernel: np.ndarray, norm: Mapping[str, np.ndarray], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    scale = norm["weight"] / np.sqrt(norm["running_var"] + epsilon)
    return kernel * scale, norm["bias"] - norm["running_mean"] * scale


def convert(state: Mapping[str, np.ndarray], shapes: Any, key_map: KeyMap) -> dict[str, Any]:
    """The parameter tree of a network, batch norms folded in float64 and stored in float32.

    Args:
      state: arrays by the source's names; kernels are (C_out, C_in, k, k), a dense layer's (C_out, C_in).
        Either every convolution is followed by its batch norm, or none is and each has a bias.
      shapes: the target tree of shapes, HWIO.
      key_map: which source goes where.

    Raises:
      ValueError: all that is wrong, together: names missing or left over, shapes, non-finite values.
    """
    folded = not any(f"{source.norm}.{part}" in state for source in key_map.sources if source.norm for part in NORM)
    targets = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    used: set[str] = set()
    errors: list[str] = []
    params: dict[str, Any] = {}

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        used.add(name)
        if name not in state:
            errors.append(f"missing {name}")
            return np.ones(shape)
        array = state[name]
        if array.dtype.kind != "f":
            errors.append(f"{name} is {array.dtype}, not floating point")
        elif array.shape != shape:
            errors.append(f"{name} has shape {array.shape}, not {shape}")
        elif not np.isfinite(array).all():
            errors.append(f"{name} holds non-finite values")
        else:
            return np.asarray(array, np.float64)
        return np.ones(shape)

    for source in key_map.sources:
        height, width, inputs, outputs = targets.pop((*source.path, "kernel")).shape
        bias_shape = targets.pop((*source.path, "bias")).shape
        dense = source.norm is None
        stored = take(f"{source.conv}.weight", (outputs, inputs) if dense else (outputs, inputs, height, width))
        kernel = stored.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
        if folded or dense:
            bias = take(f"{source.conv}.bias", bias_shape)
        else:
            norm = {part: take(f"{source.norm}.{part}", bias_shape) for part in NORM}
            used.add(f"{source.norm}.num_batches_tracked")
            if (norm["running_var"] < 0).any():
                errors.append(f"{source.norm}.running_var is negative")
                continue
            kernel, bias = _fold(kernel, norm, key_map.epsilon)
        node = params
        for key in source.path:
            node = node.setdefault(key, {})
        node |= {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    errors += [f"no source for {'/'.join(path)}" for path in targets]
    errors += [f"unknown {name}" for name in state if name not in used and not name.startswith(key_map.ignored)]
    if errors:
        raise ValueError(_together(errors))
    return params


def _together(errors: list[str], most: int = 12) -> str:
    rest = len(errors) - most
    return ", ".join(errors[:most]) + (f" and {rest} more" if rest > 0 else "")

"""From a source file's names and layouts to a network's parameter tree: a bijection, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from f2pad_jax.networks.efficientnet import EfficientNetSpec
from f2pad_jax.networks.resnet import ResNetSpec

NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Source:
    """Where one convolution comes from: a kernel, and a bias of its own or a batch norm to fold in.

    Attributes:
      path: its place in the parameter tree, of a kernel (k, k, C_in, C_out) and a bias (C_out,).
      name: the source's name of the convolution.
      norm: the source's name of the batch norm that follows it, or None where it has a bias of its own.
      dense: whether the source holds a dense layer, (C_out, C_in), for a 1 × 1 convolution.
    """

    path: tuple[str, ...]
    name: str
    norm: str | None = None
    dense: bool = False


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
    """Names of torchvision's ResNet, which timm's are too."""

    def sources() -> Iterator[Source]:
        yield Source(("conv1",), "conv1", "bn1")
        inputs = spec.stem
        for layer in spec.layers:
            for index in range(spec.depths[layer - 1]):
                path, name = (f"layer{layer}", str(index)), f"layer{layer}.{index}"
                for conv in spec.convolutions:
                    yield Source((*path, conv), f"{name}.{conv}", f"{name}.{conv.replace('conv', 'bn')}")
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
            if block.squeeze:
                yield Source((*path, "squeeze"), f"{name}._se_reduce")
                yield Source((*path, "excite"), f"{name}._se_expand")
            yield Source((*path, "project"), f"{name}._project_conv", f"{name}._bn2")
        if spec.classes:
            yield Source(("head",), "_conv_head", "_bn1")
            yield Source(("classifier",), "_fc", dense=True)

    beyond = tuple(f"_blocks.{index}." for index in range(spec.depth, len(spec.blocks)))
    return KeyMap(tuple(sources()), beyond if spec.classes else ("_conv_head.", "_bn1.", "_fc.", *beyond), 1e-3)


def timm_efficientnet(spec: EfficientNetSpec) -> KeyMap:
    """Names of timm's `tf_efficientnet_*`, whose blocks are numbered within their stages."""
    names = [f"blocks.{stage}.{repeat}" for stage, repeat in spec.places]

    def sources() -> Iterator[Source]:
        yield Source(("stem",), "conv_stem", "bn1")
        for index, block in enumerate(spec.blocks[: spec.depth]):
            path, name = ("blocks", str(index)), names[index]
            expands = block.expansion != 1
            if expands:
                yield Source((*path, "expand"), f"{name}.conv_pw", f"{name}.bn1")
            yield Source((*path, "depthwise"), f"{name}.conv_dw", f"{name}.bn{1 + expands}")
            if block.squeeze:
                yield Source((*path, "squeeze"), f"{name}.se.conv_reduce")
                yield Source((*path, "excite"), f"{name}.se.conv_expand")
            last = ("conv_pwl", "bn3") if expands else ("conv_pw", "bn2")
            yield Source((*path, "project"), f"{name}.{last[0]}", f"{name}.{last[1]}")
        if spec.classes:
            yield Source(("head",), "conv_head", "bn2")
            yield Source(("classifier",), "classifier", dense=True)

    beyond = tuple(f"{name}." for name in names[spec.depth :])
    return KeyMap(tuple(sources()), beyond if spec.classes else ("conv_head.", "bn2.", "classifier.", *beyond), 1e-3)


def choose(state: Mapping[str, np.ndarray], key_maps: Sequence[KeyMap]) -> KeyMap:
    """The key map that finds most of its names in a file; the first of equals."""
    return max(key_maps, key=lambda key_map: sum(f"{source.name}.weight" in state for source in key_map.sources))


class Intake:
    """Arrays taken from a file by name, with all that is wrong with them.

    Args:
      state: the file's arrays.
    """

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self.state, self.errors = state, list[str]()
        self._used = set[str]()

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One array in float64; of ones where it is missing or unfit, which `finish` reports."""
        self._used.add(name)
        if name not in self.state:
            self.errors.append(f"missing {name}")
            return np.ones(shape)
        array = self.state[name]
        if array.dtype.kind != "f":
            self.errors.append(f"{name} is {array.dtype}, not floating point")
        elif array.shape != shape:
            self.errors.append(f"{name} has shape {array.shape}, not {shape}")
        elif not np.isfinite(array).all():
            self.errors.append(f"{name} holds non-finite values")
        else:
            return np.asarray(array, np.float64)
        return np.ones(shape)

    def skip(self, name: str) -> None:
        """Lets a name stay unused."""
        self._used.add(name)

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Raises a `ValueError` of all that is wrong, names left over included, save those with ignored prefixes."""
        left = [name for name in self.state if name not in self._used and not name.startswith(ignored)]
        errors = self.errors + [f"unknown {name}" for name in left]
        if errors:
            raise ValueError(_together(errors))


def _fold(kernel: np.ndarray, norm: Mapping[str, np.ndarray], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    scale = norm["weight"] / np.sqrt(norm["running_var"] + epsilon)
    return kernel * scale, norm["bias"] - norm["running_mean"] * scale


def convert(state: Mapping[str, np.ndarray], shapes: Any, key_map: KeyMap) -> dict[str, Any]:
    """The parameter tree of a network, batch norms folded in float64 and stored in float32.

    Args:
      state: arrays by the source's names; kernels are (C_out, C_in, k, k). Either every convolution that has
        a batch norm comes with it, or none does and each has a bias.
      shapes: the target tree of shapes, HWIO.
      key_map: which source goes where.

    Raises:
      ValueError: all that is wrong, together: names missing or left over, shapes, non-finite values.
    """
    norms = {source.norm for source in key_map.sources if source.norm}
    folded = not any(f"{norm}.{part}" in state for norm in norms for part in NORM)
    targets = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    intake = Intake(state)
    params: dict[str, Any] = {}
    for source in key_map.sources:
        height, width, inputs, outputs = targets.pop((*source.path, "kernel")).shape
        bias_shape = targets.pop((*source.path, "bias")).shape
        stored = (outputs, inputs) if source.dense else (outputs, inputs, height, width)
        kernel = intake.take(f"{source.name}.weight", stored)
        kernel = kernel.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
        if folded or source.norm is None:
            bias = intake.take(f"{source.name}.bias", bias_shape)
        else:
            norm = {part: intake.take(f"{source.norm}.{part}", bias_shape) for part in NORM}
            intake.skip(f"{source.norm}.num_batches_tracked")
            if (norm["running_var"] < 0).any():
                intake.errors.append(f"{source.norm}.running_var is negative")
                continue
            kernel, bias = _fold(kernel, norm, key_map.epsilon)
        node = params
        for key in source.path:
            node = node.setdefault(key, {})
        node |= {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    intake.errors += [f"no source for {'/'.join(path)}" for path in targets]
    intake.finish(key_map.ignored)
    return params


def _together(errors: list[str], most: int = 12) -> str:
    rest = len(errors) - most
    return ", ".join(errors[:most]) + (f" and {rest} more" if rest > 0 else "")

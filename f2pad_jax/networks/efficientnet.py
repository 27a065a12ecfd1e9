"""EfficientNet (Tan and Le, arXiv 1905.11946): B0 to B7, and Lite0 to Lite4 without squeeze-excite and with ReLU6."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from f2pad_jax.networks.layers import Params, conv_shapes, depthwise, phase_conv, pointwise, same_pads

# The colours the Lite networks were trained with are (255 x - 127) / 128 for x in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Stage:
    """A run of inverted residual blocks; only the first has a stride or changes the width."""

    kernel: int
    stride: int
    expansion: int
    width: int
    repeats: int


@dataclass(frozen=True)
class Block:
    """One inverted residual block, with all its widths spelt out; `squeeze` is 0 in the Lite networks."""

    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int
    squeeze: int

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """SiLU goes with squeeze-excite, ReLU6 with its absence."""
        return _activation(lite=not self.squeeze)


@dataclass(frozen=True)
class EfficientNetSpec:
    """One member of the family, cut after its deepest feature map.

    Attributes:
      stem: channels after the first convolution.
      stages: the table of stages.
      taps: the stages, counted from 1, whose last blocks give the feature maps.
      tap: what a map is of its block: the linear projection alone, or the output, shortcut included.
      lite: no squeeze-excite, ReLU6 for SiLU, and colours of its own.
      head: channels before the classifier.
      classes: classes of the classifier that `classify` needs; 0 leaves head and classifier out.
    """

    stem: int
    stages: tuple[Stage, ...]
    taps: tuple[int, ...]
    tap: Literal["projection", "block"]
    lite: bool
    head: int
    classes: int = 0

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block of the whole network, in order."""
        return tuple(block for _, _, block in self._numbered())

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Stage and place in the stage of every block, both counted from 0."""
        return tuple((stage, repeat) for stage, repeat, _ in self._numbered())

    @property
    def tap_blocks(self) -> tuple[int, ...]:
        """Index of the last block of each tapped stage, finest map first."""
        last = {stage + 1: index for index, (stage, _) in enumerate(self.places)}
        return tuple(last[stage] for stage in sorted(self.taps))

    @property
    def depth(self) -> int:
        """How many blocks are computed."""
        return len(self.blocks) if self.classes else self.tap_blocks[-1] + 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, finest map first."""
        return tuple(self.stages[stage - 1].width for stage in sorted(self.taps))

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side, finest map first."""
        return tuple(2 * math.prod(stage.stride for stage in self.stages[:count]) for count in sorted(self.taps))

    def _numbered(self) -> Iterator[tuple[int, int, Block]]:
        inputs = self.stem
        for number, stage in enumerate(self.stages):
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                squeeze = 0 if self.lite else inputs // 4
                yield number, repeat, Block(stage.kernel, stride, stage.expansion, inputs, stage.width, squeeze)
                inputs = stage.width


# Kernel, stride, expansion, width and repeats of B0 and Lite0, from which all others are scaled.
_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


def _scaled(width: float, depth: float, *, lite: bool) -> EfficientNetSpec:
    """The member of the family with these multipliers."""

    def channels(base: int) -> int:
        """The multiple of 8 that is nearest, unless it loses more than a tenth."""
        near = max(8, int(width * base + 4) // 8 * 8)
        return near if near >= 0.9 * width * base else near + 8

    def repeats(number: int, base: int) -> int:
        return base if lite and number in (0, len(_STAGES) - 1) else math.ceil(depth * base)

    return EfficientNetSpec(
        stem=32 if lite else channels(32),
        stages=tuple(
            replace(stage, width=channels(stage.width), repeats=repeats(number, stage.repeats))
            for number, stage in enumerate(_STAGES)
        ),
        taps=(2, 3, 5) if lite else (3, 5, 6),
        tap="block" if lite else "projection",
        lite=lite,
        head=1280 if lite else channels(1280),
    )


_MULTIPLIERS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
FAMILY = {f"efficientnet_b{n}": _scaled(*by, lite=False) for n, by in enumerate(_MULTIPLIERS)} | {
    f"efficientnet_lite{n}": _scaled(*by, lite=True) for n, by in enumerate(_MULTIPLIERS[:5])
}
LITE0 = FAMILY["efficientnet_lite0"]


def shapes(spec: EfficientNetSpec) -> Params:
    """The tree of parameter shapes that `apply` takes, and `classify` where `spec.classes` is set."""
    tree: Params = {"stem": conv_shapes(3, 3, spec.stem), "blocks": {}}
    for index, block in enumerate(spec.blocks[: spec.depth]):
        inner = block.inputs * block.expansion
        entry: Params = {
            "depthwise": conv_shapes(block.kernel, 1, inner),
            "project": conv_shapes(1, inner, block.outputs),
        }
        if block.expansion != 1:
            entry["expand"] = conv_shapes(1, block.inputs, inner)
        if block.squeeze:
            entry["squeeze"] = conv_shapes(1, inner, block.squeeze)
            entry["excite"] = conv_shapes(1, block.squeeze, inner)
        tree["blocks"][str(index)] = entry
    if spec.classes:
        tree["head"] = conv_shapes(1, spec.blocks[-1].outputs, spec.head)
        tree["classifier"] = conv_shapes(1, spec.head, spec.classes)
    return tree


def stem(params: Params, images: jax.Array, *, lite: bool) -> jax.Array:
    """3 × 3 convolution with stride 2 and the activation, on images in the network's own colours."""
    return _activation(lite=lite)(phase_conv(params, images, stride=2, pads=same_pads(images.shape, 3, 2)))


def projection(params: Params, images: jax.Array, *, block: Block) -> jax.Array:
    """A block without its shortcut: expansion, depthwise convolution, squeeze-excite, linear projection."""
    hidden = images
    if block.expansion != 1:
        hidden = block.activation(pointwise(params["expand"], hidden))
    hidden = block.activation(depthwise(params["depthwise"], hidden, stride=block.stride))
    if block.squeeze:
        squeezed = jax.nn.silu(pointwise(params["squeeze"], hidden.mean((1, 2), keepdims=True)))
        hidden = hidden * jax.nn.sigmoid(pointwise(params["excite"], squeezed))
    return pointwise(params["project"], hidden)


def inverted_residual(params: Params, images: jax.Array, *, block: Block) -> jax.Array:
    """A whole block: its projection, and the shortcut where shapes allow."""
    linear = projection(params, images, block=block)
    return linear + images if block.residual else linear


def own_colours(images: jax.Array) -> jax.Array:
    """From ImageNet-normalised RGB to the (255 x - 127) / 128 that the Lite weights were trained with."""
    scale = jnp.asarray([std * 255 / 128 for std in STD], jnp.float32)
    shift = jnp.asarray([(mean * 255 - 127) / 128 for mean in MEAN], jnp.float32)
    return images * scale + shift


def apply(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> tuple[jax.Array, ...]:
    """What `spec.tap` names of each tapped stage's last block, finest first; no activation follows.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, H, W, 3) float32 RGB, ImageNet-normalised.
      spec: which network, which maps.

    Returns:
      (B, H/s, W/s, C) float32 for each C, s in `spec.channels`, `spec.strides`.
    """
    return _trunk(params, images, spec=spec)[0]


def classify(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> jax.Array:
    """(B, classes) logits of the whole network; `spec.classes` must be set. Images as for `apply`."""
    hidden = pointwise(params["head"], _trunk(params, images, spec=spec)[1])
    pooled = _activation(lite=spec.lite)(hidden).mean((1, 2), keepdims=True)
    return pointwise(params["classifier"], pooled)[:, 0, 0]


def _activation(*, lite: bool) -> Callable[[jax.Array], jax.Array]:
    return jax.nn.relu6 if lite else jax.nn.silu


def _trunk(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The feature maps, and the last block's output."""
    images = jnp.asarray(images)
    hidden = stem(params["stem"], own_colours(images) if spec.lite else images, lite=spec.lite)
    maps = []
    for index, block in enumerate(spec.blocks[: spec.depth]):
        linear = projection(params["blocks"][str(index)], hidden, block=block)
        hidden = linear + hidden if block.residual else linear
        if index in spec.tap_blocks:
            maps.append(linear if spec.tap == "projection" else hidden)
    return tuple(maps), hidden

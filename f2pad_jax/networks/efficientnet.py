"""EfficientNet (Tan and Le, arXiv 1905.11946): its Lite form, without squeeze-excite and with ReLU6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from f2pad_jax.networks.layers import Params, conv_shapes, depthwise, phase_conv, pointwise, same_pads

# The colours the family was trained with are (255 x - 127) / 128 for x in [0, 1].
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
    """One inverted residual block, with both its widths spelt out."""

    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class EfficientNetSpec:
    """One member of the family, cut after its deepest feature map.

    Attributes:
      stem: channels after the first convolution.
      stages: the table of stages.
      taps: the stages, counted from 1, whose linear outputs are feature maps.
      head: channels before the classifier.
      classes: classes of the classifier that `classify` needs; 0 leaves head and classifier out.
    """

    stem: int
    stages: tuple[Stage, ...]
    taps: tuple[int, ...]
    head: int = 1280
    classes: int = 0

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block of the whole network, in order."""
        return tuple(block for _, block in self._numbered())

    @property
    def tap_blocks(self) -> tuple[int, ...]:
        """Index of the last block of each tapped stage, finest map first."""
        last = {stage: index for index, (stage, _) in enumerate(self._numbered())}
        return tuple(last[stage] for stage in sorted(self.taps))

    @property
    def depth(self) -> int:
        """How many blocks are computed."""
        return len(self.blocks) if self.classes else self.tap_blocks[-1] + 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, finest map first."""
        return tuple(self.blocks[index].outputs for index in self.tap_blocks)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side, finest map first."""
        strides, total = [], 2
        for block in self.blocks:
            total *= block.stride
            strides.append(total)
        return tuple(strides[index] for index in self.tap_blocks)

    def _numbered(self) -> Iterator[tuple[int, Block]]:
        inputs = self.stem
        for number, stage in enumerate(self.stages, start=1):
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                yield number, Block(stage.kernel, stride, stage.expansion, inputs, stage.width)
                inputs = stage.width


LITE0 = EfficientNetSpec(
    stem=32,
    stages=(
        Stage(3, 1, 1, 16, 1),
        Stage(3, 2, 6, 24, 2),
        Stage(5, 2, 6, 40, 2),
        Stage(3, 2, 6, 80, 3),
        Stage(5, 1, 6, 112, 3),
        Stage(5, 2, 6, 192, 4),
        Stage(3, 1, 6, 320, 1),
    ),
    taps=(2, 3, 5),
)


def shapes(spec: EfficientNetSpec) -> Params:
    """The tree of parameter shapes that `apply` takes, and `classify` where `spec.classes` is set."""
    tree: Params = {"stem": conv_shapes(3, 3, spec.stem), "blocks": {}}
    for index, block in enumerate(spec.blocks[: spec.depth]):
        inner = block.inputs * block.expansion
        entry = {
            "depthwise": conv_shapes(block.kernel, 1, inner),
            "project": conv_shapes(1, inner, block.outputs),
        }
        if block.expansion != 1:
            entry["expand"] = conv_shapes(1, block.inputs, inner)
        tree["blocks"][str(index)] = entry
    if spec.classes:
        tree["head"] = conv_shapes(1, spec.blocks[-1].outputs, spec.head)
        tree["classifier"] = conv_shapes(1, spec.head, spec.classes)
    return tree


def stem(params: Params, images: jax.Array) -> jax.Array:
    """3 × 3 convolution with stride 2 and ReLU6 on images in the network's own colours."""
    return jax.nn.relu6(phase_conv(params, images, stride=2, pads=same_pads(images.shape, 3, 2)))


def inverted_residual(params: Params, images: jax.Array, *, block: Block) -> jax.Array:
    """Expansion, depthwise convolution, linear projection, and the shortcut where shapes allow."""
    hidden = images
    if block.expansion != 1:
        hidden = jax.nn.relu6(pointwise(params["expand"], hidden))
    hidden = jax.nn.relu6(depthwise(params["depthwise"], hidden, stride=block.stride))
    hidden = pointwise(params["project"], hidden)
    return hidden + images if block.residual else hidden


def own_colours(images: jax.Array) -> jax.Array:
    """From ImageNet-normalised RGB to the (255 x - 127) / 128 that the weights were trained with."""
    scale = jnp.asarray([std * 255 / 128 for std in STD], jnp.float32)
    shift = jnp.asarray([(mean * 255 - 127) / 128 for mean in MEAN], jnp.float32)
    return images * scale + shift


def apply(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> tuple[jax.Array, ...]:
    """Linear outputs of each tapped stage's last block, finest first.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, H, W, 3) float32 RGB, ImageNet-normalised.
      spec: which network, which maps.

    Returns:
      (B, H/s, W/s, C) float32 for each C, s in `spec.channels`, `spec.strides`.
    """
    outputs = _block_outputs(params, images, spec=spec)
    return tuple(outputs[index] for index in spec.tap_blocks)


def classify(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> jax.Array:
    """(B, classes) logits of the whole network; `spec.classes` must be set. Images as for `apply`."""
    hidden = jax.nn.relu6(pointwise(params["head"], _block_outputs(params, images, spec=spec)[-1]))
    return pointwise(params["classifier"], hidden.mean((1, 2), keepdims=True))[:, 0, 0]


def _block_outputs(params: Params, images: jax.Array, *, spec: EfficientNetSpec) -> list[jax.Array]:
    outputs = []
    hidden = stem(params["stem"], own_colours(jnp.asarray(images)))
    for index, block in enumerate(spec.blocks[: spec.depth]):
        hidden = inverted_residual(params["blocks"][str(index)], hidden, block=block)
        outputs.append(hidden)
    return outputs

"""ResNet (He et al., arXiv 1512.03385) and Wide ResNet (Zagoruyko and Komodakis, arXiv 1605.07146).

In torchvision's form, where a bottleneck's stride is on its 3 × 3 convolution; batch norms are folded in.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from f2pad_jax.networks.layers import Params, conv, conv_shapes, max_pool, phase_conv, pointwise

_PADS = ((1, 1), (1, 1))


@dataclass(frozen=True)
class ResNetSpec:
    """One member of the family, cut after its deepest feature map.

    Attributes:
      depths: residual blocks of each of the four layers.
      widths: output channels of each layer's blocks.
      bottleneck: a block's outer over its inner width, in blocks of 1 × 1, 3 × 3 and 1 × 1 convolutions;
        None for basic blocks, of two 3 × 3 convolutions.
      stem: channels after the first convolution.
      taps: the layers, counted from 1, whose outputs are feature maps.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: int | None = None
    stem: int = 64
    taps: tuple[int, ...] = (1, 2, 3)

    @property
    def layers(self) -> range:
        """The layers that are computed, counted from 1."""
        return range(1, max(self.taps) + 1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map, finest map first."""
        return tuple(self.widths[layer - 1] for layer in sorted(self.taps))

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per feature position along one side, finest map first."""
        return tuple(2 ** (layer + 1) for layer in sorted(self.taps))

    @property
    def convolutions(self) -> tuple[str, ...]:
        """Names of a block's convolutions, the shortcut's apart."""
        return ("conv1", "conv2", "conv3") if self.bottleneck else ("conv1", "conv2")


_WIDE = (256, 512, 1024, 2048)
FAMILY = {
    "resnet18": ResNetSpec(),
    "resnet34": ResNetSpec((3, 4, 6, 3)),
    "resnet50": ResNetSpec((3, 4, 6, 3), _WIDE, bottleneck=4),
    "wide_resnet50_2": ResNetSpec((3, 4, 6, 3), _WIDE, bottleneck=2),
}
RESNET18 = FAMILY["resnet18"]


def shapes(spec: ResNetSpec) -> Params:
    """The tree of parameter shapes that `apply` takes, named as torchvision names its modules."""
    tree: Params = {"conv1": conv_shapes(7, 3, spec.stem)}
    inputs = spec.stem
    for layer in spec.layers:
        width, blocks = spec.widths[layer - 1], {}
        for index in range(spec.depths[layer - 1]):
            if spec.bottleneck:
                inner = width // spec.bottleneck
                sizes = ((1, inputs, inner), (3, inner, inner), (1, inner, width))
            else:
                sizes = ((3, inputs, width), (3, width, width))
            block = {name: conv_shapes(*size) for name, size in zip(spec.convolutions, sizes, strict=True)}
            if inputs != width:
                block["downsample"] = conv_shapes(1, inputs, width)
            blocks[str(index)] = block
            inputs = width
        tree[f"layer{layer}"] = blocks
    return tree


def stem(params: Params, images: jax.Array) -> jax.Array:
    """7 × 7 convolution with stride 2, ReLU, 3 × 3 max pooling with stride 2."""
    # ReLU commutes with the maximum, and costs a quarter after it.
    return jax.nn.relu(max_pool(phase_conv(params, images, stride=2, pads=((3, 3), (3, 3)))))


def basic_block(params: Params, images: jax.Array, *, stride: int) -> jax.Array:
    """Two 3 × 3 convolutions and the identity or projected shortcut, ReLU last."""
    inner = jax.nn.relu(conv(params["conv1"], images, stride=stride, pads=_PADS))
    return jax.nn.relu(conv(params["conv2"], inner, pads=_PADS) + _shortcut(params, images, stride=stride))


def bottleneck(params: Params, images: jax.Array, *, stride: int) -> jax.Array:
    """1 × 1, 3 × 3 (which has the stride) and 1 × 1 convolutions and the shortcut, ReLU last."""
    inner = jax.nn.relu(pointwise(params["conv1"], images))
    inner = jax.nn.relu(conv(params["conv2"], inner, stride=stride, pads=_PADS))
    return jax.nn.relu(pointwise(params["conv3"], inner) + _shortcut(params, images, stride=stride))


def apply(params: Params, images: jax.Array, *, spec: ResNetSpec) -> tuple[jax.Array, ...]:
    """Feature maps after the ReLU of each tapped layer's last block, finest first.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, H, W, 3) float32 RGB, ImageNet-normalised.
      spec: which network, which maps.

    Returns:
      (B, H/s, W/s, C) float32 for each C, s in `spec.channels`, `spec.strides`.
    """
    block = bottleneck if spec.bottleneck else basic_block
    maps = []
    hidden = stem(params["conv1"], jnp.asarray(images))
    for layer in spec.layers:
        for index in range(spec.depths[layer - 1]):
            stride = 2 if layer > 1 and index == 0 else 1
            hidden = block(params[f"layer{layer}"][str(index)], hidden, stride=stride)
        if layer in spec.taps:
            maps.append(hidden)
    return tuple(maps)


def _shortcut(params: Params, images: jax.Array, *, stride: int) -> jax.Array:
    return pointwise(params["downsample"], images[:, ::stride, ::stride]) if "downsample" in params else images

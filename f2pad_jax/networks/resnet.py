"""ResNet (He et al., arXiv 1512.03385) in torchvision's form, batch norms folded into the convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from f2pad_jax.networks.layers import Params, conv, conv_shapes, max_pool, phase_conv, pointwise


@dataclass(frozen=True)
class ResNetSpec:
    """One member of the family, cut after its deepest feature map.

    Attributes:
      depths: residual blocks of each of the four layers.
      stem: channels after the first convolution.
      widths: output channels of each layer's blocks.
      taps: the layers, counted from 1, whose outputs are feature maps.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
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


RESNET18 = ResNetSpec()


def shapes(spec: ResNetSpec) -> Params:
    """The tree of parameter shapes that `apply` takes, named as torchvision names its modules."""
    tree: Params = {"conv1": conv_shapes(7, 3, spec.stem)}
    inputs = spec.stem
    for layer in spec.layers:
        width, blocks = spec.widths[layer - 1], {}
        for index in range(spec.depths[layer - 1]):
            block = {"conv1": conv_shapes(3, inputs, width), "conv2": conv_shapes(3, width, width)}
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
    pads = ((1, 1), (1, 1))
    inner = jax.nn.relu(conv(params["conv1"], images, stride=stride, pads=pads))
    inner = conv(params["conv2"], inner, pads=pads)
    shortcut = pointwise(params["downsample"], images[:, ::stride, ::stride]) if "downsample" in params else images
    return jax.nn.relu(inner + shortcut)


def apply(params: Params, images: jax.Array, *, spec: ResNetSpec) -> tuple[jax.Array, ...]:
    """Feature maps after the ReLU of each tapped layer's last block, finest first.

    Args:
      params: a tree like `shapes(spec)`.
      images: (B, H, W, 3) float32 RGB, ImageNet-normalised.
      spec: which network, which maps.

    Returns:
      (B, H/s, W/s, C) float32 for each C, s in `spec.channels`, `spec.strides`.
    """
    maps = []
    hidden = stem(params["conv1"], jnp.asarray(images))
    for layer in spec.layers:
        for index in range(spec.depths[layer - 1]):
            stride = 2 if layer > 1 and index == 0 else 1
            hidden = basic_block(params[f"layer{layer}"][str(index)], hidden, stride=stride)
        if layer in spec.taps:
            maps.append(hidden)
    return tuple(maps)

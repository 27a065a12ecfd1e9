"""The extractors in eager PyTorch, on the parameters of the ones in JAX, in a process of their own."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from f2pad_jax.networks.efficientnet import MEAN, STD, EfficientNetSpec
from f2pad_jax.networks.resnet import ResNetSpec

if TYPE_CHECKING:
    from torch import Tensor


def _conv(params: Any, images: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    from torch.nn import functional

    return functional.conv2d(images, params["kernel"], params["bias"], stride, padding, groups=groups)


def resnet(params: Any, images: Tensor, spec: ResNetSpec) -> list[Tensor]:
    """Feature maps of a ResNet, (B, C, H, W), finest first."""
    from torch.nn import functional

    hidden = functional.relu(_conv(params["conv1"], images, stride=2, padding=3))
    hidden = functional.max_pool2d(hidden, 3, 2, 1)
    maps = []
    for layer in spec.layers:
        for index in range(spec.depths[layer - 1]):
            block, stride = params[f"layer{layer}"][str(index)], 2 if layer > 1 and index == 0 else 1
            inner = functional.relu(_conv(block["conv1"], hidden, stride=stride, padding=1))
            inner = _conv(block["conv2"], inner, padding=1)
            if "downsample" in block:
                hidden = _conv(block["downsample"], hidden, stride=stride)
            hidden = functional.relu(inner + hidden)
        if layer in spec.taps:
            maps.append(hidden)
    return maps


def efficientnet(params: Any, images: Tensor, spec: EfficientNetSpec) -> list[Tensor]:
    """Feature maps of an EfficientNet-Lite, (B, C, H, W), finest first."""
    from torch import tensor
    from torch.nn import functional

    def same(x: Tensor, size: int, stride: int) -> Tensor:
        totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in (x.shape[3], x.shape[2])]
        return functional.pad(x, [side for t in totals for side in (t // 2, t - t // 2)])

    scale = tensor([std * 255 / 128 for std in STD], device=images.device).reshape(3, 1, 1)
    shift = tensor([(mean * 255 - 127) / 128 for mean in MEAN], device=images.device).reshape(3, 1, 1)
    hidden = functional.relu6(_conv(params["stem"], same(images * scale + shift, 3, 2), stride=2))
    maps = []
    for index, block in enumerate(spec.blocks[: spec.depth]):
        weights, inner = params["blocks"][str(index)], hidden
        if block.expansion != 1:
            inner = functional.relu6(_conv(weights["expand"], inner))
        padded = same(inner, block.kernel, block.stride)
        inner = _conv(weights["depthwise"], padded, stride=block.stride, groups=inner.shape[1])
        inner = _conv(weights["project"], functional.relu6(inner))
        hidden = inner + hidden if block.residual else inner
        if index in spec.tap_blocks:
            maps.append(hidden)
    return maps


NETWORKS = {"resnet18": resnet, "efficientnet_lite0": efficientnet}


def serve(pipe: Connection, name: str, params: Any, spec: Any) -> None:
    """Answers (kind, images) with the loss, and then every 1 with the seconds of one run, until 0; None ends it.

    Args:
      pipe: to the process that asks.
      name: which of `NETWORKS`.
      params: NumPy arrays, as the network in JAX takes them.
      spec: the network's definition.
    """
    os.environ["OMP_WAIT_POLICY"] = "passive"  # no spinning while the other process is measured
    import torch

    def tensor(array: np.ndarray) -> Tensor:
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array  # HWIO to OIHW
        return torch.from_numpy(np.ascontiguousarray(turned))

    weights, network = jax.tree.map(tensor, params), NETWORKS[name]
    while (task := pipe.recv()) is not None:
        kind, images = task
        images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        gradient = kind == "value_and_grad"
        images.requires_grad_(gradient)

        def run(images: Tensor = images, gradient: bool = gradient) -> Tensor:  # noqa: FBT001
            with torch.set_grad_enabled(gradient):
                loss = sum((m.square().sum() for m in network(weights, images, spec)), start=torch.zeros(()))
                return torch.autograd.grad(loss, images)[0].square().sum() if gradient else loss

        pipe.send(float(run()))
        while pipe.recv():
            began = time.perf_counter()
            run()
            pipe.send(time.perf_counter() - began)

"""Weights of no training, under the names that published files have."""

from __future__ import annotations

from typing import Any

import numpy as np

from f2pad_jax.networks import resnet
from f2pad_jax.weights import key_maps


def folded_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Small random numbers under the names of a folded ResNet-18 trunk."""
    return random_state(resnet.shapes(resnet.RESNET18), key_maps.torchvision_resnet(resnet.RESNET18), seed)


def random_state(shapes: dict[str, Any], key_map: key_maps.KeyMap, seed: int = 0) -> dict[str, np.ndarray]:
    """Small random numbers under the names of a folded network."""
    rng, state = np.random.default_rng(seed), {}
    for source in key_map.sources:
        node = shapes
        for key in source.path:
            node = node[key]
        height, width, inputs, outputs = node["kernel"].shape
        state[f"{source.name}.weight"] = rng.normal(0, 0.05, (outputs, inputs, height, width)).astype(np.float32)
        state[f"{source.name}.bias"] = rng.normal(0, 0.05, outputs).astype(np.float32)
    return state

"""Frozen networks as pure functions `apply(params, images, *, spec)` over plain dicts, NHWC and HWIO."""

from __future__ import annotations

from f2pad_jax.networks import efficientnet, resnet, vit

__all__ = ["efficientnet", "resnet", "vit"]

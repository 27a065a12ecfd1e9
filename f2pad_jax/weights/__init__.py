"""Pretrained weights: read without torch, converted to parameter trees, cached and verified."""

from __future__ import annotations

from f2pad_jax.weights.loading import (
    WeightStatus,
    fetch_weights,
    import_weights,
    list_weights,
    load_extractor,
    load_params,
    verify_weights,
)

__all__ = [
    "WeightStatus",
    "fetch_weights",
    "import_weights",
    "list_weights",
    "load_extractor",
    "load_params",
    "verify_weights",
]

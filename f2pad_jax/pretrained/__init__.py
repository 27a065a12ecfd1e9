"""Pretrained weights: read without torch, converted to parameter trees, cached and verified."""

from __future__ import annotations

from f2pad_jax.pretrained.loading import (
    WeightStatus,
    import_weights,
    list_weights,
    load_extractor,
    verify_weights,
)

__all__ = ["WeightStatus", "import_weights", "list_weights", "load_extractor", "verify_weights"]

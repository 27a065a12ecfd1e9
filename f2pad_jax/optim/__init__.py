"""The optimiser's pieces as optax-style transformations and pure functions."""

from __future__ import annotations

from f2pad_jax.optim.adan import ScaleByAdanState, adan_denominator, scale_by_adan
from f2pad_jax.optim.sharing import Sharing, neighbourhood, share, share_gradients, sharing_weights
from f2pad_jax.optim.steps import adaptive_step_size, clip_elements, project, track_progress

__all__ = [
    "ScaleByAdanState",
    "Sharing",
    "adan_denominator",
    "adaptive_step_size",
    "clip_elements",
    "neighbourhood",
    "project",
    "scale_by_adan",
    "share",
    "share_gradients",
    "sharing_weights",
    "track_progress",
]

"""Fills that need no extra weights: n⁽⁰⁾ of Algorithm 1."""

from __future__ import annotations

from f2pad_jax.inpainting.harmonic import harmonic_fill
from f2pad_jax.inpainting.matching import Match, matching_fill

__all__ = ["Match", "harmonic_fill", "matching_fill"]

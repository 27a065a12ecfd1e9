"""Fills of a region, n⁽⁰⁾ of Algorithm 1: from its border, from normal pictures, or by a masked autoencoder."""

from __future__ import annotations

from f2pad_jax.fills.autoencoder import Inpainter, autoencoder_fill
from f2pad_jax.fills.harmonic import harmonic_fill
from f2pad_jax.fills.matching import Match, matching_fill

__all__ = ["Inpainter", "Match", "autoencoder_fill", "harmonic_fill", "matching_fill"]

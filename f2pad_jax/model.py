"""A fitted model: the energy of its pictures, and what turns a score map into a region."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from f2pad_jax.calibration import Limits, Units
from f2pad_jax.core import Energy, Scales, Settings
from f2pad_jax.core.energy import scored_stride
from f2pad_jax.detectors import Detector
from f2pad_jax.fills import Inpainter, Normals
from f2pad_jax.interest import brought, cells_inside, lowest_outside
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.procedure import Procedure
from f2pad_jax.reducing import Shape, scale_of


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fitted detector with all that the refinement needs.

    Attributes:
      energy: extractor, detector, colours of normal pixels and penalty: what the solver takes.
      settings: numbers of the solve.
      procedure: choices around it.
      scales: typical values of the terms on `held_out`.
      shape: height H and width W of the pictures it works on, in pixels.
      seen: height h and width w of what the extractor sees of them; scores and regions are of this shape.
      limits: what the scores of `held_out` reach.
      normals: the detector's training pictures; fills take their material from them.
      held_out: normal pictures that the detector has not seen, uint8 (K, H, W, 3).
      tuned_on: "default", "synthetic-validation" or "oracle".
      seed: of the fit.
      inpainter: masked autoencoder for the start "autoencoder".
      windowed: whether pictures are segmented in windows of `shape`, not brought to it.
      roi: what is inspected, bool of any size, which is brought to each picture's; None for all of it.
      units: of another detector's score maps, for `refine`; None where it was not calibrated with them.
      white_level: of grey picture files with more than eight bits, as for `data.images.read_image`.
    """

    energy: Energy
    settings: Settings
    procedure: Procedure
    scales: Scales
    shape: Shape
    seen: Shape
    limits: Limits
    normals: Normals
    held_out: np.ndarray
    tuned_on: str
    seed: int
    inpainter: Inpainter | None = None
    windowed: bool = False
    roi: np.ndarray | None = None
    units: Units | None = None
    white_level: int | None = None

    @property
    def extractor(self) -> Extractor:
        """The frozen network."""
        return self.energy.extractor

    @property
    def detector(self) -> Detector:
        """What was learned of normal features."""
        return self.energy.detector

    @property
    def threshold(self) -> float:
        """Of the smoothed scores; what lies above it is m⁽⁰⁾."""
        return self.threshold_in(self.limits)

    def threshold_in(self, limits: Limits, *, share: float = 1.0) -> float:
        """The threshold of scores of which normal pictures have these limits, for a share of the false alarms."""
        own = self.procedure.threshold
        return limits.threshold(self.procedure.false_alarms * share) if own is None else own

    @property
    def grids(self) -> tuple[Shape, ...]:
        """Rows and columns of the maps that the detector may use: those of its grid, and the coarser ones."""
        (height, width), strides = self.seen, self.extractor.strides
        own = scored_stride(strides, self.detector.level)
        return tuple((height // stride, width // stride) for stride in strides if stride >= own)

    @property
    def scale(self) -> float:
        """Side of what the extractor sees as one pixel, in pixels of the picture."""
        return scale_of(self.shape, self.seen)

    @cached_property
    def inside(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The region of interest in pixels that the extractor sees, (h, w) bool, and of the picture, (H, W) bool."""
        if self.roi is None:
            return None
        return cells_inside(self.roi, self.shape, self.seen), brought(self.roi, self.shape)

    def scored(self, scores: Any) -> Any:
        """Scores (h, w), of NumPy or JAX, with the lowest of them outside the region of interest."""
        return scores if self.inside is None else lowest_outside(scores, self.inside[0])

    def inspected(self, region: Any) -> Any:
        """The part of a region, (h, w) or (H, W) bool, of NumPy or JAX, that is of interest."""
        if self.inside is None:
            return region
        return region & self.inside[0 if region.shape == self.seen else 1]

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        without_pictures: bool = False,
        metrics: Mapping[str, float | str] | None = None,
    ) -> None:
        """Writes `model.safetensors`, `config.json` and a model card, in Hugging Face's manner.

        Published weights are not inside, only their digest. The card says whether training pictures are.

        Args:
          folder: where to; such a folder is replaced.
          without_pictures: leaves the training pictures out. Masks stay as they are; recovered pictures begin with the
            smooth fill, and the model cannot be tuned any more.
          metrics: what was measured, by names, for the card.

        Raises:
          InputError: the folder exists and is something else, it cannot be written, or the pictures cannot be left out
            because fills come from them.
        """
        from f2pad_jax import pretrained

        model = pretrained.without_pictures(self) if without_pictures else self
        pretrained.save_pretrained(model, Path(folder), metrics=metrics)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> Model:
        """Reads what `save_pretrained` wrote, from a folder or from a repository of the Hugging Face Hub.

        Args:
          name: the folder, or `user/name` of a repository, which the Hub's own cache keeps.
          revision: branch, tag or commit of the repository.
          weights: the extractor's weight file, where it is neither a package nor imported.

        Raises:
          InputError: there is no such model or it is damaged, or the weights of its extractor or autoencoder are
            missing or others than those it was fitted with.
        """
        from f2pad_jax import pretrained

        return pretrained.from_pretrained(name, revision=revision, weights=weights)

"""A fitted model: the energy of its pictures, and what turns a score map into a region."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import numpy as np
from pydantic import Field
from scipy import ndimage
from tqdm import tqdm

from f2pad_jax.calibration import Limits, Units
from f2pad_jax.core import Energy, Scales, Settings
from f2pad_jax.core.energy import scored_stride
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.images import resize_map, resize_mask
from f2pad_jax.detectors import Detector, Drawing, Maps, drawing_of
from f2pad_jax.detectors.base import enlarge
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Inpainter, Normals
from f2pad_jax.interest import cells_inside, lowest_outside
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.reducing import Shape, reduce_images, scale_of
from f2pad_jax.schemas import facts_of, read_facts

BATCH = 8  # pictures whose features are computed together on an accelerator, where there are more than one
SMOOTHING = 4.0  # σ of the Gaussian that smooths score maps, in pixels that the extractor sees (PaDiM, PatchCore)
FOREIGN_SMOOTHING = 2.0  # of other detectors' maps, most of which are smooth already


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """The choices of Algorithm 1 around the solve; `Settings` has those of the solve.

    Attributes:
      components: Gaussians of the pixel mixture; used when fitting.
      false_alarms: share of normal pictures that may be taken for defective, in (0, 1); it sets the threshold.
      threshold: of the smoothed scores, in place of the one that `false_alarms` sets.
      region: "pieces", all of what scores above nearly all normal pixels in pieces that reach the threshold, or
        "threshold", what lies above the threshold, as in the paper.
      sparsity: how β is chosen: "levels" (where n⁽⁰⁾ is a fill, for each piece of the region the largest that it can
        pay for and that leaves n normal; else β0), "constant" (β0), or "area" (β0 / Σm⁽⁰⁾, the paper's).
      dilation: pixels that the extractor sees by which the region is enlarged.
      largest: share of the picture that the region covers at most, before it is enlarged; the paper's anomalies
        reach 0.13.
      start: n⁽⁰⁾: "image" (x itself), the name of one of `fills.FILLS`, or "auto": the matching fill where it is
        trusted, else x.
      trusted: error of the matching fill in the region's surroundings up to which it is trusted, normalised colour.
      sharing: whether neighbours share the ‖a‖ by which the proximal map decides, in solves that start from a fill.
      smallest: norm of a, in normalised colour, up to which it counts as zero; 0 with exact zeros.
      cleaning: of the mask, "whole" (removes dots, closes enclosed holes, and keeps the pieces where the detector
        peaks) or "opening" (3 × 3, the paper's).
      refine: iterations of the re-estimation of n on the final mask.
    """

    components: Annotated[int, Field(ge=1, le=1024)] = 8
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    threshold: float | None = None
    region: Literal["pieces", "threshold"] = "pieces"
    sparsity: Literal["levels", "constant", "area"] = "levels"
    dilation: Annotated[int, Field(ge=0, le=4096)] = 4
    largest: Annotated[float, Field(gt=0, le=1)] = 0.25
    start: Literal["auto", "image", "matching", "harmonic", "autoencoder"] = "auto"
    trusted: Annotated[float, Field(ge=0)] = 0.7
    sharing: bool = True
    smallest: Annotated[float, Field(ge=0)] = 0.0
    cleaning: Literal["whole", "opening"] = "whole"
    refine: Annotated[int, Field(ge=0, le=10**6)] = 20


ProcedureFacts = facts_of(Procedure)


def check_procedure(procedure: Procedure) -> None:
    """Makes sure that every choice is one of those there are, and every number in its range.

    Raises:
      InputError: names the first that is not.
    """
    for name, hint in get_type_hints(Procedure).items():
        choices, value = get_args(hint), getattr(procedure, name)
        if get_origin(hint) is Literal and value not in choices:
            raise InputError(f"{name} is {value!r}", where="procedure", hint=f"choose one of {', '.join(choices)}")
    if not 0 < procedure.false_alarms < 1:
        raise InputError(f"a rate of false alarms of {procedure.false_alarms} makes no sense", hint="give 0.01 for 1 %")
    read_facts(ProcedureFacts, asdict(procedure), kind="procedure", where="procedure", hint="see Procedure")


def paper_settings() -> tuple[Settings, Procedure]:
    """The choices of arXiv 2407.06519 where they differ from the defaults, as far as they can be expressed.

    Sparsity is part of the gradient, so the mask hangs on a threshold of ‖a‖; step sizes are those of Eq. (15);
    neighbours share their gradient; the mask is opened by 3 × 3; the solve starts from a smooth fill (the paper's
    masked autoencoder needs an inpainter) without warm-up, and takes 1200 iterations at most. α1, β0, the number of
    Gaussians and the base of the step size are not given there, and no threshold either.

    Not the paper's even so: the paper stops at the first iteration that brings too little, but Adan's first step
    may raise F, so ten are waited for; β is β0 instead of β0 over the size of m⁽⁰⁾; the terms are scaled by normal
    pictures, so α2, the clipping of the gradient and the tolerance are in other units; Adan is damped by as much as the
    gradient is clipped; steps that raise F are taken back; the threshold comes from normal pictures; n is re-estimated
    from the matching fill.
    """
    settings = Settings(
        beta0=3.0,
        first_beta=3.0,
        rate=0.003,
        rise=1.0,
        warm_up=0,
        limit=1200,
        tolerance=2e-5,
        patience=10,
        proximal=False,
        adaptive=True,
        share_gradient=True,
    )
    procedure = Procedure(region="threshold", sparsity="constant", start="harmonic", smallest=0.45, cleaning="opening")
    return settings, procedure


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
        return cells_inside(self.roi, self.shape, self.seen), resize_mask(self.roi, self.shape)

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


class Sight(NamedTuple):
    """What one pass through the extractor tells of a picture.

    Attributes:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      seen: D x, what the extractor sees of it, (h, w, 3) float32.
      maps: its features, finest first.
      scores: the detector's smoothed score map, (h, w) float32; outside the region of interest its lowest score.
      costs: the summands s_ij of l_n on the detector's grid, (h, w) float32.
      limits: of `scores` in normal pictures, which tell their units.
      own: the model's own such map, which `scores` is unless another detector's is in its place.
    """

    image: np.ndarray
    seen: np.ndarray
    maps: Maps
    scores: np.ndarray
    costs: np.ndarray
    limits: Limits
    own: np.ndarray


@jax.jit
def apply_extractor(extractor: Extractor, images: jax.Array) -> tuple[jax.Array, ...]:
    """Feature maps of ImageNet-normalised pictures (B, S, S, 3), compiled once per shape."""
    return extractor(images)


def features(extractor: Extractor, images: np.ndarray, *, title: str | None = None) -> tuple[np.ndarray, ...]:
    """Feature maps of pictures (N, h, w, 3): one (N, H_k, W_k, C_k) array per map, finest first.

    Args:
      extractor: the network.
      images: uint8 RGB, or float32 and ImageNet-normalised already.
      title: of a progress bar; none without.
    """
    # On a CPU one at a time takes no longer, and gives the same bits whatever other pictures there are.
    batch = 1 if jax.default_backend() == "cpu" else min(BATCH, len(images))
    chunks = []
    for first in tqdm(range(0, len(images), batch), desc=title, leave=False, disable=None if title else True):
        chunk = images[first : first + batch]
        # The last batch is filled up: one shape, one compilation.
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
        maps = apply_extractor(extractor, _pixels(padded))
        chunks.append([np.asarray(m)[: len(chunk)] for m in maps])
    return tuple(np.concatenate(level) for level in zip(*chunks, strict=True))


def _pixels(images: np.ndarray) -> np.ndarray:
    return normalize(images) if images.dtype == np.uint8 else images


@jax.jit
def _scores(detector: Detector, maps: Maps) -> tuple[jax.Array, jax.Array]:
    return detector.score(maps), detector.summands(maps)


@partial(jax.jit, static_argnames=("shape", "enlarging"))
def _enlarged(grid: jax.Array, *, shape: Shape, enlarging: Literal["linear", "nearest"]) -> jax.Array:
    return enlarge(grid, shape, enlarging)


def smooth_map(grid: np.ndarray, shape: Shape, drawing: Drawing = Drawing()) -> np.ndarray:
    """Values on the detector's grid as a smoothed map of what the extractor sees, of that shape, float32."""
    enlarged = np.asarray(_enlarged(grid, shape=shape, enlarging=drawing.enlarging))
    return ndimage.gaussian_filter(enlarged, SMOOTHING, mode=drawing.border)


def look(model: Model, images: np.ndarray) -> list[Sight]:
    """Features and scores of pictures (N, H, W, 3), as for `features`: the one pass before a solve."""
    if not len(images):
        return []
    pixels, small = _pixels(images), reduce_images(images, model.seen)
    maps = features(model.extractor, small)
    sights, drawing = [], drawing_of(model.detector)
    for index, (image, seen) in enumerate(zip(pixels, pixels if small is images else small, strict=True)):
        found = tuple(m[index] for m in maps)
        scores, costs = map(np.asarray, _scores(model.detector, found))
        scores = model.scored(smooth_map(scores, model.seen, drawing))
        sights.append(Sight(image, seen, found, scores, costs, model.limits, own=scores))
    return sights


def score_maps(model: Model, images: np.ndarray) -> np.ndarray:
    """The detector's smoothed score maps of pictures (N, H, W, 3), as for `features`: (N, h, w) float32."""
    return np.stack([sight.scores for sight in look(model, images)])


def foreign_scores(values: np.ndarray, seen: Shape) -> np.ndarray:
    """Another detector's score map (H, W) in what the extractor sees, (h, w), smoothed, in the units that it has."""
    return ndimage.gaussian_filter(resize_map(values, seen), FOREIGN_SMOOTHING)


def with_map(model: Model, sight: Sight, values: np.ndarray) -> Sight:
    """A picture as another detector scores it.

    Args:
      model: with the units of these scores.
      sight: of `look`.
      values: the score map, of any size.
    """
    assert model.units is not None
    scores = model.scored(foreign_scores(values, model.seen) - np.float32(model.units.zero))
    return sight._replace(scores=scores, limits=model.units.limits(model.limits.cost))

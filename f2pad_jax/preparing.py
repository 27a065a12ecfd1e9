"""From a picture to its problem: the region in which n is free, n⁽⁰⁾, and what stays fixed during the solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from f2pad_jax.boxes import Box, enclosing
from f2pad_jax.calibration import Limits
from f2pad_jax.core import Problem, Reduction, Settings, reduce, sharing_weights
from f2pad_jax.data.arrays import as_picture
from f2pad_jax.data.images import resize_image, resize_mask
from f2pad_jax.detectors import Detector, Maps
from f2pad_jax.fills import FILLS
from f2pad_jax.model import Model
from f2pad_jax.reducing import Shape, part_weights
from f2pad_jax.sights import Sight, apply_extractor, look

SHARES = (1 / 6, 1 / 2, 1.0)  # of the positions that a solve may be compiled for: small, usual and all
SPREAD = 1.3  # of the cells of a map at twice the stride a share larger by this factor is met
BORDER = 2  # pixels around the region that are in its box
SQUARE = np.ones((3, 3), bool)  # a pixel or cell and its neighbours


def find_region(model: Model, scores: np.ndarray, *, faint: bool = False, limits: Limits | None = None) -> np.ndarray:
    """Where n is free, step 3 of Algorithm 1, dilated.

    A picture unlike the training pictures scores high all over; then only its highest pixels count. Outside the region
    of interest n is not free.

    Args:
      model: as fitted or tuned.
      scores: smoothed score map, (h, w).
      faint: whether pieces that stay below the threshold count as well.
      limits: of such scores in normal pictures; by default the model's own.

    Returns:
      (h, w) bool; nothing where no score reaches the threshold.
    """
    procedure, limits = model.procedure, limits or model.limits
    threshold = model.threshold_in(limits)
    low = threshold if procedure.region == "threshold" else min(limits.pixel, threshold)
    counting = scores if model.inside is None else scores[model.inside[0]]
    if not counting.size:
        return np.zeros(scores.shape, bool)
    free = scores > max(low, float(np.quantile(counting, 1 - procedure.largest)))
    if not faint:
        free = ndimage.binary_propagation(free & (scores > threshold), mask=free, structure=SQUARE)
    if procedure.dilation:  # SciPy takes no iterations for as many as change something
        free = ndimage.binary_dilation(free, iterations=procedure.dilation)
    return model.inspected(free)


def find_doubtful(model: Model, sight: Sight) -> np.ndarray:
    """Where a picture may be anomalous, faint pieces as well: (h, w) bool. Fills take nothing from there."""
    return find_region(model, sight.scores, faint=True, limits=sight.limits)


class Affected(NamedTuple):
    """Positions of the detector's grid whose scores the region can change, padded to one of few lengths."""

    positions: np.ndarray  # (S,) int32, ascending, row-major
    present: np.ndarray  # (S,) float32, zero for padding
    coarser: tuple[np.ndarray, ...]  # (S_k,) int32, the cells of each further map in which they lie


def affected(region: np.ndarray, grids: Sequence[Shape]) -> Affected:
    """Positions whose own cell or a neighbouring one meets the region.

    Args:
      region: bool, in any size.
      grids: rows and columns of the detector's grid and of further maps, none finer.
    """

    def cells(wanted: np.ndarray, grid: Shape) -> np.ndarray:
        met = np.zeros(grid, bool)
        rows, columns = (
            index * cells // side for index, cells, side in zip(np.nonzero(wanted), grid, wanted.shape, strict=True)
        )
        met[rows, columns] = True
        return met

    near = ndimage.binary_dilation(cells(region, grids[0]), SQUARE)
    wanted = [np.flatnonzero(cells(near, grid)) for grid in grids]
    counts = [height * width for height, width in grids]

    def lengths(share: float) -> list[int]:
        return [round(min(share * SPREAD**k, 1.0) * count) for k, count in enumerate(counts)]

    fitting = next(n for n in map(lengths, SHARES) if all(len(w) <= most for w, most in zip(wanted, n, strict=True)))
    padded = [
        np.pad(index, (0, length - len(index)), constant_values=count - 1).astype(np.int32)
        for index, length, count in zip(wanted, fitting, counts, strict=True)
    ]
    return Affected(padded[0], (np.arange(fitting[0]) < len(wanted[0])).astype(np.float32), tuple(padded[1:]))


class Start(NamedTuple):
    """Where a solve begins; pictures are (H, W, 3) float32, ImageNet-normalised.

    Attributes:
      normal: n⁽⁰⁾.
      fill: the filled picture, whose features choose PatchCore's candidates M_ij.
      filled: whether n⁽⁰⁾ is the fill, not x.
      error: of the fill, as `fills.Match` has it; infinite where it is unknown.
    """

    normal: np.ndarray
    fill: np.ndarray
    filled: bool
    error: float = np.inf


def begin(model: Model, image: np.ndarray, region: np.ndarray, *, doubtful: np.ndarray | None = None) -> Start:
    """n⁽⁰⁾, step 2 of Algorithm 1.

    A fill that knows the part is the better start where it is right. Where no normal picture matches, as in
    irregular textures, x itself is: its normal pixels are where they should be, and the anomalous ones leave x in
    the warm-up.

    Args:
      model: as fitted or tuned.
      image: x, (H, W, 3) float32, ImageNet-normalised.
      region: bool, (h, w) or (H, W).
      doubtful: where else x may be anomalous, bool, (h, w) or (H, W), which no fill is taken from.
    """
    choice, shape = model.procedure.start, (image.shape[0], image.shape[1])
    region = model.inspected(resize_mask(region, shape))
    elsewhere = None if doubtful is None else resize_mask(doubtful, shape)
    fill, error = FILLS[choice if choice in FILLS else "matching"](image, region, model, elsewhere)
    if choice == "image" or (choice == "auto" and error > model.procedure.trusted):
        return Start(image, fill, filled=False, error=error)
    return Start(fill, fill, filled=True, error=error)


class Place(NamedTuple):
    """Where to look in a picture, and from what to begin.

    Attributes:
      region: where n is free, (h, w) bool.
      start: n⁽⁰⁾; None where n is free nowhere.
    """

    region: np.ndarray
    start: Start | None


def locate(model: Model, sight: Sight) -> Place:
    """Steps 2 and 3 of Algorithm 1: the region and n⁽⁰⁾.

    A fill differs from x wherever it is no perfect copy, so from a fill only pieces that reach the threshold count.
    From x a pixel leaves only where l_n gains more than sparsity costs: there the solve itself decides, and fainter
    pieces are looked at as well, but not below a threshold that somebody has named.

    Args:
      model: as fitted or tuned.
      sight: the picture.
    """
    region = wide = find_region(model, sight.scores, limits=sight.limits)
    faint = find_doubtful(model, sight)
    if model.procedure.threshold is None:
        wide = faint
    start = begin(model, sight.image, wide, doubtful=faint) if wide.any() else None
    if start is None or not start.filled:
        return Place(wide, start)
    if (region != wide).any():
        start = begin(model, sight.image, region, doubtful=faint) if region.any() else None
    return Place(region, start)


class Plan(NamedTuple):
    """A solve that was decided on; its `Problem`, which takes much more memory, is made when its turn comes.

    Attributes:
      sight: the picture.
      region: (H, W) bool, where n is free.
      box: the part of the picture that is solved for.
      affected: positions that count.
      start: n⁽⁰⁾.
      sparsity: factor of β0, (H, W) float32.
      shared: whether neighbours share anything.
      settings: numbers of the solve.
    """

    sight: Sight
    region: np.ndarray
    box: Box
    affected: Affected
    start: Start
    sparsity: np.ndarray
    shared: bool
    settings: Settings


def plan(model: Model, sight: Sight, region: np.ndarray, start: Start | None = None) -> Plan:
    """The solve that finds a picture's mask.

    Args:
      model: as fitted or tuned.
      sight: the picture.
      region: bool, (h, w) or (H, W), already dilated.
      start: n⁽⁰⁾ where it is known already; by default that of `begin`.
    """
    region = model.inspected(resize_mask(region, model.shape))
    if start is None:
        start = begin(model, sight.image, region, doubtful=find_doubtful(model, sight))
    # From x, a faint anomaly whose pixels decide together would vanish as a whole.
    shared = model.settings.share_gradient or (model.procedure.sharing and start.filled)
    sparsity = np.ones(region.shape, np.float32)
    settings = model.settings
    if model.procedure.sparsity == "area":
        sparsity = sparsity / max(int((sight.scores > model.threshold_in(sight.limits)).sum()), 1)
    if model.procedure.sparsity != "levels":
        settings = settings.replace(first_beta=settings.beta0)
    return _plan(model, sight, region, start, sparsity, shared, settings)


def plan_estimation(model: Model, sight: Sight, mask: np.ndarray) -> Plan:
    """Step 6 of Algorithm 1, re-estimation: F without sparsity on the final mask only, from a fresh fill."""
    doubtful, most = resize_mask(find_doubtful(model, sight), model.shape), model.procedure.refine
    fill = FILLS["matching"](sight.image, mask, model, doubtful).filled
    # All of it is a warm-up: nothing decides, and steps do not grow.
    start, settings = Start(fill, fill, filled=False), model.settings.replace(limit=most, warm_up=most)
    none = np.zeros(mask.shape, np.float32)
    return _plan(model, sight, mask, start, none, model.settings.share_gradient, settings)


def _plan(model: Model, sight: Sight, region: np.ndarray, *others: Any) -> Plan:
    whole = Box(0, 0, *model.shape)
    box = whole if model.seen == model.shape else enclosing(region, BORDER)
    reached = np.ones_like(region) if model.extractor.everywhere else region
    return Plan(sight, region, box, affected(reached, model.grids), *others)


@jax.jit
def _localize(detector: Detector, maps: Maps, positions: jax.Array, coarser: tuple[jax.Array, ...]):
    return detector.localize(maps, positions, coarser)


_sharing_weights, _reduce = jax.jit(sharing_weights), jax.jit(reduce)


def usual_cost(model: Model, sight: Sight) -> float:
    """The s_ij that l_n counts in: that of normal pictures, or the picture's own median where that is higher.

    The normal pixels of a picture unlike the training pictures would otherwise pay more than sparsity can.
    """
    return max(float(model.scales.score), float(np.median(sight.costs)))


def build(model: Model, chosen: Plan) -> tuple[jax.Array, Problem, Settings]:
    """What the solver takes: n⁽⁰⁾, the problem, and its numbers; scores count in the unit of `usual_cost`."""
    sight, start, box = chosen.sight, chosen.start, chosen.box
    image, fill, reduction = jnp.asarray(box.cut(sight.image)), box.cut(start.fill), _reduction(model, sight, box)
    maps = sight.maps
    if model.detector.anchored:
        seen = fill if reduction is None else _reduce(fill, image, reduction)
        maps = tuple(m[0] for m in apply_extractor(model.extractor, seen[None]))
    problem = Problem(
        image=image,
        region=jnp.asarray(box.cut(chosen.region)),
        sparsity=jnp.asarray(box.cut(chosen.sparsity)),
        local=_localize(model.detector, maps, chosen.affected.positions, chosen.affected.coarser),
        present=jnp.asarray(chosen.affected.present),
        scales=model.scales.replace(score=jnp.float32(usual_cost(model, sight))),
        filled=jnp.asarray(start.filled),
        sharing=_sharing_weights(image) if chosen.shared else None,
        reduction=reduction,
    )
    return jnp.asarray(box.cut(start.normal)), problem, chosen.settings


def _reduction(model: Model, sight: Sight, box: Box) -> Reduction | None:
    """D on a box; None where the extractor sees the pictures as they are."""
    if model.seen == model.shape:
        return None
    (top, rows), (left, columns) = (
        part_weights(length, target, part)
        for length, target, part in zip(model.shape, model.seen, (box.rows, box.columns), strict=True)
    )
    return Reduction(
        seen=jnp.asarray(sight.seen),
        rows=jnp.asarray(rows),
        columns=jnp.asarray(columns),
        corner=jnp.asarray([top, left]),
        area=jnp.float32(model.scale**2),
    )


def prepare(model: Model, image: Any) -> tuple[Problem, jax.Array]:
    """The problem of one picture and n⁽⁰⁾, for `objective`, `solve` and experiments of one's own.

    Args:
      model: as fitted or tuned.
      image: a picture of any size as `data.arrays.as_picture` takes it; it is resized to the model's shape.

    Returns:
      The problem, and n⁽⁰⁾ as (H, W, 3) float32, ImageNet-normalised; of a model whose extractor sees a reduced picture
      both are of the part around the region. Where no score reaches the region threshold the region is empty and n
      stays x.

    Raises:
      InputError: no such picture.
    """
    own = resize_image(as_picture(image, white_level=model.white_level), model.shape)
    (sight,) = look(model, own[None])
    place = locate(model, sight)
    start, problem, _ = build(model, plan(model, sight, *place))
    return problem, start

"""Algorithm 1 of arXiv 2407.06519: from a picture to the exact mask of its anomaly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import ndimage
from skimage.morphology import remove_small_objects
from tqdm import tqdm

from f2pad_jax.data.images import denormalize, normalize
from f2pad_jax.detectors import get_detector
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Match, autoencoder_fill, harmonic_fill, matching_fill
from f2pad_jax.fitting import Model, fit, score_maps
from f2pad_jax.preparing import SQUARE, affected, prepare, strides_of
from f2pad_jax.settings import Settings
from f2pad_jax.solver import CONVERGED, NON_FINITE, Lane, Method, Rates, Solution, solve_lanes

FILLS = ("harmonic", "matching", "autoencoder")
LANES = 64  # per accelerator
STATUSES = {CONVERGED: "converged", NON_FINITE: "non-finite"}
DOT = 8  # pixels; connected pieces of the mask that are no larger are removed


__all__ = ["Model", "Segmentation", "Settings", "fit", "segment", "segment_many"]


class Segmentation(NamedTuple):
    """What `segment` found in one picture.

    Attributes:
      mask: {a ≠ 0} without dots, (H, W) bool.
      normal: the recovered non-defective picture n*, (H, W, 3) uint8.
      anomaly: a = x − n*, (H, W, 3) float32 in [-1, 1].
      initial_mask: the backbone's mask m⁽⁰⁾, (H, W) bool.
      score_map: the backbone's smoothed scores, (H, W) float32.
      iterations: of the main solve.
      status: "converged", "iteration limit", "non-finite" or "normal" (nothing reached the region threshold).
      seconds: wall time; of pictures that are segmented together, each one's share.
    """

    mask: np.ndarray
    normal: np.ndarray
    anomaly: np.ndarray
    initial_mask: np.ndarray
    score_map: np.ndarray
    iterations: int
    status: str
    seconds: float


def find_region(model: Model, scores: np.ndarray) -> np.ndarray:
    """Step 3: where n is free, the pixels above the region threshold, dilated.

    A picture unlike the training pictures scores high all over; then only its highest pixels count.

    Args:
      model: as fitted or tuned.
      scores: smoothed score map, (S, S).

    Returns:
      (S, S) bool; nothing where no score reaches the threshold.
    """
    region = scores > max(model.region_threshold, float(np.quantile(scores, 1 - model.settings.largest)))
    return ndimage.binary_dilation(region, iterations=model.settings.dilation)


def fill(image: np.ndarray, region: np.ndarray, model: Model, *, kind: str) -> Match:
    """The picture with the region replaced.

    Args:
      image: x, (H, W, 3) float32, ImageNet-normalised.
      region: (H, W) bool.
      model: its training pictures are the material of "matching", its inpainter makes "autoencoder".
      kind: "harmonic", "matching" or "autoencoder".

    Raises:
      InputError: the model has no inpainter.
    """
    if kind == "harmonic":
        return Match(harmonic_fill(image, region), np.inf)
    if kind == "autoencoder":
        if model.inpainter is None:
            raise InputError("the model has no autoencoder", hint="fit it with --inpainter, or choose another start")
        return Match(autoencoder_fill(image, region, model.inpainter.params, model.inpainter.spec), np.inf)
    return matching_fill(image, region, normalize(model.normals))


def clean(mask: np.ndarray, *, kind: str) -> np.ndarray:
    """Removes dots from a mask (Algorithm 1): small connected pieces, or whatever a 3 × 3 opening takes."""
    if kind == "opening":
        return ndimage.binary_opening(mask, SQUARE)
    return remove_small_objects(mask, max_size=DOT, connectivity=2)


class Start(NamedTuple):
    """Where a solve begins; pictures are (S, S, 3) float32, ImageNet-normalised."""

    normal: np.ndarray  # n⁽⁰⁾
    anchor: np.ndarray  # the filled picture, whose features choose PatchCore's candidates M_ij
    warm_up: int  # iterations without sparsity
    filled: bool  # whether n⁽⁰⁾ is the fill


def begin(model: Model, image: np.ndarray, region: np.ndarray) -> Start:
    """Step 2: n⁽⁰⁾.

    A fill that knows the part is the better start where it is right. Where no normal picture matches, as in
    irregular textures, x itself is: its normal pixels are where they should be, and the anomalous ones leave x in
    the warm-up.
    """
    settings = model.settings
    filled, error = fill(image, region, model, kind=settings.start if settings.start in FILLS else "matching")
    from_image = settings.start == "image" or (settings.start == "auto" and error > settings.trusted)
    if from_image:
        return Start(image, filled, settings.warm_up, filled=False)
    return Start(filled, filled, 0, filled=True)


class Job(NamedTuple):
    """One solve. Jobs that are given together share detector, extractor, sparsity and step size, and differ at will."""

    model: Model
    image: np.ndarray  # x, (S, S, 3) float32, ImageNet-normalised
    region: np.ndarray  # (S, S) bool, where n is free
    start: Start
    beta: float  # weight of sparsity
    limit: int  # most iterations


def find_solutions(jobs: Sequence[Job], *, title: str | None = None) -> Iterator[tuple[int, Solution]]:
    """Step 4: solves all jobs in lanes, over all local devices; index and solution of each, as they finish.

    Args:
      jobs: any number.
      title: of a progress bar; none without.
    """
    groups: dict[Any, list[int]] = {}
    for index, job in enumerate(jobs):
        # Lanes of one compiled step have equal shapes.
        positions = affected(job.region, strides_of(job.model)).positions
        groups.setdefault((len(positions), job.model.mixture.mean.shape, shares(job)), []).append(index)
    with tqdm(total=len(jobs), desc=title, unit="image", leave=False, disable=None if title else True) as bar:
        for members in groups.values():
            model = jobs[members[0]].model
            devices = jax.local_devices()[: len(members)]
            finished = solve_lanes(
                (lane(jobs[index]) for index in members),
                extractor=model.extractor,
                detector=get_detector(model.detector),
                method=method_of(model.settings),
                width=_width(len(members), devices),
                devices=devices,
            )
            for place, solution in finished:
                bar.update()
                yield members[place], solution


def method_of(settings: Settings) -> Method:
    """What settings say about the compiled step."""
    return Method(settings.sparsity, settings.step_size, share_gradient=settings.sharing == "all")


def _width(count: int, devices: Sequence[Any]) -> int:
    """Lanes per compiled call; on a CPU more of them than devices gain nothing."""
    most = len(devices) if devices[0].platform == "cpu" else LANES * len(devices)
    width = len(devices)
    while width < min(count, most):
        width *= 2
    return width


def shares(job: Job) -> bool:
    """Whether neighbours share anything in a solve."""
    choice = job.model.settings.sharing
    # From x, a faint anomaly whose pixels decide together vanishes as a whole; without sparsity nothing is decided.
    return choice == "all" or (choice == "norm" and job.start.filled and job.beta > 0)


def lane(job: Job) -> Lane:
    """A job as the solver takes it."""
    s = job.model.settings
    problem = prepare(job.model, job.image, job.region, job.start.anchor, beta=job.beta, shared=shares(job))
    rates = Rates(s.rate, s.clip, s.clip, job.start.warm_up, s.tolerance, s.patience, s.rise)
    return Lane(job.start.normal, problem, rates, job.limit)


def masking(model: Model, image: np.ndarray, region: np.ndarray, start: Start | None = None) -> Job:
    """The job that finds the mask of a picture.

    Args:
      model: as fitted or tuned.
      image: x, (S, S, 3) float32, ImageNet-normalised.
      region: (S, S) bool, already dilated.
      start: where it is known already, as settings are compared that do not change it.
    """
    settings = model.settings
    return Job(model, image, region, start or begin(model, image, region), settings.beta0, settings.limit)


def find_masks(jobs: Sequence[Job], *, title: str | None = None) -> Iterator[tuple[int, np.ndarray, Solution]]:
    """Steps 4 and 5: solves, and reads the masks off a = x − n: index, cleaned mask (S, S) bool, and solution."""
    for index, solution in find_solutions(jobs, title=title):
        settings = jobs[index].model.settings
        changed = np.linalg.norm(jobs[index].image - np.asarray(solution.normal), axis=-1) > settings.smallest
        yield index, clean(changed, kind=settings.cleaning), solution


def estimation(model: Model, image: np.ndarray, mask: np.ndarray) -> Job:
    """The job of step 6, re-estimation: minimises F without sparsity on the final mask only, from a fresh fill."""
    filled, limit = fill(image, mask, model, kind="matching").filled, model.settings.refine
    return Job(model, image, mask, Start(filled, filled, limit, filled=True), 0.0, limit)


def segment_many(
    model: Model, images: np.ndarray, *, initial_maps: np.ndarray | None = None, title: str | None = None
) -> list[Segmentation]:
    """Algorithm 1 on pictures of the model's size, in lanes over all local devices.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, S, S, 3).
      initial_maps: score maps (N, S, S) of another detector, in the units of the model's thresholds; by default
        the backbone's own.
      title: of a progress bar; none without.

    Returns:
      One result per picture; their `seconds` are equal shares of the whole.

    Raises:
      InputError: the pictures are of another kind or size.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (model.size, model.size, 3):
        raise InputError(
            f"the pictures are {images.dtype} {images.shape}",
            hint=f"give uint8 RGB, (N, {model.size}, {model.size}, 3)",
        )
    if not len(images):
        return []
    began = time.perf_counter()
    maps = score_maps(model, images) if initial_maps is None else initial_maps
    found = segment_regions(model, images, list(maps), [find_region(model, scores) for scores in maps], title=title)
    seconds = (time.perf_counter() - began) / len(images)
    return [result._replace(seconds=seconds) for result in found]


def segment_regions(
    model: Model,
    images: np.ndarray,
    maps: Sequence[np.ndarray],
    regions: Sequence[np.ndarray],
    *,
    starts: Sequence[Start] | None = None,
    title: str | None = None,
) -> list[Segmentation]:
    """Steps 4 to 6 of Algorithm 1 where the regions are known.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, S, S, 3).
      maps: score maps, (S, S) each.
      regions: where n is free, (S, S) bool each.
      starts: n⁽⁰⁾ of each; by default `begin` makes them.
      title: of a progress bar; none without.

    Returns:
      One result per picture; their `seconds` are equal shares of the whole.
    """
    began, x = time.perf_counter(), normalize(images)
    masks, normals = np.zeros(images.shape[:3], bool), images.copy()
    iterations, statuses = [0] * len(images), ["normal"] * len(images)

    suspect = [k for k, region in enumerate(regions) if region.any()]
    jobs = [masking(model, x[k], regions[k], starts[k] if starts else None) for k in suspect]
    for place, mask, solution in find_masks(jobs, title=title):
        k = suspect[place]
        masks[k], iterations[k] = mask, int(solution.iterations)
        statuses[k] = STATUSES.get(int(solution.status), "iteration limit")

    marked = [k for k, mask in enumerate(masks) if mask.any()]
    for place, solution in find_solutions([estimation(model, x[k], masks[k]) for k in marked]):
        k = marked[place]
        normals[k] = np.where(masks[k][..., None], denormalize(np.asarray(solution.normal)), images[k])

    anomalies = (images.astype(np.float32) - normals.astype(np.float32)) / 255
    seconds = (time.perf_counter() - began) / max(len(images), 1)
    return [
        Segmentation(
            masks[k], normals[k], anomalies[k], maps[k] > model.threshold, maps[k], iterations[k], status, seconds
        )
        for k, status in enumerate(statuses)
    ]


def segment(model: Model, image: np.ndarray, *, initial_map: np.ndarray | None = None) -> Segmentation:
    """`segment_many` of one picture, uint8 RGB (S, S, 3)."""
    maps = None if initial_map is None else initial_map[None]
    return segment_many(model, np.asarray(image)[None], initial_maps=maps)[0]

"""Fitting and Algorithm 1 on a small real case: crops of a photograph of bricks, real Lite0 features."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.measure import label
from solving import tiny_extractor

from f2pad_jax import preparing, segmentation, sights, solving
from f2pad_jax.calibration import choose_levels, limits_of
from f2pad_jax.core import Settings, Status, levels_of, solve
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.images import resize_image, resize_mask
from f2pad_jax.data.textures import Case, texture_category
from f2pad_jax.detectors.padim import PaDiM
from f2pad_jax.errors import InputError, KindError
from f2pad_jax.fills import matching
from f2pad_jax.fitting import fit, synthetic_anomalies
from f2pad_jax.grouping import GROUP
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.outcomes import EVIDENT, clean, evidence, read_off, refined_map
from f2pad_jax.preparing import Place, begin, build, find_region, locate, plan, plan_estimation, prepare
from f2pad_jax.procedure import Procedure
from f2pad_jax.segmentation import Segmentation, segment, segment_regions
from f2pad_jax.sights import look, score_maps, smooth_map
from f2pad_jax.solving import find_solutions

SIDE = 64
FOUND = ("mask", "normal", "anomaly", "initial_mask", "score_map", "refined_map", "residual", "iterations", "status")


def without_dots(mask: np.ndarray) -> np.ndarray:
    """The mask without pieces of eight pixels or fewer that touch by sides or corners."""
    pieces = np.asarray(label(mask, connectivity=2))
    return mask & (np.bincount(pieces.ravel())[pieces] > 8)


class Fitted(NamedTuple):
    model: Model
    cases: list[Case]
    results: list[Segmentation]


@pytest.fixture(scope="module", autouse=True)
def padded() -> Iterator[tuple[float, ...]]:
    """One shape of the solve for all pictures; how positions are padded is no matter here. Gives the real shares."""
    patch, shares = pytest.MonkeyPatch(), preparing.SHARES
    patch.setattr(preparing, "SHARES", (1.0,))
    yield shares
    patch.undo()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, list[Case]]:
    normals, cases = texture_category("brick", train=16, test=8, size=SIDE)
    return normals, [case for case in cases if case[1].mean() > 0.05]  # the others are a few pixels wide


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def fitted(request: pytest.FixtureRequest, data: tuple[np.ndarray, list[Case]], lite0: Extractor) -> Fitted:
    normals, cases = data
    # The start that needs no luck with the fill: bricks of 64 pixels hold many places that nearly match.
    # Smoothing by 4 pixels spreads scores over a picture this small, so the region may be all of it.
    # Two held-out pictures this small tell little of what is normal: any that is above them counts.
    procedure = Procedure(start="image", largest=1.0, false_alarms=0.2)
    model = fit(normals, detector=request.param, extractor=lite0, procedure=procedure)
    return Fitted(model, cases, [segment(model, image) for image, _, _ in cases])


@pytest.fixture(scope="module")
def padim(data: tuple[np.ndarray, list[Case]], lite0: Extractor) -> Model:
    return fit(data[0], detector="padim", extractor=lite0)


def test_f2pad_is_far_closer_to_the_truth_than_its_backbone(fitted: Fitted) -> None:
    truths = [mask for _, mask, _ in fitted.cases]
    reached = [iou(r.mask, t) for r, t in zip(fitted.results, truths, strict=True)]
    backbone = [iou(r.initial_mask, t) for r, t in zip(fitted.results, truths, strict=True)]
    assert len(reached) == 3
    assert min(reached) > 0.9
    assert all(f2pad > blob + 0.1 for f2pad, blob in zip(reached, backbone, strict=True))
    assert np.mean(backbone) < 0.65
    assert {r.status for r in fitted.results} <= {"converged", "iteration limit"}


def test_a_segmentation_holds_together(fitted: Fitted) -> None:
    for (image, _, _), result in zip(fitted.cases, fitted.results, strict=True):
        assert {result.mask.dtype, result.initial_mask.dtype} == {np.dtype(bool)}
        assert result.mask.shape == result.score_map.shape == (SIDE, SIDE)
        assert result.normal.dtype == np.uint8
        assert result.anomaly.dtype == np.float32
        np.testing.assert_array_equal(result.normal[~result.mask], image[~result.mask])
        np.testing.assert_allclose(result.anomaly, (image.astype(float) - result.normal) / 255, atol=1e-6)
        np.testing.assert_array_equal(result.initial_mask, result.score_map > fitted.model.threshold)
        np.testing.assert_allclose(result.score_map, score_maps(fitted.model, image[None])[0], rtol=1e-5)
        np.testing.assert_array_equal(result.mask, without_dots(result.mask))
        np.testing.assert_array_equal(result.refined_map, refined_map(result.score_map, result.mask))
        assert result.verdict == ("defect" if result.residual <= 1 else "unexplained")
        assert 0 < result.iterations <= fitted.model.settings.limit
        assert result.seconds > 0


def test_the_recovered_picture_is_nearer_to_the_normal_one(fitted: Fitted) -> None:
    for (image, mask, normal), result in zip(fitted.cases, fitted.results, strict=True):
        before, after = (np.abs(p.astype(float) - normal)[mask].mean() for p in (image, result.normal))
        assert after < 0.75 * before


def test_the_mask_is_where_the_anomaly_is_not_zero(fitted: Fitted) -> None:
    model, (image, _, _) = fitted.model, fitted.cases[0]
    (sight,) = look(model, image[None])
    np.testing.assert_array_equal(sight.image, normalize(image))
    region = find_region(model, sight.scores)
    chosen = plan(model, sight, region)
    ((_, solution),) = find_solutions(model, [chosen])
    changed = (np.asarray(solution.normal) != sight.image).any(axis=-1)
    whole = clean(changed, sight.scores, region, kind="whole")
    np.testing.assert_array_equal(read_off(model, chosen, solution).mask, whole)
    np.testing.assert_array_equal(whole, fitted.results[0].mask)
    assert not changed[~region].any()
    assert 0 < changed[region].mean() < 1


def test_the_region_is_what_reaches_the_threshold_and_what_belongs_to_it(fitted: Fitted) -> None:
    model, scores = fitted.model, np.zeros(fitted.model.seen, np.float32)
    low, high = 1.01 * model.limits.pixel, 1.01 * model.threshold
    assert low < model.threshold
    scores[10:20, 10:20], scores[15, 15], scores[40:44, 40:44] = low, high, low
    wanted = np.zeros(scores.shape, bool)
    wanted[10:20, 10:20] = True
    wanted = ndimage.binary_dilation(wanted, iterations=model.procedure.dilation)
    np.testing.assert_array_equal(find_region(model, scores), wanted)
    papers = replace(model, procedure=replace(model.procedure, region="threshold", dilation=1))
    assert find_region(papers, scores).sum() == 5
    bare = replace(model, procedure=replace(papers.procedure, dilation=0))
    assert find_region(bare, scores).sum() == 1


def test_faint_pieces_count_where_the_solve_starts_from_x(fitted: Fitted) -> None:
    model, scores = fitted.model, np.zeros(fitted.model.seen, np.float32)
    low, high = 1.01 * model.limits.pixel, 1.01 * model.threshold
    scores[10:20, 10:20], scores[15, 15], scores[40:44, 40:44] = low, high, low
    (sight,) = look(model, fitted.cases[0][0][None])
    strong, every = (find_region(model, scores, faint=faint) for faint in (False, True))
    assert every[strong].all()
    assert every.sum() > strong.sum() > 0

    def found(start: Literal["matching", "image"], threshold: float | None = None, share: float = 1.0) -> Place:
        procedure = replace(model.procedure, start=start, threshold=threshold)
        return locate(replace(model, procedure=procedure), sight._replace(scores=np.float32(share) * scores))

    for place, wanted in (
        (found("matching"), strong),
        (found("image"), every),
        (found("image", model.threshold), strong),
        (found("matching", share=0.99 * low / high), np.zeros_like(strong)),
    ):
        np.testing.assert_array_equal(place.region, wanted)
        assert (place.start is None) == (not wanted.any())
    filled = found("matching").start
    assert filled is not None
    assert filled.filled
    np.testing.assert_array_equal(filled.normal, begin(model, sight.image, strong).fill)


@pytest.mark.parametrize(("high", "wide", "length"), [(6, 9, 43), (20, 40, 128), (60, 60, 256)])
def test_the_affected_positions_are_those_at_and_beside_the_region(
    padded: tuple[float, ...], high: int, wide: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARES", padded)
    region = np.zeros((SIDE, SIDE), bool)
    region[1 : 1 + high, 3 : 3 + wide] = True
    positions, present, coarser = preparing.affected(region, ((16, 16), (8, 8), (4, 4)))
    touched = {(i // 4, j // 4) for i, j in zip(*np.nonzero(region), strict=True)}
    wanted = {(i + di, j + dj) for i, j in touched for di in (-1, 0, 1) for dj in (-1, 0, 1)}
    wanted = sorted(16 * i + j for i, j in wanted if 0 <= i < 16 and 0 <= j < 16)
    assert positions[present > 0].tolist() == wanted
    assert len(positions) == len(present) == length
    for cells, grid in zip(coarser, (8, 4), strict=True):
        own = {i * grid // 16 * grid + j * grid // 16 for i, j in (divmod(p, 16) for p in wanted)}
        assert set(cells.tolist()) == own | {grid * grid - 1}
        assert (np.diff(cells) >= 0).all()


def test_cleaning_a_mask() -> None:
    rng = np.random.default_rng(0)
    dots = np.asarray(ndimage.binary_dilation(rng.random((SIDE, SIDE)) < 0.03), bool)
    mask = dots & (rng.random((SIDE, SIDE)) < 0.8)
    mask[10, 5:50] = True  # a scratch one pixel wide
    flat, everywhere = np.ones(mask.shape), np.ones(mask.shape, bool)
    dotless, opened = (clean(mask, flat, everywhere, kind=kind) for kind in ("whole", "opening"))
    np.testing.assert_array_equal(dotless, ndimage.binary_fill_holes(without_dots(mask)))
    np.testing.assert_array_equal(opened, ndimage.binary_opening(mask, np.ones((3, 3))))
    assert dotless[10, 5:50].all()
    assert 0 < dotless.sum() < mask.sum()
    assert not opened[10, 5:50].all()


def test_whether_neighbours_share_depends_on_the_solve(padim: Model, data: tuple[np.ndarray, list[Case]]) -> None:
    image, mask, _ = data[1][0]
    (sight,) = look(padim, image[None])
    region = np.asarray(ndimage.binary_dilation(mask, iterations=2), bool)

    def shared(start: Any, *, sharing: bool, gradient: bool) -> tuple[bool, bool]:
        """In the main solve, and in the one that estimates n again."""
        model = replace(
            padim,
            settings=padim.settings.replace(share_gradient=gradient),
            procedure=replace(padim.procedure, start=start, sharing=sharing),
        )
        plans = plan(model, sight, region), plan_estimation(model, sight, region)
        for chosen in plans:
            assert chosen.shared == (build(model, chosen)[1].sharing is not None)
        return plans[0].shared, plans[1].shared

    # From x, faint anomalies would vanish as a whole; without sparsity nothing is decided.
    assert shared("harmonic", sharing=True, gradient=False) == (True, False)
    assert shared("image", sharing=True, gradient=False) == (False, False)
    for start in ("harmonic", "image"):
        assert shared(start, sharing=False, gradient=True) == (True, True)
        assert shared(start, sharing=False, gradient=False) == (False, False)


def assert_same(one: Segmentation, other: Segmentation) -> None:
    for name in FOUND:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_segmenting_again_gives_the_same(fitted: Fitted) -> None:
    assert_same(segment(fitted.model, fitted.cases[1][0]), fitted.results[1])


def test_many_pictures_give_what_each_gives_alone(fitted: Fitted) -> None:
    clean = fitted.cases[0][2]
    images = [*(image for image, _, _ in fitted.cases), clean]
    alone = [*fitted.results, segment(fitted.model, clean)]
    for many in (segment(fitted.model, np.stack(images)), segment(fitted.model, images)):
        assert isinstance(many, list)
        for one, other in zip(many, alone, strict=True):
            assert_same(one, other)
    assert segment(fitted.model, np.stack(images)[:0]) == segment(fitted.model, []) == []


def test_a_picture_of_another_size_is_worked_on_at_the_models(fitted: Fitted) -> None:
    small = fitted.cases[0][0]
    large = np.asarray(Image.fromarray(small).resize((150, 170), Image.Resampling.BICUBIC))
    result, at_size = segment(fitted.model, large), segment(fitted.model, resize_image(large, (SIDE, SIDE)))
    assert {getattr(result, name).shape for name in ("mask", "initial_mask", "score_map", "refined_map")} == {
        (170, 150)
    }
    assert result.normal.shape == result.anomaly.shape == large.shape
    assert (result.iterations, result.status, result.residual) == (
        at_size.iterations, at_size.status, at_size.residual,
    )  # fmt: skip
    np.testing.assert_array_equal(result.mask, resize_mask(at_size.mask, (170, 150)))
    np.testing.assert_array_equal(result.initial_mask, resize_mask(at_size.initial_mask, (170, 150)))
    assert iou(result.mask, resize_mask(fitted.cases[0][1], (170, 150))) > 0.85
    np.testing.assert_array_equal(result.normal[~result.mask], large[~result.mask])
    np.testing.assert_allclose(result.anomaly, (large.astype(float) - result.normal) / 255, atol=1e-6)
    changed = np.abs(result.anomaly).max(axis=-1) > 2 / 255
    assert changed[result.mask].mean() > 0.9
    assert result.score_map.dtype == np.float32
    np.testing.assert_allclose(result.score_map[::10, ::10].mean(), at_size.score_map.mean(), rtol=0.05)


def test_a_clean_picture_has_an_empty_mask(fitted: Fitted) -> None:
    for _, _, normal in fitted.cases:
        result = segment(fitted.model, normal)
        assert result.mask.mean() < 0.003


def test_below_the_threshold_nothing_is_solved(fitted: Fitted) -> None:
    calm = at_threshold(fitted.model, 1e9)
    image = fitted.cases[0][0]
    result = segment(calm, image)
    assert (result.status, result.iterations, result.verdict, result.residual) == ("normal", 0, "ok", 0)
    assert not result.mask.any()
    assert not result.initial_mask.any()
    assert not result.anomaly.any()
    np.testing.assert_array_equal(result.normal, image)


def test_the_score_map_of_another_detector_can_be_given(fitted: Fitted) -> None:
    image, mask, _ = fitted.cases[0]
    scores = np.where(ndimage.binary_dilation(mask, iterations=2), 1e6, 0.0).astype(np.float32)
    (sight,) = look(fitted.model, image[None])
    given = sight._replace(scores=scores)
    (result,) = segment_regions(fitted.model, image[None], [given], [find_region(fitted.model, scores)])
    np.testing.assert_array_equal(result.score_map, scores)
    np.testing.assert_array_equal(result.initial_mask, scores > 0)
    assert iou(result.mask, mask) > 0.85


def test_a_solve_that_is_not_finite_is_reported(fitted: Fitted) -> None:
    broken = replace(fitted.model, scales=fitted.model.scales.replace(score=jnp.float32(np.nan)))
    result = segment(broken, fitted.cases[0][0])
    assert result.status == "non-finite"
    # Nothing comes of the solve; a detector that is certain marks what it sees.
    assert (result.verdict, result.mask.any()) in (("ok", False), ("unexplained", True))
    np.testing.assert_array_equal(result.mask, result.initial_mask & result.mask.any())


def test_the_iteration_limit_is_reported(fitted: Fitted) -> None:
    short = replace(fitted.model, settings=fitted.model.settings.replace(limit=2))
    result = segment(short, fitted.cases[0][0])
    assert (result.status, result.iterations) == ("iteration limit", 2)


# What is computed, and how often


class Counts(NamedTuple):
    """Pictures that went through the extractor, regions whose positions were looked for, pictures transformed."""

    passes: list[int]
    regions: list[int]
    transformed: list[int]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts([], [], [])

    def count(owner: Any, name: str, into: list[int], size: Callable[..., int]) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            into.append(size(*arguments, **options))
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    for module in (sights, preparing):
        count(module, "apply_extractor", found.passes, lambda _, images: len(images))
    count(preparing, "affected", found.regions, lambda region, _: int(region.sum()))
    count(
        matching,
        "spectra_of",
        found.transformed,
        lambda pictures, usable=None, cell=0: 0 if usable is not None else len(pictures),
    )
    solves = solving.solve_on_all

    def solve_on_all(*arguments: Any) -> Any:
        for done in solves(*arguments):
            found.passes.append(0)  # marks the end of a solve
            yield done

    monkeypatch.setattr(solving, "solve_on_all", solve_on_all)
    return found


def at_threshold(model: Model, threshold: float) -> Model:
    return replace(model, procedure=replace(model.procedure, threshold=threshold))


@pytest.fixture(scope="module")
def quick() -> Callable[[str], tuple[Model, np.ndarray]]:
    """Models on a tiny network, and three pictures with anomalies."""
    normals, cases = texture_category("brick", train=16, test=3, size=32)
    options: dict[str, Any] = {"cflow": {"epochs": 1, "blocks": 2}}

    def made(detector: str) -> tuple[Model, np.ndarray]:
        model = fit(normals, detector=detector, extractor=tiny_extractor(), options=options.get(detector))
        return at_threshold(model, 0.5 * model.threshold), np.stack([case[0] for case in cases])

    return made


@pytest.mark.parametrize(
    ("detector", "passes"),
    [
        # Before the main solve, and before the re-estimation; the two solves have none of their own.
        ("padim", [1, 0, 0]),
        ("cflow", [1, 0, 0]),
        # PatchCore's candidates are those of n⁽⁰⁾, of the main solve and of the re-estimation.
        ("patchcore", [1, 1, 0, 1, 0]),
    ],
)
def test_a_picture_goes_through_the_extractor_once(
    detector: str, passes: list[int], quick: Callable[[str], tuple[Model, np.ndarray]], counts: Counts
) -> None:
    model, images = quick(detector)
    for found in counts:
        found.clear()
    result = segment(model, images[0])
    assert result.mask.any()  # both solves were made
    assert counts.passes == passes
    assert counts.regions == [find_region(model, result.score_map).sum(), result.mask.sum()]
    # Training pictures are transformed for the first fill, and never again.
    assert sum(counts.transformed) == len(model.normals) == 14
    counts.passes.clear()
    results = segment(model, images)
    assert len(images) <= sum(counts.passes) <= len(images) * sum(passes)
    assert sum(counts.transformed) == len(model.normals)
    assert len(counts.regions) == 2 + sum(2 if r.mask.any() else r.status != "normal" for r in results)


@pytest.mark.parametrize("detector", ["padim", "patchcore"])
def test_with_levels_each_piece_is_read_off_at_its_own(
    detector: str, quick: Callable[[str], tuple[Model, np.ndarray]]
) -> None:
    model, images = quick(detector)
    model = replace(model, procedure=replace(model.procedure, start="matching"))
    (sight,) = look(model, images[:1])
    region = find_region(model, sight.scores)
    chosen = plan(model, sight, region)
    assert chosen.settings == model.settings
    ((_, solution),) = find_solutions(model, [chosen])
    ends, factors = levels_of(chosen.start.filled, chosen.settings)
    left = []
    for scores in np.asarray(solution.left):
        grid = sight.costs.copy()
        present = chosen.affected.present > 0
        grid.reshape(-1)[chosen.affected.positions[present]] = scores[present]
        left.append(smooth_map(grid, model.seen))
    levels = choose_levels(
        region, smooth_map(sight.costs, model.seen), np.stack(left), 4.0 * np.asarray(factors), model.limits
    )
    mask = np.zeros(region.shape, bool)
    for k, end in enumerate(np.asarray(ends)):
        mask |= (levels.level == k) & (np.asarray(solution.lasting) >= end)
    values = evidence(sight.scores, sight.image, chosen.start.fill)
    mask &= (levels.level == len(ends) - 1) | (values > EVIDENT * values[region].max())
    outcome = read_off(model, chosen, solution)
    assert outcome.mask.any()
    np.testing.assert_array_equal(outcome.mask, clean(mask, sight.scores, region, kind="whole"))
    assert outcome.residual == pytest.approx(levels.residual)


@pytest.mark.parametrize("detector", ["padim", "patchcore"])
def test_a_prepared_picture_is_solved_as_segment_solves_it(
    detector: str, quick: Callable[[str], tuple[Model, np.ndarray]]
) -> None:
    model, images = quick(detector)
    model = replace(model, procedure=replace(model.procedure, start="image"))
    image, side = images[0], model.shape
    result = segment(model, image)
    problem, start = prepare(model, image)
    solution = jax.jit(solve)(start, model.energy, problem, model.settings)
    changed = (np.asarray(solution.normal) != normalize(image)).any(axis=-1)
    (sight,) = look(model, image[None])
    whole = clean(changed, sight.scores, find_region(model, sight.scores), kind="whole")
    assert result.mask.any()
    np.testing.assert_array_equal(whole, result.mask)
    assert (int(solution.iterations), solution.message) == (result.iterations, result.status)
    large = np.asarray(Image.fromarray(image).resize((90, 70)))
    np.testing.assert_array_equal(prepare(model, large)[0].image, normalize(resize_image(large, side)))
    with pytest.raises(KindError, match=r"the picture is uint8 \(1, 32, 32, 3\); give \(H, W\) or \(H, W, C\)"):
        prepare(model, image[None])


def test_re_estimation_is_without_sparsity_and_from_a_fresh_fill(
    quick: Callable[[str], tuple[Model, np.ndarray]],
) -> None:
    padim, images = quick("padim")
    (sight,) = look(padim, images[:1])
    mask = find_region(padim, sight.scores)
    start, problem, settings = build(padim, plan_estimation(padim, sight, mask))
    np.testing.assert_array_equal(start, matching.matching_fill(sight.image, mask, padim.normals).filled)
    np.testing.assert_array_equal(problem.region, mask)
    assert not np.asarray(problem.sparsity).any()
    assert settings.limit == settings.warm_up == padim.procedure.refine
    solution = jax.jit(solve)(start, padim.energy, problem, settings)
    assert (int(solution.status), int(solution.iterations)) == (Status.LIMIT, padim.procedure.refine)
    assert float(solution.terms.sparsity) == 0


def test_pictures_of_any_sizes_may_be_given_together(quick: Callable[[str], tuple[Model, np.ndarray]]) -> None:
    model, images = quick("padim")
    shapes = [(32, 32), (50, 40), (21, 64), (32, 32)]
    pictures = [resize_image(image, shape) for image, shape in zip([*images, images[0]], shapes, strict=True)]
    alone = [segment(model, picture) for picture in pictures]
    together = segment(model, pictures)
    for picture, one, other in zip(pictures, together, alone, strict=True):
        assert isinstance(other, Segmentation)
        assert one.mask.shape == picture.shape[:2]
        assert_same(one, other)
    assert any(result.mask.any() for result in alone)
    stacked = segment(model, np.stack([pictures[0], pictures[3]]))
    for one, other in zip(stacked, (alone[0], alone[3]), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("above", "certain"), [(1.9, ""), (2.5, "certain")])
def test_where_a_solve_leaves_nothing_the_mask_is_that_of_a_certain_detector(
    quick: Callable[[str], tuple[Model, np.ndarray]], above: float, certain: str
) -> None:
    model, images = quick("padim")
    (sight,) = look(model, images[:1])
    limits = replace(model.limits, peak=sight.scores.max() / above, spread=0.25)
    assert 1.0 < limits.threshold(0.01) / limits.peak < 1.9 < limits.threshold(0.001) / limits.peak < 2.5
    settings = model.settings.replace(beta0=1e6, first_beta=1e6)  # nothing can pay for that
    procedure = replace(model.procedure, start="image", threshold=None, composing=False)
    result = segment(replace(model, limits=limits, settings=settings, procedure=procedure), images[0])
    assert result.initial_mask.any()
    np.testing.assert_array_equal(result.mask, result.initial_mask if certain else np.zeros_like(result.mask))
    assert result.verdict == "unexplained"
    assert result.anomaly.any() == bool(certain)


def test_many_pictures_are_worked_on_in_groups(
    quick: Callable[[str], tuple[Model, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = quick("padim")
    seen: list[int] = []
    alike = segmentation.segment_alike

    def counted(model: Model, images: np.ndarray, **options: Any) -> list[Segmentation]:
        seen.append(len(images))
        return alike(model, images, **options)

    monkeypatch.setattr(segmentation, "segment_alike", counted)
    calm = at_threshold(model, 1e9)
    results = segment(calm, [images[0]] * (GROUP + 2))
    assert seen == [GROUP, 2]
    assert len(results) == GROUP + 2
    assert {result.status for result in results} == {"normal"}


# Fitting


def test_a_model_keeps_some_pictures_from_its_detector(data: tuple[np.ndarray, list[Case]], padim: Model) -> None:
    assert (len(padim.normals), len(padim.held_out)) == (14, 2)
    together = {p.tobytes() for p in np.concatenate([padim.normals.pictures, padim.held_out])}
    assert together == {p.tobytes() for p in data[0]}
    assert (padim.tuned_on, padim.shape, padim.seen, padim.detector.name) == (
        "default",
        (SIDE, SIDE),
        (SIDE, SIDE),
        "padim",
    )
    assert isinstance(padim.detector, PaDiM)
    assert (padim.settings, padim.procedure) == (Settings(), Procedure())
    assert padim.grids == ((8, 8), (4, 4))
    assert padim.scale == 1


def test_fitting_again_gives_the_same(data: tuple[np.ndarray, list[Case]], padim: Model, lite0: Extractor) -> None:
    again = fit(data[0], detector="padim", extractor=lite0)
    assert again.limits == padim.limits
    jax.tree.map(np.testing.assert_array_equal, again.energy, padim.energy)
    jax.tree.map(np.testing.assert_array_equal, again.scales, padim.scales)
    np.testing.assert_array_equal(again.held_out, padim.held_out)
    other = fit(data[0], detector="padim", extractor=lite0, seed=1)
    assert not np.array_equal(other.held_out, padim.held_out)


def test_thresholds_come_from_normal_pictures(padim: Model) -> None:
    sights = look(padim, padim.held_out)
    costs = np.stack([smooth_map(sight.costs, padim.seen) for sight in sights])
    assert padim.limits == limits_of(np.stack([sight.scores for sight in sights]), costs)
    assert padim.threshold == padim.limits.threshold(0.01)
    made = synthetic_anomalies(padim.held_out, count=6, seed=5)
    maps = score_maps(padim, made.images)
    seen = [
        (find_region(padim, m), mask) for m, mask in zip(maps, made.masks, strict=True) if m.max() > padim.threshold
    ]
    assert seen
    assert all(region[mask].mean() > 0.8 for region, mask in seen)
    assert (score_maps(padim, padim.held_out) > padim.threshold).mean() < 0.02


def test_synthetic_anomalies_differ_where_their_masks_say(padim: Model) -> None:
    made = synthetic_anomalies(padim.held_out, count=5, seed=2)
    for index in range(5):
        source = padim.held_out[index % len(padim.held_out)]
        np.testing.assert_array_equal(np.any(made.images[index] != source, axis=-1), made.masks[index])
    np.testing.assert_array_equal(made.images, synthetic_anomalies(padim.held_out, count=5, seed=2).images)


def test_typical_values_are_those_of_unseen_pictures(padim: Model) -> None:
    maps = score_maps(padim, padim.held_out)
    # The summands are squares of the scores: by Jensen, their mean is no less than the square of the mean.
    assert float(padim.scales.score) > np.mean(maps) ** 2
    pixels = normalize(padim.held_out).astype(float)
    variation = sum(np.abs(np.diff(pixels, axis=axis)).sum() for axis in (1, 2)) / pixels[..., 0].size
    np.testing.assert_allclose(padim.scales.variation, variation, rtol=1e-4)


def test_three_pictures_of_one_colour_are_enough(lite0: Extractor) -> None:
    plain = np.full((3, SIDE, SIDE, 3), 90, np.uint8)
    model = fit(plain, detector="patchcore", extractor=lite0)
    assert all(
        np.isfinite(v)
        for v in (*vars(model.scales).values(), model.limits.peak, model.limits.spread, model.limits.cost)
    )
    assert len(model.energy.mixture.mean) == 1


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((4, SIDE, SIDE, 3), np.int32), r"the picture is int32 \(64, 64, 3\)"),
        (np.zeros((SIDE, SIDE, 3), np.uint8), "needs many pictures of one size, not one picture"),
        ([np.zeros((side, side), np.uint8) for side in (64, 65)], "pictures of several sizes; give a list, or uint8"),
        (np.zeros((4, SIDE, SIDE, 2), np.uint8), r"the picture is uint8 \(64, 64, 2\)"),
        (np.zeros((4, 48, 48, 3), np.uint8), "at least 64"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), "2 normal pictures are too few"),
        (np.zeros((0, SIDE, SIDE, 3), np.uint8), "0 normal pictures are too few"),
    ],
)
def test_pictures_that_cannot_be_fitted_are_refused(pictures: Any, message: str, lite0: Extractor) -> None:
    with pytest.raises(InputError, match=message):
        fit(pictures, detector="padim", extractor=lite0)


def test_an_unknown_detector_is_refused(data: tuple[np.ndarray, list[Case]], lite0: Extractor) -> None:
    with pytest.raises(InputError, match="choose one of padim, patchcore"):
        fit(data[0], detector="spade", extractor=lite0)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((SIDE, SIDE, 3), np.int64),
        np.zeros(SIDE, np.uint8),
        np.zeros((SIDE, SIDE, 5), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_pictures_that_cannot_be_segmented_are_refused(picture: np.ndarray, padim: Model) -> None:
    what = re.escape(f"the picture is {picture.dtype} {picture.shape}; give (H, W) or (H, W, C) with C of 1, 3")
    with pytest.raises(KindError, match=what):
        segment(padim, picture)
    with pytest.raises(InputError, match=what):
        segment(padim, [np.zeros((SIDE, SIDE, 3), np.uint8), picture])


def test_an_unknown_choice_or_option_is_refused(data: tuple[np.ndarray, list[Case]], lite0: Extractor) -> None:
    wrong: Any = "proximall"
    with pytest.raises(InputError, match="procedure: start is 'proximall'; choose one of auto, image, matching"):
        fit(data[0], detector="padim", extractor=lite0, procedure=Procedure(start=wrong))
    with pytest.raises(InputError, match="padim has no option 'ratio'; its options are channels, rank"):
        fit(data[0], detector="padim", extractor=lite0, options={"ratio": 0.5})

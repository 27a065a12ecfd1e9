"""Fitting and Algorithm 1 on a small real case: crops of a photograph of bricks, real Lite0 features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from f2pad_jax import pipeline, preparing
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import Case, texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import score_maps, synthetic_anomalies
from f2pad_jax.metrics import iou
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.pipeline import Model, Segmentation, fit, segment
from f2pad_jax.settings import Settings

SIDE = 64


def without_dots(mask: np.ndarray) -> np.ndarray:
    """The mask without pieces of eight pixels or fewer that touch by sides or corners."""
    pieces = np.asarray(label(mask, connectivity=2))
    return mask & (np.bincount(pieces.ravel())[pieces] > 8)


class Fitted(NamedTuple):
    model: Model
    cases: list[Case]
    results: list[Segmentation]


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
    """One shape of the solve for all pictures; how positions are padded is no matter here."""
    patch = pytest.MonkeyPatch()
    patch.setattr(preparing, "SHARES", (1.0,))
    yield
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
    model = fit(normals, detector=request.param, extractor=lite0, settings=Settings(start="image", largest=1.0))
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
        assert 0 < result.iterations <= fitted.model.settings.limit
        assert result.seconds > 0


def test_the_recovered_picture_is_nearer_to_the_normal_one(fitted: Fitted) -> None:
    for (image, mask, normal), result in zip(fitted.cases, fitted.results, strict=True):
        before, after = (np.abs(p.astype(float) - normal)[mask].mean() for p in (image, result.normal))
        assert after < 0.75 * before


def test_the_mask_is_where_the_anomaly_is_not_zero(fitted: Fitted) -> None:
    model, (image, _, _) = fitted.model, fitted.cases[0]
    x = normalize(image)
    wide = fitted.results[0].score_map > model.region_threshold
    region = np.asarray(ndimage.binary_dilation(wide, iterations=model.settings.dilation), bool)
    ((_, mask, solution),) = pipeline.find_masks([pipeline.masking(model, x, region)])
    changed = (np.asarray(solution.normal) != x).any(axis=-1)
    np.testing.assert_array_equal(mask, without_dots(changed))
    np.testing.assert_array_equal(mask, fitted.results[0].mask)
    assert not changed[~region].any()
    assert 0 < changed[region].mean() < 1


@pytest.mark.parametrize(("high", "wide", "length"), [(6, 9, 64), (20, 40, 128), (60, 60, 256)])
def test_the_affected_positions_are_those_at_and_beside_the_region(
    high: int, wide: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARES", (0.25, 0.5, 1.0))
    region = np.zeros((SIDE, SIDE), bool)
    region[1 : 1 + high, 3 : 3 + wide] = True
    positions, present, coarser = preparing.affected(region, (4, 8, 16))
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
    dotless, opened = (pipeline.clean(mask, kind=kind) for kind in ("dots", "opening"))
    np.testing.assert_array_equal(dotless, without_dots(mask))
    np.testing.assert_array_equal(opened, ndimage.binary_opening(mask, np.ones((3, 3))))
    assert dotless[10, 5:50].all()
    assert 0 < dotless.sum() < mask.sum()
    assert not opened[10, 5:50].all()


def test_whether_neighbours_share_depends_on_the_solve(padim: Model, data: tuple[np.ndarray, list[Case]]) -> None:
    image, mask, _ = data[1][0]
    x = normalize(image)
    region = np.asarray(ndimage.binary_dilation(mask, iterations=2), bool)

    def shared(start: Any, sharing: Any, *, beta: float) -> bool:
        model = replace(padim, settings=padim.settings._replace(start=start, sharing=sharing, beta0=beta))
        job = pipeline.masking(model, x, region)
        assert pipeline.shares(job) == (pipeline.lane(job).problem.sharing is not None)
        return pipeline.shares(job)

    assert shared("harmonic", "norm", beta=1.0)
    assert not shared("harmonic", "norm", beta=0.0)
    assert not shared("image", "norm", beta=1.0)
    for start in ("harmonic", "image"):
        assert shared(start, "all", beta=0.0)
        assert not shared(start, "none", beta=1.0)


def test_segmenting_again_gives_the_same(fitted: Fitted) -> None:
    again = segment(fitted.model, fitted.cases[1][0])
    for name in ("mask", "normal", "anomaly", "initial_mask", "score_map", "iterations", "status"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted.results[1], name), err_msg=name)


def test_many_pictures_give_what_each_gives_alone(fitted: Fitted) -> None:
    clean = fitted.cases[0][2]
    images = np.stack([image for image, _, _ in fitted.cases] + [clean])
    many = pipeline.segment_many(fitted.model, images)
    for one, other in zip(many, [*fitted.results, segment(fitted.model, clean)], strict=True):
        for name in ("mask", "normal", "anomaly", "initial_mask", "score_map", "iterations", "status"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert pipeline.segment_many(fitted.model, images[:0]) == []


def test_a_clean_picture_has_an_empty_mask(fitted: Fitted) -> None:
    for _, _, normal in fitted.cases:
        result = segment(fitted.model, normal)
        assert result.mask.mean() < 0.003


def test_below_the_region_threshold_nothing_is_solved(fitted: Fitted) -> None:
    calm = replace(fitted.model, region_threshold=1e9, threshold=1e9)
    image = fitted.cases[0][0]
    result = segment(calm, image)
    assert (result.status, result.iterations) == ("normal", 0)
    assert not result.mask.any()
    assert not result.initial_mask.any()
    assert not result.anomaly.any()
    np.testing.assert_array_equal(result.normal, image)


def test_the_score_map_of_another_detector_can_be_given(fitted: Fitted) -> None:
    image, mask, _ = fitted.cases[0]
    scores = np.where(ndimage.binary_dilation(mask, iterations=2), 1e6, 0.0).astype(np.float32)
    result = segment(fitted.model, image, initial_map=scores)
    np.testing.assert_array_equal(result.score_map, scores)
    np.testing.assert_array_equal(result.initial_mask, scores > 0)
    assert iou(result.mask, mask) > 0.85


def test_a_solve_that_is_not_finite_is_reported(fitted: Fitted) -> None:
    broken = replace(fitted.model, scales=fitted.model.scales._replace(score=np.float32(np.nan)))
    result = segment(broken, fitted.cases[0][0])
    assert result.status == "non-finite"
    assert not result.mask.any()


def test_the_iteration_limit_is_reported(fitted: Fitted) -> None:
    short = replace(fitted.model, settings=fitted.model.settings._replace(limit=2))
    result = segment(short, fitted.cases[0][0])
    assert (result.status, result.iterations) == ("iteration limit", 2)


# Fitting


def test_a_model_keeps_some_pictures_from_its_detector(data: tuple[np.ndarray, list[Case]], padim: Model) -> None:
    assert (len(padim.normals), len(padim.held_out)) == (14, 2)
    together = {p.tobytes() for p in np.concatenate([padim.normals, padim.held_out])}
    assert together == {p.tobytes() for p in data[0]}
    assert (padim.tuned_on, padim.size, padim.detector) == ("default", SIDE, "padim")
    assert padim.settings == Settings()


def test_fitting_again_gives_the_same(data: tuple[np.ndarray, list[Case]], padim: Model, lite0: Extractor) -> None:
    again = fit(data[0], detector="padim", extractor=lite0)
    assert (again.threshold, again.region_threshold) == (padim.threshold, padim.region_threshold)
    for name, array in padim.params.items():
        np.testing.assert_array_equal(again.params[name], array)
    np.testing.assert_array_equal(again.held_out, padim.held_out)
    other = fit(data[0], detector="padim", extractor=lite0, seed=1)
    assert not np.array_equal(other.held_out, padim.held_out)


def test_thresholds_come_from_synthetic_anomalies(padim: Model) -> None:
    assert 0 < padim.region_threshold < padim.threshold
    made = synthetic_anomalies(padim.held_out, count=6, seed=5)
    maps = score_maps(padim, made.images)
    region = maps > padim.region_threshold
    region = np.stack([ndimage.binary_dilation(r, iterations=padim.settings.dilation) for r in region])
    assert (region & made.masks).sum() > 0.8 * made.masks.sum()
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
    assert all(np.isfinite(v) for v in (*model.scales, model.threshold, model.region_threshold))
    assert len(model.mixture.mean) == 1


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((4, SIDE, SIDE, 3), np.float32), "the pictures are float32"),
        (np.zeros((4, SIDE, SIDE), np.uint8), "uint8 RGB"),
        (np.zeros((4, SIDE, SIDE, 4), np.uint8), "uint8 RGB"),
        (np.zeros((4, SIDE, 80, 3), np.uint8), "uint8 RGB"),
        (np.zeros((4, 72, 72, 3), np.uint8), "multiple of 16"),
        (np.zeros((4, 48, 48, 3), np.uint8), "at least 64"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), "2 normal pictures are too few"),
        (np.zeros((0, SIDE, SIDE, 3), np.uint8), "0 normal pictures are too few"),
    ],
)
def test_pictures_that_cannot_be_fitted_are_refused(pictures: np.ndarray, message: str, lite0: Extractor) -> None:
    with pytest.raises(InputError, match=message):
        fit(pictures, detector="padim", extractor=lite0)


def test_an_unknown_detector_is_refused(data: tuple[np.ndarray, list[Case]], lite0: Extractor) -> None:
    with pytest.raises(InputError, match="choose one of padim, patchcore"):
        fit(data[0], detector="spade", extractor=lite0)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((SIDE, SIDE, 3), np.float32),
        np.zeros((SIDE, SIDE), np.uint8),
        np.zeros((SIDE + 4, SIDE, 3), np.uint8),
        np.zeros((SIDE, SIDE, 4), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_pictures_that_cannot_be_segmented_are_refused(picture: np.ndarray, padim: Model) -> None:
    with pytest.raises(InputError, match=r"the pictures are .*; give uint8 RGB, \(N, 64, 64, 3\)"):
        segment(padim, picture)

"""Thresholds from normal pictures, and the level of a rising solve that each piece of a region gets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from f2pad_jax.calibration import (
    GAIN,
    POOR,
    SPREAD,
    UNEXPLAINED,
    WEIGHT,
    Limits,
    choose_levels,
    limits_of,
    piece_maxima,
    poorness,
    residual_of,
)
from f2pad_jax.data.images import resize_map
from f2pad_jax.outcomes import APART, NEAR, clean, evidence, refined_map

SIDE = 40
BETAS = np.geomspace(0.3, 4.0, 10)
LIMITS = Limits(peak=10.0, spread=0.2, pixel=8.0, cost=10.0)


def _maps(peaks: np.ndarray) -> np.ndarray:
    maps = np.full((len(peaks), 8, 8), 1.0)
    maps[:, 4, 4] = peaks
    return maps


def test_false_alarms_come_out_as_asked_for() -> None:
    """Peaks that are log-normal exceed the threshold as often as was asked for."""
    rng = np.random.default_rng(0)
    limits = limits_of(_maps(np.exp(rng.normal(3.0, 0.4, 4000))), _maps(np.ones(4000)))
    fresh = np.exp(rng.normal(3.0, 0.4, 100_000))
    for asked in (0.1, 0.01):
        assert np.mean(fresh > limits.threshold(asked)) == pytest.approx(asked, rel=0.25)


def test_scores_with_a_bound_have_thresholds_below_it() -> None:
    """Their odds are log-normal; by the scores themselves the threshold would be one that nothing reaches."""
    rng = np.random.default_rng(0)
    odds = np.exp(rng.normal(2.5, 0.5, 4000))
    peaks = odds / (1 + odds / 3)
    limits = limits_of(_maps(peaks), _maps(np.ones(4000)), bound=3.0)
    for asked in (0.1, 0.01):
        assert np.mean(peaks > limits.threshold(asked)) == pytest.approx(asked, rel=0.35)
    assert limits_of(_maps(peaks), _maps(np.ones(4000))).threshold(0.01) > 3
    full = limits_of(_maps(np.full(9, 3.0)), _maps(np.ones(9)), bound=3.0)
    assert 2.99 < full.threshold(0.01) <= 3


def test_no_single_picture_decides() -> None:
    peaks = np.linspace(18, 30, 24)
    calm, wild = (limits_of(_maps(np.append(peaks, last)), _maps(peaks[:1])) for last in (31.0, 193.0))
    assert wild.threshold(0.01) == pytest.approx(calm.threshold(0.01), rel=1e-6)


def test_few_pictures_fall_back_on_the_usual_spread() -> None:
    limits = limits_of(_maps(np.array([20.0])), _maps(np.array([7.0])))
    assert limits.peak == pytest.approx(20.0)
    assert limits.cost == 7.0
    assert limits.spread == pytest.approx(SPREAD * np.sqrt(WEIGHT / (WEIGHT + 1)))
    assert limits.threshold(0.01) == pytest.approx(20 * np.exp(norm.isf(0.01) * limits.spread))


def test_the_pixel_limit_is_a_quantile() -> None:
    scores = np.random.default_rng(0).uniform(size=(5, 30, 30))
    assert limits_of(scores, scores).pixel == pytest.approx(np.quantile(scores, 0.995))


def _two_pieces() -> tuple[np.ndarray, np.ndarray]:
    region = np.zeros((SIDE, SIDE), bool)
    region[5:15, 5:15] = region[25:35, 25:35] = True
    costs = np.ones((SIDE, SIDE))
    costs[10, 10], costs[30, 30] = 15.0, 100.0
    return region, costs


def test_pieces_pay_for_sparsity_by_how_far_they_stand_out() -> None:
    region, costs = _two_pieces()
    calm = np.ones((len(BETAS), SIDE, SIDE))
    levels = choose_levels(region, costs, calm, BETAS, LIMITS)
    affordable = GAIN * 1.5**2
    assert BETAS[levels.level[10, 10]] == pytest.approx(affordable, rel=0.16)  # the nearest of the levels
    assert levels.level[30, 30] == len(BETAS) - 1
    assert (levels.level[~region] == -1).all()
    assert levels.residual == pytest.approx(1 / 10)


@pytest.mark.parametrize(("error", "factor"), [(0.1, 1.0), (POOR, 1.0), (2 * POOR, 2.0), (np.inf, 1.0), (np.nan, 1.0)])
def test_poor_fills_ask_for_more_sparsity(error: float, factor: float) -> None:
    """As if what a piece can pay for were the factor times as much; an error that is not known changes nothing."""
    assert poorness(error) == factor
    region, costs = _two_pieces()
    calm = np.ones((len(BETAS), SIDE, SIDE))
    level = choose_levels(region, costs, calm, BETAS, LIMITS, error=error).level[10, 10]
    assert BETAS[level] == pytest.approx(factor * GAIN * 1.5**2, rel=0.16)


def test_a_level_that_leaves_the_anomaly_in_n_is_not_taken() -> None:
    region, costs = _two_pieces()
    left = np.ones((len(BETAS), SIDE, SIDE))
    left[6:, 30, 30] = UNEXPLAINED * 100 * 1.01
    assert choose_levels(region, costs, left, BETAS, LIMITS).level[30, 30] == 5
    left[:, 30, 30] = np.linspace(90, 60, len(BETAS))  # nothing explains it: the level that leaves least
    levels = choose_levels(region, costs, left, BETAS, LIMITS)
    assert levels.level[30, 30] == len(BETAS) - 1
    assert levels.residual == pytest.approx(60 / (UNEXPLAINED * 100))


def test_piece_maxima_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    values, pieces = rng.normal(size=(20, 20)), rng.integers(0, 5, (20, 20))
    np.testing.assert_array_equal(piece_maxima(values, pieces), [values[pieces == k].max() for k in range(5)])


def test_whole_masks() -> None:
    """Dots go, holes close, and of the pieces those stay where the detector peaks."""
    scores, region = np.ones((SIDE, SIDE)), np.ones((SIDE, SIDE), bool)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:12, 5:12], mask[8, 8] = True, False  # a ring, at the highest score
    scores[8, 8] = 10.0
    mask[20:25, 20:25] = True  # near enough in score
    scores[22, 22] = 10.0 * NEAR * 1.01
    mask[5:10, 25:30] = True  # neither high nor a summit: only beside a slope
    scores[5:10, 25:30] = np.linspace(2, 1, 5)
    scores[7, 24] = 3.0
    scores[7, 20:24] = np.linspace(5, 3.5, 4)
    mask[35:37, 35:37] = True  # a dot
    cleaned = clean(mask, scores, region, kind="whole")
    wanted = np.zeros_like(mask)
    wanted[5:12, 5:12] = wanted[20:25, 20:25] = True
    np.testing.assert_array_equal(cleaned, wanted)
    assert not clean(np.zeros_like(mask), scores, region, kind="whole").any()
    opened = clean(mask, scores, region, kind="opening")
    assert not opened[35:37, 35:37].any()
    assert opened[7, 27]


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of four σ, by loops; pixels beyond the border are mirrored."""
    reach = round(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded, out = np.pad(values, reach, mode="symmetric"), np.zeros(values.shape)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            window = padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            out[row, column] = (kernel * window).sum()
    return out


@pytest.mark.parametrize("factor", [1, 2])
def test_evidence_is_that_of_a_loop(factor: int) -> None:
    """Of a picture twice as large as what the extractor sees, distances are smoothed twice as wide."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(14, 18)).astype(np.float32)
    image, fill = rng.normal(size=(2, 14 * factor, 18 * factor, 3)).astype(np.float32)
    apart = _blurred(np.sqrt(((image - fill) ** 2).sum(-1)), APART * factor)
    expected = np.maximum(resize_map(scores, apart.shape), 0) * np.sqrt(apart)
    found = evidence(scores, image, fill)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not evidence(scores, image, image).any()


def test_the_refined_map_ranks_the_mask_first() -> None:
    scores, mask = np.full((SIDE, SIDE), 3.0, np.float32), np.zeros((SIDE, SIDE), bool)
    mask[10:20, 10:20] = True
    refined = refined_map(scores, mask)
    assert refined.dtype == np.float32
    assert refined[15, 15] == pytest.approx(6.0, rel=1e-3)
    assert refined[30, 30] == pytest.approx(3.0)
    assert refined[mask].min() > refined[~mask].max()


def test_the_residual_is_what_stands_out_most_in_any_piece() -> None:
    region = np.zeros((20, 20), bool)
    region[2:6, 2:6] = region[10:16, 10:16] = True
    before, after = np.full((2, 20, 20), 50.0)
    before[3, 3], before[12, 12], before[0, 0] = 60, 400, 900
    after[region], after[3, 3], after[12, 12] = 1, 12, 70
    assert residual_of(region, before, after, 20.0) == pytest.approx(max(12 / 20, 70 / (UNEXPLAINED * 400)))
    assert residual_of(region, before, after, 10.0) == pytest.approx(12 / (UNEXPLAINED * 60))
    assert residual_of(np.zeros_like(region), before, after, 10.0) == 0

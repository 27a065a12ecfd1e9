from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score

from f2pad_jax.errors import InputError
from f2pad_jax.metrics import aupro, best_iou, boundary_f1, dice, f1max, iou, pixel_auroc, pooled_iou

RNG = np.random.default_rng(0)
MASKS = np.stack([ndimage.gaussian_filter(RNG.standard_normal((24, 30)), 2) > 0.12 for _ in range(4)])
NOISY = ndimage.gaussian_filter(MASKS.astype(float), (0, 1, 1)) + RNG.normal(0, 0.3, MASKS.shape)
TIED = np.round(NOISY * 4) / 4


def _disc(y: float, x: float, radius: float, size: int = 40) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return np.hypot(rows - y, columns - x) <= radius


def test_iou_and_dice_agree_with_scikit_learn() -> None:
    pred = NOISY > 0.4
    for one, other in zip(pred, MASKS, strict=True):
        assert iou(one, other) == pytest.approx(jaccard_score(other.ravel(), one.ravel()), abs=1e-12)
        assert dice(one, other) == pytest.approx(f1_score(other.ravel(), one.ravel()), abs=1e-12)
    assert pooled_iou(pred, MASKS) == pytest.approx(jaccard_score(MASKS.ravel(), pred.ravel()), abs=1e-12)
    assert pooled_iou(pred, MASKS) != pytest.approx(
        np.mean([iou(*pair) for pair in zip(pred, MASKS, strict=True)]), abs=1e-4
    )


@pytest.mark.parametrize("measure", [iou, dice, boundary_f1])
def test_empty_masks(measure) -> None:
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert measure(empty, empty) == 1
    assert measure(full, full) == 1
    assert measure(empty, full) == measure(full, empty) == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(empty, full[:4])


@pytest.mark.parametrize("scores", [NOISY, TIED, NOISY.astype(np.float32)])
def test_auroc_is_the_share_of_pairs_in_order(scores: np.ndarray) -> None:
    defect, normal = scores[MASKS], scores[~MASKS]
    pairs = np.sign(defect[:, None] - normal[None])
    assert pixel_auroc(scores, MASKS) == pytest.approx((pairs.mean() + 1) / 2, abs=1e-9)


def test_best_iou_is_that_of_no_other_threshold() -> None:
    """Pictures without a defect do not count, and the threshold gives what it says; a loop over all thresholds."""
    rng = np.random.default_rng(1)
    masks = np.zeros((4, 12, 12), bool)
    for k in range(3):
        masks[k, k : k + 5, 2:8] = True
    scores = masks + rng.normal(0, 0.5, masks.shape)
    scores[3] += 9
    value, threshold = best_iou(scores, masks)
    assert value == pytest.approx(np.mean([iou(scores[k] > threshold, masks[k]) for k in range(3)]))
    every = [np.mean([iou(scores[k] > level, masks[k]) for k in range(3)]) for level in np.unique(scores[:3])]
    assert max(every) - 0.03 < value <= max(every)
    with pytest.raises(InputError, match="no picture has a defect"):
        best_iou(scores, np.zeros_like(masks))


@pytest.mark.parametrize("scores", [NOISY, TIED])
def test_f1max_is_the_best_of_all_thresholds(scores: np.ndarray) -> None:
    value, threshold = f1max(scores, MASKS)
    every = {level: dice(scores >= level, MASKS) for level in np.unique(scores)}
    assert value == pytest.approx(max(every.values()), abs=1e-12)
    assert every[threshold] == pytest.approx(value, abs=1e-12)
    assert ((scores > threshold) != (scores >= threshold)).sum() == (scores == threshold).sum() > 0


def _aupro_by_thresholds(scores: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """One threshold after another, one region after another; the area by many thin slices."""
    regions = [
        (index, labels == number)
        for index, mask in enumerate(masks)
        for labels, count in [ndimage.label(mask, np.ones((3, 3)))]  # pyright: ignore
        for number in range(1, count + 1)
    ]
    rates, overlaps = [0.0], [0.0]
    for level in np.unique(scores)[::-1]:
        found = scores >= level
        rates.append((found & ~masks).sum() / (~masks).sum())
        overlaps.append(float(np.mean([found[index][region].mean() for index, region in regions])))
    area = 0.0
    for left, right, low, high in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        end = min(right, limit)
        if end > left:
            at_end = low + (high - low) * (end - left) / (right - left)
            area += (end - left) * (low + at_end) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("scores", [NOISY, TIED, -NOISY])
def test_aupro_agrees_with_a_loop_over_thresholds(scores: np.ndarray, limit: float) -> None:
    assert aupro(scores, MASKS, limit) == pytest.approx(_aupro_by_thresholds(scores, MASKS, limit), abs=1e-10)


def test_aupro_weighs_regions_alike() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[1, 0, 0] = masks[1, 1, 1] = True  # one region: they touch at a corner
    scores = np.zeros(masks.shape)
    scores[0, :10, :10] = 1  # the large region is found at once, the small one with all the rest
    assert aupro(scores, masks, 1.0) == pytest.approx(0.75)
    assert aupro(masks.astype(float), masks) == pytest.approx(1)


def test_regions_of_neighbouring_images_are_apart() -> None:
    masks = np.zeros((2, 6, 6), bool)
    masks[:, 2:4, 2:4] = True
    scores = np.where(masks, [[[1.0]], [[-1.0]]], 0.0)
    assert aupro(scores, masks) == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [pixel_auroc, f1max, aupro])
def test_one_kind_of_pixel_cannot_be_scored(measure) -> None:
    for masks in (np.zeros_like(MASKS), np.ones_like(MASKS)):
        with pytest.raises(InputError, match="one kind of pixel"):
            measure(NOISY, masks)
    with pytest.raises(ValueError, match=r"must both be \(N, H, W\)"):
        measure(NOISY[0], MASKS[0])


def test_boundary_f1_forgives_up_to_the_tolerance() -> None:
    truth = _disc(20, 20, 8)
    assert boundary_f1(_disc(20, 20, 9), truth) == boundary_f1(np.roll(truth, 2, 1), truth) == 1
    assert boundary_f1(_disc(20, 20, 12), truth) == 0
    assert boundary_f1(_disc(20, 20, 12), truth, 5) == 1
    assert boundary_f1(np.roll(truth, 20, 1), truth) == 0


def test_boundary_f1_by_brute_force() -> None:
    def outline(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inside)

    pred, truth = NOISY[0] > 0.5, MASKS[0]
    one, other = outline(pred), outline(truth)
    near = np.linalg.norm(one[:, None] - other[None], axis=-1) <= 1
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    expected = 2 * precision * recall / (precision + recall)
    assert 0 < expected < 1
    assert boundary_f1(pred, truth, 1) == pytest.approx(expected, abs=1e-12)


def test_the_frame_is_an_outline_too() -> None:
    full, inner = np.ones((9, 9), bool), np.zeros((9, 9), bool)
    inner[3:6, 3:6] = True
    assert boundary_f1(full, inner) == 0
    assert boundary_f1(full, inner, 5) == 1

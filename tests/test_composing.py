"""n composed of segments of x and of its fill: paint that no gradient moves, on small crops of bricks, real Lite0."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from f2pad_jax import composing
from f2pad_jax.composing import BETTER, PRICE, Segment, compose, explain, find_segments
from f2pad_jax.data.images import resize_mask
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.outcomes import Outcome
from f2pad_jax.preparing import Plan, locate, plan
from f2pad_jax.procedure import Procedure, paper_settings
from f2pad_jax.segmentation import Segmentation, segment
from f2pad_jax.sights import Sight, look, total_costs

SIDE, TESTS = 64, 8
NOTHING = np.zeros((SIDE, SIDE), bool)


class Painted(NamedTuple):
    model: Model
    images: np.ndarray
    masks: np.ndarray
    alone: list[Segmentation]  # the solve alone
    composed: list[Segmentation]


@pytest.fixture(scope="module")
def painted(lite0: Extractor) -> Painted:
    """Grey and own paint; the threshold is named, as so few training pictures give none that paint reaches."""
    train, cases = texture_category("brick", train=24, test=TESTS, size=SIDE, kinds=("grey", "own"))
    model = fit(train, detector="padim", extractor=lite0, procedure=Procedure(start="image"))
    images, masks, normals = (np.stack(column) for column in zip(*cases, strict=True))
    threshold = float(np.quantile([sight.scores.max() for sight in look(model, normals)], 0.9))
    model = replace(model, procedure=replace(model.procedure, threshold=threshold))
    alone = segment(replace(model, procedure=replace(model.procedure, composing=False)), images)
    return Painted(model, images, masks, alone, segment(model, images))


def _suspect(painted: Painted, index: int = 0) -> tuple[Sight, Plan]:
    (sight,) = look(painted.model, painted.images[index : index + 1])
    return sight, plan(painted.model, sight, *locate(painted.model, sight))


def test_paint_that_no_pixel_leaves_is_found_by_segments(painted: Painted) -> None:
    """What the solve explains is left as it is; the rest gets better in the mean, and what is left in n is less."""
    before, after = (
        np.array([iou(result.mask, mask) for result, mask in zip(results, painted.masks, strict=True)])
        for results in (painted.alone, painted.composed)
    )
    unexplained = np.array([result.residual > 1 for result in painted.alone])
    assert unexplained.any()
    assert after[unexplained].mean() > before[unexplained].mean() + 0.2
    assert after.max() > 0.85
    for one, other, changed in zip(painted.alone, painted.composed, unexplained, strict=True):
        if changed:
            assert other.residual < one.residual
            assert (other.anomaly[~other.mask] == 0).all()
        else:
            np.testing.assert_array_equal(one.mask, other.mask)
            assert one.residual == other.residual


def test_the_gain_is_what_it_says(painted: Painted) -> None:
    """G(M) by the detector's own map of the composed picture, position by position."""
    model = painted.model
    sight, chosen = _suspect(painted)
    found = compose(model, sight, chosen.region, chosen.start.fill, NOTHING, sight.image)
    np.testing.assert_array_equal(found.normal, np.where(found.mask[..., None], chosen.start.fill, sight.image))
    (after,) = look(model, found.normal[None])
    unit = max(float(model.scales.score), float(np.median(sight.costs)))
    pixels = model.extractor.strides[model.detector.level] ** 2
    drop = (sight.costs.astype(np.float64) - after.costs).sum() * pixels / unit
    assert found.gain == pytest.approx(drop - PRICE * found.mask.sum(), rel=1e-4)
    assert found.gain > 0
    assert not (found.mask & ~chosen.region).any()


def test_no_single_segment_gains_more(painted: Painted) -> None:
    """The search begins with the best single one, so an exhaustive look at them is a lower bound."""
    model = painted.model
    sight, chosen = _suspect(painted)
    found = compose(model, sight, chosen.region, chosen.start.fill, NOTHING, sight.image)
    unit = max(float(model.scales.score), float(np.median(sight.costs))) * sight.costs.size / chosen.region.size
    for one in find_segments(model, sight, chosen.region)[: composing.FIRST]:
        mask = one.mask((SIDE, SIDE))
        tried = np.where(mask[..., None], chosen.start.fill, sight.image)
        gain = (sight.costs.sum() - total_costs(model, tried[None])[0]) / unit - mask.sum()
        assert found.gain >= gain - 1e-3 * abs(gain)


def test_the_mask_of_the_solve_stays_where_little_more_is_gained(painted: Painted) -> None:
    """Each mask is given in turn as that of the solve: it comes back as it is, or what comes gains much more."""
    sight, chosen = _suspect(painted)
    solved, normal, gain, rounds = NOTHING, sight.image, 0.0, 0
    while True:
        found = compose(painted.model, sight, chosen.region, chosen.start.fill, solved, normal)
        rounds += 1
        if found.mask is solved:
            break
        assert found.gain > (1 + BETTER) * gain
        solved, normal, gain = found.mask, found.normal, found.gain
    assert 1 < rounds < 6
    assert found.gain == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize(("left", "searched"), [(0.05, False), (0.5, True)])
def test_nothing_is_tried_where_no_segments_could_gain_enough(
    painted: Painted,
    monkeypatch: pytest.MonkeyPatch,
    left: float,
    searched: bool,  # noqa: FBT001
) -> None:
    """What x costs bounds all gains: a solve after which a twentieth of it is left needs no search."""
    sight, chosen = _suspect(painted)
    asked: list[int] = []

    def costs(model: Model, images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return np.full(len(images), left * sight.costs.sum(), np.float32)

    monkeypatch.setattr(composing, "total_costs", costs)
    solved = NOTHING.copy()
    solved[20:23, 20:23] = True
    found = compose(painted.model, sight, chosen.region, chosen.start.fill, solved, sight.image)
    assert found.mask is solved
    assert (len(asked) > 1) == searched


def test_a_fill_that_changes_nothing_gains_nothing(painted: Painted) -> None:
    sight, chosen = _suspect(painted)
    none = compose(painted.model, sight, chosen.region, sight.image, NOTHING, sight.image)
    assert none.gain == 0
    assert not none.mask.any()
    np.testing.assert_array_equal(none.normal, sight.image)


def test_segments_lie_in_the_region_and_come_once(painted: Painted) -> None:
    sight, chosen = _suspect(painted)
    segments = find_segments(painted.model, sight, chosen.region)
    masks = [segment.mask((SIDE, SIDE)) for segment in segments]
    assert len({mask.tobytes() for mask in masks}) == len(masks) > 3
    for one, mask in zip(segments, masks, strict=True):
        assert mask.sum() == one.pixels.sum() == one.common(mask) > 0
        for axis in (0, 1):
            assert np.asarray(one.pixels.any(axis=axis))[[0, -1]].all()
        assert not (mask & ~chosen.region).any()
    means = [sight.scores[mask].mean() for mask in masks]
    assert means[0] >= means[-1]


def test_a_segment_is_joined_to_a_mask_and_taken_from_it() -> None:
    rng = np.random.default_rng(0)
    mask, pixels = rng.random((12, 9)) < 0.5, rng.random((4, 3)) < 0.7
    some, alone = Segment((slice(5, 9), slice(2, 5)), pixels), np.zeros((12, 9), bool)
    alone[5:9, 2:5] = pixels
    before = mask.copy()
    np.testing.assert_array_equal(some.mask((12, 9)), alone)
    np.testing.assert_array_equal(some.joined(mask), mask | alone)
    np.testing.assert_array_equal(some.taken(mask), mask & ~alone)
    assert some.common(mask) == (mask & alone).sum()
    np.testing.assert_array_equal(mask, before)


def test_what_is_explained_or_filled_or_not_asked_for_is_left_alone(painted: Painted) -> None:
    _, chosen = _suspect(painted)
    model, x = painted.model, painted.images[0]
    left = Outcome(NOTHING, 1.4, 60, "converged")
    assert explain(model, chosen, left, x).mask.any()
    for other in (left._replace(residual=1.0), left._replace(residual=0.3)):
        assert explain(model, chosen, other, x) is other
    filled = chosen._replace(start=chosen.start._replace(filled=True))
    assert explain(model, filled, left, x) is left
    off = replace(model, procedure=replace(model.procedure, composing=False))
    assert explain(off, chosen, left, x) is left
    assert not paper_settings()[1].composing


def test_where_the_extractor_sees_a_reduced_picture(lite0: Extractor) -> None:
    """Masks have the picture's own resolution, and the gain counts its pixels."""
    train, cases = texture_category("brick", train=12, test=1, size=128, kinds=("grey",))
    model = fit(train, detector="padim", extractor=lite0, seen=(64, 64))
    (sight,) = look(model, cases[0][0][None])
    region = resize_mask(sight.scores > np.quantile(sight.scores, 0.7), (128, 128))
    place = plan(model, sight, region)
    found = compose(model, sight, place.region, place.start.fill, np.zeros((128, 128), bool), sight.image)
    assert found.mask.shape == (128, 128)
    assert found.normal.shape == (128, 128, 3)
    after = total_costs(model, found.normal[None])[0]
    unit = max(float(model.scales.score), float(np.median(sight.costs))) * sight.costs.size / 128**2
    assert found.gain == pytest.approx((sight.costs.sum() - after) / unit - found.mask.sum(), rel=1e-3)

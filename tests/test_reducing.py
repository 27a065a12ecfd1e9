"""n with more pixels than the extractor sees: D, its shapes, parts of pictures, fills and whole solves."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from f2pad_jax.boxes import Box, enclosing
from f2pad_jax.core import objective, reduce, terms
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.images import resize_image, resize_mask
from f2pad_jax.data.paints import paint
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Normals, matching_fill
from f2pad_jax.fills.harmonic import harmonic_fill
from f2pad_jax.fitting import fit
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.preparing import affected, build, plan
from f2pad_jax.procedure import Procedure
from f2pad_jax.reducing import axis_weights, part_weights, reduce_images, seen_shape, work_shape
from f2pad_jax.segmentation import Segmentation, segment
from f2pad_jax.sights import look
from f2pad_jax.traced import score_one

SHAPE, SEEN = (160, 240), (64, 96)


class Fitted(NamedTuple):
    """A model of pictures that are no squares and larger than the extractor sees, and a picture with its mask."""

    model: Model
    image: np.ndarray
    mask: np.ndarray
    result: Segmentation


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    grey = skimage.data.brick()
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def fitted(photograph: np.ndarray, lite0: Extractor) -> Fitted:
    rng = np.random.default_rng(0)
    tops, lefts = rng.integers(0, 512 - SHAPE[0], 10), rng.integers(0, 272 - SHAPE[1], 10)
    normals = np.stack(
        [photograph[t : t + SHAPE[0], left : left + SHAPE[1]] for t, left in zip(tops, lefts, strict=True)]
    )
    model = fit(
        normals, detector="padim", extractor=lite0, seen=SEEN, procedure=Procedure(start="image", false_alarms=0.2)
    )
    mask = np.zeros(SHAPE, bool)
    mask[60:91, 101:133] = True
    mask[70:75, 133:150] = True  # a scratch of two of the extractor's pixels at its side
    image = paint(photograph[300 : 300 + SHAPE[0], 272:512], mask, np.array([200, 40, 60]))
    return Fitted(model, image, mask, segment(model, image))


@pytest.mark.parametrize(("length", "target"), [(160, 64), (240, 96), (100, 100), (1000, 224)])
def test_the_weights_of_an_axis_are_those_of_an_antialiased_resize(length: int, target: int) -> None:
    values = np.random.default_rng(0).standard_normal((length, 2)).astype(np.float32)
    wanted = jax.image.resize(values, (target, 2), "linear", antialias=True)
    np.testing.assert_allclose(axis_weights(length, target) @ values, wanted, atol=1e-4)


@pytest.mark.parametrize("part", [slice(0, 128), slice(1, 129), slice(500, 628), slice(872, 1000), slice(0, 1000)])
def test_the_weights_of_a_part_hold_all_that_touch_it(part: slice) -> None:
    whole = axis_weights(1000, 224)[:, part]
    first, weights = part_weights(1000, 224, part)
    assert len(weights) == min(224, 32 if part.stop - part.start == 128 else 224)
    np.testing.assert_array_equal(weights, whole[first : first + len(weights)])
    assert weights.sum() == pytest.approx(whole.sum())


@pytest.mark.parametrize(
    ("shape", "seen", "work"),
    [
        ((224, 224), (224, 224), (224, 224)),
        ((256, 256), (224, 224), (256, 256)),
        ((100, 100), (224, 224), (224, 224)),
        ((1024, 1024), (224, 224), (1024, 1024)),
        ((2000, 3000), (176, 272), (836, 1254)),
        ((64, 2048), (64, 2048), (64, 2048)),
        ((200, 5000), (64, 1600), (200, 5000)),
        ((16, 8192), (64, 8192), (64, 8192)),
    ],
)
def test_shapes_keep_the_aspect_as_far_as_strides_allow(
    shape: tuple[int, int], seen: tuple[int, int], work: tuple[int, int], lite0: Extractor
) -> None:
    assert seen_shape(shape, 224, lite0) == seen
    assert work_shape(shape, 1024, seen) == work


@pytest.mark.parametrize(
    ("rows", "columns", "wanted"),
    [
        ((5, 20), (500, 540), Box(0, 456, 128, 128)),
        ((80, 230), (280, 300), Box(27, 162, 256, 256)),
        ((0, 10), (0, 600), Box(0, 0, 300, 600)),
    ],
)
def test_a_box_holds_the_region_and_its_margin(rows: tuple[int, int], columns: tuple[int, int], wanted: Box) -> None:
    region = np.zeros((300, 600), bool)
    region[slice(*rows), slice(*columns)] = True
    box = enclosing(region, 2)
    assert box == wanted
    assert box.cut(region).sum() == region.sum()
    np.testing.assert_array_equal(box.put(box.cut(region), np.zeros_like(region)), region)
    assert enclosing(np.zeros_like(region), 2).height == 128


def test_the_part_and_the_whole_are_reduced_alike(fitted: Fitted) -> None:
    """D n of a part beside a resize of the whole n, and F beside that of the extractor's own picture."""
    model, (sight,) = fitted.model, look(fitted.model, fitted.image[None])
    wanted = jax.image.resize(sight.image, (*SEEN, 3), "linear", antialias=True)
    np.testing.assert_allclose(sight.seen, wanted, atol=1e-4)
    chosen = plan(model, sight, fitted.mask)
    start, problem, settings = build(model, chosen)
    assert start.shape == problem.image.shape == (128, 128, 3)
    noise = np.random.default_rng(0).standard_normal(start.shape).astype(np.float32)
    normal = jnp.where(problem.region[..., None], start + noise, start)
    assert problem.reduction is not None
    whole = chosen.box.put(np.asarray(normal), sight.image)
    seen = jax.image.resize(whole, (*SEEN, 3), "linear", antialias=True)
    np.testing.assert_allclose(reduce(normal, problem.image, problem.reduction), seen, atol=1e-4)
    found = terms(normal, model.energy, problem, settings)
    own = problem.replace(
        image=jnp.asarray(sight.seen), region=jnp.ones(SEEN, bool), sparsity=jnp.ones(SEEN), reduction=None
    )
    area = SHAPE[0] * SHAPE[1] / (SEEN[0] * SEEN[1])
    np.testing.assert_allclose(found.feature, area * terms(seen, model.energy, own, settings).feature, rtol=1e-3)


def test_the_gradient_does_not_depend_on_the_box(fitted: Fitted) -> None:
    model, (sight,) = fitted.model, look(fitted.model, fitted.image[None])
    chosen = plan(model, sight, fitted.mask)
    whole = chosen._replace(box=Box(0, 0, *SHAPE))
    slope = jax.jit(jax.grad(objective))
    slopes = []
    for each in (chosen, whole):
        start, problem, settings = build(model, each)
        slopes.append(
            each.box.put(np.asarray(slope(start + 0.01, model.energy, problem, settings)), np.zeros((*SHAPE, 3)))
        )
    inside = fitted.mask
    assert np.abs(slopes[1][inside]).max() > 0.1
    difference = np.abs(slopes[0] - slopes[1])[inside]
    assert np.quantile(difference, 0.99) < 1e-3 * np.abs(slopes[1][inside]).max()


def test_outlines_are_those_of_the_pictures_own_pixels(fitted: Fitted) -> None:
    model, result = fitted.model, fitted.result
    assert (model.shape, model.seen) == (SHAPE, SEEN)
    assert model.scale == pytest.approx(2.5)
    assert result.mask.shape == result.score_map.shape == result.refined_map.shape == SHAPE
    assert result.normal.shape == result.anomaly.shape == (*SHAPE, 3)
    assert iou(result.mask, fitted.mask) > 0.97
    # No mask that is enlarged from what the extractor sees comes so near.
    assert iou(result.mask, fitted.mask) > iou(resize_mask(resize_mask(fitted.mask, SEEN), SHAPE), fitted.mask)
    np.testing.assert_array_equal(result.normal[~result.mask], fitted.image[~result.mask])


def test_the_score_map_that_is_exported_is_the_models(fitted: Fitted) -> None:
    made = jax.jit(partial(score_one, fitted.model))(fitted.image)
    np.testing.assert_allclose(made, fitted.result.score_map, rtol=1e-3, atol=1e-3 * fitted.result.score_map.max())


def test_the_affected_positions_of_a_long_picture() -> None:
    region = np.zeros((100, 1000), bool)
    region[40:44, 500:520] = True  # cells of 10 × 12.5 pixels
    found = affected(region, ((10, 80), (5, 40)))
    cells = found.positions[found.present > 0]
    assert cells.tolist() == [80 * row + column for row in (3, 4, 5) for column in (39, 40, 41, 42)]
    assert {divmod(int(cell), 40) for cell in found.coarser[0]} >= {
        (row, column) for row in (1, 2) for column in (19, 20, 21)
    }


@pytest.mark.parametrize("turns", [0, 2])
@pytest.mark.parametrize("shift", [(0, 0), (9, -14), (3, 1)])
def test_large_pictures_give_the_region_back(turns: int, shift: tuple[int, int]) -> None:
    grey = skimage.data.gravel()[:300, :300]
    photograph = resize_image(np.repeat(grey[..., None], 3, axis=-1), (1200, 1200))  # details of several pixels
    height, width = 300, 370  # no multiples of the cells of the search
    truth = normalize(photograph[60 : 60 + height, 80 : 80 + width])
    region = np.zeros((height, width), bool)
    region[90:120, 100:150] = True
    broken = np.where(region[..., None], np.array([2.0, -1.5, 1.0], np.float32), truth)
    top, left = 60 + shift[0], 80 + shift[1]
    moved = np.rot90(photograph[top : top + height, left : left + width], turns)
    others = [photograph[row : row + height, column : column + width] for row, column in ((700, 30), (800, 700))]
    normals = Normals(np.stack([others[0], moved, others[1]]), 4.4)
    filled, error = matching_fill(broken, region, normals)
    np.testing.assert_array_equal(filled[~region], broken[~region])
    smooth = np.sqrt(np.mean(np.square(harmonic_fill(broken, region) - truth)[region]))
    assert np.sqrt(np.mean(np.square(filled - truth)[region])) < 0.1 * smooth
    assert error < 0.2


def test_pictures_smaller_than_the_extractor_sees_are_refused(lite0: Extractor) -> None:
    with pytest.raises(InputError, match="have 80 × 64 pixels, fewer than 64 × 96"):
        fit(np.zeros((4, 64, 80, 3), np.uint8), detector="padim", extractor=lite0, seen=(96, 64))


def test_pictures_as_the_extractor_sees_them_stay_as_they_are(photograph: np.ndarray) -> None:
    images = photograph[None, :64, :96]
    assert reduce_images(images, (64, 96)) is images
    assert reduce_images(images, (32, 48)).dtype == np.float32

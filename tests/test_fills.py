"""The harmonic fill against a dense solve and its theorems, the matching one where the truth is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from f2pad_jax.core.pixels import STD, normalize
from f2pad_jax.errors import InputError
from f2pad_jax.fills import FILLS, Normals, harmonic_fill, matching, matching_fill
from f2pad_jax.fills.matching import GAP, OWN, own_cells, own_part, surroundings_weight
from f2pad_jax.fills.searching import BATCH, COARSE, search, spectra_of

SIDE = 64
CORNER = 100  # of the true crop in the photograph
COLOUR = np.array([1, 0.8, 0.6], np.float32)
Region = np.ndarray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Harmonic


def ragged_region(rng: np.random.Generator, *, border: bool) -> Region:
    region = np.zeros((14, 17), bool)
    inner = region if border else region[2:-2, 2:-2]
    inner |= rng.random(inner.shape) < 0.5
    return region


def dense_harmonic(image: np.ndarray, region: Region) -> np.ndarray:
    """One dense linear system: known pixels are kept, the others are the means of their neighbours."""
    height, width = region.shape
    matrix, right = np.eye(region.size), image.reshape(region.size, -1).astype(float)
    for i, j in zip(*np.nonzero(region), strict=True):
        near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        near = [r * width + c for r, c in near if 0 <= r < height and 0 <= c < width]
        matrix[i * width + j, near] = -1 / len(near)
        right[i * width + j] = 0
    return np.linalg.solve(matrix, right).reshape(image.shape)


@pytest.mark.parametrize("border", [False, True])
def test_the_harmonic_fill_is_the_dense_solution(rng: np.random.Generator, *, border: bool) -> None:
    image = rng.standard_normal((14, 17, 3)).astype(np.float32)
    region = ragged_region(rng, border=border)
    before = image.copy()
    filled = harmonic_fill(image, region)
    np.testing.assert_allclose(filled, dense_harmonic(image, region), atol=1e-6)
    np.testing.assert_array_equal(filled[~region], image[~region])
    np.testing.assert_array_equal(image, before)
    assert filled.dtype == np.float32


def test_the_laplacian_vanishes_and_the_maximum_is_on_the_border(rng: np.random.Generator) -> None:
    image = rng.standard_normal((20, 20, 2)).astype(np.float32)
    region = np.zeros((20, 20), bool)
    region[4:15, 5:17] = True
    filled = harmonic_fill(image, region).astype(float)
    for channel in range(2):
        laplacian = ndimage.laplace(filled[..., channel])
        np.testing.assert_allclose(laplacian[region], 0, atol=3e-6)
        rim = image[..., channel][ndimage.binary_dilation(region) & ~region]
        inside = filled[..., channel][region]
        assert rim.min() < inside.min()
        assert inside.max() < rim.max()


def test_ramps_are_continued_exactly(rng: np.random.Generator) -> None:
    row, column = np.mgrid[0:18, 0:22]
    ramp = np.stack([0.1 * row, 0.3 - 0.2 * column, 0.05 * row + 0.1 * column], axis=-1).astype(np.float32)
    region = np.zeros(row.shape, bool)
    region[1:-1, 1:-1] = rng.random((16, 20)) < 0.8
    broken = np.where(region[..., None], np.float32(9), ramp)
    np.testing.assert_allclose(harmonic_fill(broken, region), ramp, atol=2e-6)


def test_nothing_and_everything_to_fill(rng: np.random.Generator) -> None:
    image = rng.standard_normal((6, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(harmonic_fill(image, np.zeros((6, 7), bool)), image)
    whole = harmonic_fill(image, np.ones((6, 7), bool))
    np.testing.assert_allclose(whole, np.broadcast_to(image.mean(axis=(0, 1)), image.shape), atol=1e-6)


# Matching


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return 20 + 0.84 * skimage.data.gravel()


def crop(photograph: np.ndarray, row: int, column: int) -> np.ndarray:
    """Eight-bit colours; a grey level is 0.018 when it is normalised."""
    colours = photograph[row : row + SIDE, column : column + SIDE, None] * COLOUR
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def case(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray, Region]:
    """The truth, the picture with one wild colour in the region, and the region."""
    truth = normalize(crop(photograph, CORNER, CORNER))
    region = np.zeros((SIDE, SIDE), bool)
    region[24:38, 28:44] = True
    region[30:42, 20:30] = True
    return truth, np.where(region[..., None], np.array([2.0, -1.5, 1.0], np.float32), truth), region


def among_others(photograph: np.ndarray, picture: np.ndarray) -> Normals:
    others = [crop(photograph, *corner) for corner in ((300, 40), (250, 330), (20, 400))]
    return Normals(np.stack([*others[:2], picture, others[2]]))


def errors(filled: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]) -> np.ndarray:
    truth, broken, region = case
    np.testing.assert_array_equal(filled[~region], broken[~region])
    assert filled.dtype == np.float32
    return np.abs(filled - truth)[region]


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_picture_gives_the_region_back_exactly(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region], turns: int
) -> None:
    _, broken, region = case
    normals = among_others(photograph, np.rot90(crop(photograph, CORNER, CORNER), turns))
    filled, error = matching_fill(broken, region, normals)
    np.testing.assert_allclose(errors(filled, case), 0, atol=1e-6)
    assert error < 1e-5


@pytest.mark.parametrize("shift", [(0, 4), (8, -4), (5, -3), (-7, 2), (1, 1)])
@pytest.mark.parametrize("turns", range(4))
def test_a_shifted_picture_gives_the_region_back(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region], shift: tuple[int, int], turns: int
) -> None:
    _, broken, region = case
    moved = crop(photograph, CORNER + shift[0], CORNER + shift[1])
    filled, _ = matching_fill(broken, region, among_others(photograph, np.rot90(moved, turns)))
    # Interpolation at a place that is not quite whole leaves about one grey level.
    assert np.sqrt(np.mean(errors(filled, case) ** 2)) < 0.012
    assert np.sqrt(np.mean(errors(harmonic_fill(broken, region), case) ** 2)) > 0.3


@pytest.mark.parametrize("pose", ["half a pixel", "four degrees"])
def test_a_part_of_a_pixel_and_a_few_degrees_come_close(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region], pose: str
) -> None:
    _, broken, region = case
    if pose == "half a pixel":
        moved, corner = ndimage.shift(photograph, (0.5, -0.5), order=3), (CORNER, CORNER)
    else:
        moved = ndimage.rotate(photograph, 4, reshape=False, order=3)
        cos, sin = np.cos(np.deg2rad(4)), np.sin(np.deg2rad(4))
        middle = CORNER + SIDE / 2 - 255.5
        corner = [round(v + 255.5 - SIDE / 2) for v in (middle * (cos - sin), middle * (sin + cos))]
    filled, error = matching_fill(broken, region, among_others(photograph, crop(moved, *corner)))
    smooth = np.sqrt(np.mean(errors(harmonic_fill(broken, region), case) ** 2))
    assert np.sqrt(np.mean(errors(filled, case) ** 2)) < 0.25 * smooth
    _, unrelated = matching_fill(broken, region, among_others(photograph, crop(photograph, 400, 250)))
    assert error < 0.5 * unrelated


def test_a_brighter_picture_is_evened_out(photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]) -> None:
    _, broken, region = case
    levels = np.array([12, -6, 9])
    brighter = (crop(photograph, CORNER, CORNER) + levels).astype(np.uint8)
    filled, error = matching_fill(broken, region, Normals(brighter[None]))
    np.testing.assert_allclose(errors(filled, case), 0, atol=0.016)  # less than a grey level
    offset = levels / 255 / STD
    # The error is the root of the mean square over pixels of the distance in colour.
    assert 0.97 * np.linalg.norm(offset) < error <= 1.0001 * np.linalg.norm(offset)


def test_the_search_finds_picture_turn_and_shift(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]
) -> None:
    _, broken, region = case
    moved = crop(photograph, CORNER - 8, CORNER + 4)
    cost, shift = search(broken, surroundings_weight(region), among_others(photograph, np.rot90(moved, 3)).spectra)
    cost = np.asarray(cost)
    assert cost.shape == (4, 4)
    assert np.unravel_index(cost.argmin(), cost.shape) == (1, 2)  # three quarter turns and one are none
    np.testing.assert_array_equal(shift[1, 2], [8, -4])
    assert cost[1, 2] < 0.1 * np.delete(cost.ravel(), 6).min()


def test_the_search_is_a_loop_over_turns_pictures_and_shifts(photograph: np.ndarray) -> None:
    """Every comparison of the coarse grid, added up cell by cell in double precision."""
    side = 48
    grid = side // COARSE
    image = normalize(crop(photograph, CORNER, CORNER)[:side, :side])
    pictures = np.stack([crop(photograph, *corner)[:side, :side] for corner in ((300, 40), (250, 330), (20, 400))])
    region = np.zeros((side, side), bool)
    region[8:20, 24:40] = True  # whole cells, so that it is plain which of them must be covered
    weight = surroundings_weight(region)
    cost, shift = search(image, weight, Normals(pictures).spectra)
    assert (cost.shape, shift.shape) == ((4, 3), (4, 3, 2))

    def pooled(array: np.ndarray) -> np.ndarray:
        return array.astype(float).reshape(grid, COARSE, grid, COARSE, -1).mean((1, 3))

    mass = pooled(weight)[..., 0]
    colours = pooled(image * weight[..., None]) / np.maximum(mass, 1e-6)[..., None]
    for turn, index in np.ndindex(4, 3):
        turned = pooled(np.rot90(normalize(pictures[index]), turn))
        lowest, place = np.inf, (0, 0)
        for down, right in np.ndindex(2 * grid, 2 * grid):
            down, right = down - grid, right - grid
            here = slice(max(0, -down), min(grid, grid - down)), slice(max(0, -right), min(grid, grid - right))
            there = slice(max(0, down), min(grid, grid + down)), slice(max(0, right), min(grid, grid + right))
            covered = np.zeros((grid, grid), bool)
            covered[here] = True
            if not covered[2:5, 6:10].all() or mass[here].sum() <= 0.7 * mass.sum():
                continue
            difference = np.square(colours[here] - turned[there]).sum(-1)
            value = (mass[here] * difference).sum() / mass[here].sum()
            if value < lowest:
                lowest, place = value, (COARSE * down, COARSE * right)
        np.testing.assert_allclose(cost[turn, index], lowest, rtol=1e-4)
        np.testing.assert_array_equal(shift[turn, index], place)


def test_a_pattern_that_repeats_itself_is_its_own_material(photograph: np.ndarray) -> None:
    """No picture of the photograph has this pattern of 16 × 16 pixels."""
    tile = ndimage.gaussian_filter(np.random.default_rng(5).uniform(-1, 1, (16, 16)), 1.5, mode="wrap")
    tile = 130 + 400 * tile
    truth, region = normalize(crop(np.tile(tile, (4, 4)), 0, 0)), np.zeros((SIDE, SIDE), bool)
    region[26:34, 24:31] = True
    normals = among_others(photograph, crop(photograph, CORNER, CORNER))
    for wild in ([2.0, -1.5, 1.0], [-1.0, 2.0, 0.5]):  # what is in the region does not matter
        broken = np.where(region[..., None], np.array(wild, np.float32), truth)
        filled, error = matching_fill(broken, region, normals)
        np.testing.assert_allclose(filled, truth, atol=0.06)  # three grey levels
        assert error < 0.02


def test_no_pixel_near_the_region_is_taken(rng: np.random.Generator) -> None:
    """The search within the picture itself, against a loop over all shifts."""
    side, cells = 48, 48 // COARSE
    image, region = rng.standard_normal((side, side, 3)).astype(np.float32), np.zeros((side, side), bool)
    region[20:28, 24:30] = True
    weight, far = surroundings_weight(region), np.asarray(ndimage.distance_transform_edt(~region)) > GAP
    usable = own_part(np.asarray(ndimage.distance_transform_edt(~region)))
    np.testing.assert_array_equal(usable, far)
    free = own_cells(usable, COARSE)
    np.testing.assert_array_equal(free, far.reshape(cells, COARSE, cells, COARSE).all(axis=(1, 3)))
    cost, shift = search(image, weight, spectra_of(image[None], free, cell=COARSE), free)
    assert (np.isfinite(cost).sum(axis=0) >= OWN).all()
    pooled = image.reshape(cells, COARSE, cells, COARSE, 3).mean(axis=(1, 3))
    mass = weight.reshape(cells, COARSE, cells, COARSE).mean(axis=(1, 3))
    seen = (image * weight[..., None]).reshape(cells, COARSE, cells, COARSE, 3).mean(axis=(1, 3)) / np.maximum(
        mass, 1e-6
    )[..., None]
    wanted, lowest, place = region.reshape(cells, COARSE, cells, COARSE).any(axis=(1, 3)), np.inf, (0, 0)
    for down in range(-cells + 1, cells):
        for right in range(-cells + 1, cells):
            there = ndimage.shift(free, (-down, -right), order=0, prefilter=False) > 0
            value = ndimage.shift(pooled, (-down, -right, 0), order=0, prefilter=False)
            share = (mass * there).sum()
            if (wanted & ~there).any() or share <= 0.7 * mass.sum():
                continue
            total = (mass * there * np.square(seen - value).sum(axis=-1)).sum() / share
            if total < lowest:
                lowest, place = total, (COARSE * down, COARSE * right)
    np.testing.assert_allclose(cost[0, 0], lowest, rtol=1e-4)
    np.testing.assert_array_equal(shift[0, 0], place)


def test_normal_pictures_are_transformed_once(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, broken, region = case
    seen: list[int] = []

    def counted(pictures: np.ndarray, usable: jax.Array | None = None, *, cell: int) -> jax.Array:
        if usable is None:  # else it is the picture itself
            seen.append(len(pictures))
        return spectra_of(pictures, usable, cell=cell)

    monkeypatch.setattr(matching, "spectra_of", counted)
    pictures = np.stack([crop(photograph, 20 * k, 400 - 30 * k) for k in range(BATCH + 3)])
    normals = Normals(pictures)
    assert len(normals) == BATCH + 3
    assert seen == []  # only when they are asked for
    for _ in range(3):
        matching_fill(broken, region, normals)
    assert seen == [BATCH, 3]
    assert normals.spectra.shape == (BATCH + 3, 4, 2 * SIDE // COARSE, SIDE // COARSE + 1)
    np.testing.assert_array_equal(normals.spectra[BATCH], Normals(pictures[BATCH:]).spectra[0])
    np.testing.assert_array_equal(normals.turned(2, 3), np.rot90(normalize(pictures[2]), 3))


def test_fills_go_by_name(photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]) -> None:
    _, broken, region = case
    normals = among_others(photograph, crop(photograph, CORNER, CORNER))
    material: Any = SimpleNamespace(normals=normals, inpainter=None)
    filled, error = FILLS["matching"](broken, region, material)
    np.testing.assert_array_equal(filled, matching_fill(broken, region, normals).filled)
    assert error < 1e-5
    filled, error = FILLS["harmonic"](broken, region, material)
    np.testing.assert_array_equal(filled, harmonic_fill(broken, region))
    assert error == np.inf
    with pytest.raises(InputError, match="the model has no autoencoder"):
        FILLS["autoencoder"](broken, region, material)


def test_without_surroundings_the_fill_is_harmonic(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]
) -> None:
    truth, _, _ = case
    whole = np.ones((SIDE, SIDE), bool)
    filled, error = matching_fill(truth, whole, Normals(crop(photograph, CORNER, CORNER)[None]))
    np.testing.assert_array_equal(filled, harmonic_fill(truth, whole))
    assert error == np.inf


def test_without_a_region_the_picture_is_returned(
    photograph: np.ndarray, case: tuple[np.ndarray, np.ndarray, Region]
) -> None:
    truth, _, region = case
    filled, error = matching_fill(truth, np.zeros_like(region), Normals(crop(photograph, CORNER, CORNER)[None]))
    np.testing.assert_array_equal(filled, truth)
    assert filled is not truth
    assert error == 0


def test_the_weight_of_the_surroundings_falls_with_distance(
    case: tuple[np.ndarray, np.ndarray, Region],
) -> None:
    _, _, region = case
    weight = surroundings_weight(region)
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight == 0, region)
    beside, far = weight[31, 45], weight[0, 0]
    assert far < 0.1 < 0.9 < beside
    assert jnp.all(jnp.diff(weight[30, 44:]) <= 0)

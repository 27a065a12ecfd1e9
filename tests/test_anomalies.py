"""Graded anomalies: what every kind keeps to, and what makes each one hard."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from f2pad_jax.data.anomalies import KINDS, check_kinds, folder_of
from f2pad_jax.data.changes import PLAIN, VISIBLE, alter, move
from f2pad_jax.data.paints import CONTRAST, DARKEST, OPACITY, cut_paste
from f2pad_jax.data.shapes import AREA
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError

SHAPE = (96, 120)
PAINTS = ("colour", "grey", "own", "translucent")
CHANGES = tuple(kind for kind in KINDS if kind not in PAINTS)
Made = tuple[np.ndarray, np.ndarray]


def _part(seed: int) -> np.ndarray:
    """A black and an orange half on a light ground, with a little noise."""
    rows, columns = SHAPE
    picture = np.full((*SHAPE, 3), 220)
    picture[rows // 4 : -rows // 4, columns // 10 : columns // 2] = 30
    picture[rows // 4 : -rows // 4, columns // 2 : -columns // 10] = (200, 110, 60)
    return np.clip(picture + np.random.default_rng(seed).integers(-5, 6, picture.shape), 0, 255).astype(np.uint8)


def _surface() -> np.ndarray:
    """A grey photograph of 64 × 64 pixels."""
    return texture_category("gravel", train=1, test=0, size=64)[0][0]


def _made(kind: str, normal: np.ndarray, seeds: int) -> list[Made]:
    return [KINDS[kind](normal, np.random.default_rng(seed)) for seed in range(seeds)]


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one / 255 - other / 255, axis=-1)


def _levels(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other).max(axis=-1)


@pytest.mark.parametrize("normal", [_part(0), _surface()], ids=["part", "surface"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_changes_visibly_and_in_the_mask_only(kind: str, normal: np.ndarray) -> None:
    before = normal.copy()
    made = _made(kind, normal, 6)
    for x, mask in made:
        assert (x.dtype, x.shape, mask.dtype, mask.shape) == (np.uint8, normal.shape, bool, normal.shape[:2])
        assert AREA[0] <= mask.mean() <= AREA[1]
        levels = _levels(x, normal)
        assert levels[~mask].max() == 0
        visible = levels >= VISIBLE
        assert visible[mask].mean() >= (1 if kind in PAINTS else 0.5)
        assert np.asarray(ndimage.binary_dilation(visible, np.ones((5, 5))))[mask].all()
        if kind in CHANGES:
            assert np.sqrt(np.square(levels[mask]).mean()) >= PLAIN
    np.testing.assert_array_equal(normal, before)
    for (x, mask), (again, same) in zip(made, _made(kind, normal, 2), strict=False):
        np.testing.assert_array_equal(again, x)
        np.testing.assert_array_equal(same, mask)
    assert (made[0][0] != made[1][0]).any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("colour", "translucent")])
def test_grey_pictures_stay_grey(kind: str) -> None:
    for x, _ in _made(kind, _surface(), 4):
        assert np.ptp(x.astype(int), axis=-1).max() == 0


def test_paints_have_the_same_shape() -> None:
    shapes = [[mask for _, mask in _made(kind, _part(0), 6)] for kind in PAINTS]
    for other in shapes[1:]:
        np.testing.assert_array_equal(other, shapes[0])


def test_given_shapes_are_used() -> None:
    bar = np.zeros((50, 60), bool)
    bar[20:24, 10:50] = True
    for kind in ("grey", "own", "translucent"):
        _, mask = KINDS[kind](_part(0), np.random.default_rng(1), masks=[bar])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
    for kind in CHANGES:
        if kind == "scratch":  # has a shape of its own
            continue
        for seed in range(3):
            _, mask = KINDS[kind](_part(0), np.random.default_rng(seed), masks=[bar])
            assert mask.any(axis=1).sum() <= 2 * SHAPE[0] * 4 / 50  # the bar's height, at most doubled


def test_grey_paint_has_no_chroma_and_stands_out() -> None:
    normal = _part(0)
    for x, mask in _made("grey", normal, 10):
        assert np.ptp(x[mask].astype(int), axis=-1).max() == 0
        assert x[mask].max() >= DARKEST
        assert _apart(x, normal)[mask].min() >= CONTRAST - 1e-9


def test_own_colours_are_the_part_s_where_they_stand_out() -> None:
    normal = _part(0)
    colours = {tuple(c) for c in normal.reshape(-1, 3).tolist()}
    shares = []
    for x, mask in _made("own", normal, 20):
        assert _apart(x, normal)[mask].min() >= CONTRAST - 1e-9
        shares.append(np.mean([tuple(c) in colours for c in x[mask].tolist()]))
    assert np.median(shares) > 0.9


def test_translucent_paint_lies_between_the_picture_and_the_paint() -> None:
    normal = _part(0)
    opacities = []
    for seed, (x, mask) in enumerate(_made("translucent", normal, 20)):
        paint, _ = cut_paste(normal, np.random.default_rng(seed))
        whole, part = paint[mask].astype(float) - normal[mask], x[mask].astype(float) - normal[mask]
        opacities.append(float((whole * part).sum() / (whole**2).sum()))
        np.testing.assert_allclose(part, opacities[-1] * whole, atol=1)
        assert _apart(x, normal)[mask].min() >= OPACITY[0] * CONTRAST - np.sqrt(3) * 0.5 / 255
    assert min(opacities) < 0.45
    assert max(opacities) > 0.85


@pytest.mark.parametrize("kind", ["structural", "warp"])
def test_structural_anomalies_bring_no_new_colour_but_are_seen(kind: str) -> None:
    normal = _part(0)
    for x, mask in _made(kind, normal, 10):
        assert x.min() >= normal.min()
        assert x.max() <= normal.max()
        assert _apart(x, normal)[mask].mean() > CONTRAST / 2


def test_a_blurred_piece_is_smoother() -> None:
    def roughness(picture: np.ndarray) -> np.ndarray:
        return np.abs(np.asarray(ndimage.laplace(picture.mean(axis=-1))))

    normal = _surface()
    for x, mask in _made("blur", normal, 6):
        inner = np.asarray(ndimage.binary_erosion(mask), bool)
        assert roughness(x)[inner].mean() < 0.5 * roughness(normal)[inner].mean()


def test_brightness_moves_all_channels_one_way() -> None:
    normal = np.full((*SHAPE, 3), (120, 140, 100), np.uint8)
    signs = set()
    for x, mask in _made("brightness", normal, 10):
        shift = x[mask].astype(int) - normal[mask]
        assert np.ptp(shift, axis=-1).max() <= 1
        assert len(np.unique(np.sign(shift))) == 1
        assert np.abs(shift).max() <= 90
        signs.add(int(np.sign(shift[0, 0])))
    assert signs == {-1, 1}


def test_scratches_are_thin_and_run_along_edges() -> None:
    normal = _part(0)
    borders = np.ones(SHAPE, bool)
    borders[ndimage.gaussian_gradient_magnitude(normal.mean(axis=-1), 1) > 20] = False
    away = np.asarray(ndimage.distance_transform_edt(borders))
    for x, mask in _made("scratch", normal, 10):
        assert np.asarray(ndimage.distance_transform_edt(mask)).max() <= 2
        assert np.median(away[mask]) <= 2
        assert (_levels(x, normal)[mask] >= VISIBLE).all()


def test_a_missing_part_shows_the_background() -> None:
    normal = _part(0)
    for x, mask in _made("missing", normal, 10):
        assert (_levels(x, np.full_like(x, 220))[mask] <= 5).mean() > 0.9


def test_foreign_textures_have_structure_in_the_part_s_hue() -> None:
    normal = np.full((*SHAPE, 3), (200, 110, 60), np.uint8)
    for x, mask in _made("texture", normal, 8):
        colours = x[mask].astype(float)
        assert colours.std(axis=0).max() > 10
        assert (np.diff(colours, axis=-1) <= 0).all()  # red above green above blue, as in n


def _square(image: np.ndarray, rng: np.random.Generator, masks: object) -> np.ndarray:
    region = np.zeros(image.shape[:2], bool)
    region[8:20, 10:22] = True
    return region


def _marked(levels: np.ndarray | int) -> np.ndarray:
    normal = np.full((40, 40, 3), 100, np.uint8)

    def change(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image + np.broadcast_to(levels, region.shape)[..., None]

    x, mask = alter(normal, np.random.default_rng(0), changes=(change,), draw=_square)
    np.testing.assert_array_equal(x[~mask], normal[~mask])
    return mask


def test_a_kind_of_one_s_own_is_marked_from_the_visible_level_on() -> None:
    square = _square(np.zeros((40, 40)), np.random.default_rng(0), None)
    np.testing.assert_array_equal(_marked(VISIBLE), square)
    with pytest.raises(InputError, match="no such anomaly can be seen on the picture; choose another kind"):
        _marked(VISIBLE - 1)
    column = np.arange(40)[None] * np.ones((40, 1), int)
    np.testing.assert_array_equal(_marked(50 * (column % 4 >= 2)), square & (column < 20))  # gaps of two are closed
    assert _marked(50 * (column % 6 < 3)).sum() == 12 * 3  # gaps of three are not: one stripe is left


def test_a_region_that_fills_the_frame_is_not_moved() -> None:
    normal = _surface()
    frame = np.eye(64, dtype=bool)
    np.testing.assert_array_equal(move(normal, frame, np.random.default_rng(0)), normal)
    frame[-7:] = False  # leaves seven rows and columns of room; a tenth of the side is six
    moved = move(normal, frame, np.random.default_rng(0))
    shifts = [(down, right) for down in range(8) for right in range(8) if max(down, right) >= 6]
    assert any((moved == np.roll(normal, (-down, -right), (0, 1))).all() for down, right in shifts)


def test_changes_need_something_to_be_seen() -> None:
    flat = np.full((40, 48, 3), 90, np.uint8)
    for kind in ("structural", "warp", "blur", "missing"):
        with pytest.raises(InputError, match="no such anomaly can be seen"):
            KINDS[kind](flat, np.random.default_rng(0))
    for kind in ("texture", "brightness", "scratch"):
        assert KINDS[kind](flat, np.random.default_rng(0))[1].any()


def test_names_of_kinds() -> None:
    assert check_kinds(["grey", "colour"]) == ("grey", "colour")
    with pytest.raises(InputError, match="grau: no such kind of anomaly; choose from colour, grey, own, translucent"):
        check_kinds(["grey", "grau"])
    with pytest.raises(InputError, match="no such kind of anomaly"):
        check_kinds([])
    assert [folder_of(kind) for kind in KINDS] == ["color", *list(KINDS)[1:]]


def test_kinds_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def negative(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return 255 - image

    monkeypatch.setitem(KINDS, "negative", partial(alter, changes=(negative,)))
    _, cases = texture_category("brick", train=1, test=2, size=64, kinds=("negative",))
    for x, mask, normal in cases:
        np.testing.assert_array_equal(x, np.where(mask[..., None], 255 - normal, normal))

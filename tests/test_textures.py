from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from f2pad_jax.data.anomalies import KINDS
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_images, load_tests
from f2pad_jax.data.paints import cut_paste
from f2pad_jax.data.textures import TEXTURES, make_textures, texture_category
from f2pad_jax.errors import InputError


def _photograph(name: str) -> np.ndarray:
    picture = getattr(skimage.data, "immunohistochemistry" if name == "ihc" else name)()
    return np.atleast_3d(picture)


def _places(crop: np.ndarray, photograph: np.ndarray) -> list[tuple[int, int]]:
    """Every (top, left) at which a crop lies in the photograph."""
    size = len(crop)
    corner = (photograph[: 512 - size + 1, : 512 - size + 1] == crop[0, 0, : photograph.shape[2]]).all(axis=-1)
    return [
        (int(top), int(left))
        for top, left in np.argwhere(corner)
        if (photograph[top : top + size, left : left + size] == crop[..., : photograph.shape[2]]).all()
    ]


@pytest.mark.parametrize("size", [64, 224, 256])
@pytest.mark.parametrize("name", TEXTURES)
def test_crops_are_native_and_disjoint(name: str, size: int) -> None:
    photograph = _photograph(name)
    train, cases = texture_category(name, train=6, test=3, size=size, seed=1)
    assert (train.shape, train.dtype, len(cases)) == ((6, size, size, 3), np.uint8, 3)
    lefts = [_places(crop, photograph) for crop in train]
    rights = [_places(normal, photograph) for _, _, normal in cases]
    assert all(len(places) == 1 for places in lefts + rights)
    assert max(places[0][1] for places in lefts) + size <= min(places[0][1] for places in rights)
    tops = [places[0][0] for places in lefts]
    assert len(set(tops)) == 6
    for x, mask, normal in cases:
        np.testing.assert_array_equal((x != normal).any(axis=-1), mask)
        assert 0.003 <= mask.mean() <= 0.13


def test_neither_part_depends_on_the_others_number() -> None:
    train, cases = texture_category("brick", train=4, test=2, size=64, seed=5)
    np.testing.assert_array_equal(texture_category("brick", train=4, test=9, size=64, seed=5)[0], train)
    again = texture_category("brick", train=1, test=2, size=64, seed=5)[1]
    for case, other in zip(cases, again, strict=True):
        for one, two in zip(case, other, strict=True):
            np.testing.assert_array_equal(one, two)
    assert (texture_category("brick", train=4, test=0, size=64, seed=6)[0] != train).any()


def test_colours_are_drawn_one_after_the_other() -> None:
    """As in version 0.1.0: the default must give the same bytes for good."""
    rng = np.random.default_rng([5, zlib.crc32(b"brick"), 1])
    rng.random(4)  # rows and
    rng.integers(0, 224 - 64 + 1, 4)  # columns of the crops
    for x, mask, normal in texture_category("brick", train=0, test=4, size=64, seed=5)[1]:
        painted, painted_mask = cut_paste(normal, rng)
        np.testing.assert_array_equal(x, painted)
        np.testing.assert_array_equal(mask, painted_mask)


def test_tests_take_the_kinds_in_turn() -> None:
    kinds = ("grey", "colour", "blur")
    train, cases = texture_category("brick", train=2, test=4, size=64, seed=5, kinds=kinds)
    plain_train, plain = texture_category("brick", train=2, test=4, size=64, seed=5)
    np.testing.assert_array_equal(train, plain_train)
    for (x, mask, normal), (colour, shape, same), kind in zip(cases, plain, (*kinds, "grey"), strict=True):
        np.testing.assert_array_equal(normal, same)
        np.testing.assert_array_equal(x[~mask], normal[~mask])
        if kind != "blur":
            np.testing.assert_array_equal(mask, shape)
        assert (x == colour).all() == (kind == "colour")
        assert (np.ptp(x.astype(int), axis=-1).max() == 0) == (kind != "colour")


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="wood: no such texture; choose from brick, grass, gravel, ihc"):
        texture_category("wood")
    for size in (257, 0):
        with pytest.raises(InputError, match=f"brick: crops of {size} pixels do not fit; ask for 1 to 256"):
            texture_category("brick", size=size)


def test_written_as_made(tmp_path: Path) -> None:
    make_textures(tmp_path / "textures", seed=2, train=3, test=2, size=64, categories=("brick", "ihc"))
    assert sorted(path.name for path in (tmp_path / "textures").iterdir()) == [
        "brick",
        "ihc",
        "manifest.json",
    ]
    assert json.loads((tmp_path / "textures" / "manifest.json").read_text())["seed"] == 2
    for name in ("brick", "ihc"):
        category = open_category(tmp_path / "textures" / name)
        assert (category.dataset, category.name) == ("textures", name)
        train, cases = texture_category(name, train=3, test=2, size=64, seed=2)
        np.testing.assert_array_equal(load_images(category.train, 64)[0], train)
        images, masks, _, _ = load_tests(category.test, 64)
        np.testing.assert_array_equal(images, [x for x, _, _ in cases])
        np.testing.assert_array_equal(masks, [mask for _, mask, _ in cases])


def test_kinds_are_folders(tmp_path: Path) -> None:
    kinds = tuple(KINDS)
    make_textures(tmp_path / "textures", train=1, test=12, size=64, categories=("gravel",), kinds=kinds)
    category = open_category(tmp_path / "textures" / "gravel")
    folders = ["color" if kind == "colour" else kind for kind in kinds]
    assert sorted(case.id for case in category.test) == sorted(
        ["color/011", *(f"{folder}/{index:03d}" for index, folder in enumerate(folders))]
    )
    assert json.loads((tmp_path / "textures" / "manifest.json").read_text())["kinds"] == list(kinds)
    with pytest.raises(InputError, match="11 kinds do not fit in 10 test pictures; ask for 11"):
        make_textures(tmp_path / "more", test=10, kinds=kinds)
    with pytest.raises(InputError, match="grau: no such kind of anomaly"):
        texture_category("brick", kinds=("grau",))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such texture"):
        make_textures(tmp_path / "textures", train=1, test=1, size=32, categories=("brick", "wood"))
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from f2pad_jax.data.images import write_png
from f2pad_jax.data.layouts import (
    TestImage,
    find_images,
    list_images,
    load_images,
    load_tests,
    new_folder,
    open_category,
    read_test,
)
from f2pad_jax.errors import InputError


def _picture(path: Path, level: int = 100, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.full((side, side, 3), level, np.uint8))
    return path


def _mask(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.indices((side, side)).sum(axis=0) < 3)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec" / "capsule"
    for stem in ("002", "000", "001"):
        _picture(root / "train" / "good" / f"{stem}.png")
    _picture(root / "test" / "good" / "000.png")
    for stem in ("001", "000"):
        _picture(root / "test" / "crack" / f"{stem}.png", 50)
        _mask(root / "ground_truth" / "crack" / f"{stem}_mask.png")
    return root


def test_layout(root: Path) -> None:
    (root / "train" / "good" / ".hidden.png").write_bytes(b"")
    (root / "train" / "good" / "notes.txt").write_text("")
    (root / "test" / ".cache").mkdir()
    category = open_category(root)
    assert (category.dataset, category.name) == ("mvtec", "capsule")
    assert [path.name for path in category.train] == ["000.png", "001.png", "002.png"]
    assert [case.id for case in category.test] == ["crack/000", "crack/001", "good/000"]
    assert category.test[1].mask == root / "ground_truth" / "crack" / "001_mask.png"
    assert category.test[2].mask is None
    assert open_category(str(root)) == category


def test_names_of_a_relative_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    category = open_category(".")
    assert (category.dataset, category.name) == ("mvtec", "capsule")


def _without(*parts: str):
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def _emptied(*parts: str):
    return lambda root: [path.unlink() for path in root.joinpath(*parts).iterdir()]


FAULTS = {
    "no folder": (_without(), "capsule: no such folder"),
    "no train": (_without("train"), "capsule: has no train/good"),
    "no good": (_without("train", "good"), "capsule: has no train/good"),
    "empty train": (_emptied("train", "good"), "good: holds no pictures"),
    "no test": (_without("test"), "capsule: has no test pictures"),
    "empty defect": (_emptied("test", "crack"), "crack: holds no pictures"),
    "no masks": (_without("ground_truth"), "000.png: has no mask; put one at .*000_mask.png"),
    "no mask": (
        lambda root: (root / "ground_truth" / "crack" / "001_mask.png").unlink(),
        "001.png: has no mask; put one at .*001_mask.png",
    ),
    "no picture": (
        lambda root: (root / "test" / "crack" / "001.png").unlink(),
        "001_mask.png: is a mask without a picture",
    ),
    "mask of no defect": (
        lambda root: _mask(root / "ground_truth" / "poke" / "000_mask.png"),
        "000_mask.png: is a mask without a picture",
    ),
    "one name twice": (
        lambda root: shutil.copy(root / "test/crack/000.png", root / "test/crack/000.jpg"),
        "000.png: has the name of 000.jpg",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_layout(root: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(root)
    with pytest.raises(InputError, match=message):
        open_category(root)


def test_training_needs_no_tests(root: Path) -> None:
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    assert open_category(root, need_test=False).test == ()


def test_read_test(root: Path) -> None:
    crack, _, good = open_category(root).test
    image, mask = read_test(crack)
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(mask, np.indices((8, 8)).sum(axis=0) < 3)
    image, mask = read_test(crack, 16)
    assert image.shape == (16, 16, 3)
    np.testing.assert_array_equal(mask, np.kron(np.indices((8, 8)).sum(axis=0) < 3, np.ones((2, 2), bool)))
    assert not read_test(good, 16)[1].any()


def test_mask_of_another_size(root: Path) -> None:
    _mask(root / "ground_truth" / "crack" / "001_mask.png", side=9)
    with pytest.raises(InputError, match="001_mask.png: the mask has 9 × 9 pixels, its picture 8 × 8; give"):
        read_test(open_category(root).test[1], 16)


def test_one_bad_picture_loses_no_other(tmp_path: Path) -> None:
    paths = [_picture(tmp_path / f"{level:03d}.png", level, side=level + 1) for level in range(20)]
    paths[7].write_bytes(b"")
    paths[13].write_bytes(b"no picture")
    paths.append(tmp_path / "missing.png")
    images, failures = load_images(paths, 5, threads=3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [level for level in range(20) if level not in (7, 13)])
    assert images.shape == (18, 5, 5, 3)
    assert [path.name for path, _ in failures] == ["007.png", "013.png", "missing.png"]
    assert "empty" in str(failures[0][1])


def test_nothing_readable() -> None:
    images, failures = load_images([Path("missing.png")], 5)
    assert images.shape == (0, 5, 5, 3)
    assert len(failures) == 1


def test_load_tests(root: Path) -> None:
    cases = open_category(root).test
    _mask(root / "ground_truth" / "crack" / "000_mask.png", side=9)
    images, masks, kept, failures = load_tests(cases, 8, threads=2)
    assert [case.id for case in kept] == ["crack/001", "good/000"]
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(masks.any(axis=(1, 2)), [True, False])
    assert failures[0][0] == cases[0].path
    images, masks, kept, failures = load_tests([TestImage(root / "none.png", "good", None)], 8)
    assert (images.shape, masks.shape, kept, len(failures)) == ((0, 8, 8, 3), (0, 8, 8), [], 1)


def test_list_images(tmp_path: Path) -> None:
    b, a = _picture(tmp_path / "few" / "b.PNG"), _picture(tmp_path / "few" / "a.png")
    _picture(tmp_path / "few" / "deeper" / "c.png")
    odd = tmp_path / "odd.dat"
    assert list_images([odd, tmp_path / "few", a]) == [odd, a, b]
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.PNG", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no pictures"):
        list_images([a, tmp_path / "empty"])
    with pytest.raises(InputError, match="no picture was named"):
        list_images([])


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "1"
    with pytest.raises(InputError, match="exists already"), new_folder(out):
        pass
    other = tmp_path / "other"
    other.mkdir()

    def fail() -> None:
        with new_folder(other) as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "other"]
    assert list(other.iterdir()) == []
    with new_folder(other) as folder:
        (folder / "a").write_text("1")
    assert (other / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"), new_folder(tmp_path / "file" / "out"):
        pass


@pytest.mark.realdata
def test_real_categories(mvtec_root: Path) -> None:
    sizes = {name: len(open_category(mvtec_root / name).train) for name in ("capsule", "metal_nut", "grid")}
    assert sizes == {"capsule": 219, "metal_nut": 220, "grid": 264}
    category = open_category(mvtec_root / "capsule")
    masks = load_tests(category.test[:40:5], 224)[1]
    assert all(mask.any() == (case.mask is not None) for mask, case in zip(masks, category.test[:40:5], strict=True))

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f2pad_jax.data import layouts
from f2pad_jax.data.categories import Category, TestImage
from f2pad_jax.data.folders import find_images, list_images, new_folder
from f2pad_jax.data.images import write_png
from f2pad_jax.data.layouts import LAYOUTS, open_category
from f2pad_jax.data.loading import load_category, load_images, load_tests, read_test
from f2pad_jax.errors import InputError, InputWarning


def _picture(path: Path, level: int = 100, side: int = 8) -> Path:
    """Written as PNG whatever the suffix: what a picture is, its bytes say."""
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
    (root / "train" / "good" / "Thumbs.db").write_text("")
    (root / "test" / ".cache").mkdir()
    category = open_category(root)
    with pytest.warns(
        InputWarning, match="capsule: files for training are not used: .hidden.png, notes.txt; save pict"
    ):
        assert open_category(root, need_test=False) == category
    for number in range(3):
        (root / "train" / "good" / f"{number}.raw").write_bytes(b"")
    with pytest.warns(InputWarning, match=r"files for training are not used: .hidden.png, 0.raw, 1.raw and 2 more"):
        open_category(root, need_test=False)
    assert (category.dataset, category.name) == ("mvtec", "capsule")
    assert [path.name for path in category.train] == ["000.png", "001.png", "002.png"]
    assert [case.id for case in category.test] == ["crack/000", "crack/001", "good/000"]
    assert category.test[1].mask == root / "ground_truth" / "crack" / "001_mask.png"
    assert category.test[2].mask is None
    assert open_category(str(root)).train == category.train


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
    "no mask of a defect": (_without("ground_truth", "crack"), "000.png: has no mask; put one at .*000_mask.png"),
    "two masks": (
        lambda root: _mask(root / "ground_truth" / "crack" / "001.png"),
        "001_mask.png: is a mask of the same picture as 001.png; remove one",
    ),
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


def _paths(root: Path, **files: list[str]) -> None:
    """Pictures, and under `masks` and `black` their masks."""
    for kind, names in files.items():
        for name in names:
            if kind == "masks":
                _mask(root / name)
            else:
                _picture(root / name, 0 if kind == "black" else 100)


def _listed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _mvtec2(root: Path) -> None:
    pictures = ["train/good/000_regular.png", "validation/good/000_regular.png", "test_private/000.png"]
    tests = ["test_public/good/000_regular.png", "test_public/bad/000_shift_1.png"]
    _paths(root, pictures=pictures + tests, masks=["test_public/ground_truth/bad/000_shift_1_mask.png"])


def _loco(root: Path) -> None:
    tests = ["test/good/000.png", "test/logical_anomalies/000.png", "test/logical_anomalies/001.png"]
    _paths(root, pictures=["train/good/000.png", "validation/good/000.png", *tests])
    folder = root / "ground_truth/logical_anomalies"
    _mask(folder / "000/000.png")
    write_png(folder / "000/001.png", np.indices((8, 8)).sum(axis=0) > 11)
    _mask(folder / "001/000.png")


def _visa_by_classes(root: Path) -> None:
    pictures = ["train/good/0001.JPG", "test/good/0002.JPG", "test/bad/003.JPG"]
    _paths(root, pictures=pictures, masks=["ground_truth/bad/003.png"])


def _visa(root: Path) -> None:
    images = "Data/Images"
    pictures = [f"{images}/Normal/0001.JPG", f"{images}/Normal/0000.JPG", f"{images}/Anomaly/000.JPG"]
    _paths(root, pictures=pictures, masks=["Data/Masks/Anomaly/000.png"])
    rows = ["object,split,label,image,mask", "other,train,normal,other/Data/Images/Normal/0000.JPG,"]
    for split, label, image, mask in (
        ("train", "normal", "Normal/0001.JPG", ""),
        ("test", "normal", "Normal/0000.JPG", ""),
        ("test", "anomaly", "Anomaly/000.JPG", f"{root.name}/Data/Masks/Anomaly/000.png"),
    ):
        rows.append(f"{root.name},{split},{label},{root.name}/{images}/{image},{mask}")
    _listed(root.parent / "split_csv/1cls.csv", "\n".join(rows) + "\n")


def _btad(root: Path) -> None:
    pictures = ["train/ok/0000.bmp", "test/ok/0000.bmp", "test/ko/0000.bmp"]
    _paths(root, pictures=pictures, masks=["ground_truth/ko/0000.png"])


def _realiad(root: Path) -> None:
    normal, defect = "OK/S0001/part_0001_OK_C1.jpg", "NG/HS/S0002/part_0002_NG_HS_C1.jpg"
    other = "OK/S0003/part_0003_OK_C1.jpg"
    _paths(root, pictures=[normal, defect, other], masks=["NG/HS/S0002/part_0002_NG_HS_C1.png"])

    def entry(image: str, kind: str, mask: str | None = None) -> dict[str, str | None]:
        return {"category": root.name, "anomaly_class": kind, "image_path": image, "mask_path": mask}

    facts = {
        "meta": {"prefix": f"{root.name}/", "normal_class": "OK", "pre_transform": None},
        "train": [entry(normal, "OK")],
        "test": [entry(other, "OK"), entry(defect, "HS", defect.replace("jpg", "png"))],
    }
    _listed(root.parent.parent / "realiad_jsons/realiad_jsons" / f"{root.name}.json", json.dumps(facts))


def _kolektor(root: Path) -> None:
    for item in range(1, 5):
        parts = [f"kos{item:02d}/Part{part}" for part in range(2)]
        _paths(root, pictures=[f"{part}.jpg" for part in parts], black=[f"{part}_label.bmp" for part in parts])
    _mask(root / "kos01/Part1_label.bmp")


def _dagm(root: Path) -> None:
    pictures = [f"{split}/{name}.PNG" for split in ("Train", "Test") for name in ("0001", "0002")]
    _paths(root, pictures=pictures, masks=["Train/Label/0002_label.PNG", "Test/Label/0001_label.PNG"])


def _own_folders(root: Path) -> None:
    """Folders by lots, masks in several spellings, a black one of a good picture, and one that is missing."""
    lots = ["Train/Good/monday/1.png", "Train/Good/friday/1.png", "test/crack/monday/1.png", "test/crack/friday/1.png"]
    others = ["test/crack/2.png", "test/good/1.png"]
    truth = "ground_truth/Crack"
    masks = [f"{truth}/monday/1_MASK.PNG", f"{truth}/friday/1.tiff", f"{truth}/2_mask.bmp"]
    _paths(root, pictures=lots + others, masks=masks, black=["ground_truth/good/1_mask.png"])


# how a data set is laid out, its training pictures, and the ids of its tests with the number of pixels of their masks
COPIES: dict[str, tuple[Callable[[Path], None], list[str], dict[str, int]]] = {
    "mvtec: LOCO": (
        _loco,
        ["train/good/000.png", "validation/good/000.png"],
        {"good/000": 0, "logical_anomalies/000": 12, "logical_anomalies/001": 6},
    ),
    "mvtec: VisA by classes": (_visa_by_classes, ["train/good/0001.JPG"], {"bad/003": 6, "good/0002": 0}),
    "mvtec: own folders": (
        _own_folders,
        ["Train/Good/friday/1.png", "Train/Good/monday/1.png"],
        {"crack/2": 6, "crack/friday/1": 6, "crack/monday/1": 6, "good/1": 0},
    ),
    "mvtec2": (
        _mvtec2,
        ["train/good/000_regular.png", "validation/good/000_regular.png"],
        {"bad/000_shift_1": 6, "good/000_regular": 0},
    ),
    "btad": (_btad, ["train/ok/0000.bmp"], {"good/0000": 0, "ko/0000": 6}),
    "visa": (_visa, ["Data/Images/Normal/0001.JPG"], {"anomaly/000": 6, "good/0000": 0}),
    "realiad": (
        _realiad,
        ["OK/S0001/part_0001_OK_C1.jpg"],
        {"HS/part_0002_NG_HS_C1": 6, "good/part_0003_OK_C1": 0},
    ),
    "kolektor": (
        _kolektor,
        ["kos01/Part0.jpg", "kos02/Part0.jpg", "kos02/Part1.jpg", "kos03/Part0.jpg", "kos03/Part1.jpg"],
        {"defect/kos01/Part1": 6, "good/kos04/Part0": 0, "good/kos04/Part1": 0},
    ),
    "dagm": (_dagm, ["Train/0001.PNG"], {"defect/0001": 6, "good/0002": 0}),
}


@pytest.mark.parametrize("name", COPIES)
def test_layouts_of_data_sets(tmp_path: Path, name: str) -> None:
    lay_out, train, tests = COPIES[name]
    root = tmp_path / "set" / "pictures" / "part"
    lay_out(root)
    category = open_category(root, need_masks=True)
    assert (category.dataset, category.name) == ("pictures", "part")
    assert [path.relative_to(root).as_posix() for path in category.train] == train
    images, masks, cases, failures = load_tests(category.test, None)
    assert (failures, images.shape) == ([], (len(tests), 8, 8, 3))
    assert {case.id: int(mask.sum()) for case, mask in zip(cases, masks, strict=True)} == tests
    assert [case.good for case in cases] == [id.startswith("good/") for id in tests]
    layout = name.partition(":")[0]
    assert open_category(root, layout=layout) == category
    with pytest.raises(InputError, match=r"has no train/good and is not of layout .*; name one category's folder"):
        open_category(root, layout="dagm" if layout != "dagm" else "visa")


def test_every_layout_has_a_copy() -> None:
    assert {name.partition(":")[0] for name in COPIES} == set(LAYOUTS)


def test_lists_of_data_sets_that_are_missing_or_damaged(tmp_path: Path) -> None:
    root = tmp_path / "set" / "pictures" / "part"
    _visa(root)
    (root.parent / "split_csv/1cls.csv").write_text("object,split\npart,train\n")
    with pytest.raises(InputError, match=r"1cls.csv: cannot be read \('image'\); put the data set's own list there"):
        open_category(root)
    shutil.rmtree(root.parent / "split_csv")
    with pytest.raises(InputError, match=r"1cls.csv: cannot be read \(No such file or directory\)"):
        open_category(root)
    root = tmp_path / "real" / "pictures" / "part"
    _realiad(root)
    (path,) = tmp_path.rglob("part.json")
    path.write_text(path.read_text().replace("image_path", "picture"))
    with pytest.raises(InputError, match=r"part.json: damaged list \(train.0.image_path: field required\)"):
        open_category(root)
    path.unlink()
    with pytest.raises(InputError, match="part.json: cannot be read"):
        open_category(root)


def test_masks_beside_pictures_that_do_not_fit(tmp_path: Path) -> None:
    for lay_out, name in ((_kolektor, "kos02/Part1_label.bmp"), (_dagm, "Test/0001.PNG")):
        root = tmp_path / lay_out.__name__
        lay_out(root)
        (root / name).unlink()
        with pytest.raises(InputError, match=r"Part1.jpg: has no mask; put|0001_label.PNG: is a mask without a pict"):
            open_category(root)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for lay_out, name in (
        (_dagm, "Test/0001.bmp"),
        (_dagm, "Test/Label/0001_label.bmp"),
        (_kolektor, "kos02/Part1_label.png"),
    ):
        root = tmp_path / name.replace("/", "-")
        lay_out(root)
        _mask(root / name)
        with pytest.raises(InputError, match=r"has the name of \w+\.\w+; rename one of them"):
            open_category(root)


def test_pictures_that_were_not_fetched_are_told(root: Path) -> None:
    folder = root / "train" / "good"
    for stem in ("003", "004"):
        (folder / f"{stem}.png").symlink_to(root / "annex" / stem)
    (folder / ".annex").mkdir()
    (folder / ".annex" / "005.png").symlink_to(root / "annex" / "005")  # hidden, as pictures there are
    told = "good: 003.png is a link to nothing, and 1 more; fetch the files"
    with pytest.warns(InputWarning, match=told):
        category = open_category(root)
    assert [path.name for path in category.train] == ["000.png", "001.png", "002.png"]
    with pytest.warns(InputWarning, match=told):
        assert len(list_images([folder])) == 3


def test_pictures_beside_the_folders_of_defects_are_told(root: Path) -> None:
    known = open_category(root)
    _picture(root / "test" / "005.png")
    with pytest.warns(InputWarning, match="test: holds pictures beside the folders of defects"):
        assert open_category(root) == known


def test_pages_have_masks_of_their_own(root: Path) -> None:
    levels = [np.indices((8, 8)).sum(axis=0) < least for least in (3, 5)]
    for folder, name in (("test", "002.tif"), ("ground_truth", "002_mask.tif")):
        pages = [Image.fromarray(np.uint8(255) * level.astype(np.uint8)) for level in levels]
        pages[0].save(root / folder / "crack" / name, save_all=True, append_images=pages[1:])
    cases = [case for case in open_category(root).test if case.path.suffix == ".tif"]
    assert [case.id for case in cases] == ["crack/002_1", "crack/002_2"]
    for case, level in zip(cases, levels, strict=True):
        np.testing.assert_array_equal(read_test(case)[1], level)


def test_a_mask_that_is_not_turned_as_its_picture(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 8)).save(root / "test/crack/001.png", exif=exif)
    Image.new("L", (6, 8)).save(root / "ground_truth/crack/001_mask.png")
    with pytest.raises(
        InputError, match="the mask has 6 × 8 pixels, its picture 8 × 6; turn it: its picture is turned"
    ):
        read_test(open_category(root).test[1])


def test_two_layouts_that_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(root: Path) -> Category | None:
        return Category(root, "flat", "own", tuple(find_images(root)), ())

    monkeypatch.setitem(layouts.LAYOUTS, "flat", flat)
    with pytest.raises(InputError, match="capsule: is of the layouts mvtec and flat; name one by --layout"):
        open_category(root)
    assert len(open_category(root, layout="mvtec").train) == 3
    assert open_category(root, layout="flat", need_test=False).name == "flat"
    with pytest.raises(InputError, match="no layout 'round'; choose one of mvtec, .*flat"):
        open_category(root, layout="round")


def test_pictures_without_masks(root: Path) -> None:
    shutil.rmtree(root / "ground_truth")
    category = open_category(root)
    assert not category.masked
    assert [case.good for case in category.test] == [False, False, True]
    with pytest.raises(InputError, match="capsule: has no masks; put them in ground_truth/<defect>"):
        open_category(root, need_masks=True)
    with pytest.raises(InputError, match="000.png: has no mask"):
        read_test(category.test[0])
    images, masks, cases, failures = load_category(category, None)
    assert (len(images), masks, cases, failures) == (3, None, list(category.test), [])


def test_a_good_picture_whose_mask_is_not_black(root: Path) -> None:
    _mask(root / "ground_truth/good/000.png")
    with pytest.raises(InputError, match="000.png: is the mask of a good picture, but not black; move the picture"):
        read_test(open_category(root).test[2])


def test_a_defect_that_no_mask_shows_is_told(root: Path) -> None:
    black, whole, _ = open_category(root).test
    write_png(root / "ground_truth/crack/000_mask.png", np.zeros((8, 8), bool))
    with pytest.warns(InputWarning, match="000_mask.png: is the mask of a defect, but black: the picture counts"):
        assert not read_test(black, 8)[1].any()
    write_png(root / "ground_truth/crack/001_mask.png", np.arange(64).reshape(8, 8) == 0)
    assert read_test(whole)[1].sum() == 1
    with pytest.warns(InputWarning, match="001.png: its defect is lost when it is resized: the picture counts as good"):
        assert not read_test(whole, 4)[1].any()


def test_no_two_pictures_have_one_mask(root: Path) -> None:
    mask = root / "ground_truth/crack/000_mask.png"
    _picture(root / "test/crack/a.png")
    _picture(root / "test/crack/A.png")
    if len(list((root / "test/crack").iterdir())) < 4:
        pytest.skip("A and a are one name here")
    mask.with_name("a_mask.png").write_bytes(mask.read_bytes())
    with pytest.raises(InputError, match="a.png: has the name of A.png; rename one of them"):
        open_category(root)


def test_masks_of_a_picture_may_have_pages(root: Path) -> None:
    levels = [np.indices((8, 8)).sum(axis=0) == diagonal for diagonal in (1, 2, 3)]
    pages = [Image.fromarray(np.uint8(255) * level.astype(np.uint8)) for level in levels]
    (root / "ground_truth/crack/000_mask.png").unlink()
    folder = root / "ground_truth/crack/000"
    folder.mkdir()
    pages[0].save(folder / "0.tif", save_all=True, append_images=pages[1:2])
    pages[2].save(folder / "1.png")
    np.testing.assert_array_equal(read_test(open_category(root).test[0])[1], np.any(levels, axis=0))


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
    with pytest.warns(InputWarning, match="few: holds folders of pictures, which are passed over; name them as well"):
        assert list_images([odd, tmp_path / "few", a]) == [odd, a, b]
    (tmp_path / "few" / "deeper" / "results.jsonl").touch()  # whose pictures are results
    assert list_images([odd, tmp_path / "few", a]) == [odd, a, b]
    with pytest.raises(InputError, match="holds no pictures itself; name the folders in it"):
        list_images([tmp_path])
    assert list_images([a, tmp_path / "few" / "deeper" / ".." / "a.png"]) == [a]
    pages = [Image.new("L", (3, 3), level) for level in (0, 9)]
    pages[0].save(tmp_path / "stack.TIF", format="TIFF", save_all=True, append_images=pages[1:])
    names = [tmp_path / "stack.TIF" / f"stack_{page}.TIF" for page in (1, 2)]
    assert list_images([tmp_path / "stack.TIF", names[1]]) == names
    (tmp_path / "stack.TIF").unlink()
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.PNG", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no pictures"):
        list_images([a, tmp_path / "empty"])
    with pytest.raises(InputError, match="no picture was named"):
        list_images([])


def test_files_in_a_folder_that_are_no_pictures_are_told(tmp_path: Path) -> None:
    pictures = [_picture(tmp_path / name) for name in ("a.png", "b.PNG")]
    for name in (".notes", ".DS_Store", "Thumbs.db", "desktop.ini", "a.json", "b.PNG.xmp", "c.npy", "scores.npz"):
        (tmp_path / name).touch()
    assert list_images([tmp_path]) == pictures
    (tmp_path / "notes.txt").touch()
    with pytest.warns(InputWarning, match=f"{tmp_path.name}: files that are no pictures are left out: notes.txt; save"):
        assert list_images([tmp_path]) == pictures
    for number in range(4):
        (tmp_path / f"{number}.heic").touch()
    with pytest.warns(InputWarning, match="are left out: 0.heic, 1.heic, 2.heic and 2 more; save pictures as PNG"):
        assert list_images([tmp_path]) == pictures


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

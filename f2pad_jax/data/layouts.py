"""Layouts of data sets, one function each.

A layout of one's own is a function from a folder to a `Category`, or None where the folder is of another layout, and a
line in `LAYOUTS`.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from f2pad_jax.data.categories import GOOD, Category, TestImage
from f2pad_jax.data.folders import below, check_filled, find_images, listed, pictures_in, subfolders, unused_files
from f2pad_jax.data.images import read_mask
from f2pad_jax.data.masks import find_tests, without_picture
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.schemas import Facts, read_facts

FOURTH = 4  # of Kolektor's items without a split of its own, each fourth is for tests


def open_category(
    path: str | os.PathLike[str], *, need_test: bool = True, need_masks: bool = False, layout: str | None = None
) -> Category:
    """What a folder holds, by the one of `LAYOUTS` that it is of.

    Files that are hidden or carry no picture's suffix are passed over.

    Args:
      path: the category's folder.
      need_test: whether a category without test pictures is a fault. Where not, it is for training.
      need_masks: whether test pictures without masks are one.
      layout: a name of `LAYOUTS`; by default all are tried.

    Raises:
      InputError: no such folder or layout, none of the layouts or several of them, or one that is not complete.

    Warns:
      InputWarning: it is for training, and folders with normal pictures hold files that are not used.
    """
    category = find_category(path, layout=layout)
    if category is None:
        raise InputError(
            f"has no train/good{f' and is not of layout {layout}' if layout else ''}",
            where=path,
            hint=f"name one category's folder, its normal pictures in train/good; or a layout: {', '.join(LAYOUTS)}",
        )
    if need_test and not category.test:
        raise InputError("has no test pictures", where=path, hint="put them in test/<defect> or test/good")
    if need_masks and not category.masked:
        raise InputError("has no masks", where=path, hint="put them in ground_truth/<defect>")
    if not need_test and category.unused:
        what = f"files for training are not used: {listed(category.unused)}"
        warnings.warn(InputWarning(what, where=path, hint="save pictures as PNG"), stacklevel=2)
    return category


def find_category(path: str | os.PathLike[str], *, layout: str | None = None) -> Category | None:
    """The category in a folder, or None where it is of none of the layouts, or not of the one that is named.

    Raises:
      InputError: as for `open_category`.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="name a category's folder, such as mvtec/capsule")
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"no layout {layout!r}", hint=f"choose one of {', '.join(LAYOUTS)}")
    found: dict[str, Category | InputError] = {}
    for name in LAYOUTS if layout is None else [layout]:
        try:
            category = LAYOUTS[name](root)
        except InputError as error:  # of this layout, and not complete
            category = error
        if category is not None:
            found[name] = category
    if len(found) > 1:
        raise InputError(f"is of the layouts {' and '.join(found)}", where=root, hint="name one by --layout")
    for category in found.values():
        if isinstance(category, InputError):
            raise category
        return category
    return None


def mvtec(root: Path) -> Category | None:
    """`train/good`, `test/<defect>` and `ground_truth/<defect>`: MVTec AD, MVTec LOCO, MPDD, and VisA by classes.

    The mask of `test/crack/001.png` is `ground_truth/crack/001_mask.png` or `001.png`, with any suffix of a picture,
    or all pictures in `ground_truth/crack/001` together (MVTec LOCO). There may be folders in between, such as
    `test/crack/monday/001.png`. Normal pictures in `validation/good` are for training as well.

    Raises:
      InputError: a folder is empty, one of the defect pictures has no mask, a mask has no picture or there are two,
        or two test pictures share a name.
    """
    train, test = below(root, "train", GOOD), below(root, "test")
    if not train.is_dir() or (below(root, "test_public").is_dir() and not test.is_dir()):
        return None
    return _in_folders(root, GOOD, test, below(root, "ground_truth"))


def mvtec2(root: Path) -> Category | None:
    """MVTec AD 2: `train/good`, `validation/good`, `test_public/<good or bad>` and `test_public/ground_truth/bad`.

    Normal pictures in `validation/good` are for training as well; the private test pictures have no masks.

    Raises:
      InputError: as for `mvtec`.
    """
    test = below(root, "test_public")
    if not below(root, "train", GOOD).is_dir() or not test.is_dir():
        return None
    return _in_folders(root, GOOD, test, below(test, "ground_truth"))


def btad(root: Path) -> Category | None:
    """BTAD: `train/ok`, `test/ok`, `test/ko` and `ground_truth/ko` with masks of the pictures' stems.

    Raises:
      InputError: as for `mvtec`.
    """
    if not below(root, "train", "ok").is_dir():
        return None
    return _in_folders(root, "ok", below(root, "test"), below(root, "ground_truth"))


def visa(root: Path) -> Category | None:
    """VisA as published: pictures in `Data/Images`, masks in `Data/Masks`, split by `split_csv/1cls.csv` beside.

    Raises:
      InputError: the list is missing or damaged, or names no picture of this category.
    """
    if not (root / "Data" / "Images" / "Normal").is_dir():
        return None
    root = root.resolve()
    table = root.parent / "split_csv" / "1cls.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["object"] == root.name]
            train = [root.parent / row["image"] for row in rows if row["split"] == "train"]
            test = [
                _listed(root.parent, row["image"], GOOD if row["label"] == "normal" else row["label"], row["mask"])
                for row in rows
                if row["split"] == "test"
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _unlisted(table, error) from error
    return _category(root, check_filled(train, table), test)


class _Listed(Facts, extra="ignore"):
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


class _Meta(Facts, extra="ignore"):
    normal_class: str = "OK"


class _Split(Facts, extra="ignore"):
    meta: _Meta
    train: list[_Listed]
    test: list[_Listed]


def realiad(root: Path) -> Category | None:
    """Real-IAD: `OK` and `NG` in the category's folder, split by `NAME.json` of a folder `realiad_jsons` beside.

    Raises:
      InputError: the list is missing or damaged.
    """
    if not ((root / "OK").is_dir() and (root / "NG").is_dir()):
        return None
    root = root.resolve()
    name, lists = f"{root.name}.json", root.parent.parent / "realiad_jsons"
    places = [lists / "realiad_jsons" / name, lists / name, root.parent / name, root / name]
    path = next(filter(Path.is_file, places), places[0])
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unlisted(path, error) from error
    split = read_facts(_Split, facts, kind="list", where=path, hint="take that of Real-IAD")
    normal = split.meta.normal_class
    train = [root / each.image_path for each in split.train if each.anomaly_class == normal]
    tests = [
        _listed(root, each.image_path, GOOD if each.anomaly_class == normal else each.anomaly_class, each.mask_path)
        for each in split.test
    ]
    return _category(root, check_filled(train, path), tests)


def kolektor(root: Path) -> Category | None:
    """KolektorSDD: a folder of each item, with `Part0.jpg` and its mask `Part0_label.bmp`, black where it is good.

    It has no split: defects and each fourth item's good pictures are for tests, all other good pictures for training.
    Masks are read to tell them apart.

    Raises:
      InputError: a picture has no mask or two, or its mask cannot be read.
    """
    items = [folder for folder in subfolders(root) if any(folder.glob("*_label.*"))]
    if not items:
        return None
    train, tests = [], []
    for number, item in enumerate(items, start=1):
        pictures = pictures_in(item)
        masks = _by_name(path for path in pictures if path.stem.endswith("_label"))
        for path in (path for path in pictures if path not in masks.values()):
            mask = masks.get(_name(path))
            if mask is None:
                raise InputError("has no mask", where=path, hint=f"put one at {path.stem}_label.bmp beside it")
            if defective := bool(read_mask(mask).any()):
                tests.append(TestImage(path, "defect", mask, item.name))
            elif number % FOURTH == 0:
                tests.append(TestImage(path, GOOD, mask, item.name))
            if not defective and number % FOURTH:
                train.append(path)
    return _category(root, check_filled(train, root), tests)


def dagm(root: Path) -> Category | None:
    """DAGM 2007: `Train` and `Test`, each with masks of its defects in `Label`, such as `0576_label.PNG`.

    Defects in `Train` are left out.

    Raises:
      InputError: a mask has no picture, or two files have one name.
    """
    folders = [below(root, name) for name in ("train", "test")]
    if not all(folder.is_dir() for folder in folders) or not any(below(each, "label").is_dir() for each in folders):
        return None
    found: list[list[TestImage]] = []
    for folder in folders:
        masks, pictures = _by_name(pictures_in(below(folder, "label"))), _by_name(pictures_in(folder))
        if unused := masks.keys() - pictures.keys():
            raise without_picture(masks[min(unused)], folder)
        found.append(
            [TestImage(path, "defect" if key in masks else GOOD, masks.get(key)) for key, path in pictures.items()]
        )
    train = [case.path for case in found[0] if case.good]
    return _category(root, check_filled(train, folders[0]), found[1])


LAYOUTS: dict[str, Callable[[Path], Category | None]] = {
    "mvtec": mvtec,
    "mvtec2": mvtec2,
    "btad": btad,
    "visa": visa,
    "realiad": realiad,
    "kolektor": kolektor,
    "dagm": dagm,
}
"""Layouts by name."""


def _category(root: Path, train: Iterable[Path], tests: Iterable[TestImage], unused: Iterable[Path] = ()) -> Category:
    resolved = root.resolve()
    cases = sorted(tests, key=lambda case: (case.defect, case.lot, case.path.name))
    seen: dict[str, Path] = {}
    for case in cases:
        if case.id in seen:
            raise _double(case.path, seen[case.id])
        seen[case.id] = case.path
    return Category(root, resolved.name, resolved.parent.name, tuple(sorted(train)), tuple(cases), tuple(unused))


def _in_folders(root: Path, good: str, test: Path, truth: Path) -> Category:
    """A category in folders: normal ones by their name, tests and masks by defect.

    Normal pictures for validation, which a data set may have set apart, are for training as well.
    """
    train = below(root, "train", good)
    normal = check_filled(find_images(train), train) + find_images(below(root, "validation", good))
    return _category(root, normal, find_tests(test, truth), unused_files(train))


def _name(path: Path) -> str:
    """The stem of a picture in lower case, or the one that a mask such as `0576_label.PNG` belongs to."""
    return path.stem.casefold().removesuffix("_label")


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by that name, which no two of them may have."""
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(_name(path), path)) != path:
            raise _double(path, other)
    return found


def _double(path: Path, other: Path) -> InputError:
    return InputError(f"has the name of {other.name}", where=path, hint="rename one of them")


def _listed(root: Path, picture: str, defect: str, mask: str | None) -> TestImage:
    """A picture that a list names, with names of files below the root."""
    return TestImage(root / picture, defect, root / mask if mask else None)


def _unlisted(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else error
    return InputError(f"cannot be read ({reason})", where=path, hint="put the data set's own list there")

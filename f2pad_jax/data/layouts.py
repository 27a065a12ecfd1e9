"""Layouts of data sets, one function each, and folders of pictures.

A layout of one's own is a function from a folder to a `Category`, or None where the folder is of another layout, and a
line in `LAYOUTS`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from f2pad_jax.data.images import Size, read_image, read_mask, resize_image, resize_mask, sides_of
from f2pad_jax.errors import InputError
from f2pad_jax.output import sweep, temporary_name

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})

Failures = list[tuple[Path, InputError]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class TestImage:
    """One test picture: its file, the name of its defect ("good" for none) and its mask (None for none)."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    path: Path
    defect: str
    mask: Path | None

    @property
    def id(self) -> str:
        """Unique within the category, such as "crack/001"."""
        return f"{self.defect}/{self.path.stem}"


@dataclass(frozen=True)
class Category:
    """One category of a data set; both lists are sorted by name.

    Attributes:
      root: its folder.
      name: of the category.
      dataset: that it belongs to.
      train: normal pictures.
      test: pictures with and without defects; empty where there are none.
    """

    root: Path
    name: str
    dataset: str
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]


def open_category(path: str | os.PathLike[str], *, need_test: bool = True) -> Category:
    """What a folder holds, by the first of `LAYOUTS` that it is of; no picture is read.

    Files that are hidden or carry no picture's suffix are passed over.

    Args:
      path: the category's folder.
      need_test: whether a category without test pictures is a fault.

    Raises:
      InputError: no such folder, none of the layouts, or one that is not complete.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="name a category's folder, such as mvtec/capsule")
    category = next(filter(None, (layout(root) for layout in LAYOUTS.values())), None)
    if category is None:
        raise InputError(
            "has no train/good", where=root, hint="name one category's folder; its normal pictures go there"
        )
    if need_test and not category.test:
        raise InputError("has no test pictures", where=root, hint="put them in test/<defect> or test/good")
    return category


def mvtec(root: Path) -> Category | None:
    """MVTec AD's layout: `train/good`, `test/<defect>` and `ground_truth/<defect>/<stem>_mask.png`.

    Raises:
      InputError: a folder is empty, a defect picture has no mask, a mask has no picture, or two test pictures share
        a name.
    """
    if not (root / "train" / "good").is_dir():
        return None
    train = tuple(_filled(root / "train" / "good"))
    tests = tuple(_tests(root)) if (root / "test").is_dir() else ()
    resolved = root.resolve()
    return Category(root, resolved.name, resolved.parent.name, train, tests)


LAYOUTS: dict[str, Callable[[Path], Category | None]] = {"mvtec": mvtec}
"""Layouts by name, in the order in which they are tried."""


def read_test(case: TestImage, size: Size | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A test picture and its mask (all False for a good one), both resized if a size is given.

    Returns:
      uint8 (H, W, 3) and bool (H, W).

    Raises:
      InputError: either cannot be read, or the two differ in size.
    """
    image = read_image(case.path)
    mask = np.zeros(image.shape[:2], bool) if case.mask is None else read_mask(case.mask)
    if mask.shape != image.shape[:2]:
        sides = "{1} × {0} pixels, its picture {3} × {2}".format(*mask.shape, *image.shape)
        raise InputError(f"the mask has {sides}", where=case.mask, hint="give both one size")
    if size is None:
        return image, mask
    return resize_image(image, sides_of(size)), resize_mask(mask, sides_of(size))


def load_images(paths: Sequence[Path], size: Size, *, threads: int | None = None) -> tuple[np.ndarray, Failures]:
    """Reads many pictures; one that cannot be read loses none of the others.

    Args:
      paths: the files.
      size: height and width they are resized to, or the side of a square.
      threads: readers at work together; None leaves it to the standard library.

    Returns:
      uint8 (N, H, W, 3) of the pictures that could be read, in the order given, and (path, error) of the rest.
    """
    images, _, failures = _load(lambda path: read_image(path, size), paths, lambda path: path, threads)
    return np.stack(images) if images else np.zeros((0, *sides_of(size), 3), np.uint8), failures


def load_tests(
    cases: Sequence[TestImage], size: Size | None, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[TestImage], Failures]:
    """Reads many test pictures with their masks, as `load_images` does; without a size they keep their own.

    Returns:
      uint8 (N, H, W, 3), bool (N, H, W), the N cases that could be read, and (path, error) of the rest.

    Raises:
      InputError: they keep their sizes, and these differ.
    """
    pairs, kept, failures = _load(lambda case: read_test(case, size), cases, lambda case: case.path, threads)
    if not pairs:
        sides = sides_of(size or 0)
        return np.zeros((0, *sides, 3), np.uint8), np.zeros((0, *sides), bool), [], failures
    images, masks = zip(*pairs, strict=True)
    odd = next((case for case, mask in zip(kept, masks, strict=True) if mask.shape != masks[0].shape), None)
    if odd is not None:
        raise InputError("is of another size than the others", where=odd.path, hint="give all test pictures one size")
    return np.stack(images), np.stack(masks), kept, failures


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The pictures that files and folders name, each once, folders one level deep and sorted by name.

    A name that is no folder is kept as it is: reading it tells what is wrong with it, and the others go on.

    Raises:
      InputError: a folder holds no picture, or nothing was named.
    """
    found = dict.fromkeys(
        picture for path in map(Path, paths) for picture in (_filled(path) if os.path.isdir(path) else [path])
    )
    if not found:
        raise InputError("no picture was named", hint="name pictures or folders of pictures")
    return list(found)


def find_images(folder: Path) -> list[Path]:
    """The pictures of a folder and of all folders below it, sorted; hidden ones are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_picture(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder under a temporary name, renamed to `out` when the block ends and removed when it fails.

    Raises:
      InputError: `out` exists and is not an empty folder, or cannot be made.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("exists already and is not an empty folder", where=out, hint="name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(out.parent)
        temporary.mkdir()
        sweep(out.parent)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=out) from error
    try:
        folder = temporary / "new"  # made by mkdir, so that it has ordinary permissions
        folder.mkdir()
        yield folder
        os.replace(folder, out)
    finally:
        shutil.rmtree(temporary)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_picture(path))


def _filled(folder: Path) -> list[Path]:
    pictures = _pictures(folder)
    if not pictures:
        raise InputError("holds no pictures", where=folder, hint="put pictures such as .png or .jpg there")
    return pictures


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _tests(root: Path) -> Iterator[TestImage]:
    truth = root / "ground_truth"
    unused = {mask for folder in _folders(truth) for mask in _pictures(folder)}
    for folder in _folders(root / "test"):
        masks = {} if folder.name == "good" else _masks(truth / folder.name)
        seen: dict[str, Path] = {}
        for path in _filled(folder):
            if path.stem in seen:
                raise InputError(f"has the name of {seen[path.stem].name}", where=path, hint="rename one of them")
            seen[path.stem] = path
            mask = masks.get(f"{path.stem}_mask")
            if mask is None and folder.name != "good":
                wanted = truth / folder.name / f"{path.stem}_mask.png"
                raise InputError("has no mask", where=path, hint=f"put one at {wanted}")
            if mask is not None:
                unused.discard(mask)
            yield TestImage(path, folder.name, mask)
    if unused:
        raise InputError("is a mask without a picture in test", where=min(unused), hint="remove it")


def _masks(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in _pictures(folder)} if folder.is_dir() else {}


def _load(
    read: Callable[[_Item], _Result],
    items: Sequence[_Item],
    path: Callable[[_Item], Path],
    threads: int | None,
) -> tuple[list[_Result], list[_Item], Failures]:
    def attempt(item: _Item) -> _Result | InputError:
        try:
            return read(item)
        except InputError as error:
            return error

    results: list[_Result] = []
    kept: list[_Item] = []
    failures: Failures = []
    with ThreadPoolExecutor(threads) as pool:
        for item, result in zip(items, pool.map(attempt, items), strict=True):
            if isinstance(result, InputError):
                failures.append((path(item), result))
            else:
                results.append(result)
                kept.append(item)
    return results, kept, failures

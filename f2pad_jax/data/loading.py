"""Many picture files at once, as arrays; one that cannot be read loses none of the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from f2pad_jax.data.categories import Category, TestImage
from f2pad_jax.data.folders import find_images
from f2pad_jax.data.images import Size, read_image, read_mask, resize_image, resize_mask, sides_of
from f2pad_jax.errors import InputError, InputWarning

Failures = list[tuple[Path, InputError]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_test(
    case: TestImage, size: Size | None = None, *, white_level: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A test picture and its mask (all False for a good one), both resized if a size is given.

    Returns:
      uint8 (H, W, 3) and bool (H, W).

    Raises:
      InputError: either cannot be read, the two differ in size, a defect has no mask, or the mask of a good picture
        is not black.

    Warns:
      InputWarning: the mask of a defect is black, or is so when it is resized.
    """
    image = read_image(case.path, white_level=white_level)
    if case.mask is None:
        if not case.good:
            raise InputError("has no mask", where=case.path, hint="put one where its layout has it")
        mask = np.zeros(image.shape[:2], bool)
    else:
        mask = _read_mask(case.mask, image.shape[:2])
    if case.good and mask.any():
        raise InputError("is the mask of a good picture, but not black", where=case.mask, hint="move the picture")
    if not case.good and not mask.any():
        _tell_uncounted("is the mask of a defect, but black", case.mask, "draw the defect, or move its picture")
    if size is None:
        return image, mask
    shape = sides_of(size)
    resized = resize_mask(mask, shape)
    if mask.any() and not resized.any():
        _tell_uncounted("its defect is lost when it is resized", case.path, "work on more pixels")
    return resize_image(image, shape), resized


def _tell_uncounted(what: str, where: Path | None, hint: str) -> None:
    warnings.warn(InputWarning(f"{what}: the picture counts as good", where=where, hint=hint), stacklevel=3)


def load_images(
    paths: Sequence[Path], size: Size | None, *, white_level: int | None = None, threads: int | None = None
) -> tuple[np.ndarray, Failures]:
    """Reads many pictures; one that cannot be read loses none of the others.

    Args:
      paths: the files.
      size: height and width they are resized to, or the side of a square; None leaves them as they are.
      white_level: as for `read_image`.
      threads: readers at work together; None leaves it to the standard library.

    Returns:
      uint8 (N, H, W, 3) of the pictures that could be read, in the order given, and (path, error) of the rest.

    Raises:
      InputError: they keep their sizes, and these differ.
    """
    images, kept, failures = _load(
        lambda path: read_image(path, size, white_level=white_level), paths, lambda path: path, threads
    )
    if not images:
        return np.zeros((0, *sides_of(size or 0), 3), np.uint8), failures
    _check_alike(images, kept)
    return np.stack(images), failures


def load_tests(
    cases: Sequence[TestImage], size: Size | None, *, white_level: int | None = None, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[TestImage], Failures]:
    """Reads many test pictures with their masks, as `load_images` does.

    Returns:
      uint8 (N, H, W, 3), bool (N, H, W), the N cases that could be read, and (path, error) of the rest.

    Raises:
      InputError: they keep their sizes, and these differ.
    """
    pairs, kept, failures = _load(
        lambda case: read_test(case, size, white_level=white_level), cases, lambda case: case.path, threads
    )
    if not pairs:
        sides = sides_of(size or 0)
        return np.zeros((0, *sides, 3), np.uint8), np.zeros((0, *sides), bool), [], failures
    images, masks = zip(*pairs, strict=True)
    _check_alike(images, [case.path for case in kept])
    return np.stack(images), np.stack(masks), kept, failures


def load_category(
    category: Category, size: Size | None, *, white_level: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, list[TestImage], Failures]:
    """Reads all test pictures of a category, as `load_tests` does; masks are None where some defects have none."""
    if category.masked:
        return load_tests(category.test, size, white_level=white_level)
    images, failures = load_images([case.path for case in category.test], size, white_level=white_level)
    unreadable = {path for path, _ in failures}
    return images, None, [case for case in category.test if case.path not in unreadable], failures


def _read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of a picture of that shape, or all masks of a folder in one."""
    merged = np.zeros(shape, bool)
    for part in find_images(path) if path.is_dir() else [path]:
        mask = read_mask(part)
        if mask.shape != shape:
            sides = "{1} × {0} pixels, its picture {3} × {2}".format(*mask.shape, *shape)
            turned = mask.shape == shape[::-1]
            hint = "turn it: its picture is turned as the EXIF orientation says" if turned else "give both one size"
            raise InputError(f"the mask has {sides}", where=part, hint=hint)
        merged |= mask
    return merged


def _check_alike(images: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    odd = next((path for path, image in zip(paths, images, strict=True) if image.shape != images[0].shape), None)
    if odd is not None:
        raise InputError("is of another size than the others", where=odd, hint="give all test pictures one size")


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

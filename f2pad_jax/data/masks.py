"""Which mask belongs to which picture, by the names of their files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from f2pad_jax.data.categories import GOOD, TestImage
from f2pad_jax.data.decoding import TIFFS, split_page
from f2pad_jax.data.folders import below, check_filled, find_images, pictures_in, subfolders
from f2pad_jax.errors import InputError, InputWarning

Key = tuple[str, int]  # of a picture and its mask


def find_tests(test: Path, truth: Path) -> Iterator[TestImage]:
    """Pictures in a folder for each defect, and their masks in folders of the same names; no masks where none are.

    Args:
      test: folder of folders.
      truth: folder of folders of masks, which may be missing.

    Raises:
      InputError: a folder is empty, some defects have masks and others none, a mask has no picture, or two masks are
        of one picture or two pictures have one mask.

    Warns:
      InputWarning: pictures lie beside the folders.
    """
    if pictures_in(test):
        what = "holds pictures beside the folders of defects, which are passed over"
        warnings.warn(InputWarning(what, where=test, hint="put them into a folder of their defect"), stacklevel=4)
    known = truth.is_dir()
    unused = set(find_images(truth)) if test.is_dir() else set()
    taken: dict[Path, Path] = {}
    for folder in subfolders(test):
        if folder == truth:
            continue
        own = below(truth, folder.name)
        masks, defect = _masks(own), GOOD if folder.name.casefold() in (GOOD, "ok") else folder.name
        for path in check_filled(find_images(folder), folder):
            place = split_page(path)[0].relative_to(folder)
            lot = place.parent.as_posix() if place.parent.parts else ""
            mask = _mask(masks, _key(path, folder))
            if mask is None and known and defect != GOOD:
                wanted = own / place.parent / f"{place.stem}_mask{place.suffix if place.suffix in TIFFS else '.png'}"
                raise InputError("has no mask", where=path, hint=f"put one at {wanted}")
            if mask is not None and (other := taken.setdefault(mask, path)) != path:
                raise InputError(f"has the name of {other.name}", where=path, hint="rename one of them")
            if mask is not None:
                unused -= set(find_images(mask) if mask.is_dir() else [mask])
            yield TestImage(path, defect, mask, lot)
    if unused:
        raise without_picture(min(unused), test)


def _masks(folder: Path) -> dict[Key, Path]:
    """Masks below a folder by their keys."""
    found: dict[Key, Path] = {}
    for path in find_images(folder):
        if (other := found.setdefault(_key(path, folder), path)) != path:
            raise _second(path, other)
    return found


def _key(path: Path, folder: Path) -> Key:
    """A name below a folder without suffix and in lower case, and the page: that of a picture and of its mask."""
    file, page = split_page(path)
    return file.relative_to(folder).with_suffix("").as_posix().casefold(), page


def _mask(masks: dict[Key, Path], picture: Key) -> Path | None:
    """The mask of a picture by its key, or the folder of its masks."""
    name, page = picture
    named = [masks[key] for key in ((f"{name}_mask", page), picture) if key in masks]
    if len(named) > 1:
        raise _second(*named)
    if named:
        return named[0]
    several = (split_page(path)[0].parent for (other, _), path in masks.items() if other.rpartition("/")[0] == name)
    return next(several, None)


def without_picture(mask: Path, folder: Path) -> InputError:
    """What to say of a mask whose picture is not in a folder."""
    return InputError(f"is a mask without a picture in {folder.name}", where=mask, hint="remove it")


def _second(path: Path, other: Path) -> InputError:
    return InputError(f"is a mask of the same picture as {other.name}", where=path, hint="remove one of them")

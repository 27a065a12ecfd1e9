"""Folders of pictures, and new folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from f2pad_jax.data.decoding import TIFFS, pages_of, split_page
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.output import check_movable, sweep, temporary_name

RECORDS = "results.jsonl"  # in a folder of results
SUFFIXES = TIFFS | frozenset(
    [".png", ".jpg", ".jpeg", ".jfif", ".jp2", ".bmp", ".webp", ".avif", ".gif", ".tga", ".pnm", ".ppm", ".pgm", ".pbm"]
)

SHOWN = 3  # names of files in one line
LITTER = frozenset(["thumbs.db", ".ds_store", "desktop.ini"])  # of file browsers
MAPS = frozenset([".npy", ".npz"])  # of scores, which may lie beside their pictures


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The pictures that files and folders name, each once, folders one level deep and sorted by name.

    A name that is no folder is kept as it is: reading it tells what is wrong with it, and the others go on. A file that
    is named twice, in whatever spelling, counts once. Pages of a TIFF are pictures: `stack.tif/stack_2` is the second
    of `stack.tif`.

    Raises:
      InputError: a folder holds no picture, or nothing was named.

    Warns:
      InputWarning: a folder of pictures holds others, but for those of results, or files that are no pictures and
        belong to none.
    """
    named = (
        picture for path in map(Path, paths) for picture in (_filled(path) if os.path.isdir(path) else pages_of(path))
    )
    found: dict[str, Path] = {}
    for path in named:
        found.setdefault(os.path.realpath(path), path)
    if not found:
        raise InputError("no picture was named", hint="name pictures or folders of pictures")
    return list(found.values())


def check_there(paths: Sequence[Path]) -> None:
    """Makes sure that one of the pictures at least is there, before work is begun for them.

    Raises:
      InputError: none is.
    """
    if not any(os.path.exists(split_page(path)[0]) for path in paths):
        more = f", nor any of {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(f"no such file{more}", where=paths[0], hint="check the name")


def find_images(folder: Path) -> list[Path]:
    """The pictures of a folder and of all folders below it, sorted; hidden ones are passed over.

    Pages of a TIFF are pictures, as for `list_images`. Folders that are links are passed over: they may lead back.

    Warns:
      InputWarning: some are links to files that are not there, or folders are links.
    """
    every = sorted(folder.rglob("*"))
    _tell_of_lost(every, folder)
    _tell_of_links(every, folder)
    return [page for path in every if _is_open(path, folder) for page in pages_of(path)]


def unused_files(folder: Path) -> list[Path]:
    """The files of a folder and of all folders below it that `find_images` passes over, sorted; no `LITTER`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.casefold() not in LITTER)
    return [path for path in files if not _is_open(path, folder)]


def _is_open(path: Path, folder: Path) -> bool:
    return is_picture(path) and not _is_hidden(path, folder)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def is_picture(path: Path) -> bool:
    """Whether this is a file with the suffix of a picture, and not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself, sorted; none where there is no such folder.

    Warns:
      InputWarning: some are links to files that are not there.
    """
    if not folder.is_dir():
        return []
    every = sorted(folder.iterdir())
    _tell_of_lost(every, folder)
    return [page for path in every if is_picture(path) for page in pages_of(path)]


def _tell_of_lost(paths: Iterable[Path], folder: Path) -> None:
    """Warns of pictures that a data set names by links and that were never fetched."""
    named = (path for path in paths if path.suffix.lower() in SUFFIXES and not _is_hidden(path, folder))
    lost = [path for path in named if path.is_symlink() and not os.path.exists(path)]
    if lost:
        what = f"{lost[0].name} is a link to nothing" + (f", and {len(lost) - 1} more" if len(lost) > 1 else "")
        warnings.warn(InputWarning(what, where=folder, hint="fetch the files, or remove the links"), stacklevel=4)


def _tell_of_links(paths: Iterable[Path], folder: Path) -> None:
    """Warns of links to folders, which nobody looks into."""
    linked = [path for path in paths if path.is_symlink() and path.is_dir() and not _is_hidden(path, folder)]
    if linked:
        what = f"folders that are links are passed over: {listed(linked)}"
        warnings.warn(InputWarning(what, where=folder, hint="put the folders themselves there"), stacklevel=4)


def _tell_of_others(pictures: Iterable[Path], folder: Path) -> None:
    """Warns of files beside pictures that are none, but for what belongs to one by its name, as annotations do."""
    files = [split_page(path)[0] for path in pictures]
    known = {name for file in files for name in (file.stem, file.name)}
    others = [
        path
        for path in sorted(folder.iterdir())
        if not (path.suffix.lower() in SUFFIXES | MAPS or path.name.startswith(".") or path.name.casefold() in LITTER)
        and path.stem not in known
        and path.is_file()
    ]
    if others:
        what = f"files that are no pictures are left out: {listed(others)}"
        warnings.warn(InputWarning(what, where=folder, hint="save pictures as PNG"), stacklevel=5)


def listed(files: Sequence[Path]) -> str:
    """The names of the first files, and how many more there are."""
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(file.name for file in files[:SHOWN]) + more


def check_filled(pictures: list[Path], folder: Path) -> list[Path]:
    """The pictures of a folder, at least one.

    Raises:
      InputError: there are none.
    """
    if not pictures:
        raise InputError("holds no pictures", where=folder, hint="put pictures such as .png or .jpg there")
    return pictures


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def below(folder: Path, *names: str) -> Path:
    """The folder of these names below another, each in upper or lower case as it is there."""
    for name in names:
        alike = [path for path in subfolders(folder) if path.name.casefold() == name.casefold()]
        exact = folder / name
        folder = exact if exact.is_dir() or not alike else alike[0]
    return folder


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder under a temporary name, renamed to `out` when the block ends and removed when it fails.

    Raises:
      InputError: `out` exists and is not an empty folder, or cannot be made.
    """
    out = Path(out)
    check_movable(out)
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


def _filled(folder: Path) -> list[Path]:
    pictures = pictures_in(folder)
    if pictures:
        _tell_of_others(pictures, folder)
    others = [path for path in subfolders(folder) if not (path / RECORDS).exists()]
    if not any(_is_open(file, path) for path in others for file in path.rglob("*")):
        return check_filled(pictures, folder)
    if not pictures:
        raise InputError("holds no pictures itself", where=folder, hint=f"name the folders in it: {folder}/*/")
    what = "holds folders of pictures, which are passed over"
    warnings.warn(InputWarning(what, where=folder, hint="name them as well"), stacklevel=4)
    return pictures

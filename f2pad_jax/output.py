"""Files that are whole or absent: written under a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import SoftFileLock, Timeout

from f2pad_jax.errors import InputError

LOCK = ".f2pad.lock"  # in a folder whose owner there is
DEVICES = Path("/dev")
ASIDE = "old"  # in a temporary folder: what is to be replaced, under its name


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file at once; the folder must exist.

    Raises:
      InputError: the file cannot be written, or the name belongs to a folder, a pipe or a device.
    """
    path = Path(path)
    temporary = temporary_name(path.parent)
    try:
        _check_kind(path)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from error
    finally:
        with suppress(OSError):  # whose own error would hide the one that matters
            temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Makes sure that `write_bytes` can write a file, before there is work to lose.

    Raises:
      InputError: as for `write_bytes`, or its folder is missing.
    """
    _check_kind(path)
    if not path.parent.is_dir():
        raise InputError("no such folder", where=path.parent, hint="make it first")
    check_writable(path)


def _check_kind(path: Path) -> None:
    # a pipe would be replaced without a word, and /dev/stdout of a redirected command as well
    if path.exists() and not (path.is_file() and path.parent.resolve() != DEVICES):
        raise InputError("cannot be written (it is no file)", where=path, hint="name a new file")


def check_writable(path: Path) -> None:
    """Makes sure that a file or folder can be made, as far as the folder above shows that is there already.

    Raises:
      InputError: nothing can be made there.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    probe = temporary_name(parent)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from error


def check_movable(folder: Path) -> None:
    """Makes sure that another folder can take the place of one, where it exists.

    Raises:
      InputError: it is the current folder, or a disk is mounted there.
    """
    if folder.is_dir() and (os.path.ismount(folder) or folder.samefile(os.curdir)):
        what = "cannot be replaced (it is the current folder, or one where a disk is mounted)"
        raise InputError(what, where=folder, hint="name a new folder in it")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to be filled under a temporary name, which takes the place of another in the end.

    Raises:
      InputError: it cannot be written; then what was there stays.
    """
    check_movable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = temporary_name(folder.parent)
        try:
            fresh = scratch / "new"
            fresh.mkdir(parents=True)
            yield fresh
            if folder.exists():
                (scratch / ASIDE).mkdir()
                os.replace(folder, scratch / ASIDE / folder.name)  # a kill after this: `sweep` puts it back
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        sweep(folder.parent)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", where=folder) from error


def temporary_name(folder: Path) -> Path:
    """A new name for what is not finished, which says who works on it; no longer than names can be."""
    return folder / f".f2pad-{_host()}-{os.getpid()}-{uuid.uuid4().hex}"


def sweep(folder: Path) -> None:
    """Removes what killed processes of this machine left unfinished in a folder, and puts back what they set aside."""
    for path in folder.glob(f".f2pad-{_host()}-*-*"):
        owner = path.name.split("-")[2]
        if owner.isdecimal() and not _runs(int(owner)):
            with suppress(OSError):  # another process may sweep as well
                for kept in (path / ASIDE).glob("*"):
                    if not (folder / kept.name).exists():
                        os.replace(kept, folder / kept.name)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_files(paths: Iterable[Path]) -> None:
    """Removes those of the files that are there; a name of anything else is passed over."""
    for path in paths:
        if os.path.isfile(path):  # unlike Path's, False as well where the name cannot be one
            path.unlink(missing_ok=True)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing results into a folder, as long as they ask as well.

    Raises:
      InputError: another process does, or nothing can be written there.
    """
    lock = SoftFileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{_owner(folder / LOCK)} writes there", where=folder, hint="wait for it, or name another folder"
        ) from error
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", where=folder) from error
    try:
        yield
    finally:
        lock.release()


def _owner(lock: Path) -> str:
    """Who holds a lock, by what the lock says."""
    try:
        process, host = lock.read_text("utf-8").split()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {host}"


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def append_line(path: str | os.PathLike[str], value: Any) -> None:
    """Adds a line of JSON to a file, which is flushed.

    Raises:
      InputError: the file cannot be written.
    """
    try:
        with Path(path).open("a", encoding="utf-8") as lines:
            lines.write(json_line(value))
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from error


def json_line(value: Any) -> str:
    """A value as a line of a file of JSON lines."""
    return json.dumps(value) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON at once; numbers that are not finite are a fault of the program, not written."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def user_cache() -> Path:
    """Where what can be made again is kept: the environment's F2PAD_CACHE, or the user's cache folder.

    Raises:
      InputError: the user has no home folder.
    """
    if named := os.environ.get("F2PAD_CACHE"):
        return Path(named)
    path = Path(platformdirs.user_cache_dir("f2pad_jax"))
    if not path.is_absolute():  # "~" stays as it is where there is no home
        raise InputError("there is no home folder for the cache", hint="name a folder in F2PAD_CACHE")
    return path


def make_private(folder: Path) -> None:
    """Makes a folder of the cache, and those it lies in, for the user alone."""
    for directory in (folder.parent.parent, folder.parent, folder):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder for results where it does not exist yet, and removes what killed processes left in it.

    Raises:
      InputError: the name belongs to a file, or nothing can be written there.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        sweep(path)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=path, hint="name another folder") from error
    return path

"""Folders of arrays checked byte for byte: orbax arrays, a JSON file of facts, and SHA-256 sums of both.

orbax 0.12 restores a flipped byte without a word and casts silently to the dtype it is asked for; so every
file's digest is compared before anything is restored, and every array's shape and dtype with the table in the
facts. `sha256sum -c SHA256SUMS` checks the same by hand. No pickle is involved. The same arrays and facts give the same
files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.output import check_movable, check_writable, replaced, sweep

Tree = Mapping[str, Any]  # nested dicts of arrays; keys without "/"

ARRAYS, SUMS = "arrays", "SHA256SUMS"
MAX_JSON = 2**20
MAX_ARRAYS = 16 * 2**30  # bytes that a table may announce

_DTYPES = frozenset({"float32", "int32", "uint8"})


def save_arrays(folder: Path, tree: Tree, facts: Mapping[str, Any], *, kind: str, version: int) -> None:
    """Writes a checkpoint under a temporary name and renames it; one of the same kind is replaced.

    Args:
      folder: where to; its parents are made.
      tree: arrays of float32, int32 or uint8.
      facts: whatever JSON holds besides the table of arrays.
      kind: what the checkpoint is, also the name of its JSON file.
      version: of the facts' layout.

    Raises:
      InputError: as for `check_target`, a value is not finite, or writing fails.
    """
    from orbax.checkpoint import StandardCheckpointer  # imports slowly

    check_target(folder, kind=kind)
    leaves = {name: np.asarray(leaf) for name, leaf in flat(tree).items()}
    if unusable := not_finite(leaves):
        raise InputError(f"holds non-finite values ({', '.join(unusable)})", where=folder, hint="fit it again")
    table = {name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for name, leaf in leaves.items()}
    # orbax has no form for arrays without elements: the table alone restores them
    stored = nested({name: leaf for name, leaf in leaves.items() if leaf.size})
    head = {"format": f"f2pad_jax {kind}", "version": version, **facts, "arrays": table}
    with replaced(folder) as fresh:
        # OCDBT would draw names of files at random.
        with _system_errors(), StandardCheckpointer(use_ocdbt=False) as checkpointer:
            checkpointer.save((fresh / ARRAYS).absolute(), stored)
        _forget_when_and_where(fresh / ARRAYS)
        (fresh / f"{kind}.json").write_text(json.dumps(head, indent=1, allow_nan=False) + "\n", "utf-8")
        sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(fresh).items())
        (fresh / SUMS).write_text(sums, "utf-8")


@contextmanager
def _system_errors() -> Iterator[None]:
    """Errors of the system as such, and no log of orbax, which raises what it logs."""
    log = logging.getLogger("absl")
    log.addFilter(_nothing)
    try:
        yield
    except ValueError as error:  # of tensorstore, which names the system's number
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False


def _forget_when_and_where(arrays: Path) -> None:
    """Takes out of what orbax has written the time and the name of the folder, which say nothing of the arrays."""
    (arrays / "commit_success.txt").unlink(missing_ok=True)
    path = arrays / "_CHECKPOINT_METADATA"
    known = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(known | dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), 0)), "utf-8")


def load_arrays(folder: Path, *, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays (NumPy, nested dicts) and the facts of a checkpoint, verified.

    Raises:
      InputError: no such folder, of another kind or version, changed since it was written, or not finite.
    """
    check_source(folder, kind=kind)
    try:
        head = _verified_head(folder, kind, version)
        return _restore(folder / ARRAYS, head.pop("arrays")), head
    except InputError:
        raise
    # A damaged folder makes JSON and orbax raise errors of many kinds; each means that it cannot be used.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"damaged {kind} ({reason})", where=folder, hint="make or copy it again") from error


def check_arrays(found: Tree, wanted: Tree) -> None:
    """Makes sure that arrays have the names, shapes and dtypes of others, which may be `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: names the first that has not.
    """
    there, due = flat(found), flat(wanted)
    for name in sorted(there.keys() | due.keys()):
        if name not in there or name not in due:
            raise ValueError(f"the array {name} is {'missing' if name in due else 'unknown'}")
        kinds = [f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in (there[name], due[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{name} is {kinds[0]}, not {kinds[1]}")


def is_checkpoint(folder: Path, *, kind: str) -> bool:
    """Whether a folder was made by `save_arrays`, by the look of its names."""
    return (folder / f"{kind}.json").is_file() and (folder / SUMS).is_file()


def seal(folder: Path) -> str:
    """SHA-256 of a checkpoint's list of digests, which names its content whatever the folder is called."""
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()


def check_source(folder: Path, *, kind: str) -> None:
    """Makes sure that a folder looks like one that `load_arrays` reads.

    Raises:
      InputError: no such folder, or of another kind.
    """
    if not folder.exists():
        sweep(folder.parent)  # a save that was killed may have set it aside
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, hint=f"name the folder of a {kind}")
    if not is_checkpoint(folder, kind=kind):
        raise InputError(f"is no {kind}: it holds no {kind}.json", where=folder, hint=f"name the folder of a {kind}")


def check_target(folder: Path, *, kind: str) -> None:
    """Makes sure that `save_arrays` can write there, and would destroy nothing but a checkpoint of the same kind.

    Raises:
      InputError: the folder exists, is not empty and is something else, lies in a checkpoint, or cannot be made.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not is_checkpoint(folder, kind=kind):
        raise InputError(f"exists already and is no {kind}", where=folder, hint="name a new folder")
    check_outside(folder.parent)
    check_movable(folder)
    check_writable(folder)


def check_outside(folder: Path) -> None:
    """Makes sure that what is written to a folder does not spoil a checkpoint, whose files are all listed.

    Raises:
      InputError: the folder is a checkpoint of whatever kind, or lies in one.
    """
    whole = Path(os.path.realpath(folder))
    for place in (whole, *whole.parents):
        if (place / SUMS).is_file() and (place / ARRAYS).is_dir():
            raise InputError("is the folder of a model", where=place, hint="name a place outside of it")


def _verified_head(folder: Path, kind: str, version: int) -> dict[str, Any]:
    listed = {}
    for line in _read(folder / SUMS).splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    found = _digests(folder)
    for name in sorted(found.keys() - listed.keys()):
        if not Path(name).name.startswith("."):  # file browsers leave hidden files
            raise InputError("does not belong there", where=folder / name, hint="remove it")
    for name in sorted(listed):
        if listed[name] != found.get(name):
            raise ValueError(f"{name} is not as it was written" if name in found else f"{name} is missing")
    head = json.loads(_read(folder / f"{kind}.json"))
    if head["format"] != f"f2pad_jax {kind}":
        raise ValueError(f"its format is {head['format']!r}")
    if head["version"] != version:
        raise InputError(
            f"is of version {head['version']}, this program reads version {version}",
            where=folder,
            hint="make it again",
        )
    return head


def _restore(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    # Read by what orbax writes with: a read of orbax that fails leaves others behind, which complain on stderr later.
    import tensorstore

    announced: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for name, entry in table.items():
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype not in _DTYPES or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name} is announced as {dtype} {shape}")
        announced[name] = shape, np.dtype(dtype)
    if sum(math.prod(shape) * dtype.itemsize for shape, dtype in announced.values()) > MAX_ARRAYS:
        raise ValueError(f"announces more than {MAX_ARRAYS >> 30} GiB")
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in announced.items() if not math.prod(shape)}
    stored = {_folder_of(name): name for name in announced if name not in arrays}
    kept = {path.parent.relative_to(folder).as_posix() for path in folder.rglob(".zarray")}
    for name in sorted(stored.keys() ^ kept):
        raise ValueError(f"{stored.get(name, name)} is in the table or in the arrays only")
    for place, name in stored.items():
        kvstore = {"driver": "file", "path": f"{(folder / place).absolute()}/"}
        store = tensorstore.open({"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}).result()
        shape, dtype = announced[name]
        if (store.shape, store.dtype.numpy_dtype) != (shape, dtype):
            raise ValueError(f"{name} is not stored as {dtype} {shape}")
        parts = store.chunk_layout.read_chunk.shape or ()
        if any(part is None or part > side for part, side in zip(parts, shape, strict=True)):
            raise ValueError(f"{name} is stored in parts larger than itself")
        arrays[name] = np.asarray(store.read().result())
    if unusable := not_finite(arrays):
        raise ValueError(f"{unusable[0]} holds non-finite values")
    return nested({name: arrays[name] for name in announced})


def _folder_of(name: str) -> str:
    """Where orbax puts an array, below the folder of arrays."""
    return name.replace("/", ".")


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.name} is larger than {MAX_JSON >> 20} MiB")
    return path.read_text("utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the list itself, by its path with forward slashes."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.is_file():
            raise ValueError(f"{path.name} is a link to a folder or to nothing")
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that hold a value which is not finite."""
    return [name for name, leaf in arrays.items() if not np.isfinite(leaf).all()]


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The arrays of nested dicts by their paths, with forward slashes."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for key in folders:
            node = node.setdefault(key, {})
        node[last] = value
    return tree

"""The user's cache of converted weights: orbax arrays, and digests that are checked on every load."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs

from f2pad_jax.errors import InputError

FORMAT = 1
MAX_MANIFEST = 2**20
_ARRAYS, _MANIFEST = "arrays", "manifest.json"


def cache_folder() -> Path:
    """Where converted weights are kept: the environment's F2PAD_CACHE, or the user's cache folder."""
    return Path(os.environ.get("F2PAD_CACHE") or platformdirs.user_cache_dir("f2pad_jax")) / "weights"


def cached(name: str) -> Path | None:
    """The cache's folder of a network, where there is one."""
    folder = cache_folder() / name
    return folder if folder.is_dir() else None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def store(name: str, params: Mapping[str, Any], *, source: str, digest: str) -> Path:
    """Writes converted weights, in place of older ones of that name, and returns their folder.

    Args:
      name: name in the registry.
      params: parameter tree of float32 arrays.
      source: name of the file they came from.
      digest: SHA-256 of that file.

    Raises:
      InputError: the cache folder cannot be written.
    """
    from orbax.checkpoint import StandardCheckpointer  # imports slowly; only imported weights need it

    folder = cache_folder() / name
    try:
        for directory in (folder.parent.parent, folder.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "new"
            with StandardCheckpointer() as checkpointer:
                checkpointer.save((fresh / _ARRAYS).absolute(), params)
            manifest = {
                "format": FORMAT,
                "name": name,
                "source": source,
                "sha256": digest,
                "files": _digests(fresh / _ARRAYS),
            }
            (fresh / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(fresh, folder)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})",
            where=folder.parent,
            mend="name another folder in F2PAD_CACHE",
        ) from error
    return folder


def read_manifest(name: str) -> dict[str, Any]:
    """The checked manifest of a cached network: every file present, nothing else, each with its digest.

    Raises:
      InputError: the cache is damaged.
    """
    folder = cache_folder() / name
    try:
        raw = (folder / _MANIFEST).read_bytes()
        if len(raw) > MAX_MANIFEST:
            raise ValueError("too large")
        manifest = json.loads(raw)
        if manifest["format"] != FORMAT or manifest["name"] != name or not isinstance(manifest["sha256"], str):
            raise ValueError("of another format or network")
        if manifest["files"] != _digests(folder / _ARRAYS):
            raise ValueError("its files are not those that were written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    return manifest


def restore(name: str, shapes: Any) -> tuple[dict[str, Any], str]:
    """The parameter tree of a cached network and the SHA-256 of the file it came from.

    Args:
      name: name in the registry.
      shapes: the tree of shapes that the network expects.

    Raises:
      InputError: the cache is damaged or belongs to another version of the network.
    """
    from orbax.checkpoint import StandardCheckpointer

    manifest = read_manifest(name)
    folder = cache_folder() / name
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    try:
        with StandardCheckpointer() as checkpointer:
            params = checkpointer.restore((folder / _ARRAYS).absolute(), target)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise ValueError("non-finite values")
    # orbax reports an unfit tree by errors of several kinds.
    except Exception as error:
        raise _damaged(folder, error) from error
    return params, manifest["sha256"]


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return InputError(
        f"damaged cache ({reason})",
        where=folder,
        mend=f"import it again: f2pad weights import {folder.name} FILE",
    )

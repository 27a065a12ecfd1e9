"""The user's cache of converted weights: checkpoints whose digests are checked on every load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from f2pad_jax.checkpoint import check_arrays, is_checkpoint, load_arrays, save_arrays
from f2pad_jax.errors import InputError
from f2pad_jax.output import make_private, owned, user_cache
from f2pad_jax.schemas import Digest, Facts, read_facts

KIND, VERSION = "weights", 1


class WeightsFacts(Facts):
    """What `weights.json` holds besides the table of arrays."""

    format: str
    version: int
    name: str
    source: str
    sha256: Digest


def cache_folder() -> Path:
    """Where converted weights are kept: the environment's F2PAD_CACHE, or the user's cache folder."""
    return user_cache() / "weights"


def download_folder(name: str) -> Path:
    """Where a network's source file lies while it is fetched."""
    return cache_folder().parent / "downloads" / name


def cached(name: str) -> Path | None:
    """The cache's folder of a network, where there is one."""
    folder = cache_folder() / name
    return folder if folder.is_dir() else None


def store(name: str, params: Mapping[str, Any], *, source: str, digest: str) -> Path:
    """Writes converted weights, in place of older ones of that name, and returns their folder.

    Args:
      name: name in the registry.
      params: parameter tree of float32 arrays.
      source: name of the file they came from.
      digest: SHA-256 of that file.

    Raises:
      InputError: the cache folder cannot be written, or another process writes there.
    """
    folder = cache_folder() / name
    try:
        make_private(folder.parent)
        if folder.exists() and not is_checkpoint(folder, kind=KIND):
            shutil.rmtree(folder)  # what is left of a damaged entry
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})", where=folder.parent, hint="name another folder in F2PAD_CACHE"
        ) from error
    with owned(folder.parent):
        save_arrays(folder, params, {"name": name, "source": source, "sha256": digest}, kind=KIND, version=VERSION)
    return folder


def restore(name: str, shapes: Any) -> tuple[dict[str, Any], str]:
    """The parameter tree of a cached network and the SHA-256 of the file it came from.

    Args:
      name: name in the registry.
      shapes: the tree of shapes that the network expects.

    Raises:
      InputError: the cache is damaged or belongs to another version of the network.
    """
    folder = cache_folder() / name
    try:
        arrays, facts = load_arrays(folder, kind=KIND, version=VERSION)
        known = read_facts(WeightsFacts, facts, kind="entry", where=folder, hint="")
        if known.name != name:
            raise ValueError(f"it holds {known.name}")
        check_arrays(arrays, shapes)
    except ValueError as error:  # an `InputError` is one
        raise _damaged(folder, error) from error
    return jax.tree.map(jnp.asarray, arrays), known.sha256


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = error.what if isinstance(error, InputError) else str(error)
    return InputError(
        f"damaged cache ({reason})", where=folder, hint=f"import it again: f2pad weights import {folder.name} FILE"
    )

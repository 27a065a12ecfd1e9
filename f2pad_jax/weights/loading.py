"""Networks by name: from the package that holds their weights, from the cache, or from a file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.networks.extractor import Extractor, Precision, check_precision
from f2pad_jax.weights import cache
from f2pad_jax.weights.fetching import by_hand, fetch
from f2pad_jax.weights.prefixes import own_names, unwrapped
from f2pad_jax.weights.registry import NETWORKS, Entry, entry, registry
from f2pad_jax.weights.weight_files import read_weights

LARGEST = 1e6  # of any weight
USUAL, MANY, OUTLYING = 50.0, 64, 1e4  # beyond which a value is compared with the median of at least so many others


@dataclass(frozen=True)
class WeightStatus:
    """What is known of one network's weights on this machine.

    Attributes:
      entry: the registry's entry.
      origin: whether the weights come from an installed package, from the cache, or are not here.
      path: the file or cache folder; None where absent.
      digest: SHA-256 of the source file; None until it has been read.
      problem: why the weights cannot be used, in one line; None where nothing is wrong.
    """

    entry: Entry
    origin: Literal["package", "cache", "absent"]
    path: Path | None = None
    digest: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.entry.name


def load_params(name: str, *, weights: str | Path | None = None) -> tuple[dict[str, Any], str]:
    """Parameters of any network of the registry, and the SHA-256 of the file they came from.

    Args:
      name: name in the registry.
      weights: a file to read instead of the package's or the imported one: torch's .pth, zip or legacy;
        .safetensors; .npz. With batch norms or with these folded; whole or without its last layers; in single or
        half precision. Names may be wrapped by `prefixes.PREFIXES`, as trainers save them.

    Warns:
      InputWarning: names were wrapped.

    Raises:
      InputError: unknown name, no weights, or weights that are damaged or belong to another network.
    """
    known, network = entry(name), NETWORKS[name]
    path = Path(weights) if weights is not None else _package_file(known)
    if path:
        params, digest = _convert_file(known, path)
    elif cache.cached(name):
        params, digest = cache.restore(name, network.shapes(network.spec))
    else:
        raise InputError("no weights on this machine", where=name, hint=_how_to_get(known))
    return jax.tree.map(jnp.asarray, params), digest


def load_extractor(name: str, *, weights: str | Path | None = None, precision: str = "parity") -> Extractor:
    """A pretrained extractor, ready to be applied.

    Args:
      name: `"efficientnet_lite0"` (24, 40 and 112 channels at strides 4, 8 and 16; its weights are a dependency);
        `"efficientnet_lite1"` to `"efficientnet_lite4"` and `"resnet18"` (64, 128 and 256 channels), `"resnet34"`,
        `"resnet50"` and `"wide_resnet50_2"` with the same strides; `"efficientnet_b0"` to `"efficientnet_b7"`
        with strides 8, 16 and 32; `"dinov2_vits14"`, `"dinov2_vits14_reg"` and `"dinov3_vits16"` (three maps of 384
        channels at stride 14 or 16), and `vitb` (768) and `vitl` (1024) in place of `vits`. Weights other than
        Lite0's are fetched or imported once, or given here.
      weights: as for `load_params`.
      precision: "parity", "fast" or "bf16", see `Extractor`.

    Raises:
      InputError: as for `load_params`, the name is no extractor's, or there is no such precision.
    """
    entry(name, kind="extractor")
    profile = check_precision(precision)
    return make_extractor(name, *load_params(name, weights=weights), profile)


def make_extractor(
    name: str, params: Mapping[str, Any], digest: str, precision: Precision, *, kept: bool = False
) -> Extractor:
    """The extractor of that name with these parameters.

    Args:
      name: name in the registry.
      params: tree of arrays, as of `convert_state`.
      digest: SHA-256 of the file they came from.
      precision: of its products.
      kept: whether a model folder holds them too.
    """
    network = NETWORKS[name]
    leaves = jax.tree.map(jnp.asarray, dict(params))
    return Extractor(leaves, name, network.apply, network.spec, digest, precision, kept)


def import_weights(name: str, path: str | Path, *, sha256: str | None = None) -> WeightStatus:
    """Converts a weight file and keeps the result in the user's cache, where `load_extractor` finds it.

    Args:
      name: name in the registry.
      path: the file, see `load_params`.
      sha256: the digest that it must have, 64 hexadecimal digits; any where None.

    Raises:
      InputError: unknown name, a file that does not fit or has another digest, or a cache that cannot be written.
    """
    known, path = entry(name), Path(path)
    _refuse_installed(known)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"{sha256} is no SHA-256 digest", hint="give all its 64 hexadecimal digits")
    params, digest = _convert_file(known, path)
    if sha256 is not None and digest != sha256.lower():
        raise InputError(f"has SHA-256 {digest}, not the one that was asked for", where=path, hint="get the file again")
    return WeightStatus(known, "cache", cache.store(name, params, source=path.name, digest=digest), digest)


def fetch_weights(name: str) -> WeightStatus:
    """`import_weights` of the published file, brought from where the registry says; resumed if it was cut off.

    Raises:
      InputError: as for `import_weights`, there is no network, or another file than the published one came.
    """
    known = entry(name)
    _refuse_installed(known)
    if known.package:
        raise InputError("its weights come as a package", where=name, hint=by_hand(known))
    folder = cache.download_folder(name)
    path = fetch(known, folder)
    try:
        return import_weights(name, path)
    finally:
        shutil.rmtree(folder)


def list_weights() -> tuple[WeightStatus, ...]:
    """Every network of the registry and whether its weights are here; reads no weights."""
    return tuple(_status(known) for known in registry().values())


def verify_weights() -> tuple[WeightStatus, ...]:
    """`list_weights`, after reading all that is here as `load_params` would; see `problem`."""

    def verified(status: WeightStatus) -> WeightStatus:
        if status.origin == "absent":
            return status
        try:
            return replace(status, digest=load_params(status.name)[1])
        except InputError as error:
            return replace(status, problem=str(error))

    return tuple(verified(status) for status in list_weights())


def _status(known: Entry) -> WeightStatus:
    if path := _package_file(known):
        return WeightStatus(known, "package", path)
    if folder := cache.cached(known.name):
        return WeightStatus(known, "cache", folder)
    return WeightStatus(known, "absent", problem=_how_to_get(known))


def _how_to_get(known: Entry) -> str:
    return by_hand(known) if known.package else f"f2pad weights fetch {known.name}, or {by_hand(known)}"


def _package_file(known: Entry) -> Path | None:
    """The entry's file in an installed package, where there is one."""
    if known.package is None:
        return None
    try:
        path = Path(str(resources.files(known.package.replace("-", "_")))) / "models" / known.file
    except ModuleNotFoundError:
        return None
    return path if path.is_file() else None


def _refuse_installed(known: Entry) -> None:
    if _package_file(known):
        raise InputError(f"its weights are here already, in {known.package}", where=known.name, hint="just use it")


def _convert_file(known: Entry, path: Path) -> tuple[dict[str, Any], str]:
    state, digest = read_weights(path)
    # Only the published file has a digest that is known; other exports of the same weights have their own.
    if path.name == known.file and not digest.startswith(known.sha256):
        raise InputError(
            f"SHA-256 {digest[:16]}… is not the published {known.sha256[:16]}…",
            where=path,
            hint=f"get {known.url}",
        )
    return convert_state(known.name, unwrapped(state, NETWORKS[known.name].known, path), path), digest


def convert_state(name: str, state: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    """The parameter tree of a network from arrays by its source's own names.

    Args:
      name: name in the registry.
      state: the arrays.
      path: the file they came from.

    Raises:
      InputError: they are not the network's, or hold what no training leaves.
    """
    network = NETWORKS[name]
    network.check(state, path)
    try:
        params = network.convert(state)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
            _check_values("/".join(str(key.key) for key in keys), np.abs(np.asarray(leaf)))
    except ValueError as error:
        hint = own_names(state) if "missing" in str(error) else None
        raise InputError(f"not the weights of {name}: {error}", where=path, hint=hint) from error
    return params


def _check_values(layer: str, sizes: np.ndarray) -> None:
    """Refuses what no training leaves, such as a flipped bit of an exponent; a `ValueError` names the layer."""
    largest = float(sizes.max(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError(f"{layer} holds non-finite values")
    if largest > LARGEST or (largest > USUAL and sizes.size >= MANY and largest > OUTLYING * float(np.median(sizes))):
        raise ValueError(f"{layer} holds a value of {largest:.3g}")

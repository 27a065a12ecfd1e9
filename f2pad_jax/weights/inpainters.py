"""Masked autoencoders by name or folder: published ones that were imported, and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from f2pad_jax.checkpoint import load_arrays
from f2pad_jax.errors import InputError
from f2pad_jax.fills.autoencoder import KIND, VERSION, Inpainter, spec_of
from f2pad_jax.networks.mae import shapes
from f2pad_jax.weights.loading import load_params
from f2pad_jax.weights.registry import NETWORKS, entry, registry


def load_inpainter(name: str | Path, *, weights: str | Path | None = None) -> Inpainter:
    """A masked autoencoder, ready to fill regions.

    Args:
      name: "mae_vit_base", "mae_vit_large" or "mae_vit_large_ganloss", whose published weights are licensed
        CC-BY-NC-4.0 and fetched or imported once or given here; or the folder of `f2pad train-mae`.
      weights: a weight file to read instead, for a name of the registry.

    Raises:
      InputError: neither a name nor a folder, no weights, or weights that are damaged, belong to another network
        or predict pixels normalised patch by patch.
    """
    check_inpainter(name)
    if str(name) in registry():
        known = entry(str(name), kind="inpainter")
        params, digest = load_params(known.name, weights=weights)
        return Inpainter(params, NETWORKS[known.name].spec, known.name, digest)
    folder = Path(name)
    arrays, facts = load_arrays(folder, kind=KIND, version=VERSION)
    return own_inpainter(arrays, facts.get("spec"), folder)


def check_inpainter(name: str | Path) -> None:
    """Makes sure that there is such an autoencoder.

    Raises:
      InputError: neither a name nor a folder.
    """
    if str(name) not in registry() and not Path(name).is_dir():
        names = ", ".join(known.name for known in registry().values() if known.kind == "inpainter")
        raise InputError("no such autoencoder", where=name, hint=f"name a folder of train-mae, or one of {names}")


def own_inpainter(arrays: dict[str, Any], facts: Any, folder: Path) -> Inpainter:
    """An autoencoder of one's own from what a folder keeps of it.

    Raises:
      InputError: the two do not belong together.
    """
    spec = spec_of(facts, folder)
    if jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays) != shapes(spec):
        raise InputError(f"damaged {KIND} (its arrays are not those of its network)", where=folder)
    return Inpainter(jax.tree.map(jnp.asarray, arrays), spec)

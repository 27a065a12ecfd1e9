"""Fitted models as folders: `arrays/`, `model.json` and `SHA256SUMS`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.checkpoint import load_arrays, save_arrays
from f2pad_jax.detectors import get_detector
from f2pad_jax.errors import InputError
from f2pad_jax.objective import Scales
from f2pad_jax.pipeline import Model, Settings
from f2pad_jax.pretrained import load_extractor
from f2pad_jax.priors import PixelMixture

VERSION = 1

_NUMBERS = ("threshold", "region_threshold")


def save_model(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes a model; it holds no weights of the extractor, only their digest.

    Raises:
      InputError: the folder exists and is no model, or it cannot be written.
    """
    arrays = {
        "detector": model.params,
        "normals": model.normals,
        "held_out": model.held_out,
        "mixture": model.mixture._asdict(),
        "scales": model.scales._asdict(),
    }
    facts = {
        "detector": model.detector,
        "extractor": {"name": model.extractor.name, "sha256": model.extractor.digest},
        "size": model.size,
        "threshold": float(model.threshold),
        "region_threshold": float(model.region_threshold),
        "settings": model.settings._asdict(),
        "tuned_on": model.tuned_on,
        "seed": model.seed,
    }
    save_arrays(Path(folder), arrays, facts, kind="model", version=VERSION)


def load_model(folder: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None) -> Model:
    """Reads a model and the extractor that it was fitted with.

    Args:
      folder: of `save_model`.
      weights: the extractor's weight file, where it is neither a package nor imported.

    Raises:
      InputError: the folder is no model or was changed, or the extractor's weights are missing or others than
        those it was fitted with.
    """
    folder = Path(folder)
    arrays, facts = load_arrays(folder, kind="model", version=VERSION)
    try:
        name, digest = facts["extractor"]["name"], facts["extractor"]["sha256"]
        fields = _fields(arrays, facts)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"damaged model ({error})", where=folder, mend="fit it again") from error
    extractor = load_extractor(name, weights=None if weights is None else Path(weights))
    if extractor.digest != digest:
        raise InputError(
            f"was fitted with other weights of {name} (SHA-256 {digest[:16]}…, not {extractor.digest[:16]}…)",
            where=folder,
            mend="name their file by --weights, or fit it again",
        )
    return Model(extractor=extractor, **fields)


def _fields(arrays: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    size, seed = facts["size"], facts["seed"]
    if type(size) is not int or type(seed) is not int or not isinstance(facts["tuned_on"], str):
        raise ValueError("size, seed or tuned_on is of the wrong type")
    for pictures in ("normals", "held_out"):
        if arrays[pictures].shape[1:] != (size, size, 3) or arrays[pictures].dtype != np.uint8:
            raise ValueError(f"{pictures} are not pictures of {size} × {size}")
    return {
        "detector": get_detector(facts["detector"]).name,
        "size": size,
        "params": jax.tree.map(jnp.asarray, arrays["detector"]),
        "normals": arrays["normals"],
        "held_out": arrays["held_out"],
        "mixture": PixelMixture(**jax.tree.map(jnp.asarray, arrays["mixture"])),
        "scales": Scales(**jax.tree.map(jnp.asarray, arrays["scales"])),
        **{name: float(facts[name]) for name in _NUMBERS},
        "settings": Settings(**facts["settings"]),
        "tuned_on": facts["tuned_on"],
        "seed": seed,
    }

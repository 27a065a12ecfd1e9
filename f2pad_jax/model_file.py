"""Fitted models as folders: `arrays/`, `model.json` and `SHA256SUMS`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.calibration import Limits
from f2pad_jax.checkpoint import load_arrays, save_arrays
from f2pad_jax.core import Energy, PixelMixture, Scales, Settings
from f2pad_jax.detectors import detector_class
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Normals
from f2pad_jax.fills.autoencoder import OWN, Inpainter
from f2pad_jax.model import Model, Procedure
from f2pad_jax.weights import load_extractor
from f2pad_jax.weights.inpainters import load_inpainter, own_inpainter
from f2pad_jax.weights.registry import entry

VERSION = 4


def save_model(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes a model; it holds no published weights, only their digest. An autoencoder of one's own goes with it.

    Raises:
      InputError: the folder exists and is no model, or it cannot be written.
    """
    fitted, choices = model.detector.state()
    arrays: dict[str, Any] = {
        "detector": fitted,
        "normals": model.normals.pictures,
        "held_out": model.held_out,
        "mixture": dict(vars(model.energy.mixture)),
        "scales": dict(vars(model.scales)),
    }
    facts: dict[str, Any] = {
        "detector": {"name": model.detector.name, **choices},
        "extractor": {
            "name": model.extractor.name,
            "sha256": model.extractor.digest,
            "precision": model.extractor.precision,
        },
        "size": model.size,
        "limits": asdict(model.limits),
        "settings": {name: np.asarray(value).item() for name, value in vars(model.settings).items()},
        "procedure": asdict(model.procedure),
        "tuned_on": model.tuned_on,
        "seed": model.seed,
    }
    if (inpainter := model.inpainter) is not None:
        facts["inpainter"] = {"name": inpainter.name, "sha256": inpainter.digest}
        if inpainter.name == OWN:
            facts["inpainter"] |= {"spec": asdict(inpainter.spec)}
            arrays["inpainter"] = inpainter.params
    save_arrays(Path(folder), arrays, facts, kind="model", version=VERSION)


def load_model(folder: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None) -> Model:
    """Reads a model and the extractor that it was fitted with.

    Args:
      folder: of `save_model`.
      weights: the extractor's weight file, where it is neither a package nor imported.

    Raises:
      InputError: the folder is no model or was changed, or the weights of its extractor or autoencoder are missing
        or others than those it was fitted with.
    """
    folder = Path(folder)
    arrays, facts = load_arrays(folder, kind="model", version=VERSION)
    try:
        name, digest = facts["extractor"]["name"], facts["extractor"]["sha256"]
        precision = facts["extractor"].get("precision", "parity")  # older models name none
        fields, inpainter = _fields(arrays, facts), _inpainter(arrays, facts, folder)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"damaged model ({error})", where=folder, hint="fit it again") from error
    extractor = load_extractor(name, weights=None if weights is None else Path(weights), precision=precision)
    if extractor.digest != digest:
        hint = "name their file by --weights, or fit it again"
        raise _other_weights(name, digest, extractor.digest, folder, hint)
    mixture = fields.pop("mixture")
    energy = Energy(extractor=extractor, detector=fields.pop("detector"), mixture=mixture)
    return Model(energy=energy, inpainter=inpainter, **fields)


def _inpainter(arrays: dict[str, Any], facts: dict[str, Any], folder: Path) -> Inpainter | None:
    kept = facts.get("inpainter")
    if kept is None:
        return None
    name, digest = kept["name"], kept["sha256"]
    if name == OWN:
        return own_inpainter(arrays["inpainter"], kept["spec"], folder)
    loaded = load_inpainter(entry(name, kind="inpainter").name)  # a model names no folder
    if loaded.digest != digest:
        raise _other_weights(name, digest, loaded.digest, folder, "import those, or fit it again")
    return loaded


def _other_weights(name: str, wanted: str, found: str, folder: Path, hint: str) -> InputError:
    what = f"was fitted with other weights of {name} (SHA-256 {wanted[:16]}…, not {found[:16]}…)"
    return InputError(what, where=folder, hint=hint)


def _fields(arrays: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    size, seed = facts["size"], facts["seed"]
    if type(size) is not int or type(seed) is not int or not isinstance(facts["tuned_on"], str):
        raise ValueError("size, seed or tuned_on is of the wrong type")
    for pictures in ("normals", "held_out"):
        if arrays[pictures].shape[1:] != (size, size, 3) or arrays[pictures].dtype != np.uint8:
            raise ValueError(f"{pictures} are not pictures of {size} × {size}")
    choices = dict(facts["detector"])
    detector = detector_class(choices.pop("name"))
    return {
        "detector": detector.from_state(jax.tree.map(jnp.asarray, arrays["detector"]), choices),
        "size": size,
        "normals": Normals(arrays["normals"]),
        "held_out": arrays["held_out"],
        "mixture": PixelMixture(**jax.tree.map(jnp.asarray, arrays["mixture"])),
        "scales": Scales(**jax.tree.map(jnp.asarray, arrays["scales"])),
        "limits": Limits(**{name: float(value) for name, value in facts["limits"].items()}),
        "settings": Settings(**facts["settings"]),
        "procedure": Procedure(**facts["procedure"]),
        "tuned_on": facts["tuned_on"],
        "seed": seed,
    }

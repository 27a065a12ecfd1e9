"""Fitted models as folders: `arrays/`, `model.json` and `SHA256SUMS`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from f2pad_jax.calibration import Limits, Units
from f2pad_jax.checkpoint import check_arrays, load_arrays, save_arrays
from f2pad_jax.core import Energy, PixelMixture, Scales, Settings
from f2pad_jax.data.decoding import WHITE
from f2pad_jax.detectors import Detector, detector_class
from f2pad_jax.detectors.base import Shape
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Normals
from f2pad_jax.fills.autoencoder import OWN, Inpainter
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor, check_precision, map_shapes
from f2pad_jax.procedure import Procedure, ProcedureFacts
from f2pad_jax.reducing import scale_of
from f2pad_jax.schemas import Facts, Seed, facts_of, read_facts
from f2pad_jax.weights import load_extractor
from f2pad_jax.weights.inpainters import load_inpainter, own_inpainter
from f2pad_jax.weights.loading import make_extractor
from f2pad_jax.weights.registry import NETWORKS, entry

VERSION = 6

AGAIN = "fit it again"

Side = Annotated[int, Field(ge=1, le=2**15)]


class DetectorFacts(Facts, extra="allow"):
    """A detector's name, beside the choices of its class."""

    name: str


class ExtractorFacts(Facts):
    """Which network a model was fitted with."""

    name: str
    sha256: str
    precision: str = "parity"  # older models name none
    kept: bool = False  # whether the model holds its parameters


class InpainterFacts(Facts):
    """Which autoencoder a model has; `spec` is that of one's own."""

    name: str
    sha256: str
    spec: dict[str, int] | None = None


SettingsFacts = facts_of(
    Settings,
    alpha1=Field(ge=0),
    alpha2=Field(ge=0),
    beta0=Field(ge=0),
    first_beta=Field(ge=0),
    hold=Field(ge=0, le=10**6),
    rate=Field(gt=0),
    rise=Field(gt=0),
    clip=Field(gt=0),
    damping=Field(ge=0),
    warm_up=Field(ge=0, le=10**6),
    limit=Field(ge=1, le=10**6),
    tolerance=Field(ge=0),
    patience=Field(ge=1, le=10**6),
    floor=Field(gt=0),
    levels=Field(ge=1, le=1000),
)
UnitsFacts = facts_of(Units, peak=Field(ge=0), spread=Field(ge=0))
LimitsFacts = facts_of(Limits, peak=Field(ge=0), spread=Field(ge=0), cost=Field(ge=0), bound=Field(gt=0))


class ModelFacts(Facts):
    """What `model.json` holds besides its version and the table of arrays."""

    format: str
    version: int
    detector: DetectorFacts
    extractor: ExtractorFacts
    shape: tuple[Side, Side]
    seen: tuple[Side, Side]
    windowed: bool
    limits: LimitsFacts  # pyright: ignore[reportInvalidTypeForm]
    settings: SettingsFacts  # pyright: ignore[reportInvalidTypeForm]
    procedure: ProcedureFacts  # pyright: ignore[reportInvalidTypeForm]
    tuned_on: Literal["default", "synthetic-validation", "oracle"]
    seed: Seed
    inpainter: InpainterFacts | None = None
    units: UnitsFacts | None = None  # pyright: ignore[reportInvalidTypeForm]
    white_level: Annotated[int, Field(ge=1, le=WHITE)] | None = None


def save_model(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes a model; it holds no published weights, only their digest.

    An autoencoder of one's own goes with it, and the extractor that came with a detector's checkpoint.

    Raises:
      InputError: the folder exists and is no model, or it cannot be written.
    """
    arrays, facts = content_of(model, where=folder)
    save_arrays(Path(folder), arrays, facts, kind="model", version=VERSION)


def content_of(model: Model, *, where: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is kept of a model: arrays in nested dicts, and facts for JSON; `where` is named in errors.

    Raises:
      InputError: a fact is none that would be read.
    """
    fitted, choices = model.detector.state()
    arrays: dict[str, Any] = {
        "detector": fitted,
        "normals": model.normals.pictures,
        "held_out": model.held_out,
        "mixture": dict(vars(model.energy.mixture)),
        "scales": dict(vars(model.scales)),
    }
    if model.roi is not None:
        arrays["roi"] = model.roi.astype(np.uint8)
    facts: dict[str, Any] = {
        "detector": {"name": model.detector.name, **choices},
        "extractor": {
            "name": model.extractor.name,
            "sha256": model.extractor.digest,
            "precision": model.extractor.precision,
            "kept": model.extractor.kept,
        },
        "shape": model.shape,
        "seen": model.seen,
        "windowed": model.windowed,
        "limits": asdict(model.limits),
        "settings": {name: np.asarray(value).item() for name, value in vars(model.settings).items()},
        "procedure": asdict(model.procedure),
        "tuned_on": model.tuned_on,
        "seed": model.seed,
        "white_level": model.white_level,
    }
    if model.extractor.kept:
        arrays["extractor"] = model.extractor.params
    if model.units is not None:
        facts["units"] = asdict(model.units)
    if (inpainter := model.inpainter) is not None:
        facts["inpainter"] = {"name": inpainter.name, "sha256": inpainter.digest}
        if inpainter.name == OWN:
            facts["inpainter"] |= {"spec": asdict(inpainter.spec)}
            arrays["inpainter"] = inpainter.params
    # What would not be read is not written.
    read_facts(ModelFacts, {**facts, "format": "", "version": VERSION}, kind="model", where=where, hint=AGAIN)
    return arrays, facts


def load_model(folder: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None) -> Model:
    """Reads a model and the extractor that it was fitted with.

    Args:
      folder: of `save_model`.
      weights: the extractor's weight file, where it is neither a package nor imported.

    Raises:
      InputError: the folder is no model or was changed, the weights of its extractor or autoencoder are missing
        or others than those it was fitted with, or some are given although the model holds them.
    """
    folder = Path(folder)
    arrays, facts = load_arrays(folder, kind="model", version=VERSION)
    return model_of(arrays, facts, where=folder, weights=weights)


def model_of(
    arrays: dict[str, Any], facts: dict[str, Any], *, where: Path, weights: str | os.PathLike[str] | None = None
) -> Model:
    """The inverse of `content_of`, with the extractor; arguments and errors as for `load_model`."""
    known = read_facts(ModelFacts, facts, kind="model", where=where, hint=AGAIN)
    try:
        fields, inpainter = _fields(arrays, known), _inpainter(arrays, known, where)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"damaged model ({error})", where=where, hint=AGAIN) from error
    extractor = _extractor(arrays, known.extractor, where, None if weights is None else Path(weights))
    mixture = fields.pop("mixture")
    energy = Energy(extractor=extractor, detector=fields.pop("detector"), mixture=mixture)
    return Model(energy=energy, inpainter=inpainter, **fields)


def _extractor(arrays: dict[str, Any], facts: ExtractorFacts, folder: Path, weights: Path | None) -> Extractor:
    name, digest = facts.name, facts.sha256
    if facts.kept:
        if weights is not None:
            raise InputError("holds the weights of its extractor", where=folder, hint="leave others out")
        return make_extractor(name, arrays["extractor"], digest, check_precision(facts.precision), kept=True)
    extractor = load_extractor(name, weights=weights, precision=facts.precision)
    if extractor.digest != digest:
        hint = "name their file by --weights, or fit it again"
        raise _other_weights(name, digest, extractor.digest, folder, hint)
    return extractor


def _inpainter(arrays: dict[str, Any], facts: ModelFacts, folder: Path) -> Inpainter | None:
    kept = facts.inpainter
    if kept is None:
        return None
    if kept.name == OWN:
        return own_inpainter(arrays["inpainter"], kept.spec, folder)
    loaded = load_inpainter(entry(kept.name, kind="inpainter").name)  # a model names no folder
    if loaded.digest != kept.sha256:
        raise _other_weights(kept.name, kept.sha256, loaded.digest, folder, "import those, or fit it again")
    return loaded


def _other_weights(name: str, wanted: str, found: str, folder: Path, hint: str) -> InputError:
    what = f"was fitted with other weights of {name} (SHA-256 {wanted[:16]}…, not {found[:16]}…)"
    return InputError(what, where=folder, hint=hint)


def _fields(arrays: dict[str, Any], facts: ModelFacts) -> dict[str, Any]:
    extractor = entry(facts.extractor.name, kind="extractor")
    maps = map_shapes(NETWORKS[extractor.name].spec, facts.seen)
    detector = detector_class(facts.detector.name)
    if any(side > whole for side, whole in zip(facts.seen, facts.shape, strict=True)):
        raise ValueError(f"the extractor sees {facts.seen} of {facts.shape}")
    choices = _choices(detector, facts.detector.model_extra or {})
    check_arrays({name: leaf for name, leaf in arrays.items() if name != "inpainter"}, _wanted(arrays, facts, maps))
    roi = arrays.get("roi")
    if roi is not None and not roi.any():
        raise ValueError("the region of interest is empty")
    scales = Scales(**jax.tree.map(jnp.asarray, arrays["scales"]))
    if not min(map(float, vars(scales).values())) > 0:
        raise ValueError("scales are not positive")
    made = detector.from_state(jax.tree.map(jnp.asarray, arrays["detector"]), choices)
    try:
        jax.eval_shape(type(made).score, made, maps)
    except Exception as error:  # whatever a detector trips over, shapes that its class cannot declare among them
        raise ValueError(f"{detector.name} does not fit the network: {error}") from None
    return {
        "detector": made,
        "shape": facts.shape,
        "seen": facts.seen,
        "windowed": facts.windowed,
        "roi": None if roi is None else roi != 0,
        "normals": Normals(arrays["normals"], scale_of(facts.shape, facts.seen)),
        "held_out": arrays["held_out"],
        "mixture": PixelMixture(**jax.tree.map(jnp.asarray, arrays["mixture"])),
        "scales": scales,
        "limits": Limits(**facts.limits.model_dump()),
        "units": None if facts.units is None else Units(**facts.units.model_dump()),
        "settings": Settings(**facts.settings.model_dump()),
        "procedure": Procedure(**facts.procedure.model_dump()),
        "tuned_on": facts.tuned_on,
        "seed": facts.seed,
        "white_level": facts.white_level,
    }


def _wanted(arrays: dict[str, Any], facts: ModelFacts, maps: tuple[Shape, ...]) -> dict[str, Any]:
    """Shapes and dtypes that the arrays of a model must have; how many pictures and Gaussians is theirs to say."""
    count, pictures = len(arrays["mixture"]["mean"]), (*facts.shape, 3)
    declared = getattr(detector_class(facts.detector.name), "declared", None)  # a class of one's own may have none
    more: dict[str, Any] = {"roi": Shape(arrays["roi"].shape[:2], np.uint8)} if "roi" in arrays else {}
    if facts.extractor.kept:
        network = NETWORKS[facts.extractor.name]
        more["extractor"] = network.shapes(network.spec)
    return {
        **more,
        "detector": declared(arrays["detector"], maps) if declared else arrays["detector"],
        "normals": Shape((len(arrays["normals"]), *pictures), np.uint8),
        "held_out": Shape((len(arrays["held_out"]), *pictures), np.uint8),
        "mixture": {
            "mean": Shape((max(count, 1), 3), np.float32),
            "precision": Shape((count, 3, 3), np.float32),
        },
        "scales": dict.fromkeys(("score", "pixel", "variation"), Shape((), np.float32)),
    }


def _choices(detector: type[Detector], found: dict[str, Any]) -> dict[str, Any]:
    """The plain fields of a detector, of the types that its class declares."""
    hints = get_type_hints(detector) if found else {}
    for name, value in found.items():
        if name in hints:
            try:
                TypeAdapter(hints[name], config={"strict": True}).validate_python(value)
            except ValidationError:
                raise ValueError(f"{name} of {detector.name} is {value!r}") from None
    return found

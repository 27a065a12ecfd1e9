"""Fitted models in Hugging Face's manner: `model.safetensors`, `config.json` and a model card, here or on the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from f2pad_jax.checkpoint import flat, nested, not_finite
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Normals
from f2pad_jax.model import Model
from f2pad_jax.model_file import AGAIN, VERSION, content_of, model_of
from f2pad_jax.output import replaced

ARRAYS, FACTS, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "f2pad_jax model"
MAX_FACTS = 2**20
SHOWN = 80  # letters of a value in a message

TEXT = """# {detector} on {extractor}, refined by F2PAD

A fitted model of f2pad_jax: it outlines anomalies in pictures pixel by pixel
(F2PAD, [arXiv 2407.06519](https://arxiv.org/abs/2407.06519)).

```python
import f2pad_jax as f2

model = f2.Model.from_pretrained("FOLDER_OR_REPOSITORY")
result = f2.segment(model, "picture.png")
```

## Training pictures

{pictures}

## Licence

None is stated. Whoever publishes this model names one in the header of this file that the rights in the pictures allow.

## Metrics

{metrics}

## Settings

| setting | value |
|---|---|
{settings}
"""

INSIDE = (
    "**{count} training pictures of {width} × {height} pixels are inside `model.safetensors`**: whoever has the file "
    "can see them."
)
OUTSIDE = "No training picture is inside; they were left out. What the detector has learned of them is."


def without_pictures(model: Model) -> Model:
    """The model without its training pictures, where its masks do not need them.

    Recovered pictures then begin with the smooth fill. Such a model cannot be tuned.

    Raises:
      InputError: fills of the region come from these pictures, or PatchCore's candidates, or segments of n, from such
        a fill.
    """
    start, filling = model.procedure.start, model.detector.anchored or model.procedure.composing
    if start in ("auto", "matching") or (start == "image" and filling):
        what = f"the fill comes from the training pictures (start {start!r}, {model.detector.name})"
        raise InputError(what, hint='keep them, or fit with the start "harmonic" or an autoencoder')
    none = model.held_out[:0]
    return replace(model, normals=Normals(none, model.normals.scale), held_out=none)


def save_pretrained(model: Model, folder: Path, *, metrics: Mapping[str, Any] | None = None) -> None:
    """Does what `Model.save_pretrained` says, with the pictures that the model has."""
    from safetensors.numpy import save_file

    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not is_pretrained(folder):
        raise InputError("exists already and is no such model", where=folder, hint="name a new folder")
    arrays, facts = content_of(model, where=folder)
    leaves = {name: np.asarray(leaf, order="C") for name, leaf in flat(arrays).items()}
    if unusable := not_finite(leaves):
        raise InputError(f"holds non-finite values ({', '.join(unusable)})", where=folder, hint=AGAIN)
    head = {"format": FORMAT, "version": VERSION, **facts}
    with replaced(folder) as fresh:
        save_file(leaves, fresh / ARRAYS)
        (fresh / FACTS).write_text(json.dumps(head, indent=1, allow_nan=False) + "\n", "utf-8")
        (fresh / CARD).write_text(card(model, metrics or {}), "utf-8")


def card(model: Model, metrics: Mapping[str, Any]) -> str:
    """The model card: a YAML header, and what a person wants to know.

    Args:
      model: as it is saved.
      metrics: what was measured, by names.
    """
    from huggingface_hub import ModelCardData  # imports slowly

    head = ModelCardData(
        library_name="f2pad_jax",
        pipeline_tag="image-segmentation",
        tags=["anomaly-segmentation", "f2pad", model.detector.name, model.extractor.name],
    )
    (height, width), count = model.shape, len(model.normals) + len(model.held_out)
    settings = {
        "detector": model.detector.name,
        "extractor": f"{model.extractor.name}, SHA-256 {model.extractor.digest[:16]}…, {model.extractor.precision}",
        "pictures": f"{width} × {height} pixels",
        "seen by the extractor": f"{model.seen[1]} × {model.seen[0]} pixels",
        "works in windows": "yes" if model.windowed else "no",
        "threshold": f"{model.threshold:.6g}",
        "tuned on": model.tuned_on,
        **vars(model.procedure),
        **{name: f"{np.asarray(value).item():.6g}" for name, value in vars(model.settings).items()},
    }
    text = TEXT.format(
        detector=model.detector.name,
        extractor=model.extractor.name,
        pictures=INSIDE.format(count=count, width=width, height=height) if count else OUTSIDE,
        metrics=_table(metrics, "metric") if metrics else "None were measured.",
        settings=_rows(settings),
    )
    return f"---\n{head.to_yaml()}\n---\n\n{text}"


def _table(values: Mapping[str, Any], title: str) -> str:
    return f"| {title} | value |\n|---|---|\n{_rows(values)}"


def _rows(values: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())


def is_pretrained(folder: Path) -> bool:
    """Whether a folder was made by `save_pretrained`, by the look of its names."""
    return (folder / ARRAYS).is_file() and (folder / FACTS).is_file()


def from_pretrained(
    name: str | os.PathLike[str], *, revision: str | None, weights: str | os.PathLike[str] | None
) -> Model:
    """Does what `Model.from_pretrained` says."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(name)
    if not folder.exists():
        folder = _from_hub(os.fspath(name), revision)
    if not is_pretrained(folder):
        raise InputError(f"holds no {ARRAYS} with a {FACTS}", where=name, hint="name a folder of save_pretrained")
    try:
        if (folder / FACTS).stat().st_size > MAX_FACTS:
            raise ValueError(f"{FACTS} is larger than {MAX_FACTS >> 20} MiB")
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        kind, version = facts["format"], facts["version"]
        arrays = load_file(folder / ARRAYS)
        if unusable := not_finite(arrays):
            raise ValueError(f"{unusable[0]} holds non-finite values")
    except (AttributeError, KeyError, OSError, RecursionError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"damaged model ({error})", where=name, hint="make or copy it again") from error
    if (kind, version) != (FORMAT, VERSION):
        what = f"is {str(kind)[:SHOWN]!r} of version {str(version)[:SHOWN]}, this program reads version {VERSION}"
        raise InputError(what, where=name, hint=AGAIN)
    return model_of(nested(arrays), facts, where=folder, weights=weights)


def _from_hub(name: str, revision: str | None) -> Path:
    """The folder of a repository of the Hub, as the Hub's own cache keeps it."""
    from huggingface_hub import snapshot_download  # imports slowly

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[ARRAYS, FACTS, CARD]))
    except Exception as error:  # the library's own, and those of what it is built on
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        hint = "name a folder of save_pretrained, or a repository of the Hub such as user/name"
        raise InputError(f"no such folder, and cannot be fetched ({reason})", where=name, hint=hint) from error

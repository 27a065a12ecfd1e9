"""Models in forms that other programs read; `EXPORTERS` is the table to which a new one is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from f2pad_jax.checkpoint import check_outside
from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.output import check_file, write_bytes
from f2pad_jax.pretrained import save_pretrained
from f2pad_jax.traced import refine_one, score_one

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(model: Model, path: Path) -> None:
    """Writes `refine_one` for any number of pictures, with all weights inside, for CPU, CUDA and TPU.

    `jax.export.deserialize` reads it. The pictures are refined one after the other.

    Raises:
      InputError: the package flatbuffers is missing.
    """
    model = _of_one_picture(model)
    (count,) = jax.export.symbolic_shape("count")
    pictures = jax.ShapeDtypeStruct((count, *model.shape, 3), jnp.uint8)
    refine_all = jax.jit(lambda stack: jax.lax.map(partial(refine_one, model), stack))
    exported = jax.export.export(refine_all, platforms=PLATFORMS)(pictures)
    try:
        content = bytes(exported.serialize())
    except ImportError as error:
        raise InputError("flatbuffers is missing", hint="pip install 'f2pad_jax[export]'") from error
    write_bytes(path, content)


def onnx(model: Model, path: Path) -> None:
    """Writes `score_one`, the detector's score map of one picture, as an ONNX graph with all weights inside.

    Raises:
      InputError: the package jax2onnx is missing, or cannot convert this model.
    """
    try:
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("jax2onnx is missing", hint="pip install 'f2pad_jax[onnx]'") from error
    picture = jax.ShapeDtypeStruct((*model.shape, 3), jnp.uint8)
    try:
        made = to_onnx(partial(score_one, _of_one_picture(model)), [picture], model_name="scores")
    except Exception as error:  # such as an operation that it does not have
        what = f"jax2onnx cannot convert the model ({type(error).__name__}: {error})"
        raise InputError(what, where=path, hint="try another release of jax2onnx or jax, or .stablehlo") from error
    write_bytes(path, made.SerializeToString())


def _of_one_picture(model: Model) -> Model:
    """The model; of one that works in windows, that of a window, which knows nothing of where in a picture it lies."""
    return replace(model, windowed=False, roi=None) if model.windowed else model


EXPORTERS: dict[str, Callable[[Model, Path], None]] = {
    ".stablehlo": stablehlo,
    ".onnx": onnx,
    "": save_pretrained,
}
"""By the ending of the file: functions of a model and the path; without an ending it is a folder."""


def export(model: Model, path: Path) -> None:
    """Writes a model in the form that the file's ending names; without one, as `Model.save_pretrained` does.

    Raises:
      InputError: no exporter writes such a file, or it cannot be written.
    """
    check_export(path)
    EXPORTERS[path.suffix](model, path)


def check_export(path: Path) -> None:
    """Makes sure that an exporter writes such a file, and that the file can be written.

    Raises:
      InputError: none does, or it cannot.
    """
    if path.suffix not in EXPORTERS:
        endings = ", ".join(filter(None, EXPORTERS))
        raise InputError("is of no known form", where=path, hint=f"end it in {endings}, or in nothing for a folder")
    check_outside(path.parent)
    if path.suffix:
        check_file(path)

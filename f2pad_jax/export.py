"""Models in forms that other programs read; `EXPORTERS` is the table to which a new one is added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d

from f2pad_jax.core.pixels import normalize
from f2pad_jax.detectors import drawing_of
from f2pad_jax.errors import InputError
from f2pad_jax.model import SMOOTHING, Model
from f2pad_jax.output import write_bytes
from f2pad_jax.reducing import axis_weights

PLATFORMS = ("cpu", "cuda", "tpu")


def score_function(model: Model) -> Callable[[jax.Array], jax.Array]:
    """The detector's smoothed score map of one picture as a pure function: uint8 (H, W, 3) to float32 (H, W)."""
    # The Gaussian filter of SciPy is linear along an axis: what it makes of unit vectors is its matrix.
    drawing = drawing_of(model.detector)
    down, across = (
        jnp.asarray(gaussian_filter1d(np.eye(side, dtype=np.float32), SMOOTHING, axis=0, mode=drawing.border))
        for side in model.seen
    )

    def scores(image: jax.Array) -> jax.Array:
        pixels = normalize(image)
        if model.seen != model.shape:
            rows, columns = (axis_weights(*sides) for sides in zip(model.shape, model.seen, strict=True))
            pixels = jnp.einsum("ij,jkc,lk->ilc", rows, pixels, columns, precision="highest")
        maps = tuple(m[0] for m in model.extractor(pixels[None]))
        grown = jax.image.resize(model.detector.score(maps), model.seen, drawing.enlarging)
        smooth = jnp.matmul(jnp.matmul(down, grown, precision="highest"), across.T, precision="highest")
        return jax.image.resize(smooth, model.shape, "bilinear")

    return scores


def stablehlo(model: Model, path: Path) -> None:
    """Writes `score_function` with all weights inside, for CPU, CUDA and TPU; `jax.export.deserialize` reads it.

    Raises:
      InputError: the package flatbuffers is missing.
    """
    picture = jax.ShapeDtypeStruct((*model.shape, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(score_function(model)), platforms=PLATFORMS)(picture)
    try:
        content = bytes(exported.serialize())
    except ImportError as error:
        raise InputError("flatbuffers is missing", hint="pip install 'f2pad_jax[export]'") from error
    write_bytes(path, content)


EXPORTERS: dict[str, Callable[[Model, Path], None]] = {".stablehlo": stablehlo}
"""By the ending of the file: functions of a model and the path."""


def export(model: Model, path: Path) -> None:
    """Writes a model in the form that the file's ending names.

    Raises:
      InputError: no exporter writes such a file, or it cannot be written.
    """
    if path.suffix not in EXPORTERS:
        raise InputError("is of no known form", where=path, hint=f"end it in {', '.join(EXPORTERS)}")
    EXPORTERS[path.suffix](model, path)

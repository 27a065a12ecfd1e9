"""F2PAD in JAX: from a detector's blurry score map to the exact outline of the anomaly (arXiv 2407.06519)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f2pad_jax.errors import InputError
    from f2pad_jax.evaluation import evaluate
    from f2pad_jax.model_file import load_model, save_model
    from f2pad_jax.pipeline import Model, Segmentation, Settings, fit
    from f2pad_jax.segmenting import segment
    from f2pad_jax.tuning import tune
    from f2pad_jax.weights import load_extractor

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Model",
    "Segmentation",
    "Settings",
    "evaluate",
    "fit",
    "load_extractor",
    "load_model",
    "save_model",
    "segment",
    "tune",
]

_HOMES = {
    "InputError": "errors",
    "Model": "pipeline",
    "Segmentation": "pipeline",
    "Settings": "pipeline",
    "evaluate": "evaluation",
    "fit": "pipeline",
    "load_extractor": "weights",
    "load_model": "model_file",
    "save_model": "model_file",
    "segment": "segmenting",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `f2pad --help` does not wait for jax."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

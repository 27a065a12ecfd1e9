"""F2PAD in JAX: from a detector's blurry score map to the exact outline of the anomaly (arXiv 2407.06519)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f2pad_jax.core import (
        Energy,
        Penalty,
        Problem,
        Settings,
        Solution,
        State,
        Status,
        init,
        objective,
        penalties,
        solve,
        solve_many,
        step,
        terms,
    )
    from f2pad_jax.defects import Defect, find_defects
    from f2pad_jax.errors import InputError, InputWarning
    from f2pad_jax.estimator import Detector
    from f2pad_jax.evaluation import evaluate
    from f2pad_jax.fitting import fit
    from f2pad_jax.maps import calibrate, refine
    from f2pad_jax.model import Model
    from f2pad_jax.model_file import load_model, save_model
    from f2pad_jax.preparing import prepare
    from f2pad_jax.procedure import Procedure
    from f2pad_jax.segmentation import Segmentation, segment
    from f2pad_jax.trained import Trained, load_trained
    from f2pad_jax.tuning import tune
    from f2pad_jax.weights import load_extractor

__version__ = "0.2.0.dev0"

_HOMES = {
    "core": "Energy Penalty Problem Settings Solution State Status init objective penalties solve solve_many step "
    "terms",
    "defects": "Defect find_defects",
    "errors": "InputError InputWarning",
    "estimator": "Detector",
    "evaluation": "evaluate",
    "fitting": "fit",
    "maps": "calibrate refine",
    "model": "Model",
    "model_file": "load_model save_model",
    "preparing": "prepare",
    "procedure": "Procedure",
    "segmentation": "Segmentation segment",
    "trained": "Trained load_trained",
    "tuning": "tune",
    "weights": "load_extractor",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Defect",
    "Detector",
    "Energy",
    "InputError",
    "InputWarning",
    "Model",
    "Penalty",
    "Problem",
    "Procedure",
    "Segmentation",
    "Settings",
    "Solution",
    "State",
    "Status",
    "Trained",
    "calibrate",
    "evaluate",
    "find_defects",
    "fit",
    "init",
    "load_extractor",
    "load_model",
    "load_trained",
    "objective",
    "penalties",
    "prepare",
    "refine",
    "save_model",
    "segment",
    "solve",
    "solve_many",
    "step",
    "terms",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `f2pad --help` does not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

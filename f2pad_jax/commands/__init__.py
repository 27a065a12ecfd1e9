"""What each command of the command line does; all take the parsed arguments and return an exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from f2pad_jax.commands.measures import run_demo, run_evaluate, run_experiment
from f2pad_jax.commands.models import run_export, run_fit, run_train_mae, run_tune
from f2pad_jax.commands.pictures import run_report, run_segment, run_synthesize
from f2pad_jax.commands.weights import run_weights

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": run_demo,
    "synthesize": run_synthesize,
    "fit": run_fit,
    "train-mae": run_train_mae,
    "tune": run_tune,
    "segment": run_segment,
    "report": run_report,
    "evaluate": run_evaluate,
    "export": run_export,
    "experiment": run_experiment,
    "weights": run_weights,
}

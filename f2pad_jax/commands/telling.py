"""What commands share: lines on the terminal, exit statuses, the model that they are given, and where results go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from f2pad_jax.checkpoint import check_outside, check_source
from f2pad_jax.console import tell
from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model
from f2pad_jax.output import make_folder
from f2pad_jax.startup import check_devices
from f2pad_jax.weights.weight_files import check_readable

DONE, UNUSABLE = 0, 2


def open_model(arguments: argparse.Namespace) -> Model:
    """The model that a command is given, after a look at its paths and at JAX's devices."""
    check_source(arguments.model, kind="model")
    if arguments.weights is not None:
        check_readable(arguments.weights)
    check_devices()
    return load_model(arguments.model, weights=arguments.weights)


def results_folder(path: Path) -> Path:
    """A folder for results, made where it is missing; that of a model is refused, and one within."""
    check_outside(path)
    return make_folder(path)


def complain(error: InputError | str) -> None:
    """One line on stderr about what cannot be used."""
    tell("error", error)


def warn(lines: Iterable[str]) -> None:
    """One line on stderr for each doubt about what was found."""
    for line in lines:
        tell("warning", line)

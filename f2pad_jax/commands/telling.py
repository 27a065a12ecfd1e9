"""What commands say on the terminal, their exit statuses, and where results go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from f2pad_jax.checkpoint import check_outside
from f2pad_jax.console import tell
from f2pad_jax.errors import InputError
from f2pad_jax.output import make_folder

DONE, UNUSABLE = 0, 2


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

"""Consoles: plain signs where one cannot show every sign, and warnings about input in one line of each kind."""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from f2pad_jax.errors import InputWarning

PLAIN = {"×": "x", "→": "->", "…": "...", "–": "-", "·": "-", "α": "alpha", "β": "beta"}
HANDLER = "f2pad_plain"  # its name among Python's error handlers


def plain(error: UnicodeError) -> tuple[str, int]:
    """Substitutes for the signs that an encoding lacks, and where to go on: an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def prepare_console() -> None:
    """Makes standard output and error write whatever they are given, to nowhere where they were closed."""
    codecs.register_error(HANDLER, plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def tell(kind: str, what: object) -> None:
    """One line on standard error, above a progress bar where there is one; the kind is "error" or "warning"."""
    tqdm.write(f"f2pad: {kind}: {what}", file=sys.stderr)


@contextmanager
def told_once() -> Iterator[None]:
    """Tells each warning in a line; of those about input the first of each kind, at the end how many are like it."""
    told: dict[str, set[str]] = {}  # by what they say, where
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)

        def show(message: Warning | str, *_: Any) -> None:
            if not isinstance(message, InputWarning):
                tell("warning", message)
                return
            places = told.setdefault(message.what, set())
            if not places:
                tell("warning", message)
            places.add(str(message.where))

        warnings.showwarning = show
        try:
            yield
        finally:
            for what, places in told.items():
                if len(places) > 1:
                    tell("warning", f"so it is with {len(places) - 1} more: {what}")

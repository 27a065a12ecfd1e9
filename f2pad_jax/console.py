"""Consoles: plain signs where one cannot show every sign, and warnings about input in one line of each kind."""

from __future__ import annotations

import codecs
import io
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
    """Makes standard output and error write whatever they are given."""
    codecs.register_error(HANDLER, plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


@contextmanager
def told_once() -> Iterator[None]:
    """Prints warnings about input on standard error: the first of each kind, and at the end how many are like it."""
    told: dict[str, set[str]] = {}  # by what they say, where
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        others = warnings.showwarning

        def show(message: Warning | str, *rest: Any) -> None:
            if not isinstance(message, InputWarning):
                others(message, *rest)
                return
            places = told.setdefault(message.what, set())
            if not places:
                tqdm.write(f"f2pad: warning: {message}", file=sys.stderr)
            places.add(str(message.where))

        warnings.showwarning = show
        try:
            yield
        finally:
            for what, places in told.items():
                if len(places) > 1:
                    print(f"f2pad: warning: so it is with {len(places) - 1} more: {what}", file=sys.stderr)

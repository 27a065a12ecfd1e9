"""Consoles that cannot show every sign: plain ones in their place, and never an error."""

from __future__ import annotations

import codecs
import io
import sys

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

"""The one exception that unusable input raises, and the one warning about input that is used all the same."""

from __future__ import annotations

LONGEST = 300  # characters of each of the three


class InputError(ValueError):
    """Input that cannot be used: what is wrong, where it is, and how to hint it, in one line.

    The command line prints it as it stands and exits with status 2.

    Args:
      what: the fault, as a short clause without a final stop.
      where: the file, folder or argument at fault.
      hint: what the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(_line(what, where, hint))


class KindError(InputError, TypeError):
    """Something that is no picture at all: an `InputError` that is a TypeError as well."""


class InputWarning(UserWarning):
    """Input that is used, but perhaps not as it was meant: what, where and what to do, in one line.

    The command line prints the first of each kind, and how many files are like it.

    Args:
      what: the doubt, in equal words for all inputs of its kind.
      where: the file or folder.
      hint: what the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(_line(what, where, hint))


def _line(what: str, where: object, hint: str | None) -> str:
    line = f"{_cut(str(where))}: {_cut(what)}" if where is not None else _cut(what)
    return f"{line}; {_cut(hint)}" if hint else line


def _cut(text: str) -> str:
    """At most so many characters that can be shown, in one line: what files hold may be long, or control a terminal."""
    line = " ".join(text[: 4 * LONGEST].split())
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"

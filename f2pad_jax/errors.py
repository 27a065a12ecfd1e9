"""The one exception that unusable input raises."""

from __future__ import annotations

import re

LONGEST, SHORTEST = 300, 60  # characters of a line as a rule, and of what is wrong even where names are long


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
        place, advice = _cut(f"{where}: " if where is not None else ""), _cut(f"; {hint}" if hint else "")
        what = _cut(what, max(SHORTEST, LONGEST - len(place) - len(advice)))
        super().__init__(f"{place}{what}{advice}")


def _cut(text: str, most: int = LONGEST) -> str:
    """At most so many characters that can be shown, in one line: what files hold may be long, or control a terminal."""
    line = re.sub(r"\s+", " ", text[: 4 * most])
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"

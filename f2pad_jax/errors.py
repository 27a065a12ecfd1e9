"""The one exception that unusable input raises."""

from __future__ import annotations


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
        line = f"{where}: {what}" if where is not None else what
        if hint:
            line = f"{line}; {hint}"
        super().__init__(" ".join(line.split()))

"""The command line: `f2pad COMMAND …`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from f2pad_jax.arguments import UNUSABLE, parser
from f2pad_jax.configuration import parse
from f2pad_jax.console import prepare_console, told_once
from f2pad_jax.errors import InputError
from f2pad_jax.startup import prepare_jax

INTERRUPTED, UNREAD = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; None takes the process's own.

    Returns:
      0 on success, 2 where input was unusable (one line on stderr), 130 after an interruption, 141 where nobody reads
      what is printed.
    """
    prepare_console()
    warnings.filterwarnings("ignore", module=r"PIL\b")  # what is wrong with a picture is our line to say
    warnings.filterwarnings("ignore", ".*persistent compilation cache")  # no cache is slower and as right
    try:
        arguments = parse(parser(), sys.argv[1:] if argv is None else argv)
        prepare_jax()
        from f2pad_jax import commands  # brings jax, which --help and mistyped options need not wait for

        with told_once():
            status = commands.COMMANDS[arguments.run](arguments)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"f2pad: error: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return UNREAD
    except OSError as error:  # a disk that is full, a folder that was taken away
        what = f"the system refused ({error.strerror or error})"
        print(f"f2pad: error: {InputError(what, where=error.filename)}", file=sys.stderr)
        return UNUSABLE
    except MemoryError:
        print("f2pad: error: there is not enough memory", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("f2pad: interrupted", file=sys.stderr)
        return INTERRUPTED

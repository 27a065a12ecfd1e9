"""A process of its own for torch: two thread pools in one process disturb each other."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from f2pad_jax.errors import InputError


def need_torch() -> None:
    """Makes sure that torch is installed.

    Raises:
      InputError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed", hint="pip install 'f2pad-jax[parity]'")


@contextmanager
def worker(serve: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Runs `serve(pipe, *arguments)` in a fresh process; it ends when it receives None.

    Args:
      serve: importable function that answers what comes through the pipe.
      arguments: its further arguments, which can be pickled.

    Yields:
      Our end of the pipe.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # so that a worker that dies ends the wait for it
    try:
        yield here
        here.send(None)
        process.join()
    finally:
        process.terminate()

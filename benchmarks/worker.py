"""A process of its own for torch: two thread pools in one process disturb each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


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

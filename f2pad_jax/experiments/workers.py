"""Work shared out to processes of this machine: each takes the next piece when it is done with one."""

from __future__ import annotations

import io
import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TextIO

from tqdm import tqdm

Tell = Callable[[Any], None]
Work = Callable[[Any, Tell], None]

TERMINATED = 128 + signal.SIGTERM  # exit status, as a shell gives it
_DONE = None  # what a worker sends after its last message about a piece


class _NoTerminal(io.TextIOBase):
    """Passes text on, but draws no progress bars: those of several processes would overwrite each other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def share_out(
    pieces: Sequence[Any], begin: Callable[[], Work], *, jobs: int, tell: Tell, on_loss: Callable[[Any], None]
) -> None:
    """Does all pieces in several processes, which end with this call, be it by an exception or by SIGTERM.

    Args:
      pieces: what there is to do, long ones first at best; anything that can be pickled but None.
      begin: called once in each process, picklable; returns what does a piece and tells of it.
      jobs: most processes.
      tell: called here with each message of a worker, in the order that it sent them.
      on_loss: called with a piece whose process ended before it was done; another process takes its place.

    Raises:
      SystemExit: at SIGTERM, which would otherwise end this process alone.
      ValueError: not called in the main thread, which signals need.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(pieces)
    busy: dict[Any, tuple[Any, Any]] = {}  # by our end of the pipe: the process, and its piece

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, begin), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end alone keeps the pipe open
        busy[ours] = process, waiting.popleft()
        ours.send(busy[ours][1])

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        for _ in range(min(jobs, len(pieces))):
            start()
        while busy:
            ready: list[Any] = wait(list(busy))
            for line in ready:
                process, piece = busy[line]
                try:
                    message = line.recv()
                except (EOFError, OSError):
                    del busy[line]
                    line.close()
                    process.join()
                    on_loss(piece)
                    if waiting:
                        start()
                    continue
                if message is not _DONE:
                    tell(message)
                elif waiting:
                    busy[line] = process, waiting.popleft()
                    line.send(busy[line][1])
                else:
                    del busy[line]
                    line.close()  # ends the worker
                    process.join()
    finally:
        signal.signal(signal.SIGTERM, before)
        for process, _ in busy.values():
            process.terminate()
        for line, (process, _) in busy.items():
            process.join()
            line.close()


def _worker(line: Connection, begin: Callable[[], Work]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts all its processes; the first one ends the rest
    sys.stderr = _NoTerminal(sys.stderr)
    tqdm.set_lock(threading.RLock())  # its own would outlive a process that is ended
    work = begin()

    def tell(message: Any) -> None:
        try:
            line.send(message)
        except BrokenPipeError:
            sys.exit(1)  # nobody is left to do it for

    while True:
        try:
            piece = line.recv()
        except EOFError:  # there is nothing left to do
            return
        work(piece, tell)
        tell(_DONE)

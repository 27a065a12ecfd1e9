"""`python tests/fuzz/run.py --count N`: spoiled inputs of every kind, and what the readers made of them.

Each kind runs in processes of its own, in pieces, so that one that dies is counted and the others go on. Exits with 1
where anything is counted that must not be: tracebacks, wrong acceptances, executions, hangs, deaths, over 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

PIECE, LONGEST, MOST = 2000, 10.0, 2**30  # inputs of a process; seconds of one input; bytes beyond those at the start


class Hang(BaseException):
    """An input took too long."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang


def work(kind: str, first: int, count: int) -> dict[str, Any]:
    """Runs inputs `first`, `first + 1`, … of a kind in this process."""
    from fuzz.cases import CASES, WrongError, clean_up, mark

    warnings.simplefilter("ignore")
    case = CASES[kind][0]
    case(Random(0))  # imports and samples
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally: dict[str, Any] = dict.fromkeys(("refused", "accepted", "traceback", "wrong", "hang"), 0)
    tally |= {"slowest": 0.0, "examples": []}
    signal.signal(signal.SIGALRM, _stop)
    for number in range(first, first + count):
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            outcome = case(Random(f"{kind} {number}"))
        except Hang:
            outcome = "hang"
        except WrongError:
            outcome = "wrong"
            tally["examples"].append((number, traceback.format_exc(limit=1)[-300:]))
        except Exception:
            outcome = "traceback"
            tally["examples"].append((number, traceback.format_exc()[-700:]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        tally[outcome] += 1
        tally["slowest"] = max(tally["slowest"], time.perf_counter() - began)
    tally["executed"] = int(mark().exists())
    tally["memory"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    clean_up()
    return tally


def piece(kind: str, first: int, count: int) -> dict[str, Any]:
    """`work` in a process of its own."""
    command = [sys.executable, __file__, "--piece", kind, str(first), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        return {"death": 1, "examples": [(first, f"exit {done.returncode}: {done.stderr[-500:]}")]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Runs all kinds in their shares, and prints a table."""
    from fuzz.cases import CASES

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--kind", choices=CASES, help="only this")
    arguments = parser.parse_args()
    bad = ("traceback", "wrong", "executed", "hang", "death")
    print("| input | number | refused | accepted | " + " | ".join(bad) + " | slowest, s | memory, MiB | seconds |")
    print("|---|" + "---|" * (6 + len(bad)))
    whole: dict[str, float] = {}
    for kind, (_, share) in CASES.items():
        if arguments.kind not in (None, kind):
            continue
        count = arguments.count if arguments.kind else max(1, arguments.count * share // 100)
        total: dict[str, float] = {"number": count}
        began = time.perf_counter()
        for first in range(0, count, PIECE):
            tally = piece(kind, arguments.first + first, min(PIECE, count - first))
            for number, text in tally.pop("examples"):
                print(f"{kind} {number}: {text}", file=sys.stderr)
            for name, value in tally.items():
                largest = name in ("slowest", "memory")
                total[name] = max(total.get(name, 0), value) if largest else total.get(name, 0) + value
        total["seconds"] = time.perf_counter() - began
        _print(kind, total, bad)
        for name, value in total.items():
            largest = name in ("slowest", "memory")
            whole[name] = max(whole.get(name, 0), value) if largest else whole.get(name, 0) + value
    _print("**all**", whole, bad)
    return int(any(whole.get(name) for name in bad) or whole["memory"] > MOST)


def _print(kind: str, total: dict[str, float], bad: tuple[str, ...]) -> None:
    counts = [f"{total.get(name, 0):.0f}" for name in ("number", "refused", "accepted", *bad)]
    rest = [f"{total.get('slowest', 0):.2f}", f"{total.get('memory', 0) / 2**20:.0f}", f"{total['seconds']:.0f}"]
    print(f"| {kind} | {' | '.join(counts + rest)} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--piece"]:
        print(json.dumps(work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        sys.exit(main())

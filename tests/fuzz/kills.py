"""`python tests/fuzz/kills.py --kills N`: commands that are killed (SIGKILL) at random moments, and run again.

Each command is first run to its end, on pictures made for the purpose. Then it is killed N times, each time in a new
folder, and run again there. Everything is small, so that short runs have several chunks: `segment` solves 2 pictures
together, `experiment` 1, `train-mae` keeps its state twice a second, a training of flows after each meta-epoch. Printed
is how much of the whole was there after the kill, how many of these pieces the second run did again, whether it ended
with the same bytes, times aside, and what else it left. SIGTERM ends it with what is done so far. Exits with 1 where a
piece was done again, bytes differ, or something is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRAINING, PICTURES, SIZE = 10, 8, 32
TIMES = ("seconds", "fit_seconds", "tune_seconds", "time", "sha256")  # and the digests of what has them
NETWORK = ("--extractor", "efficientnet_lite0", "--size", str(SIZE))
MODEL = ("fit", "set/brick", "--detector", "patchcore", *NETWORK)
FLOWS = ("fit", "set/brick", "--detector", "cflow", *NETWORK, "--option", "epochs=4")
TABLE = ("experiment", "table1", "--category", "brick", "--detector", "padim", "--images", "4", "--untuned")
SERVER = """
import json, os, sys
from f2pad_jax.startup import prepare_jax
prepare_jax()
from f2pad_jax import cli, grouping, tuning
from f2pad_jax.commands import measures, models, pictures, weights
from f2pad_jax.experiments import runs, sets
from f2pad_jax.fills import training
grouping.GROUP, runs.CHUNK, training.SAVE_EVERY = 2, 1, 0.5
sets.SIZE, sets.TEXTURE_TRAIN, tuning.COUNT = 64, 10, 2
for line in sys.stdin:
    words, cache = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        os.environ["F2PAD_CACHE"] = cache
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        os._exit(cli.main(words))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Command(NamedTuple):
    """What is killed.

    Attributes:
      words: arguments; "{out}" and "{place}" stand for where results go and the folder that these lie in.
      read: what must be the same, of "{place}".
      pieces: what a run has done so far, of "{place}"; nothing of them may be done again.
      whole: how many pieces there are at the end; of what is done at once 1.
    """

    words: tuple[str, ...]
    read: Callable[[Path], dict[str, bytes]]
    pieces: Callable[[Path], dict[str, bytes]]
    whole: int = 1


class Server:
    """A process that has imported everything, and starts commands: importing takes longer than these small runs."""

    def __init__(self, work: Path) -> None:
        """Starts it in a folder, with a cache of compiled code for all."""
        own = {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            cwd=work,
            env=os.environ | own,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # what ends this script is not for it
        )

    def run(self, place: Path, words: tuple[str, ...], *, killed_after: float | None = None) -> float:
        """A command in a process group of its own, with a cache of its own; to its end, or so many seconds.

        Returns:
          How many seconds it took.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        filled = [word.format(out=place / "out", place=place) for word in words]
        self.process.stdin.write(json.dumps([filled, str(place / "cache")]) + "\n")
        self.process.stdin.flush()
        child, began = int(self.process.stdout.readline()), time.monotonic()
        if killed_after is not None:
            time.sleep(killed_after)
            with suppress(ProcessLookupError):  # it was faster
                os.killpg(child, signal.SIGKILL)
        self.process.stdout.readline()
        return time.monotonic() - began


def timeless(value: Any) -> Any:
    """JSON without times, and without the bounds of means of them."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def content(place: Path) -> dict[str, bytes]:
    """Files by name; records without the times in them."""
    found, folder = {}, place / "out"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                data = json.dumps([timeless(json.loads(line)) for line in documents(path)]).encode()
            elif path.name == "settings.toml":  # each run has a folder of its own
                data = json.dumps(tomllib.loads(data.decode()) | {"out": ""}).encode()
            elif path.suffix == ".md":
                data = re.sub(rb"\| [\d.]+ \|$|\d+ s for fits", b"", data, flags=re.MULTILINE)
            found[path.relative_to(folder).as_posix()] = data
    return found


def documents(path: Path) -> list[str]:
    """The JSON values of a file."""
    text = path.read_text("utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def arrays(folder: Path, kind: str) -> dict[str, bytes]:
    """The arrays and facts of a checkpoint."""
    from f2pad_jax.checkpoint import flat, load_arrays

    version = json.loads((folder / f"{kind}.json").read_text("utf-8"))["version"]
    tree, facts = load_arrays(folder, kind=kind, version=version)
    return {name: leaf.tobytes() for name, leaf in flat(tree).items()} | {"facts": json.dumps(facts).encode()}


def lines(place: Path) -> dict[str, bytes]:
    """Records of pictures that are whole, with their times."""
    path = place / "out/results.jsonl"
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] * path.is_file()
    return {json.loads(line)["image"]: line for line in whole}


def parts(place: Path) -> dict[str, bytes]:
    """Records of the pictures of an experiment, with their times."""
    return {path.name: path.read_bytes() for path in place.glob("out/parts/*/[0-9][0-9][0-9].json")}


def steps(folder: Path, kind: str) -> dict[str, bytes]:
    """The steps of an unfinished training; of flows the meta-epochs of all maps."""
    if not (folder / f"{kind}.json").is_file():
        return {}
    tree = {name: leaf for name, leaf in arrays(folder, kind).items() if name != "facts"}
    last = {name.rpartition("/")[0]: name for name in sorted(tree, key=lambda name: (len(name), name))}
    counts = [int(np.frombuffer(tree[name], np.int32)[0]) for name in last.values()]
    return {f"step {number}": b"" for number in range(sum(counts))}


def there(path: str) -> Callable[[Path], dict[str, bytes]]:
    """Of what is done at once: whether it is there."""
    return lambda place: {path: b""} if (place / path).is_dir() else {}


def main() -> int:
    """Kills and runs again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", help="only this; may be repeated")
    arguments = parser.parse_args()
    from states import folded_state

    from f2pad_jax.data.textures import make_textures

    rng = random.Random(arguments.seed)
    work = Path(tempfile.mkdtemp(prefix="f2pad-kills-"))
    make_textures(work / "set", train=TRAINING, test=PICTURES, size=SIZE, categories=["brick"])
    np.savez(work / "trunk.npz", **folded_state())  # pyright: ignore[reportArgumentType]
    server = Server(work)
    server.run(work / "made", (*MODEL, "--out", "model"))

    def model(place: Path) -> dict[str, bytes]:
        return arrays(place / "out", "model")

    commands = {
        "segment --resume": Command(
            ("segment", "model", "set/brick/test/color", "--resume", "--out", "{out}"), content, lines, PICTURES
        ),
        "fit": Command((*MODEL, "--out", "{out}"), model, there("out")),
        "fit --option checkpoint": Command(
            (*FLOWS, "--option", "checkpoint={place}/flows", "--out", "{out}"),
            model,
            lambda place: steps(place / "flows", "flow-training"),
            8,
        ),
        "tune": Command(("tune", "model", "set/brick", "--out", "{out}"), model, there("out")),
        "train-mae": Command(
            ("train-mae", "set/brick", "--size", str(SIZE), "--epochs", "120", "--out", "{out}"),
            lambda place: arrays(place / "out", "autoencoder"),
            lambda place: steps(place / "out.unfinished", "training-run"),
            150,
        ),
        "weights import": Command(
            ("weights", "import", "resnet18", "trunk.npz"),
            lambda place: arrays(place / "cache/weights/resnet18", "weights"),
            there("cache/weights/resnet18"),
        ),
        "experiment": Command((*TABLE, "--out", "{out}"), content, parts, 4),
    }
    for name in arguments.command or ():
        if name not in commands:
            parser.error(f"--command is one of {', '.join(commands)}")
    ended = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    wrong = 0
    print("| command | seconds | kills | pieces at the kill | done again | ended the same | files left |")
    print("|---|---|---|---|---|---|---|")
    for name, command in commands.items():
        if ended or name not in (arguments.command or commands):
            continue
        lasts, reference = 0.0, work / "whole"
        for _ in range(2):  # the first one compiles
            shutil.rmtree(reference, ignore_errors=True)
            reference.mkdir()
            lasts = server.run(reference, command.words)
        wanted, same, done, again, stray = command.read(reference), 0, [], 0, 0
        for number in range(arguments.kills):
            if ended:
                break
            place = work / str(number)
            place.mkdir()
            server.run(place, command.words, killed_after=rng.uniform(0.0, 1.0) * lasts)
            before = command.pieces(place)
            done.append(len(before))
            server.run(place, command.words)
            after = command.pieces(place)
            again += sum(after.get(key, value) != value for key, value in before.items())
            same += command.read(place) == wanted
            stray += len([*place.rglob(".f2pad*")])
            shutil.rmtree(place)
        wrong += len(done) - same + again + stray
        pieces = f"{', '.join(str(each) for each in sorted(done))} of {command.whole}"
        alike = f"{same} of {len(done)}"
        print(f"| `{name}` | {lasts:.0f} | {len(done)} | {pieces} | {again} | {alike} | {stray} |", flush=True)
        shutil.rmtree(reference)
    server.process.kill()
    shutil.rmtree(work)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())

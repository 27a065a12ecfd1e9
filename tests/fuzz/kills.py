"""`python tests/fuzz/kills.py --kills N`: commands that are killed (SIGKILL) at random moments, and run again.

Each command is first run to its end, on pictures made for the purpose. Then it is killed N/3 times, each time in a new
folder, and run again there. Printed is how much was there after the kill, and whether the second run ended with the
same bytes, times aside, and left nothing else. Exits with 1 where one did not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

PICTURES, SIZE = 40, 64
MODEL = ("fit", "set/brick", "--detector", "patchcore", "--extractor", "efficientnet_lite0", "--size", str(SIZE))


def start(work: Path, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A command in a process group of its own."""
    command = [sys.executable, "-m", "f2pad_jax", *arguments]
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=work, start_new_session=True, stderr=silent, stdout=silent)


def content(folder: Path) -> dict[str, bytes]:
    """Files by name; records without the times in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            data = path.read_bytes()
            if path.name == "results.jsonl":
                lines = [json.loads(line) for line in data.splitlines()]
                data = json.dumps([line | {"seconds": 0} for line in lines]).encode()
            if path.name == "settings.toml":  # each run has a folder of its own
                data = json.dumps(tomllib.loads(data.decode()) | {"out": ""}).encode()
            found[name] = data
    return found


def arrays(folder: Path) -> dict[str, bytes]:
    """The arrays and facts of a checkpoint."""
    from f2pad_jax.checkpoint import _flat, load_arrays
    from f2pad_jax.model_file import VERSION

    tree, facts = load_arrays(folder, kind="model", version=VERSION)
    return {name: leaf.tobytes() for name, leaf in _flat(tree).items()} | {"facts": json.dumps(facts).encode()}


def main() -> int:
    """Kills and runs again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", help="only this: segment, fit or tune")
    arguments = parser.parse_args()
    from f2pad_jax.data.textures import make_textures

    rng = random.Random(arguments.seed)
    work = Path(tempfile.mkdtemp(prefix="f2pad-kills-"))
    os.environ["F2PAD_CACHE"] = str(work / "cache")
    make_textures(work / "set", train=10, test=PICTURES, size=SIZE, categories=["brick"])
    start(work, (*MODEL, "--out", "model")).wait()
    commands = {
        "segment --resume": (("segment", "model", "set/brick/test/color", "--resume"), content),
        "fit": (MODEL, arrays),
        "tune": (("tune", "model", "set/brick"), arrays),
    }
    wrong = 0
    print("| command | seconds | kills | done at the kill | runs that ended the same | other files left |")
    print("|---|---|---|---|---|---|")
    for name, (command, read) in commands.items():
        if arguments.command not in (None, command[0]):
            continue
        reference = work / f"{command[0]}-whole"
        start(work, (*command, "--out", reference.name)).wait()  # compiles
        shutil.rmtree(reference)
        began = time.monotonic()
        start(work, (*command, "--out", reference.name)).wait()
        lasts = time.monotonic() - began
        wanted, same, done, stray = read(reference), 0, [], 0
        count = max(1, arguments.kills // len(commands))
        for number in range(count):
            place = work / f"{command[0]}-{number}"
            place.mkdir()
            out = place / "out"
            run = start(work, (*command, "--out", str(out.relative_to(work))))
            time.sleep(rng.uniform(0.3, 1.0) * lasts)
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            lines = out / "results.jsonl"
            done.append(len(lines.read_text().splitlines()) if lines.is_file() else int(out.is_dir()))
            start(work, (*command, "--out", str(out.relative_to(work)))).wait()
            same += out.is_dir() and read(out) == wanted
            stray += len([path for path in place.rglob(".*")])
            shutil.rmtree(place)
        wrong += count - same + stray
        whole = PICTURES if read is content else 1
        shares = ", ".join(str(each) for each in sorted(done))
        print(f"| `{name}` | {lasts:.0f} | {count} | {shares} of {whole} | {same} of {count} | {stray} |", flush=True)
    shutil.rmtree(work)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

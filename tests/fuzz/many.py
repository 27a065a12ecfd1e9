"""`python tests/fuzz/many.py --pictures N`: memory and speed of `f2pad segment` on many pictures.

Makes N small pictures, most of them normal, fits a model, and runs the command in a process of its own, of which the
resident memory is read ten times a second. Printed are the highest value up to 200, 1,000 and N pictures that are done,
and what the whole command takes beside the solver alone: the time from its first group to its last over the sum of
`seconds` in `results.jsonl`, which are those of looking, preparing and solving. Exits with 1 where memory grows by more
than `GROWTH` after the last count before the end; until then programs are compiled, one for each size of regions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE, TRAINING, DEFECTIVE = 64, 64, 40  # one picture in so many shows a defect
COUNTS = (200, 1000)  # pictures at which memory is told, beside the end
GROWTH = 48  # MiB
MODEL = ("--detector", "patchcore", "--extractor", "efficientnet_lite0", "--size", str(SIZE))


def make(work: Path, count: int) -> None:
    """A category to fit, and pictures to segment: crops of one photograph."""
    from f2pad_jax.data.images import write_png
    from f2pad_jax.data.synthesize import write_category
    from f2pad_jax.data.textures import texture_category

    normals, cases = texture_category("brick", train=TRAINING, test=count // DEFECTIVE + 1, size=SIZE)
    others, _ = texture_category("brick", train=count, test=1, size=SIZE, seed=1)
    write_category(work / "set", normals, [])
    (work / "pictures").mkdir()
    for number in range(count):
        image = cases[number // DEFECTIVE][0] if number % DEFECTIVE == 7 else others[number]
        write_png(work / "pictures" / f"{number:05d}.png", image)


def resident(process: int) -> float:
    """MiB that a process holds; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def main() -> int:
    """Runs the command and looks on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--memory", help="of the command, GiB")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="f2pad-many-"))
    make(work, arguments.pictures)
    f2pad = [sys.executable, "-m", "f2pad_jax"]
    subprocess.run([*f2pad, "fit", "set", *MODEL, "--out", "model"], cwd=work, check=True, stdout=subprocess.DEVNULL)
    limit = [] if arguments.memory is None else ["--memory", arguments.memory]
    command = subprocess.Popen([*f2pad, "segment", "model", "pictures", "--out", "out", *limit], cwd=work)
    lines, highest, moments = work / "out/results.jsonl", dict[int, float](), [(0.0, 0)]
    counts = [count for count in COUNTS if count < arguments.pictures] + [arguments.pictures]
    print("| pictures | highest resident memory, MiB |\n|---|---|")
    told = 0
    while command.poll() is None:
        time.sleep(0.1)
        done, held = lines.read_bytes().count(b"\n") if lines.is_file() else 0, resident(command.pid)
        if done > moments[-1][1]:
            moments.append((time.monotonic(), done))
        for count in counts:
            if done <= count:
                highest[count] = max(highest.get(count, 0.0), held)
        while done > counts[told]:
            print(f"| {counts[told]} | {highest[counts[told]]:.0f} |", flush=True)
            told += 1
    records = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    print(f"| {counts[-1]} | {highest[counts[-1]]:.0f} |")
    (first, begun), (last, ended) = moments[1], moments[-1]
    solving, wall = sum(record["seconds"] for record in records[begun:ended]), last - first
    speeds = f"{(ended - begun) / wall:.1f} pictures a second; the solver alone {(ended - begun) / solving:.1f}"
    print(f"\n{ended - begun} pictures in {wall:.0f} s, {speeds}: {wall / solving:.2f} times the time")
    print(f"{sum(bool(record['defects']) for record in records)} show a defect; exit status {command.returncode}")
    shutil.rmtree(work)
    return int(command.returncode != 0 or highest[counts[-1]] > highest[counts[max(0, len(counts) - 2)]] + GROWTH)


if __name__ == "__main__":
    sys.exit(main())

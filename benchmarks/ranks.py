"""PaDiM with few eigenvectors per position: error of the scores against the exact ones, and time of the summands.

python benchmarks/ranks.py [--category NAME] [--train N] [--rank R]... [--images N] [--repeats N]

EfficientNet-Lite0 (176 channels), 224 × 224. With fewer training pictures than channels the exact form is of low rank
too. Errors are root mean squares of the difference over the whole grid, relative to the exact scores, on normal
pictures that were held out and on test pictures. The time is that of the summands at a quarter of the positions with
their gradient, without the network. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import call_once, interleaved

import f2pad_jax
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.detectors import padim
from f2pad_jax.fitting import HELD_OUT, features
from f2pad_jax.output import write_bytes, write_json

RANKS = (4, 8, 16, 32, 48, 96)


def scores(params: padim.Params, maps: tuple[np.ndarray, ...]) -> np.ndarray:
    """PaDiM's scores of all pictures, (N, H, W)."""
    score = jax.jit(padim.score)
    return np.stack([score(params, one) for one in zip(*maps, strict=True)])


def timer(params: padim.Params, maps: tuple[np.ndarray, ...]) -> Callable[[], float]:
    """Times l_n and its gradient in one picture's maps."""
    count = len(params["mean"])
    positions = jnp.arange(0, count, 4, dtype=jnp.int32)
    one = tuple(jnp.asarray(m[0]) for m in maps)
    local = padim.localize(params, one, positions)
    total = jax.jit(jax.value_and_grad(lambda m, statistics: padim.local_scores(statistics, m, positions).sum()))
    return partial(call_once, lambda: total(one, local))


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", choices=TEXTURES, default="brick", help="(brick)")
    parser.add_argument("--train", type=int, default=64, help="normal pictures, an eighth of them held out (64)")
    parser.add_argument("--rank", type=int, action="append", help="only these")
    parser.add_argument("--images", type=int, default=8, help="test pictures (8)")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of each time (10)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "ranks", help="results without suffix"
    )
    arguments = parser.parse_args()
    train, cases = texture_category(arguments.category, train=arguments.train, test=arguments.images)
    kept = len(train) // HELD_OUT
    extractor = f2pad_jax.load_extractor("efficientnet_lite0")
    held_out, maps = features(extractor, train[:kept]), features(extractor, train[kept:])
    tests = features(extractor, np.stack([case[0] for case in cases]))
    dims = sum(extractor.channels)
    most = min(len(maps[0]) - 1, dims)
    fitted = {rank: padim.fit(maps, rank=rank) for rank in (arguments.rank or RANKS) if rank < most}
    fitted[most] = padim.fit(maps)
    wanted = scores(fitted[most], held_out), scores(fitted[most], tests)
    times, _ = interleaved({str(r): timer(p, tests) for r, p in fitted.items()}, repeats=arguments.repeats)
    rows: list[dict[str, Any]] = []
    for rank, params in fitted.items():
        found = scores(params, held_out), scores(params, tests)
        errors = [float(np.linalg.norm(f - w) / np.linalg.norm(w)) for f, w in zip(found, wanted, strict=True)]
        size = sum(leaf.nbytes for leaf in params.values())
        rows.append({"rank": rank, "normal": errors[0], "test": errors[1], "bytes": size, "seconds": times[str(rank)]})
    command = f"python benchmarks/ranks.py --category {arguments.category} --train {arguments.train}"
    command += f" --images {arguments.images}" + "".join(f" --rank {rank}" for rank in arguments.rank or ())
    device = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else platform.machine()
    form = "dense" if "precision" in fitted[most] else "low rank"
    facts = {"name": "ranks", "device": device, "jax": jax.__version__, "command": command, "exact": form, "runs": rows}
    lines = ["| rank | error, normal | error, test | MB | ms, median | ms, least and most |", "|---" * 6 + "|"]
    for row in rows:
        milliseconds = [1000 * seconds for seconds in row["seconds"]]
        exact = f" (exact, {form})" if row["rank"] == most else ""
        lines.append(
            f"| {row['rank']}{exact} | {row['normal']:.4f} | {row['test']:.4f} | {row['bytes'] / 1e6:.0f} "
            f"| {statistics.median(milliseconds):.2f} | {min(milliseconds):.2f} to {max(milliseconds):.2f} |"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out.with_suffix(".json"), facts)
    text = f"`{command}`\n\n{device}, {dims} channels, {len(maps[0])} pictures fitted.\n\n" + "\n".join(lines) + "\n"
    write_bytes(arguments.out.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()

"""`python tests/fuzz/large.py`: memory and time of `f2pad fit` and `segment` on pictures of 8000 × 6000 pixels.

Makes normal pictures, a photograph continued by its mirror images, and one more with two scratches and a spot painted
on it. Both commands run in windows, each in a process of its own, of which the highest resident memory is printed as
the system counts it. Exits with 1 where it is above `MOST`, or where the mask misses one of the defects.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import label

MOST = 4.0  # GiB
WINDOW = 1024
COLOUR = (210, 60, 40)
Made = tuple[np.ndarray, np.ndarray]  # a picture (H, W, 3) and a mask (H, W)


def normal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A large picture of bricks, from another corner each time."""
    from f2pad_jax.data.textures import photograph

    own = photograph("brick")
    top, left = rng.integers(0, own.shape[0]), rng.integers(0, own.shape[1])
    pads = [(top, max(0, shape[0] - own.shape[0])), (left, max(0, shape[1] - own.shape[1])), (0, 0)]
    return np.pad(own, pads, mode="symmetric")[: shape[0], : shape[1]]


def defective(shape: tuple[int, int], rng: np.random.Generator) -> Made:
    """Two scratches of three pixels and a spot of eighty, far from one another."""
    from f2pad_jax.data.shapes import stroke

    image, mask = normal(shape, rng).copy(), np.zeros(shape, bool)
    for share in (0.2, 0.7):
        row, column = int(share * shape[0]), int((0.9 - share) * shape[1])
        part = np.linspace(0, 1, 100)[:, None]
        path = np.array([20, 20]) * (1 - part) + np.array([120, 180]) * part
        mask[row : row + 200, column : column + 200] |= stroke(path, 3, (200, 200))
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    mask |= (rows - shape[0] // 2) ** 2 + (columns - shape[1] // 2) ** 2 < 40**2
    image[mask] = COLOUR
    return image, mask


def measured(*words: str, work: Path) -> tuple[float, float]:
    """GiB and seconds of a command."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "f2pad_jax", *words], cwd=work) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{words[0]} ended with {process.returncode}")
    return usage.ru_maxrss / 2**20, time.monotonic() - began


def main() -> int:
    """Makes the pictures, runs both commands, and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=2, default=(6000, 8000), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--training", type=int, default=20)
    parser.add_argument("--detector", default="patchcore")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    shape, rng, work = tuple(arguments.shape), np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="f2pad-large-"))
    (work / "set/train/good").mkdir(parents=True)
    for number in range(arguments.training):
        Image.fromarray(normal(shape, rng)).save(work / f"set/train/good/{number:03}.jpg", quality=95)
    image, truth = defective(shape, rng)
    Image.fromarray(image).save(work / "large.png", compress_level=1)
    del image
    model = ("--detector", arguments.detector, "--extractor", "efficientnet_lite0", "--windows", str(WINDOW))
    figures = {
        f"fit, {arguments.training} pictures": measured("fit", "set", *model, "--out", "model", work=work),
        "segment, one picture": measured("segment", "model", "large.png", "--out", "out", work=work),
    }
    found = np.asarray(Image.open(work / "out/large_mask.png")) > 0
    pieces = np.asarray(label(truth, connectivity=2))
    shares = [float(found[pieces == number].mean()) for number in range(1, pieces.max() + 1)]
    print("| command | highest resident memory, GiB | seconds |\n|---|---|---|")
    for name, (memory, seconds) in figures.items():
        print(f"| {name} | {memory:.2f} | {seconds:.0f} |")
    alike = (found & truth).sum() / (found | truth).sum()
    print(f"\nIoU {100 * alike:.1f}; of the defects are marked {', '.join(f'{100 * share:.0f} %' for share in shares)}")
    shutil.rmtree(work)
    return int(max(memory for memory, _ in figures.values()) > MOST or min(shares) < 0.5)


if __name__ == "__main__":
    sys.exit(main())

"""Masks at the pictures' own resolution beside those that are worked on at 224 and enlarged: agreement and time.

Photographs are mirrored at their edges until they are large enough, so that their pixels are those of a camera; parts
of MVTec AD (`--data`) are enlarged. Anomalies of one colour are pasted at full resolution: shapes (cut-paste, Eq. 16 of
the paper) and scratches of three pixels. The threshold lets three normal pictures in ten pass for defective, because
the outline is measured here, and not whether a defect is found.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from problems import Options, extractor_for

import f2pad_jax
from f2pad_jax.data.images import read_image, resize_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.paints import cut_paste, paint
from f2pad_jax.data.shapes import stroke
from f2pad_jax.data.textures import TEXTURES, photograph
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.procedure import Procedure
from f2pad_jax.reducing import seen_shape

SIZES = (448, 1024)
SEEN = 224
DETECTORS = ("patchcore", "padim")
PARTS = ("capsule", "metal_nut")
TRAINING = 24
WIDTH = 3  # of scratches, pixels
COLOURS = ((220, 40, 30), (30, 60, 220), (240, 230, 40), (20, 200, 60))
NETWORK = "efficientnet_lite0"
LEFT = 288  # columns of a photograph that training pictures are taken from

Made = tuple[np.ndarray, np.ndarray]


def crops(part: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Square pictures from anywhere in a photograph that is continued by its mirror images."""
    whole = np.pad(part, [(0, max(0, 2 * size - side)) for side in part.shape[:2]] + [(0, 0)], mode="symmetric")
    corners = rng.integers(0, np.array(whole.shape[:2]) - size + 1, (count, 2))
    return np.stack([whole[top : top + size, left : left + size] for top, left in corners])


def pictures(name: str, size: int, tests: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Normal pictures to fit to, and others to paste on, uint8 (N, size, size, 3)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name in TEXTURES:
        whole = photograph(name)
        return crops(whole[:, :LEFT], TRAINING, size, rng), crops(whole[:, LEFT:], tests, size, rng)
    paths = open_category((options.data or Path()) / name, need_test=False).train
    chosen = [paths[k] for k in rng.permutation(len(paths))[: TRAINING + tests]]
    enlarged = np.stack([read_image(path, size) for path in chosen])
    return enlarged[:TRAINING], enlarged[TRAINING:]


def scratch(image: np.ndarray, rng: np.random.Generator) -> Made:
    """A picture with a bent scratch of `WIDTH` pixels, about a third of the side long, near the middle."""
    side = image.shape[0]
    angle, middle, half = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.65, 2) * side, rng.uniform(0.15, 0.2) * side
    along = np.array([np.cos(angle), np.sin(angle)])
    ends = middle - half * along, middle + half * along
    bend = middle + 0.2 * half * np.array([-along[1], along[0]])
    part = np.linspace(0, 1, 60)[:, None]
    path = (1 - part) ** 2 * ends[0] + 2 * part * (1 - part) * bend + part**2 * ends[1]
    mask = stroke(path, WIDTH, (side, side))
    return paint(image, mask, np.array(COLOURS[rng.integers(len(COLOURS))])), mask


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], Made]] = {"shape": cut_paste, "scratch": scratch}


def measure(model: Model, made: list[Made], repeats: int) -> tuple[list[float], list[float]]:
    """IoU × 100 of each picture, and seconds of the first ones, which are segmented again when all is compiled."""
    reached = [100 * iou(f2pad_jax.segment(model, image).mask, mask) for image, mask in made]
    seconds = []
    for image, _ in made[:repeats]:
        began = time.perf_counter()
        f2pad_jax.segment(model, image)
        seconds.append(time.perf_counter() - began)
    return reached, seconds


def case(name: str, detector: str, size: int, options: Options) -> dict[str, Any]:
    """A material, a detector and a size, both ways."""
    extractor, weights = extractor_for(NETWORK, options)
    normals, tests = pictures(name, size, len(KINDS) * options.images, options)
    rng = np.random.default_rng(size)
    kinds = [kind for _ in range(options.images) for kind in KINDS]
    made = [KINDS[kind](image, rng) for kind, image in zip(kinds, tests, strict=True)]
    small = np.stack([resize_image(image, (SEEN, SEEN)) for image in normals])
    figures: dict[str, Any] = {"material": name, "detector": detector, "weights": weights, "size": size}
    times = {}
    for way, own, seen in (("native", normals, seen_shape((size, size), SEEN, extractor)), ("enlarged", small, None)):
        procedure = Procedure(false_alarms=0.3)
        model = f2pad_jax.fit(own, detector=detector, extractor=extractor, seen=seen, procedure=procedure)
        settings = model.settings.replace(limit=options.limit or model.settings.limit)
        reached, times[way] = measure(replace(model, settings=settings), made, options.repeats)
        for kind in KINDS:
            figures[f"{kind}_{way}"] = round(mean(v for v, k in zip(reached, kinds, strict=True) if k == kind), 1)
    median = float(np.median(times["native"]))
    return {
        **figures,
        "iou": f"{figures['shape_enlarged']} → {figures['shape_native']}, "
        f"scratches {figures['scratch_enlarged']} → {figures['scratch_native']}",
        "median_s": median,
        "min_s": min(times["native"]),
        "max_s": max(times["native"]),
        "ratio": round(median / float(np.median(times["enlarged"])), 3),
    }


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for; parts only where `--data` says where they are."""
    for size in SIZES:
        for name in (*TEXTURES, *(PARTS if options.data else ())):
            for detector in DETECTORS:
                if options.wanted(size, name, detector):
                    yield case(name, detector, size, options)

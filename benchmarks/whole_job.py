"""The whole job from picture files to files of results: pictures a second, and how long each of its stages takes.

A category is fitted, anomalies of one colour are pasted on other pictures of it, and `segment_files` works on their
files twice: "cold" compiles everything, "warm" does not. A second thread writes beside the solves; its seconds are not
among the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from problems import DETECTORS, TRAINING, Options, extractor_for, use_all_cores

import f2pad_jax
from f2pad_jax import picture_jobs, segmentation, sights
from f2pad_jax.data.images import read_image, write_png
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.paints import cut_paste
from f2pad_jax.data.textures import texture_category
from f2pad_jax.model import Model
from f2pad_jax.picture_files import segment_files
from f2pad_jax.picture_jobs import Job

TEXTURE, PART = "brick", "capsule"
STAGES = {  # where each begins, as its callers name it
    "read": (picture_jobs, "read_image"),
    "features": (sights, "features"),
    "score": (segmentation, "look"),
    "region and fill": (segmentation, "locate"),
    "solve": (segmentation, "find_outcomes"),
    "compose": (segmentation, "explain"),
    "re-estimate": (segmentation, "find_normals"),
    "write": (picture_jobs, "write_found"),
}
WITHIN = {"features": "score"}  # features for anything else are a part of that


class Clock:
    """Seconds of each stage. A stage within another counts as the other, unless `WITHIN` has it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.running = threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is done within as that stage."""
        stack: list[str] = self.running.__dict__.setdefault("stack", [])
        outer = stack[-1] if stack else None
        if WITHIN.get(name) != outer:
            yield
            return
        began = time.perf_counter()
        stack.append(name)
        try:
            yield
        finally:
            stack.pop()
            taken = time.perf_counter() - began
            self.seconds[name] += taken
            if outer is not None:
                self.seconds[outer] -= taken

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted; where it yields, that between its values is not."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                found = function(*arguments, **options)
            return self._each(name, found) if isinstance(found, Iterator) else found

        return call

    def _each(self, name: str, values: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.stage(name):
                value = next(values, self)
            if value is self:
                return
            yield value


def run_once(model: Model, paths: list[Path], out: Path) -> tuple[float, dict[str, float]]:
    """Seconds of the whole job, and of each stage."""
    clock, failures = Clock(), []
    with ExitStack() as stack:
        for name, (module, function) in STAGES.items():
            stack.enter_context(patch.object(module, function, clock.timed(name, getattr(module, function))))
        out.mkdir()
        began = time.perf_counter()
        segment_files(Job(model, out), paths, on_failure=failures.append)
        whole = time.perf_counter() - began
    if failures:
        raise RuntimeError(failures[0])
    return whole, clock.seconds


def material(options: Options) -> tuple[str, str, np.ndarray, list[np.ndarray]]:
    """Category, network, normal pictures to fit to, and pictures with anomalies."""
    if options.data is None:
        normals, cases = texture_category(TEXTURE, train=TRAINING, test=options.images, size=options.size)
        return TEXTURE, "efficientnet_lite0", normals, [image for image, _, _ in cases]
    paths, rng = open_category(options.data / PART, need_test=False).train, np.random.default_rng(0)
    pictures = np.stack([read_image(path, options.size) for path in paths])
    tests, normals = np.split(pictures[rng.permutation(len(pictures))], [min(options.images, len(pictures) // 2)])
    return PART, "resnet18", normals, [cut_paste(tests[k % len(tests)], rng)[0] for k in range(options.images)]


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Each detector, cold and warm."""
    use_all_cores()
    category, network, normals, pictures = material(options)
    for detector in DETECTORS:
        if not options.wanted(detector):
            continue
        extractor, weights = extractor_for(network, options)
        model = f2pad_jax.fit(normals, detector=detector, extractor=extractor, seed=0)
        jax.clear_caches()
        taken: dict[str, float] = {}
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{k:04d}.png" for k in range(len(pictures))]
            for path, picture in zip(paths, pictures, strict=True):
                write_png(path, picture)
            for run in ("cold", "warm"):
                taken[run], stages = run_once(model, paths, Path(folder) / run)
                each = taken[run] / len(paths)
                beside = stages.pop("write")
                stages["other"] = taken[run] - sum(stages.values())
                yield {
                    "category": category,
                    "detector": detector,
                    "extractor": network,
                    "weights": weights,
                    "run": run,
                    "images": len(paths),
                    "images_per_s": round(1 / each, 3),
                    "shares": {name: round(seconds / taken[run], 3) for name, seconds in stages.items()},
                    "written_beside": round(beside / taken[run], 3),
                    "median_s": each,
                    "min_s": each,
                    "max_s": each,
                    "ratio": round(taken[run] / taken["cold"], 3),
                }

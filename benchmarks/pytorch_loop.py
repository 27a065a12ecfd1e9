"""The whole job of many pictures over the paper's loop in eager PyTorch, which runs in a process of its own.

Both are given the same pictures, regions, n⁽⁰⁾, fills, weights and detector parameters, on the same device. The job is
the weights of (14), the candidates, the solve, the mask and its cleaning. Ours takes all pictures in lanes; torch
takes one after another with all cores, between passes of ours, so that other work on the machine weighs on both.

`ratio` is images per second of ours over torch's. Seconds are per picture: of ours ("median_s") over passes through
all pictures, of torch ("base_median_s") over the pictures. Ours compiles in its first pass, which counts apart. `F` is
the mean of each side's last F in its own units: ours relative to normal pictures, torch's as in the paper.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from loop_tasks import CHOICES, Choices, Setup, given, setup_of
from options import Options
from problems import extractor_for, model_of, use_all_cores
from timing import spread
from worker import worker

from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import Model
from f2pad_jax.metrics import iou
from f2pad_jax.pipeline import Job, find_masks

EXTRACTOR, DETECTORS, CATEGORIES = "efficientnet_lite0", ("padim", "patchcore"), ("brick", "gravel")
PASSES = 3  # of ours, after the one that compiles


def serve(pipe: Connection, setup: Setup, device: str, choices: Choices, limit: int | None) -> None:
    """`torch_loop.serve` in a process that has imported no torch yet; without a limit, the paper's."""
    os.environ["OMP_WAIT_POLICY"] = "passive"  # no spinning while the other process is measured
    import torch_loop

    torch_loop.serve(pipe, setup, device, choices, limit or torch_loop.LIMIT)


def _pass(jobs: list[Job]) -> tuple[float, dict[int, tuple[np.ndarray, int, float]]]:
    """Seconds, and mask, iterations and last F of each picture."""
    began = time.perf_counter()
    found = {
        index: (mask, int(solution.iterations), float(solution.info.loss)) for index, mask, solution in find_masks(jobs)
    }
    return time.perf_counter() - began, found


def _mean_iou(masks: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> float:
    return round(100 * float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])), 2)


def measured(model: Model, category: str, options: Options) -> dict[str, Any]:
    """The figures of one category."""
    _, cases = texture_category(category, train=0, test=options.images, size=options.size)
    truths = [case[1] for case in cases]
    if options.limit is not None:
        model = replace(model, settings=model.settings._replace(limit=options.limit))
    pairs = given(model, np.stack([case[0] for case in cases]))
    jobs, tasks = [job for job, _ in pairs], [task for _, task in pairs]
    passes = min(PASSES, options.repeats)
    first, found = _pass(jobs)
    ours, theirs = [], {}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    with worker(serve, setup_of(model), device, CHOICES[model.detector], options.limit) as pipe:
        threads = pipe.recv()
        for number in range(passes):
            for index in range(number, len(tasks), passes):
                pipe.send(tasks[index])
                theirs[index] = pipe.recv()
            ours.append(_pass(jobs)[0] / len(jobs))
    order = range(len(jobs))
    masks, iterations, losses, seconds = zip(*(theirs[index] for index in order), strict=True)
    own = [found[index][1] for index in order]
    return {
        "images": len(jobs),
        "ratio": round(statistics.mean(seconds) / statistics.median(ours), 3),
        **spread(ours),
        "base_mean_s": statistics.mean(seconds),
        **{f"base_{name}": figure for name, figure in spread(list(seconds)).items()},
        "compile_s": max(first - statistics.median(ours) * len(jobs), 0.0),
        "iou": _mean_iou((found[index][0] for index in order), truths),
        "base_iou": _mean_iou(masks, truths),
        "iterations": statistics.mean(own),
        "base_iterations": statistics.mean(iterations),
        "F": statistics.mean(found[index][2] for index in order),
        "base_F": statistics.mean(losses),
        "iteration_s": statistics.median(ours) * len(jobs) / sum(own),
        "base_iteration_s": sum(seconds) / sum(iterations),
        "base_threads": threads,
    }


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for.

    Raises:
      InputError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed", hint="pip install 'f2pad-jax[parity]'")
    use_all_cores()
    wanted = [pair for pair in product(DETECTORS, CATEGORIES) if options.wanted(EXTRACTOR, *pair)]
    extractor, weights = extractor_for(EXTRACTOR, options)
    for detector, category in wanted:
        model = model_of(detector, extractor, options, category=category)
        labels = {
            "extractor": EXTRACTOR,
            "weights": weights,
            "detector": detector,
            "category": category,
            "size": options.size,
            "precision": extractor.precision,
        }
        labels |= {"device": f"{jax.default_backend()} × {jax.local_device_count()}"}
        yield {**labels, **measured(model, category, options)}

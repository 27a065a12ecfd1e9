"""The whole job of many pictures over the paper's loop in eager PyTorch, which runs in a process of its own.

Both are given the same pictures, regions, n⁽⁰⁾, fills, weights and detector parameters, on the same device. The job is
the weights of (14), the candidates, the solve, the mask and its cleaning. Ours takes all pictures in lanes; torch
takes one after another with all cores, between passes of ours, so that other work on the machine weighs on both.

`ratio` is images per second of ours over torch's. Seconds are per picture: of ours ("median_s") over passes through
all pictures, of torch ("base_median_s") over the pictures. Ours compiles in its first pass, which counts apart. `F` is
the mean of each side's last F in its own units: ours relative to normal pictures, torch's as in the paper.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from loop_tasks import Setup, given, setup_of
from problems import Options, extractor_for, model_of, use_all_cores
from timing import spread
from worker import need_torch, worker

from f2pad_jax import Model
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou
from f2pad_jax.outcomes import read_off
from f2pad_jax.preparing import Plan
from f2pad_jax.solving import find_solutions

EXTRACTOR, DETECTORS, CATEGORIES = "efficientnet_lite0", ("padim", "patchcore"), ("brick", "gravel")
PASSES = 3  # of ours, after the one that compiles


def serve(pipe: Connection, setup: Setup, device: str, limit: int | None) -> None:
    """`torch_loop.serve` in a process that has imported no torch yet; without a limit, the paper's."""
    os.environ["OMP_WAIT_POLICY"] = "passive"  # no spinning while the other process is measured
    import torch_loop

    torch_loop.serve(pipe, setup, device, limit or torch_loop.LIMIT)


Solved = tuple[np.ndarray, int, float]  # mask, iterations and last F of a picture


def one_pass(model: Model, plans: list[Plan]) -> tuple[float, list[Solved]]:
    """The whole job of all pictures: seconds, and what came of each."""
    began = time.perf_counter()
    solved = {
        index: (read_off(model, plans[index], solution).mask, int(solution.iterations), float(solution.loss))
        for index, solution in find_solutions(model, plans)
    }
    return time.perf_counter() - began, [solved[index] for index in range(len(plans))]


def peer(model: Model, options: Options) -> AbstractContextManager[Connection]:
    """A process with the paper's loop on our device: tells its threads, and answers tasks until it gets None."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return worker(serve, setup_of(model), device, options.limit)


def mean_iou(masks: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> float:
    """Mean IoU × 100."""
    return round(100 * float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])), 2)


def measured(model: Model, category: str, options: Options) -> dict[str, Any]:
    """The figures of one category."""
    _, cases = texture_category(category, train=0, test=options.images, size=options.size)
    images, truths = (np.stack([case[k] for case in cases]) for k in (0, 1))
    if options.limit is not None:
        model = replace(model, settings=model.settings.replace(limit=options.limit))
    plans, tasks = map(list, zip(*given(model, images, truths), strict=True))
    passes = min(PASSES, options.repeats)
    first, solved = one_pass(model, plans)
    ours, answers = [], {}
    with peer(model, options) as pipe:
        threads = pipe.recv()
        for number in range(passes):
            for index in range(number, len(tasks), passes):
                pipe.send(tasks[index])
                answers[index] = pipe.recv()
            ours.append(one_pass(model, plans)[0] / len(plans))
    own_masks, own_iterations, own_losses = zip(*solved, strict=True)
    masks, iterations, losses, seconds = zip(*(answers[index] for index in range(len(tasks))), strict=True)
    return {
        "images": len(plans),
        "ratio": round(statistics.mean(seconds) / statistics.median(ours), 3),
        **spread(ours),
        "base_mean_s": statistics.mean(seconds),
        **{f"base_{name}": figure for name, figure in spread(list(seconds)).items()},
        "compile_s": max(first - statistics.median(ours) * len(plans), 0.0),
        "iou": mean_iou(own_masks, truths),
        "base_iou": mean_iou(masks, truths),
        "iterations": statistics.mean(own_iterations),
        "base_iterations": statistics.mean(iterations),
        "F": statistics.mean(own_losses),
        "base_F": statistics.mean(losses),
        "iteration_s": statistics.median(ours) * len(plans) / sum(own_iterations),
        "base_iteration_s": sum(seconds) / sum(iterations),
        "base_threads": threads,
    }


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for.

    Raises:
      InputError: torch is not installed.
    """
    need_torch()
    use_all_cores()
    wanted = [pair for pair in product(DETECTORS, CATEGORIES) if options.wanted(EXTRACTOR, *pair)]
    extractor, weights = extractor_for(EXTRACTOR, options)
    for detector, category in wanted:
        model = model_of(detector, extractor, options, category=category)
        labels = {"extractor": EXTRACTOR, "weights": weights, "detector": detector, "category": category}
        labels |= {"size": options.size, "precision": extractor.precision}
        labels |= {"device": f"{jax.default_backend()} × {jax.local_device_count()}"}
        yield {**labels, **measured(model, category, options)}

"""The whole job of many pictures over PyTorch, which runs in a process of its own.

The peers are the paper's loop in eager PyTorch, and this library's own algorithm in PyTorch, step by step the same,
eager and with a compiled network. Both sides are given the same pictures, regions, n⁽⁰⁾, fills, weights and detector
parameters, on the same device; of "images_below_threshold" the region is that of their highest scores. The job is the
weights of (14), the candidates, the solve, the mask and its cleaning. Ours takes all pictures in lanes; torch takes one
after another with all cores, between passes of ours, so that other work on the machine weighs on both.

`ratio` is images per second of ours over torch's. Seconds are per picture: of ours ("median_s") over passes through
all pictures, of torch ("base_median_s") over the pictures. Ours compiles in its first pass, which counts apart, as the
first picture of a peer does. `F` is the mean of each side's last F: relative to normal pictures, of the paper's loop in
the paper's units.
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
import jax.numpy as jnp
import numpy as np
from loop_tasks import Setup, Task, given, setup_of, spots_of, unreached
from problems import Options, extractor_for, model_of, use_all_cores
from timing import spread
from worker import need_torch, worker

from f2pad_jax import Model, Settings, Solution
from f2pad_jax.core.solver import Status, no_info
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou
from f2pad_jax.outcomes import read_off
from f2pad_jax.preparing import Plan
from f2pad_jax.solving import find_solutions

PEERS = "paper", "same", "compiled"  # the paper's loop, our algorithm in eager PyTorch, and with a compiled network
EXTRACTOR, DETECTORS, CATEGORIES = "efficientnet_lite0", ("padim", "patchcore"), ("brick", "gravel")
PASSES = 3  # of ours, after the one that compiles


def serve(pipe: Connection, setup: Setup, device: str, settings: Settings | None, limit: int | None) -> None:
    """Sends its number of threads; answers each `Task` with what came of it and seconds; None ends it.

    Args:
      pipe: to who asks.
      setup: the model.
      device: as torch names it.
      settings: for our own algorithm; None for the paper's loop, whose answers are masks.
      limit: iterations of the paper's loop.
    """
    os.environ["OMP_WAIT_POLICY"] = "passive"  # no spinning while the other process is measured
    import torch  # in a process of its own
    import torch_loop
    import torch_solver

    setup, most = torch_loop.upload(setup, torch.device(device)), limit or torch_loop.LIMIT

    def segment(task: Task, most: int) -> Any:
        if settings is None:
            return torch_loop.segment(task, setup, most)
        return torch_solver.segment(task, setup, settings.replace(limit=min(most, settings.limit)))

    pipe.send(torch.get_num_threads())
    task = pipe.recv()
    segment(task, 1)  # what is done once only is not measured
    while task is not None:
        began = time.perf_counter()
        pipe.send((segment(task, most), time.perf_counter() - began))
        task = pipe.recv()


Solved = tuple[np.ndarray, int, float]  # mask, iterations and last F of a picture


def one_pass(model: Model, plans: list[Plan]) -> tuple[float, list[Solved]]:
    """The whole job of all pictures: seconds, and what came of each."""
    began = time.perf_counter()
    solved = {
        index: (read_off(model, plans[index], solution).mask, int(solution.iterations), float(solution.loss))
        for index, solution in find_solutions(model, plans)
    }
    return time.perf_counter() - began, [solved[index] for index in range(len(plans))]


def peer(model: Model, options: Options, name: str = "paper") -> AbstractContextManager[Connection]:
    """A process with one of `PEERS` on our device: tells its threads, and answers tasks until it gets None."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    setup = setup_of(model)._replace(compiled=name == "compiled")
    return worker(serve, setup, device, None if name == "paper" else model.settings, options.limit)


def answered(model: Model, chosen: Plan, found: Any, seconds: float) -> tuple[np.ndarray, int, float, float]:
    """Mask, iterations, last F and seconds of a peer; the mask of our own algorithm is read off as ours is."""
    if not hasattr(found, "lasting"):  # of the paper's loop, which is a mask already
        return *found, seconds
    began = time.perf_counter()
    left = np.zeros((len(found.left), len(chosen.affected.present)), np.float32)
    left[:, chosen.affected.present > 0] = found.left
    status = Status.CONVERGED if found.stopped else Status.LIMIT
    solution = Solution(
        normal=jnp.asarray(found.normal),
        status=jnp.int32(status),
        lasting=jnp.asarray(found.lasting),
        left=jnp.asarray(left),
        iterations=jnp.int32(found.iterations),
        loss=jnp.float32(found.loss),
        terms=no_info().terms,
    )
    mask = read_off(model, chosen, solution).mask
    return mask, found.iterations, found.loss, seconds + time.perf_counter() - began


def mean_iou(masks: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> float:
    """Mean IoU × 100."""
    return round(100 * float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])), 2)


def measured(model: Model, category: str, name: str, options: Options) -> dict[str, Any]:
    """The figures of one category, beside one of `PEERS`."""
    _, cases = texture_category(category, train=0, test=options.images, size=options.size)
    images, truths = (np.stack([case[k] for case in cases]) for k in (0, 1))
    if options.limit is not None:
        model = replace(model, settings=model.settings.replace(limit=options.limit))
    spots = spots_of(model, images)
    plans, tasks = map(list, zip(*given(model, spots), strict=True))
    passes = min(PASSES, options.repeats)
    first, solved = one_pass(model, plans)
    ours, answers = [], {}
    with peer(model, options, name) as pipe:
        threads = pipe.recv()
        for number in range(passes):
            for index in range(number, len(tasks), passes):
                pipe.send(tasks[index])
                answers[index] = answered(model, plans[index], *pipe.recv())
            ours.append(one_pass(model, plans)[0] / len(plans))
    own_masks, own_iterations, own_losses = zip(*solved, strict=True)
    masks, iterations, losses, seconds = zip(*(answers[index] for index in range(len(tasks))), strict=True)
    return {
        "images": len(plans),
        **unreached(spots),
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
    wanted = [case for case in product(DETECTORS, CATEGORIES, PEERS) if options.wanted(EXTRACTOR, *case)]
    extractor, weights = extractor_for(EXTRACTOR, options)
    for detector, category, name in wanted:
        model = model_of(detector, extractor, options, category=category)
        labels = {"extractor": EXTRACTOR, "weights": weights, "detector": detector, "category": category, "peer": name}
        labels |= {"size": options.size, "precision": extractor.precision}
        labels |= {"device": f"{jax.default_backend()} × {jax.local_device_count()}"}
        yield {**labels, **measured(model, category, name, options)}

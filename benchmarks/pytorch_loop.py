"""The whole job of many pictures over the paper's loop in eager PyTorch, which runs in a process of its own.

Both are given the same pictures, regions, n⁽⁰⁾, fills, weights and detector parameters, on the same device. The job is
the weights of (14), the candidates, the solve, the mask and its cleaning. Ours takes all pictures in lanes; torch
takes one after another with all cores, between passes of ours, so that other work on the machine weighs on both.

`ratio` is images per second of ours over torch's. Seconds are per picture: of ours ("median_s") over passes through
all pictures, of torch ("base_median_s") over the pictures. Ours compiles in its first pass, which counts apart.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from loop_tasks import Choices, Setup, given, setup_of
from options import Options
from problems import extractor_for, model_of

from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.metrics import iou
from f2pad_jax.pipeline import Job, find_masks

EXTRACTOR, DETECTORS, CATEGORIES = "efficientnet_lite0", ("padim", "patchcore"), ("brick", "gravel")
PASSES = 3  # of ours, after the one that compiles
CHOICES = {"padim": Choices(), "patchcore": Choices()}


def _serve(pipe: Connection, setup: Setup, device: str, choices: Choices, limit: int | None) -> None:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # no spinning while the other process is measured
    import torch_loop

    torch_loop.serve(pipe, setup, device, choices, limit or torch_loop.LIMIT)


@contextmanager
def torch_process(setup: Setup, choices: Choices, limit: int | None) -> Iterator[Connection]:
    """A process that runs the loop in torch on JAX's kind of device; see `torch_loop.serve`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    process = context.Process(target=_serve, args=(there, setup, device, choices, limit), daemon=True)
    process.start()
    there.close()  # so that a worker that dies ends the wait for it
    try:
        yield here
        here.send(None)
        process.join()
    finally:
        process.terminate()


def _pass(jobs: list[Job]) -> tuple[float, dict[int, tuple[np.ndarray, int]]]:
    """Seconds, and mask and iterations of each picture."""
    began = time.perf_counter()
    found = {index: (mask, int(solution.iterations)) for index, mask, solution in find_masks(jobs)}
    return time.perf_counter() - began, found


def measured(model: Model, category: str, options: Options) -> dict[str, Any]:
    """The figures of one category."""
    _, cases = texture_category(category, train=0, test=options.images, size=options.size)
    if options.limit is not None:
        model = replace(model, settings=model.settings._replace(limit=options.limit))
    pairs = given(model, np.stack([case[0] for case in cases]))
    jobs, tasks = [job for job, _ in pairs], [task for _, task in pairs]
    first, found = _pass(jobs)
    ours, theirs = [], {}
    with torch_process(setup_of(model), CHOICES[model.detector], options.limit) as pipe:
        threads = pipe.recv()
        passes = min(PASSES, options.repeats)
        for number in range(passes):
            for index in range(number, len(tasks), passes):
                pipe.send(tasks[index])
                theirs[index] = pipe.recv()
            ours.append(_pass(jobs)[0] / len(jobs))
    return {}


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for.

    Raises:
      InputError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed", mend="pip install 'f2pad-jax[parity]'")

"""Everything that is claimed of an accelerator, in one command and under ten minutes on an H100.

python benchmarks/gpu_suite.py [--weights FILE] [--out FOLDER] [--quick]

ResNet-18 with PatchCore on crops of brick. Writes FOLDER/<device>.json after every section, so that a run that is cut
off keeps what it has; a section that fails is recorded, and so is one for which no time was left.

"steps" and "precision" are steps of the solver over the extractor's bare `value_and_grad`, as in `step_ratio`. "jobs"
is all that `pipeline.find_masks` does (weights of (14), candidates, solve, mask and its cleaning) with as many lanes
on the device as it says, under the library's stop rule and the paper's. Its pictures are given with their regions,
n⁽⁰⁾ = x and a smooth fill, and are repeated where there are more lanes. "torch" is the paper's loop in eager PyTorch,
one picture after another, on the same device with the same pictures. "sharing" is that of `run.py`. Precision is
"fast" but in "precision". Without an accelerator it runs as well, to test it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import numpy as np
import pytorch_loop
import sharing
import step_ratio
from limits import operations, peak_of, shares
from loop_tasks import CHOICES, Task, setup_of
from options import Options
from problems import batch_of, endless_rates, extractor_for, model_of
from run import device_name, versions
from timing import spread
from worker import worker

from f2pad_jax import pipeline
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import get_detector
from f2pad_jax.fills import harmonic_fill
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.metrics import iou
from f2pad_jax.output import make_folder, write_json
from f2pad_jax.pipeline import Job, Start, find_masks, find_region, masking
from f2pad_jax.settings import Settings
from f2pad_jax.solver import init

NETWORK, DETECTOR, CATEGORY = "resnet18", "patchcore", "brick"
PRECISIONS = ("parity", "fast", "bf16")


class Extent(NamedTuple):
    """How much is run."""

    batches: tuple[int, ...] = (1, 8, 64)  # of steps
    widest: int = 64  # of the steps of each precision
    lanes: tuple[int, ...] = (64, 128, 256)  # per device
    passes: int = 3  # through all pictures, after the one that compiles
    pictures: int = 64
    peers: int = 8  # pictures that torch gets
    training: int = 64
    limit: int | None = None  # most iterations


QUICK = Extent((1,), 2, (2,), 1, 2, 1, 8, 4)


class Suite(NamedTuple):
    """What the sections share."""

    options: Options
    extent: Extent
    model: Model
    weights: str  # "real" or "random"
    jobs: list[Job]
    truths: list[np.ndarray]  # masks
    shares: list[float]  # of m⁽⁰⁾ in each picture
    lane_flops: int  # operations of a step of one picture


def assemble(options: Options, extent: Extent) -> Suite:
    """The model and its pictures."""
    extractor, weights = extractor_for(NETWORK, options)
    model = model_of(DETECTOR, replace(extractor, precision="fast"), options, training=extent.training)
    _, cases = texture_category(CATEGORY, train=0, test=extent.pictures, size=options.size)
    jobs, truths, covered = [], [], []
    for (image, truth, _), scores in zip(cases, score_maps(model, np.stack([c[0] for c in cases])), strict=True):
        region = find_region(model, scores)
        if region.any():
            x = normalize(image)
            start = Start(x, harmonic_fill(x, region), model.settings.warm_up, filled=False)
            jobs.append(masking(model, x, region, start))
            truths.append(truth)
            covered.append(float((scores > model.threshold).mean()))
    starts, problems = batch_of(model, batch=1, full=False)
    rates = endless_rates(model)
    states = jax.vmap(lambda start, problem: init(start, problem, rates))(starts, problems)
    traced = step_ratio.steps.trace(model.extractor, states, problems, rates, detector=get_detector(DETECTOR))
    return Suite(options, extent, model, weights, jobs, truths, covered, operations(traced.jaxpr))


def steps(suite: Suite) -> list[dict[str, Any]]:
    """Steps of several batches."""
    variants = [step_ratio.Variant(batch, "12%", "step") for batch in suite.extent.batches]
    repeats = suite.options.repeats
    return [v._asdict() | step_ratio.measured(suite.model, v, repeats=repeats) for v in variants]


def precision(suite: Suite) -> list[dict[str, Any]]:
    """Steps in every precision."""
    variant, rows = step_ratio.Variant(suite.extent.widest, "12%", "step"), []
    for name in PRECISIONS:
        model = replace(suite.model, extractor=replace(suite.model.extractor, precision=name))
        rows.append(variant._asdict() | step_ratio.measured(model, variant, repeats=suite.options.repeats))
    return rows


def _settings(suite: Suite, rule: str) -> Settings:
    settings, paper = suite.model.settings, Settings.paper()
    if rule == "paper":
        # The paper itself stops at the first iteration that brings too little; `Settings.paper` waits for ten.
        settings = settings._replace(tolerance=paper.tolerance, patience=1, limit=paper.limit)
    return settings._replace(limit=suite.extent.limit or settings.limit)


def _jobs(suite: Suite, rule: str, count: int) -> list[Job]:
    settings = _settings(suite, rule)
    model = replace(suite.model, settings=settings)
    return [suite.jobs[k % len(suite.jobs)]._replace(model=model, limit=settings.limit) for k in range(count)]


def job(suite: Suite, lanes: int, rule: str) -> dict[str, Any]:
    """The whole job of all pictures, with so many lanes on each device."""
    jobs = _jobs(suite, rule, max(lanes, len(suite.jobs)))
    seconds: list[float] = []
    found: dict[int, tuple[np.ndarray, int, float]] = {}
    with patch.object(pipeline, "LANES", lanes):
        for _ in range(1 + suite.extent.passes):
            began = time.perf_counter()
            for index, mask, solution in find_masks(jobs):
                found[index] = mask, int(solution.iterations), float(solution.info.loss)
            seconds.append((time.perf_counter() - began) / len(jobs))
    figures = spread(seconds[1:])
    iterations = [found[index][1] for index in range(len(jobs))]
    reached = [iou(found[index][0], suite.truths[index % len(suite.truths)]) for index in range(len(jobs))]
    flops = suite.lane_flops * sum(iterations) / len(jobs)
    share = shares(flops, 0.0, figures["median_s"], precision=suite.model.extractor.precision)
    held = jax.devices()[0].memory_stats() or {}
    return {
        "lanes": lanes,
        "stop_rule": rule,
        "images": len(jobs),
        "images_per_second": 1 / figures["median_s"],
        **figures,  # per picture
        "compile_s": max((seconds[0] - figures["median_s"]) * len(jobs), 0.0),
        "iterations": statistics.mean(iterations),
        "F": statistics.mean(loss for _, _, loss in found.values()),
        "iou": round(100 * float(np.mean(reached)), 2),
        "flops": flops,
        "share_of_peak": share.get("share_of_peak"),
        "device_bytes": held.get("peak_bytes_in_use"),
        "precision": suite.model.extractor.precision,
    }


def _torch_facts(pipe: Connection) -> None:
    try:
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        pipe.send((torch.__version__, name))
    except ImportError:
        pipe.send((None, None))
    pipe.recv()


def torch(suite: Suite) -> dict[str, Any]:
    """The paper's loop in eager PyTorch on the same device; says so where it cannot be had."""
    with worker(_torch_facts) as pipe:
        version, cuda = pipe.recv()
    on_gpu = jax.default_backend() == "gpu"
    if version is None or (on_gpu and cuda is None):
        return {"skipped": "torch is not installed" if version is None else f"torch {version} finds no CUDA device"}
    tasks = [
        Task(job.image, job.region, job.start.normal, job.start.anchor, share)
        for job, share in list(zip(suite.jobs, suite.shares, strict=True))[: suite.extent.peers]
    ]
    device, choices = "cuda" if on_gpu else "cpu", CHOICES[DETECTOR]
    answers = []
    with worker(pytorch_loop.serve, setup_of(suite.model), device, choices, suite.extent.limit) as pipe:
        threads = pipe.recv()
        for task in tasks:
            pipe.send(task)
            answers.append(pipe.recv())
    masks, iterations, losses, seconds = zip(*answers, strict=True)
    reached = [iou(mask, truth) for mask, truth in zip(masks, suite.truths, strict=False)]
    return {
        "torch": version,
        "device": cuda if on_gpu else f"cpu, {threads} threads",
        "images": len(tasks),
        "images_per_second": len(tasks) / sum(seconds),
        **spread(list(seconds)),  # per picture
        "iterations": statistics.mean(iterations),
        "F": statistics.mean(losses),
        "iou": round(100 * float(np.mean(reached)), 2),
        "choices": choices._asdict(),
    }


def sections(suite: Suite) -> dict[str, Callable[[], Any]]:
    """What is run, most wanted first."""
    first, *others = suite.extent.lanes
    wanted: dict[str, Callable[[], Any]] = {
        "steps": lambda: steps(suite),
        f"jobs, {first} lanes, paper": lambda: job(suite, first, "paper"),
        "torch": lambda: torch(suite),
        f"jobs, {first} lanes, library": lambda: job(suite, first, "library"),
        "sharing": lambda: list(sharing.cases(suite.options)),
    }
    for lanes in others:
        for rule in ("paper", "library"):
            wanted[f"jobs, {lanes} lanes, {rule}"] = lambda lanes=lanes, rule=rule: job(suite, lanes, rule)
    return wanted | {"precision": lambda: precision(suite)}


def facts(command: str) -> dict[str, Any]:
    """About the machine."""
    device = jax.devices()[0]
    peak = peak_of(device)
    return {
        "name": "gpu_suite",
        "command": command,
        "device": device_name(),
        "devices": jax.device_count(),
        "platform": device.client.platform_version,
        "memory": device.memory_stats() or None,
        "peak": peak and peak._asdict(),
        "versions": versions(),
        "cores": os.cpu_count(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the suite; the exit status is 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of ResNet-18")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side of the pictures")
    parser.add_argument("--images", type=int, metavar="N", help="different pictures")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="start no section after these")
    parser.add_argument("--quick", action="store_true", help="as little as possible, to test it")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the device, too
    began, failed = time.perf_counter(), False
    extent = QUICK if asked.quick else Extent()
    extent = extent._replace(pictures=asked.images or extent.pictures)
    options = Options(asked.size, 1 if asked.quick else 10, weights=asked.weights)
    words = [*(arguments if arguments is not None else sys.argv[1:])]
    report: dict[str, Any] = facts(" ".join(["python benchmarks/gpu_suite.py", *words]))
    path = make_folder(asked.out) / (re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-") + ".json")
    suite = assemble(options, extent)
    report |= {"weights": suite.weights, "extractor": NETWORK, "detector": DETECTOR, "size": options.size}
    report |= {"lane_flops": suite.lane_flops, "set_up_s": time.perf_counter() - began, "sections": {}}
    for name, section in sections(suite).items():
        started = time.perf_counter()
        if started - began > 60 * asked.minutes:
            report["sections"][name] = {"skipped": f"{asked.minutes} minutes were over"}
        else:
            try:
                result = section()
                json.dumps(result, allow_nan=False)  # a number that cannot be written fails here, not all of the file
                report["sections"][name] = {"result": result}
            except Exception as error:  # the other sections are worth having
                failed = True
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
                report["sections"][name] = {"failed": text[:1000]}
            report["sections"][name]["seconds"] = time.perf_counter() - started
        print(name, report["sections"][name], flush=True)
        write_json(path, report)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

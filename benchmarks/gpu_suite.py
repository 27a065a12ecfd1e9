"""Everything that is claimed of an accelerator: `run.py gpu_suite --weights FILE --images 64 --json FILE`.

ResNet-18 with PatchCore on crops of brick; without an accelerator it runs as well, to test it. "steps" are those of
`step_ratio`, in several batches and precisions. "jobs" is all that `segmentation.find_outcomes` does (weights of (14),
candidates, solve, mask and its cleaning) with as many lanes on the device as it says, under the library's stop rule
and the paper's. Its pictures are given with their regions, n⁽⁰⁾ = x and a smooth fill, and are repeated where there
are more lanes; of "images_below_threshold" the region is that of their highest scores. "torch" is the paper's loop in
eager PyTorch on the same device, one of a few pictures after another. Seconds of jobs and of torch are per picture, and
their ratio is to the first job. Precision is "fast" where it is not named. A section that fails is recorded, and harms
no other.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import pytorch_loop
import step_ratio
from limits import shares
from loop_tasks import spots_of, task_of, unreached
from problems import Options, batch_of, endless, extractor_for, model_of
from timing import operations, spread
from worker import need_torch

from f2pad_jax import Model, solving
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fills import harmonic_fill
from f2pad_jax.preparing import Plan, Start, plan

NETWORK, DETECTOR, CATEGORY = "resnet18", "patchcore", "brick"
BATCHES, LANES, RULES = (1, 8, 64), (64, 128, 256), ("paper", "library")
PEERS = 8  # pictures that torch gets
LITTLE = 2e-5  # fall of F per pixel of the region at which the rule "paper" stops

Case = dict[str, Any]
Section = Callable[[], Case]


def material(model: Model, options: Options) -> tuple[list[tuple[Plan, np.ndarray]], Case]:
    """Solves of pictures with their true masks, and what is to be said of their regions."""
    _, cases = texture_category(CATEGORY, train=0, test=options.images, size=options.size)
    spots, pairs = spots_of(model, np.stack([case[0] for case in cases])), []
    for (sight, region, _), (_, truth, _) in zip(spots, cases, strict=True):
        start = Start(sight.image, harmonic_fill(sight.image, region), filled=False)
        pairs.append((plan(model, sight, region, start), truth))
    return pairs, unreached(spots)


def steps(model: Model, options: Options, batch: int, precision: Any) -> Case:
    """Steps of a batch in a precision."""
    extractor = replace(model.extractor, precision=precision)
    model = replace(model, energy=model.energy.replace(extractor=extractor))
    variant = step_ratio.Variant(batch, "12%", "step")
    return variant._asdict() | step_ratio.measured(model, variant, repeats=options.repeats)


def job(model: Model, pairs: list[tuple[Plan, np.ndarray]], options: Options, lanes: int, rule: str) -> Case:
    """The whole job of all pictures, with so many lanes on each device."""
    settings = model.settings
    if rule == "paper":
        # The paper stops at the first iteration that brings too little.
        settings = settings.replace(tolerance=LITTLE, patience=1, limit=1200, first_beta=settings.beta0)
        model = replace(model, procedure=replace(model.procedure, sparsity="constant"))
    settings = settings.replace(limit=options.limit or settings.limit)
    repeated = [pairs[k % len(pairs)] for k in range(max(lanes, len(pairs)))]
    plans = [chosen._replace(settings=settings) for chosen, _ in repeated]
    with patch.object(solving, "LANES", lanes):
        passes = [pytorch_loop.one_pass(model, plans) for _ in range(1 + min(pytorch_loop.PASSES, options.repeats))]
    seconds = [taken / len(plans) for taken, _ in passes]
    masks, iterations, losses = zip(*passes[-1][1], strict=True)
    (starts, problems), few = batch_of(model, batch=1, full=False), endless(model)
    states = step_ratio.first_states(starts, model.energy, problems, few)
    flops = operations(step_ratio.steps, states, model.energy, problems, few) * statistics.mean(iterations)
    figures = spread(seconds[1:])
    share = shares(flops, 0.0, figures["median_s"], precision=model.extractor.precision)
    return {
        "lanes": lanes,
        "stop_rule": rule,
        "images": len(plans),
        **figures,
        "compile_s": max((seconds[0] - figures["median_s"]) * len(plans), 0.0),
        "iterations": statistics.mean(iterations),
        "F": statistics.mean(losses),
        "iou": pytorch_loop.mean_iou(masks, (truth for _, truth in repeated)),
        "flops": flops,
        "share_of_peak": share.get("share_of_peak"),
        "device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "precision": model.extractor.precision,
    }


def torch(model: Model, pairs: list[tuple[Plan, np.ndarray]], options: Options) -> Case:
    """The paper's loop in eager PyTorch on the same device."""
    need_torch()
    answers = []
    with pytorch_loop.peer(model, options) as pipe:
        threads = pipe.recv()
        for chosen, _ in pairs[:PEERS]:
            pipe.send(task_of(model, chosen))
            answers.append(pytorch_loop.answered(model, chosen, *pipe.recv()))
    masks, iterations, losses, seconds = zip(*answers, strict=True)
    iou = pytorch_loop.mean_iou(masks, (truth for _, truth in pairs[:PEERS]))
    means = {"iterations": statistics.mean(iterations), "F": statistics.mean(losses), "iou": iou}
    return {"images": len(masks), **spread(list(seconds)), **means, "threads": threads}


def sections(options: Options) -> dict[str, Section]:
    """What is run, most wanted first."""
    extractor, weights = extractor_for(NETWORK, options)
    model = model_of(DETECTOR, replace(extractor, precision="fast"), options)
    pairs, regions = material(model, options)
    known: dict[str, Section] = {f"steps of {n}": partial(steps, model, options, n, "fast") for n in BATCHES}
    jobs = {f"jobs, {n} lanes, {rule}": partial(job, model, pairs, options, n, rule) for n in LANES for rule in RULES}
    first = next(iter(jobs))
    known |= {first: jobs[first], "torch": partial(torch, model, pairs, options)} | jobs
    for precision in ("parity", "bf16"):
        known[f"steps of {BATCHES[-1]}, {precision}"] = partial(steps, model, options, BATCHES[-1], precision)
    labels = {"extractor": NETWORK, "weights": weights, "detector": DETECTOR, "size": options.size, **regions}
    return {name: lambda section=section: labels | section() for name, section in known.items()}


def cases(options: Options) -> Iterator[Case]:
    """All sections, whatever happens to one of them."""
    first = None  # seconds a picture of the first job
    for name, section in sections(options).items():
        if not options.wanted(*name.replace(",", "").split()):
            continue
        try:
            figures = section()
            if "ratio" not in figures:
                first = first or figures["median_s"]
                figures["ratio"] = round(figures["median_s"] / first, 3)
            json.dumps(figures, allow_nan=False)  # a number that cannot be written fails here, not all of the file
            yield {"section": name, **figures}
        except Exception as error:  # the other sections are worth having
            yield {"section": name, "failed": f"{type(error).__name__}: {error}"[:1000]}

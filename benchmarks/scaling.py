"""How time and memory grow, each case in a process of its own.

"batch" and "size" are a step of ResNet-18 with PatchCore on several pictures, and on one picture of several sizes.
"bank" chooses the candidates M_ij of all positions from banks of several sizes. "training" fits PaDiM to several
numbers of pictures; its ratio is of the fit, and `step_s` is a step with what was fitted. "lanes" solves as many
pictures in lanes as it says. "compiled" only compiles the call that advances as many lanes.

`ratio` is the time over that of the first case of its kind. `peak_bytes` is the most host memory that the process
held at once, with Python, JAX, the weights and the fit; `device_bytes` the most that an accelerator says it held.
`call_bytes` is the compiler's number for one call on this backend, nothing of it measured.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from problems import Options, batch_of, crops, endless, extractor_for, model_of
from step_ratio import first_states, steps
from timing import Prepared, call_once, interleaved, prepared, spread
from worker import worker

from f2pad_jax import Model, solve_many
from f2pad_jax.detectors.padim import PaDiM
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.sights import apply_extractor, features

NETWORK, FEW = "resnet18", 8  # training pictures where the fit does not matter
GIB = 2**30
VALUES = {
    "batch": (1, 2, 4, 8),
    "size": (112, 224, 448),
    "bank": (1024, 2048, 4096, 8192),
    "training": (8, 16, 32, 64, 128, 256),
    "lanes": (8,),
    "compiled": (8, 64, 256),
}
_advance = jax.jit(steps, donate_argnums=0)  # the states are replaced, as in lanes

Figures = dict[str, Any]


def peak_bytes() -> int:
    """The most memory that this process held at once, in bytes.

    Linux counts what a parent held before it started this process in `getrusage`, but not in its `status` file.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def timed(call: Prepared, repeats: int) -> Figures:
    """The figures of a call."""
    times, _ = interleaved({"": partial(call_once, call.run)}, repeats=repeats)
    return {**spread(times[""]), "compile_s": call.compile_s, "call_bytes": call.call_bytes, "flops": call.flops}


def _model(options: Options, training: int | None = FEW) -> tuple[Model, Figures]:
    extractor, weights = extractor_for(NETWORK, options)
    labels = {"weights": weights, "batch": 1, "size": options.size}
    return model_of("patchcore", extractor, options, training=training), labels


def _step(model: Model, count: int) -> Prepared:
    (starts, problems), settings = batch_of(model, batch=count, full=False), endless(model)
    return prepared(steps, first_states(starts, model.energy, problems, settings), model.energy, problems, settings)


def batch(count: int, options: Options) -> Figures:
    """A step of several pictures."""
    model, labels = _model(options)
    return {**labels, "batch": count, **timed(_step(model, count), options.repeats)}


def size(side: int, options: Options) -> Figures:
    """A step of one picture of another size."""
    return batch(1, options._replace(size=side))


def bank(count: int, options: Options) -> Figures:
    """The choice of candidates from a bank of random features."""
    extractor, weights = extractor_for(NETWORK, options)
    _, pictures = crops("brick", train=0, test=1, size=options.size)
    maps = tuple(m[0] for m in apply_extractor(extractor, jnp.asarray(pictures, jnp.float32) / 255))
    dims = sum(m.shape[-1] for m in maps[1:])
    rows = jax.random.normal(jax.random.key(0), (count, dims))
    positions = jnp.arange(maps[1].shape[0] * maps[1].shape[1])
    detector = PatchCore(jnp.ones(dims), jnp.ones(len(positions)), rows, jnp.sum(jnp.square(rows), axis=-1))
    call = prepared(jax.jit(PatchCore.localize), detector, maps, positions)
    return {"weights": weights, "batch": 1, "size": options.size, **timed(call, options.repeats)}


def training(count: int, options: Options) -> Figures:
    """A fit of PaDiM, and a step with it."""
    extractor, weights = extractor_for("efficientnet_lite0", options)
    normals, _ = crops("brick", train=count, test=0, size=options.size)
    maps = features(extractor, normals)
    seconds: list[float] = []
    detector: Any = None
    for _ in range(min(3, options.repeats)):
        began = time.perf_counter()
        detector = PaDiM.fit(maps)
        seconds.append(time.perf_counter() - began)
    model = model_of("padim", extractor, options, training=FEW)
    call = _step(replace(model, energy=model.energy.replace(detector=detector)), 1)
    return {
        **{"weights": weights, "batch": 1, "size": options.size},
        **spread(seconds),
        "compile_s": call.compile_s,
        "call_bytes": call.call_bytes,
        "step_s": timed(call, options.repeats)["median_s"],
        "fitted_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(detector)),
        "rank": jax.tree.leaves(detector.inverse)[0].shape[1],
    }


def lanes(count: int, options: Options) -> Figures:
    """A real fit and a real solve in lanes; seconds are per lane."""
    model, labels = _model(options, training=None)
    starts, problems = batch_of(model, batch=count, full=False)
    settings = model.settings.replace(limit=options.limit or model.settings.limit)
    waiting = [(starts[k], jax.tree.map(lambda leaf, k=k: leaf[k], problems), settings) for k in range(count)]
    before, seconds, solutions = peak_bytes(), [], []
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        solutions = [solution for _, solution in solve_many(waiting, model.energy, width=count)]
        seconds.append((time.perf_counter() - began) / count)
    return {
        **labels,
        "batch": count,
        **spread(seconds[1:]),
        "compile_s": max((seconds[0] - seconds[1]) * count, 0.0),
        "iterations": statistics.mean(int(solution.iterations) for solution in solutions),
        "F": statistics.mean(float(solution.loss) for solution in solutions),
        "before_bytes": before,
    }


def compiled(count: int, options: Options) -> Figures:
    """What the compiler asks for to advance so many lanes at once; seconds are those of compiling."""
    model, labels = _model(options)
    (starts, problems), settings = batch_of(model, batch=1, full=False), endless(model)

    def wide(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

    states, problems = jax.tree.map(wide, (first_states(starts, model.energy, problems, settings), problems))
    call = prepared(_advance, states, model.energy, problems, settings)
    sizes = {f"{name}_bytes": value for name, value in call.memory.items()}
    return {**labels, "batch": count, **spread([call.compile_s]), **sizes, "call_bytes": call.call_bytes}


KINDS: dict[str, Callable[[int, Options], Figures]] = {
    "batch": batch,
    "size": size,
    "bank": bank,
    "training": training,
    "lanes": lanes,
    "compiled": compiled,
}


def serve(pipe: Connection, kind: str, value: int, options: Options) -> None:
    """Sends one case's figures, or the error that ended it."""
    try:
        figures = KINDS[kind](value, options)
        figures["device"] = jax.devices()[0].device_kind
        figures["peak_bytes"] = peak_bytes()
        figures["peak_gib"] = round(figures["peak_bytes"] / GIB, 3)
        held = jax.devices()[0].memory_stats()
        if held is not None:
            figures["device_bytes"] = held["peak_bytes_in_use"]
        pipe.send(figures)
    except Exception as error:  # what does not fit ends this case only
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:500]})
    pipe.recv()


def cases(options: Options) -> Iterator[Figures]:
    """Every combination that is asked for."""
    for kind, values in VALUES.items():
        first = None
        for value in values:
            if not options.wanted(kind, value):
                continue
            with worker(serve, kind, value, options) as pipe:
                figures = pipe.recv()
            if "failed" not in figures:
                first = figures["median_s"] if first is None else first
                figures["ratio"] = round(figures["median_s"] / first, 3)
            yield {"kind": kind, "value": value, **figures}

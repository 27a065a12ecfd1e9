"""How time and memory grow, each case in a process of its own.

"batch" and "size" are a step of ResNet-18 with PatchCore on several pictures, and on one picture of several sizes.
"bank" chooses the candidates M_ij of all positions from banks of several sizes. "training" fits PaDiM to several
numbers of pictures; its ratio is of the fit, and `step_s` is a step with what was fitted. "lanes" solves as many
pictures in lanes as it says. "compiled" only compiles the call that advances as many lanes.

`ratio` is the time over that of the first case of its kind. `peak_bytes` is the most host memory that the process
held at once, with Python, JAX, the weights and the fit; `device_bytes` the most that an accelerator says it held.
`call_bytes` is the compiler's number for one call on this backend: arguments, results and temporaries, nothing of it
measured.
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
from options import Options
from problems import batch_of, crops, endless_rates, extractor_for, model_of
from timing import Prepared, call_once, interleaved, prepared, spread
from worker import worker

from f2pad_jax.detectors import get_detector
from f2pad_jax.detectors.patchcore import localize
from f2pad_jax.fitting import Model, apply_extractor, features
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem
from f2pad_jax.solver import Info, Lane, Rates, State, init, solve_lanes, step

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


@partial(jax.jit, static_argnames="detector", donate_argnames="states")
def advance(extractor: Extractor, states: State, problems: Problem, rates: Rates, detector: Any) -> tuple[State, Info]:
    """A step of all lanes, which replaces their states."""
    return jax.vmap(lambda s, p: step(s, p, rates, extractor=extractor, detector=detector))(states, problems)


@partial(jax.jit, static_argnames="detector")
def one_step(extractor: Extractor, states: State, problems: Problem, rates: Rates, detector: Any) -> tuple[State, Info]:
    """`advance` that may be called again with the same states."""
    return advance(extractor, states, problems, rates, detector=detector)


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


def call_bytes(call: Prepared) -> int:
    """The compiler's number for one call."""
    sizes = call.memory
    return sizes["arguments"] + sizes["results"] + sizes["temporaries"] - sizes["reused"]


def timed(call: Prepared, repeats: int) -> dict[str, Any]:
    """The figures of a call."""
    times, _ = interleaved({"": partial(call_once, call.run)}, repeats=repeats)
    return {**spread(times[""]), "compile_s": call.compile_s, "call_bytes": call_bytes(call), "flops": call.flops}


def _step(model: Model, batch: int) -> Prepared:
    starts, problems = batch_of(model, batch=batch, full=False)
    rates = endless_rates(model)
    states = jax.vmap(lambda start, problem: init(start, problem, rates))(starts, problems)
    return prepared(one_step, model.extractor, states, problems, rates, detector=get_detector(model.detector))


def batch(count: int, options: Options) -> dict[str, Any]:
    """A step of several pictures."""
    extractor, weights = extractor_for(NETWORK, options)
    model = model_of("patchcore", extractor, options, training=FEW)
    return {"weights": weights, "batch": count, "size": options.size, **timed(_step(model, count), options.repeats)}


def size(side: int, options: Options) -> dict[str, Any]:
    """A step of one picture of another size."""
    return batch(1, options._replace(size=side))


def bank(count: int, options: Options) -> dict[str, Any]:
    """The choice of candidates from a bank of random features."""
    extractor, weights = extractor_for(NETWORK, options)
    _, pictures = crops("brick", train=0, test=1, size=options.size)
    maps = tuple(m[0] for m in apply_extractor(extractor, jnp.asarray(pictures, jnp.float32) / 255))
    dims = sum(m.shape[-1] for m in maps[1:])
    rows = jax.random.normal(jax.random.key(0), (count, dims))
    params = {"scale": jnp.ones(dims), "bank": rows, "norm": jnp.sum(jnp.square(rows), axis=-1)}
    positions = jnp.arange(maps[1].shape[0] * maps[1].shape[1])
    call = prepared(jax.jit(localize), params, maps, positions)
    return {"weights": weights, "batch": 1, "size": options.size, **timed(call, options.repeats)}


def training(count: int, options: Options) -> dict[str, Any]:
    """A fit of PaDiM, and a step with it."""
    extractor, weights = extractor_for("efficientnet_lite0", options)
    normals, _ = crops("brick", train=count, test=0, size=options.size)
    maps = features(extractor, normals)
    seconds = []
    params: dict[str, Any] = {}
    for _ in range(min(3, options.repeats)):
        began = time.perf_counter()
        params = get_detector("padim").fit(maps)
        seconds.append(time.perf_counter() - began)
    fitted = sum(leaf.nbytes for leaf in params.values())
    model = model_of("padim", extractor, options, training=FEW)
    call = _step(replace(model, params=params), 1)
    step_s = timed(call, options.repeats)["median_s"]
    labels = {"weights": weights, "batch": 1, "size": options.size}
    figures = {"compile_s": call.compile_s, "call_bytes": call_bytes(call), "step_s": step_s, "fitted_bytes": fitted}
    rank = params["basis" if "basis" in params else "precision"].shape[1]
    return {**labels, **spread(seconds), **figures, "rank": rank}


def lanes(count: int, options: Options) -> dict[str, Any]:
    """A real fit and a real solve in lanes; seconds are per lane."""
    extractor, weights = extractor_for(NETWORK, options)
    model = model_of("patchcore", extractor, options)
    starts, problems = batch_of(model, batch=count, full=False)
    s = model.settings
    rates, limit = Rates(s.rate, s.clip, s.clip, s.warm_up, s.tolerance, s.patience, s.rise), options.limit or s.limit
    waiting = [Lane(starts[k], jax.tree.map(lambda leaf, k=k: leaf[k], problems), rates, limit) for k in range(count)]
    before = peak_bytes()
    seconds, iterations, losses = [], 0, []
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        solutions = dict(solve_lanes(waiting, extractor=extractor, detector=get_detector("patchcore"), width=count))
        seconds.append((time.perf_counter() - began) / count)
        iterations = sum(int(solution.iterations) for solution in solutions.values())
        losses = [float(solution.info.loss) for solution in solutions.values()]
    return {
        "weights": weights,
        "batch": count,
        "size": options.size,
        **spread(seconds[1:]),
        "compile_s": max((seconds[0] - seconds[1]) * count, 0.0),
        "iterations": iterations / count,
        "F": statistics.mean(losses),
        "before_bytes": before,
    }


def compiled(count: int, options: Options) -> dict[str, Any]:
    """What the compiler asks for to advance so many lanes at once; seconds are those of compiling."""
    extractor, weights = extractor_for(NETWORK, options)
    model = model_of("patchcore", extractor, options, training=FEW)
    starts, problems = batch_of(model, batch=1, full=False)
    rates = endless_rates(model)
    states = jax.vmap(lambda start, problem: init(start, problem, rates))(starts, problems)

    def wide(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

    states, problems = jax.tree.map(wide, (states, problems))
    call = prepared(advance, extractor, states, problems, rates, detector=get_detector("patchcore"))
    labels = {"weights": weights, "batch": count, "size": options.size}
    sizes = {f"{name}_bytes": value for name, value in call.memory.items()}
    return {**labels, **spread([call.compile_s]), **sizes, "call_bytes": call_bytes(call), "flops": call.flops}


KINDS: dict[str, Callable[[int, Options], dict[str, Any]]] = {
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
        held = jax.devices()[0].memory_stats()
        if held is not None:
            figures["device_bytes"] = held["peak_bytes_in_use"]
        pipe.send(figures)
    except Exception as error:  # what does not fit ends this case only
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:500]})
    pipe.recv()


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for."""
    for kind, values in VALUES.items():
        first = None
        for value in values:
            if not options.wanted(kind, value):
                continue
            with worker(serve, kind, value, options) as pipe:
                figures = pipe.recv()
            if "failed" in figures:
                print(f"{kind} {value}: {figures['failed']}", file=sys.stderr, flush=True)
                continue
            first = figures["median_s"] if first is None else first
            figures["peak_gib"] = round(figures["peak_bytes"] / GIB, 3)
            yield {"kind": kind, "value": value, "ratio": round(figures["median_s"] / first, 3), **figures}

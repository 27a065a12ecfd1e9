"""One step of the solver over the bare `value_and_grad` of its extractor at the same batch.

Weights of (14), candidates and statistics are made before. `step` is one jitted call; `loop` is an iteration
of the `lax.while_loop` of `solve`, over one of gradient descent on the bare extractor in a `fori_loop`. `lanes` is
what `solve_lanes` makes of a batch on a CPU, the `loop` of one picture on each core, and its time is that of the whole
batch; `ratio` compares it with the bare call of the batch, `ratio_alike` with the bare loop spread in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from limits import shares
from options import DETECTORS, EXTRACTORS, Options
from problems import batch_of, endless_rates, extractor_for, model_of, use_all_cores
from timing import Prepared, call_once, interleaved, prepared, summary

from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.fitting import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem
from f2pad_jax.solver import Info, Rates, State, init, solve, step

ITERATIONS = 5  # of a measurement of `loop`


class Variant(NamedTuple):
    """What is measured of each extractor and detector."""

    batch: int
    region: str  # "12%" or "full"
    kind: str  # "step", "loop" or "lanes"


VARIANTS = (
    Variant(1, "12%", "step"),
    Variant(1, "12%", "loop"),
    Variant(4, "12%", "step"),
    Variant(8, "12%", "step"),
    Variant(8, "12%", "lanes"),
    Variant(8, "full", "lanes"),
    Variant(1, "full", "step"),
)


def bare_loss(images: jax.Array, extractor: Extractor) -> jax.Array:
    """The cheapest scalar that needs every feature and its gradient."""
    return sum((jnp.sum(jnp.square(m)) for m in extractor(images)), start=jnp.float32(0))


@jax.jit
def bare(extractor: Extractor, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a step is compared with."""
    return jax.value_and_grad(bare_loss)(images, extractor)


@jax.jit
def bare_loop(extractor: Extractor, images: jax.Array) -> jax.Array:
    """`bare` as the body of a loop that needs its own result."""

    def descend(_: int, current: jax.Array) -> jax.Array:
        return current - 1e-6 * jax.grad(bare_loss)(current, extractor)

    return jax.lax.fori_loop(0, ITERATIONS, descend, images)


@partial(jax.jit, static_argnames="detector")
def steps(
    extractor: Extractor, states: State, problems: Problem, rates: Rates, detector: Detector
) -> tuple[State, Info]:
    """A step of every picture of a batch."""
    return jax.vmap(lambda s, p: step(s, p, rates, extractor=extractor, detector=detector))(states, problems)


@partial(jax.jit, static_argnames="detector")
def step_loop(
    extractor: Extractor, starts: jax.Array, problems: Problem, rates: Rates, detector: Detector
) -> jax.Array:
    """The first iterations of the solve of every picture of a batch."""

    def solve_one(start: jax.Array, problem: Problem) -> jax.Array:
        return solve(start, problem, rates, ITERATIONS, extractor=extractor, detector=detector).normal

    return jax.vmap(solve_one)(starts, problems)


def on_each_core(function: Any, shared: Any, lanes: Any) -> Prepared:
    """The call of a function on the first lanes, one on each device.

    Args:
      function: takes `shared` and a lane; pure.
      shared: a tree of arrays.
      lanes: a tree of arrays with a leading axis of at least as many lanes as there are devices.
    """
    mesh = jax.make_mesh((jax.local_device_count(),), ("lanes",), axis_types=(AxisType.Auto,))
    split, everywhere = NamedSharding(mesh, PartitionSpec("lanes")), NamedSharding(mesh, PartitionSpec())
    lanes = jax.device_put(jax.tree.map(lambda leaf: leaf[: mesh.size], lanes), split)

    def each(shared: Any, lanes: Any) -> Any:
        return jax.lax.map(partial(function, shared), lanes)

    specs = (everywhere.spec, split.spec)
    call = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=split.spec, check_vma=False))
    return prepared(call, jax.device_put(shared, everywhere), lanes)


def measured_lanes(model: Model, variant: Variant, *, repeats: int) -> dict[str, Any]:
    """The figures of a "lanes" variant."""
    extractor, detector, rates = model.extractor, get_detector(model.detector), endless_rates(model)
    starts, problems = batch_of(model, batch=variant.batch, full=variant.region == "full")

    def solve_one(extractor: Extractor, lane: tuple[jax.Array, Problem]) -> jax.Array:
        return solve(*lane, rates, ITERATIONS, extractor=extractor, detector=detector).normal

    calls = {
        "bare": prepared(bare, extractor, starts),
        "alike": on_each_core(lambda e, image: bare_loop(e, image[None])[0], extractor, jnp.asarray(starts)),
        "ours": on_each_core(solve_one, extractor, (jnp.asarray(starts), problems)),
    }
    times, _ = interleaved({k: partial(call_once, call.run) for k, call in calls.items()}, repeats=repeats)
    rounds = variant.batch / (ITERATIONS * jax.local_device_count())  # of calls, for a step of the whole batch
    ours, alike = ([t * rounds for t in times[k]] for k in ("ours", "alike"))
    like = summary(ours, alike)
    return {
        "positions": problems.feature.positions.shape[1],
        **summary(ours, times["bare"]),
        "ratio_alike": like["ratio"],
        "alike_median_s": like["base_median_s"],
        "compile_s": calls["ours"].compile_s,
        "precision": extractor.precision,
    }


def measured(model: Model, variant: Variant, *, repeats: int) -> dict[str, Any]:
    """The figures of one variant; operations, bytes and shares of the peak are those of a step of the whole batch."""
    extractor, detector, rates = model.extractor, get_detector(model.detector), endless_rates(model)
    starts, problems = batch_of(model, batch=variant.batch, full=variant.region == "full")
    calls: dict[str, Prepared]
    if variant.kind == "step":
        states = jax.vmap(lambda start, problem: init(start, problem, rates))(starts, problems)
        calls = {
            "bare": prepared(bare, extractor, starts),
            "ours": prepared(steps, extractor, states, problems, rates, detector=detector),
        }
    else:
        calls = {
            "bare": prepared(bare_loop, extractor, starts),
            "ours": prepared(step_loop, extractor, starts, problems, rates, detector=detector),
        }
    times, _ = interleaved({k: partial(call_once, call.run) for k, call in calls.items()}, repeats=repeats)
    each = ITERATIONS if variant.kind == "loop" else 1
    times = {k: [t / each for t in series] for k, series in times.items()}
    figures = {"positions": problems.feature.positions.shape[1], **summary(times["ours"], times["bare"])}
    figures |= {"compile_s": calls["ours"].compile_s, "precision": extractor.precision}
    if variant.kind == "loop":  # whose body the counters see once
        return figures
    ours, bare_call = calls["ours"], calls["bare"]
    figures |= {"flops": ours.flops, "bytes": ours.bytes, "base_flops": bare_call.flops, "base_bytes": bare_call.bytes}
    return figures | shares(ours.flops, ours.bytes, figures["median_s"], precision=extractor.precision)


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for."""
    use_all_cores()
    for name, detector in product(EXTRACTORS, DETECTORS):
        variants = [v for v in VARIANTS if options.wanted(name, detector, *v)]
        if not variants:
            continue
        extractor, weights = extractor_for(name, options)
        model = model_of(detector, extractor, options)
        labels = {"extractor": name, "weights": weights, "detector": detector, "size": options.size}
        for variant in variants:
            measure = measured_lanes if variant.kind == "lanes" else measured
            yield {**labels, **variant._asdict(), **measure(model, variant, repeats=options.repeats)}

"""One step of the solver over the bare `value_and_grad` of its extractor at the same batch.

Weights of (14), candidates and statistics are made before. `step` is one jitted call; `loop` is an iteration
of the `lax.while_loop` of `solve`, over one of gradient descent on the bare extractor in a `fori_loop`. `lanes` is
what `solve_many` makes of a batch on a CPU, the `loop` of one picture on each core, and its time is that of the whole
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
from problems import DETECTORS, EXTRACTORS, Options, batch_of, endless, extractor_for, model_of, use_all_cores
from timing import Prepared, call_once, interleaved, prepared, summary

from f2pad_jax import Energy, Model, Problem, Settings, State, init, solve, step
from f2pad_jax.core import Info
from f2pad_jax.networks.extractor import Extractor

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


@jax.jit
def steps(states: State, energy: Energy, problems: Problem, settings: Settings) -> tuple[State, Info]:
    """A step of every picture of a batch."""
    return jax.vmap(step, in_axes=(0, None, 0, None))(states, energy, problems, settings)


@jax.jit
def step_loop(starts: jax.Array, energy: Energy, problems: Problem, settings: Settings) -> jax.Array:
    """A solve of every picture of a batch."""
    return jax.vmap(solve, in_axes=(0, None, 0, None))(starts, energy, problems, settings).normal


def first_states(starts: jax.Array, energy: Energy, problems: Problem, settings: Settings) -> State:
    """The states of a batch before the first step."""
    return jax.vmap(init, in_axes=(0, None, 0, None))(starts, energy, problems, settings)


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


def measured(model: Model, variant: Variant, *, repeats: int) -> dict[str, Any]:
    """The figures of one variant; times, operations, bytes and shares of the peak are those of the whole batch."""
    energy, extractor = model.energy, model.extractor
    starts, problems = batch_of(model, batch=variant.batch, full=variant.region == "full")
    few = endless(model, ITERATIONS)
    calls: dict[str, Prepared]
    each = {"ours": 1.0, "bare": 1.0, "alike": 1.0}  # by which a call's time is divided
    if variant.kind == "step":
        settings = endless(model)
        states = first_states(starts, energy, problems, settings)
        calls = {
            "bare": prepared(bare, extractor, starts),
            "ours": prepared(steps, states, energy, problems, settings),
        }
    elif variant.kind == "loop":
        calls = {
            "bare": prepared(bare_loop, extractor, starts),
            "ours": prepared(step_loop, starts, energy, problems, few),
        }
        each |= {"ours": ITERATIONS, "bare": ITERATIONS}
    else:
        calls = {
            "bare": prepared(bare, extractor, starts),
            "alike": on_each_core(lambda shared, image: bare_loop(shared, image[None])[0], extractor, starts),
            "ours": on_each_core(lambda e, lane: solve(lane[0], e, lane[1], few).normal, energy, (starts, problems)),
        }
        rounds = variant.batch / (ITERATIONS * jax.local_device_count())  # of calls, for a step of the whole batch
        each |= {"ours": 1 / rounds, "alike": 1 / rounds}
    times, _ = interleaved({k: partial(call_once, call.run) for k, call in calls.items()}, repeats=repeats)
    times = {k: [t / each[k] for t in series] for k, series in times.items()}
    ours = calls["ours"]
    figures: dict[str, Any] = summary(times["ours"], times["bare"])
    figures |= {"positions": problems.present.shape[1], "compile_s": ours.compile_s, "precision": extractor.precision}
    if variant.kind == "lanes":
        like = summary(times["ours"], times["alike"])
        return figures | {"ratio_alike": like["ratio"], "alike_median_s": like["base_median_s"]}
    if variant.kind == "loop":  # whose body the counters see once
        return figures
    figures |= {"flops": ours.flops, "base_flops": calls["bare"].flops}
    figures |= {"bytes": ours.bytes, "base_bytes": calls["bare"].bytes}
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
            yield {**labels, **variant._asdict(), **measured(model, variant, repeats=options.repeats)}

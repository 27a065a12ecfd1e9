"""Many solves at once: lanes of one compiled step, refilled as they finish.

A `vmap` of `solve` would run every image until the slowest is done. Here a fixed number of lanes advances a few
steps per compiled call; between calls finished lanes are read out and waiting ones take their slots, and when none
waits the lanes that are left move to a narrower call. Lanes may differ in everything but their shapes: images,
regions, hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from f2pad_jax.detectors import Detector
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem
from f2pad_jax.solver.solve import Solution
from f2pad_jax.solver.step import RUNNING, Info, Method, Rates, State, init, no_info, step

CHUNK = 8  # steps per compiled call; the host looks at the lanes once in between
AXIS = "lanes"


class Lane(NamedTuple):
    """One solve: the arguments of `solve` that may differ from lane to lane."""

    start: jax.Array | np.ndarray  # n⁽⁰⁾, (H, W, 3)
    problem: Problem
    rates: Rates
    limit: jax.Array | int  # most iterations


class _Task(NamedTuple):
    """What stays as it is while a lane runs; all leaves have a leading axis of lanes, as in `_Moving`."""

    problem: Problem
    rates: Rates
    limit: jax.Array


class _Moving(NamedTuple):
    """What every step replaces."""

    state: State
    info: Info


def lane_widths(width: int, devices: int = 1) -> tuple[int, ...]:
    """The numbers of lanes that a call may be compiled for, widest first: halves, down to one per device.

    Raises:
      ValueError: `width` is no power of two times `devices`.
    """
    halvings = (width // devices).bit_length() - 1
    widths = tuple(devices << k for k in range(halvings, -1, -1))
    if not widths or widths[0] != width:
        raise ValueError(f"{width} lanes do not halve down to {devices}, one per device")
    return widths


def solve_lanes(
    lanes: Iterable[Lane],
    *,
    extractor: Extractor,
    detector: Detector,
    method: Method = Method(),
    width: int = 8,
    devices: Sequence[Any] | None = None,
    together: bool | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Solution]]:
    """Solves any number of lanes, `width` at a time; each ends as `solve` would end it.

    Args:
      lanes: read as slots become free, so at most `width` problems are in memory. Shapes are those of the first.
      extractor: network with its parameters.
      detector: functions of the detector; static.
      method: choices that change the compiled step; static.
      width: lanes per compiled call, a power of two times the number of devices.
      devices: share the lanes among them without ever waiting for one another; by default the first one only.
      together: whether the lanes of a device advance as one batch, or one after another within the call; the former
        on accelerators, the latter on a CPU, where it is no slower, takes the memory of one lane, and gives the same
        bits whatever the width.
      on_chunk: called after every compiled call with the lane-steps it ran, those of finished lanes included.

    Yields:
      Index of a lane and its solution, as they finish. A lane that becomes non-finite has that status and harms no
      other.

    Raises:
      ValueError: widths and devices do not fit, or a lane's shapes differ from the first one's.
    """
    mesh = Mesh(np.asarray(devices or jax.devices()[:1]), (AXIS,), axis_types=(AxisType.Auto,))
    widths = lane_widths(width, mesh.size)
    spread, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    extractor = jax.device_put(extractor, everywhere)
    together = mesh.devices.flat[0].platform != "cpu" if together is None else together
    advance = partial(_advance, extractor, detector=detector, method=method, mesh=mesh, together=together)
    waiting = enumerate(lanes)
    owners = np.full(width, -1)  # index of each slot's lane
    tasks: Any = None
    moving: Any = None

    def begin(lane: Lane) -> tuple[_Task, _Moving]:
        task = jax.tree.map(_strong, _Task(lane.problem, lane.rates, jnp.int32(lane.limit)))
        return task, _begin(jnp.asarray(lane.start), task)

    def place(index: int, lane: tuple[_Task, _Moving], slot: int) -> tuple[_Task, _Moving]:
        return _place((tasks, moving), _like(lane, (tasks, moving), index), slot, sharding=spread)

    for slot, (index, lane) in enumerate(islice(waiting, width)):
        task, fresh = begin(lane)
        if tasks is None:
            # Slots without a lane hold a copy that is over before it begins.
            tasks, moving = _repeat((task._replace(limit=jnp.int32(0)), fresh), width, sharding=spread)
        tasks, moving = place(index, (task, fresh), slot)
        owners[slot] = index

    while (owners >= 0).any():
        live = np.flatnonzero(owners >= 0)
        narrow = min(w for w in widths if w >= len(live))
        if narrow < len(owners):
            kept = np.concatenate([live, np.setdiff1d(np.arange(len(owners)), live)])[:narrow]
            tasks, moving = _gather((tasks, moving), kept, sharding=spread)
            owners = owners[kept]
        moving, finished = advance(moving, tasks)
        if on_chunk is not None:
            on_chunk(len(owners) * CHUNK)
        for slot in np.flatnonzero(np.asarray(finished) & (owners >= 0)).tolist():
            state, info = _take(moving, slot)
            yield int(owners[slot]), Solution(state.normal, state.count, state.status, info)
            owners[slot] = -1
            for index, lane in islice(waiting, 1):
                tasks, moving = place(index, begin(lane), slot)
                owners[slot] = index


def _strong(leaf: Any) -> jax.Array:
    """An array whose dtype is fixed; weakly typed scalars of some lanes would compile everything twice."""
    array = jnp.asarray(leaf)
    return jax.lax.convert_element_type(array, array.dtype)


@jax.jit
def _begin(start: jax.Array, task: _Task) -> _Moving:
    state = init(start, task.problem, task.rates)
    return _Moving(state, no_info(state.normal))


@partial(jax.jit, static_argnames=("detector", "method", "mesh", "together"), donate_argnames="moving")
def _advance(
    extractor: Extractor,
    moving: _Moving,
    tasks: _Task,
    *,
    detector: Detector,
    method: Method,
    mesh: Mesh,
    together: bool,
) -> tuple[_Moving, jax.Array]:
    """`CHUNK` steps of every lane that is not over, and which are over then, (lanes,) bool."""

    def running(state: State, task: _Task) -> jax.Array:
        return (state.status == RUNNING) & (state.count < task.limit)

    def one(extractor: Extractor, current: _Moving, task: _Task) -> _Moving:
        after = step(current.state, task.problem, task.rates, extractor=extractor, detector=detector, method=method)
        active = running(current.state, task)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), _Moving(*after), current)

    def chunk(extractor: Extractor, moving: _Moving, tasks: _Task) -> tuple[_Moving, jax.Array]:
        def body(current: _Moving, _: None) -> tuple[_Moving, None]:
            if together:
                return jax.vmap(partial(one, extractor))(current, tasks), None
            return jax.lax.map(lambda lane: one(extractor, *lane), (current, tasks)), None

        moving, _ = jax.lax.scan(body, moving, length=CHUNK)
        return moving, ~jax.vmap(running)(moving.state, tasks)

    lanes, shared = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(chunk, mesh=mesh, in_specs=(shared, lanes, lanes), out_specs=lanes)(extractor, moving, tasks)


def _like(lane: Any, stacks: Any, index: int) -> Any:
    shapes = [(leaf.shape, stack.shape[1:]) for leaf, stack in zip(*map(jax.tree.leaves, (lane, stacks)), strict=True)]
    different = next((pair for pair in shapes if pair[0] != pair[1]), None)
    if different is not None:
        raise ValueError(f"lane {index} has an array of shape {different[0]} where the first lane has {different[1]}")
    return lane


# One and the same sharding everywhere: an equivalent one would compile every call anew.
@partial(jax.jit, static_argnames=("width", "sharding"))
def _repeat(lane: Any, width: int, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), lane), sharding)


@partial(jax.jit, static_argnames="sharding", donate_argnames="stacks")
def _place(stacks: Any, lane: Any, slot: jax.Array | int, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda stack, leaf: stack.at[slot].set(leaf), stacks, lane), sharding)


@partial(jax.jit, static_argnames="sharding")
def _gather(stacks: Any, slots: jax.Array | np.ndarray, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda stack: stack[slots], stacks), sharding)


def _sharded(stacks: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda stack: jax.lax.with_sharding_constraint(stack, sharding), stacks)


@jax.jit
def _take(stacks: Any, slot: jax.Array | int) -> Any:
    return jax.tree.map(lambda stack: stack[slot], stacks)

"""Many solves at once: lanes of one compiled step, refilled as they finish.

A `vmap` of `solve` would run every picture until the slowest is done. Here a fixed number of lanes advances a few
steps per compiled call; between calls finished lanes are read out and waiting ones take their slots, and when none
waits the lanes that are left move to a narrower call. Lanes share the energy and may differ in everything else but
their shapes: pictures, regions, settings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from f2pad_jax.core.energy import Energy, Problem
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.solver import Info, Solution, State, Status, advance, init, no_info, solution

CHUNK = 8  # steps per compiled call; the host looks at the lanes once in between
AXIS = "lanes"
FREE = -1  # owner of a slot without a lane

Case = tuple[jax.Array, Problem, Settings]  # n⁽⁰⁾ (H, W, 3), the picture, and its numbers


Fixed = tuple[Problem, Settings]  # of one case; stacked, all leaves have a leading axis of lanes
Moving = tuple[State, Info]  # what every step replaces, likewise


def lane_widths(width: int, devices: int = 1) -> tuple[int, ...]:
    """The numbers of lanes that a call may be compiled for, widest first: halves, down to one per device.

    Raises:
      ValueError: `width` is no power of two times `devices`.

    Examples:
      >>> lane_widths(8, devices=2)
      (8, 4, 2)
    """
    halvings = (width // devices).bit_length() - 1
    widths = tuple(devices << k for k in range(halvings, -1, -1))
    if not widths or widths[0] != width:
        raise ValueError(f"{width} lanes do not halve down to {devices}, one per device")
    return widths


def solve_many(
    cases: Iterable[Case],
    energy: Energy,
    *,
    width: int = 8,
    devices: Sequence[Any] | None = None,
    together: bool | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Solution]]:
    """Solves any number of pictures, `width` at a time; each ends as `solve` would end it.

    Args:
      cases: start, problem and settings of each; read as slots become free, so at most `width` problems are in
        memory. Shapes and static settings are those of the first.
      energy: what all of them share; one copy on every device.
      width: lanes per compiled call, a power of two times the number of devices.
      devices: share the lanes among them without ever waiting for one another; by default the first one only.
      together: whether the lanes of a device advance as one batch, or one after another within the call; the former
        on accelerators, the latter on a CPU, where it is no slower, takes the memory of one lane, and gives the same
        bits whatever the width.
      on_chunk: called after every compiled call with the lane-steps it ran; as a batch, those of finished lanes
        included.

    Yields:
      Index of a case and its solution, as they finish. One that becomes non-finite has that status and harms no
      other.

    Raises:
      ValueError: widths and devices do not fit, or a case's shapes differ from the first one's.
    """
    chosen = list(devices or jax.devices()[:1])
    mesh = jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)
    widths = lane_widths(width, mesh.size)
    spread, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    energy = jax.device_put(energy, everywhere)
    together = chosen[0].platform != "cpu" if together is None else together
    waiting = enumerate(cases)
    owners = [FREE] * width  # index of each slot's case
    lanes: Any = None  # Fixed and Moving of all slots

    def place(index: int, case: Case, slot: int) -> tuple[Fixed, Moving]:
        return _place(lanes, _like(_begin(energy, *_strong(case)), lanes, index), slot, sharding=spread)

    for slot, (index, case) in enumerate(islice(waiting, width)):
        if lanes is None:
            lanes = _repeat(_idle(_begin(energy, *_strong(case))), width, sharding=spread)
        lanes = place(index, case, slot)
        owners[slot] = index

    while any(owner != FREE for owner in owners):
        live = [slot for slot, owner in enumerate(owners) if owner != FREE]
        narrow = min(w for w in widths if w >= len(live))
        if narrow < len(owners):
            kept = (live + [slot for slot, owner in enumerate(owners) if owner == FREE])[:narrow]
            lanes = _gather(lanes, jnp.asarray(kept), sharding=spread)
            owners = [owners[slot] for slot in kept]
        fixed, moving = lanes
        moving, ran, finished = _advance(energy, fixed, moving, mesh=mesh, together=together)
        lanes = fixed, moving
        if on_chunk is not None:
            on_chunk(int(ran.max()) * len(owners) if together else int(ran.sum()))
        for slot, over in enumerate(finished.tolist()):
            if not over or owners[slot] == FREE:
                continue
            yield owners[slot], _take(moving, slot)
            owners[slot] = FREE
            for index, case in islice(waiting, 1):
                lanes = place(index, case, slot)
                _, moving = lanes
                owners[slot] = index


def _strong(case: Any) -> Any:
    """Arrays whose dtype is fixed; weakly typed scalars of some lanes would compile everything twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(jnp.asarray(leaf), jnp.asarray(leaf).dtype), case)


@jax.jit
def _begin(energy: Energy, start: jax.Array, problem: Problem, settings: Settings) -> tuple[Fixed, Moving]:
    return (problem, settings), (init(start, energy, problem, settings), no_info())


def _idle(lane: tuple[Fixed, Moving]) -> tuple[Fixed, Moving]:
    """A slot without a case: a copy of a lane that is over before it begins."""
    fixed, (state, info) = lane
    return fixed, (state.replace(status=jnp.int32(Status.LIMIT)), info)


@partial(jax.jit, static_argnames=("mesh", "together"), donate_argnames="moving")
def _advance(
    energy: Energy, fixed: Fixed, moving: Moving, *, mesh: Mesh, together: bool
) -> tuple[Moving, jax.Array, jax.Array]:
    """At most `CHUNK` steps of every lane that is not over; the steps each ran, and which are over, (lanes,) each."""

    def chunk(energy: Energy, fixed: Fixed, moving: Moving) -> tuple[Moving, jax.Array, jax.Array]:
        def each(lane: tuple[Fixed, Moving]) -> Moving:
            (problem, settings), (state, info) = lane
            return advance(state, info, energy, problem, settings, most=CHUNK)

        after = jax.vmap(each)((fixed, moving)) if together else jax.lax.map(each, (fixed, moving))
        ran = after[0].iterations - moving[0].iterations
        return after, ran, after[0].status != Status.RUNNING

    spread, shared = PartitionSpec(AXIS), PartitionSpec()
    # Unchecked, because a loop inside a detector may begin with constants and end with what differs from lane to lane.
    run = jax.shard_map(chunk, mesh=mesh, in_specs=(shared, spread, spread), out_specs=spread, check_vma=False)
    return run(energy, fixed, moving)


def _like(lane: Any, stacks: Any, index: int) -> Any:
    if jax.tree.structure(lane) != jax.tree.structure(stacks):
        raise ValueError(f"case {index} has other static settings or parts than the first one")
    shapes = [(leaf.shape, stack.shape[1:]) for leaf, stack in zip(*map(jax.tree.leaves, (lane, stacks)), strict=True)]
    different = next((pair for pair in shapes if pair[0] != pair[1]), None)
    if different is not None:
        raise ValueError(f"case {index} has an array of shape {different[0]} where the first one has {different[1]}")
    return lane


# One and the same sharding everywhere: an equivalent one would compile every call anew.
@partial(jax.jit, static_argnames=("width", "sharding"))
def _repeat(lane: Any, width: int, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), lane), sharding)


@partial(jax.jit, static_argnames="sharding", donate_argnames="stacks")
def _place(stacks: Any, lane: Any, slot: jax.Array | int, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda stack, leaf: stack.at[slot].set(leaf), stacks, lane), sharding)


@partial(jax.jit, static_argnames="sharding")
def _gather(stacks: Any, slots: jax.Array, *, sharding: NamedSharding) -> Any:
    return _sharded(jax.tree.map(lambda stack: stack[slots], stacks), sharding)


def _sharded(stacks: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda stack: jax.lax.with_sharding_constraint(stack, sharding), stacks)


@jax.jit
def _take(moving: Moving, slot: jax.Array | int) -> Solution:
    return solution(*jax.tree.map(lambda stack: stack[slot], moving))

"""Lanes against the solver of one picture: whatever the width, the order, the neighbours and the devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solving import ROUNDING, SETTINGS, make_case, make_energy, run

from f2pad_jax.core import Solution, Status, solve_many
from f2pad_jax.core import lanes as engine
from f2pad_jax.core.lanes import CHUNK, Case, lane_widths

COLOURS = [(0.9, 0.1, 0.2), (0.52, 0.45, 0.41), (0.1, 0.2, 0.9), (0.9, 0.9, 0.1), (0.2, 0.8, 0.3)]
LIMITS = [150, 5, 60, 150, 23, 1, 150, 40, 150, 150, 12]


def some_cases(name: str, count: int = 11) -> list[Case]:
    """Pictures, weights, rates and limits all differ."""
    cases = []
    for index in range(count):
        case = make_case(name, COLOURS[index % len(COLOURS)], index % 4)
        settings = SETTINGS.replace(
            rate=0.1 - 0.004 * index, warm_up=index, beta0=2.0 + 0.2 * index, limit=LIMITS[index]
        )
        cases.append((case.start, case.problem, settings))
    return cases


def solved(cases: Sequence[Case], name: str, **options: Any) -> list[Solution]:
    found = dict(solve_many(iter(cases), make_energy(name), **options))
    assert sorted(found) == list(range(len(cases)))
    return [found[index] for index in range(len(cases))]


def assert_same_bits(found: Sequence[Solution], expected: Sequence[Solution]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_same(found: Sequence[Solution], expected: Sequence[Solution]) -> None:
    """The same but for roundings: of programs that are compiled for other numbers of devices or lanes."""
    for one, other in zip(found, expected, strict=True):
        assert int(one.iterations) == int(other.iterations)
        assert int(one.status) == int(other.status)
        np.testing.assert_allclose(one.normal, other.normal, atol=ROUNDING)
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
        np.testing.assert_allclose(one.terms, other.terms, rtol=1e-5, atol=1e-5 * abs(float(other.loss)))


@pytest.mark.parametrize(
    ("name", "count", "width", "together"),
    # As batches, few: they take longest to compile; three cases refill a slot and end in one lane.
    [("padim", 11, 4, False), ("patchcore", 3, 2, True), ("cflow", 3, 2, True)],
)
def test_lanes_end_as_they_would_alone(name: str, count: int, width: int, *, together: bool) -> None:
    cases = some_cases(name, count)
    expected = [run(start, make_energy(name), problem, settings) for start, problem, settings in cases]
    assert {int(one.status) for one in expected} >= {Status.LIMIT, Status.CONVERGED}
    assert_same(solved(cases, name, width=width, together=together), expected)


@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_width_order_and_neighbours_do_not_change_a_bit_on_a_cpu(name: str) -> None:
    cases = some_cases(name)
    expected = solved(cases, name, width=4)
    order = np.random.default_rng(0).permutation(len(cases))
    for width in (1, 2):
        shuffled = solved([cases[index] for index in order], name, width=width)
        assert_same_bits([shuffled[place] for place in np.argsort(order)], expected)


def test_a_lane_that_is_not_finite_harms_no_other() -> None:
    cases = some_cases("padim", 6)
    expected = solved(cases, "padim", width=2)
    start, problem, settings = cases[2]
    broken = problem.replace(scales=problem.scales.replace(pixel=jnp.float32(np.nan)))
    found = solved([*cases[:2], (start, broken, settings), *cases[3:]], "padim", width=2)
    assert int(found[2].status) == Status.NON_FINITE
    assert found[2].message == "non-finite"
    assert int(found[2].iterations) == 1
    np.testing.assert_array_equal(found[2].normal, start)
    assert_same_bits(found[:2] + found[3:], expected[:2] + expected[3:])


def test_one_compilation_for_each_width() -> None:
    cases = some_cases("padim", 5)
    compiled: Any = engine._advance
    solved(cases, "padim", width=4)
    before = compiled._cache_size()
    others: list[Case] = [(*case[:2], case[2].replace(rate=0.05, patience=9, limit=30)) for case in cases]
    solved(others, "padim", width=4)
    solved(others * 2, "padim", width=4)
    assert compiled._cache_size() == before


@pytest.mark.parametrize("together", [True, False])
def test_few_steps_are_run_for_lanes_that_are_over(*, together: bool) -> None:
    cases = some_cases("padim") * 3
    # All run to their limits.
    cases = [(*case[:2], case[2].replace(limit=10 + 13 * (k % 8), tolerance=-1e9)) for k, case in enumerate(cases)]
    run_steps: list[int] = []
    found = solved(cases, "padim", width=4, together=together, on_chunk=run_steps.append)
    needed = sum(int(one.iterations) for one in found)
    assert needed == sum(case[2].limit for case in cases)
    if together:
        assert needed <= sum(run_steps) <= 1.3 * needed
    else:
        assert sum(run_steps) == needed
    assert max(run_steps) == 4 * CHUNK


def test_cases_are_read_as_slots_become_free() -> None:
    cases, read, done = some_cases("padim", 9), [], 0

    def source():
        for index, case in enumerate(cases):
            read.append(index)
            yield case

    for _ in solve_many(source(), make_energy("padim"), width=2):
        done += 1
        assert len(read) <= done + 2
    assert done == 9


def test_no_cases_at_all() -> None:
    assert solved([], "padim") == []


def test_widths_halve_down_to_one_for_each_device() -> None:
    assert lane_widths(8) == (8, 4, 2, 1)
    assert lane_widths(32, 8) == (32, 16, 8)
    for width, devices in ((0, 1), (6, 1), (12, 8), (4, 8)):
        with pytest.raises(ValueError, match=f"{width} lanes"):
            lane_widths(width, devices)


def test_cases_of_other_shapes_or_choices_are_refused() -> None:
    first, (start, problem, settings) = some_cases("padim", 2)
    local = jax.tree.map(lambda leaf: leaf[:20] if leaf.ndim else leaf, problem.local)
    fewer = problem.replace(local=local, present=problem.present[:20])
    with pytest.raises(ValueError, match="case 1 has an array of shape"):
        solved([first, (start, fewer, settings)], "padim", width=2)
    for other in ((start, problem.replace(sharing=None), settings), (start, problem, settings.replace(adaptive=True))):
        with pytest.raises(ValueError, match="case 1 has other static settings or parts than the first one"):
            solved([first, other], "padim", width=2)


def shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def shapes_inside(program: Any) -> set[tuple[int, ...]]:
    """Of all values that a program computes, in loops and inner functions too."""
    found = {value.aval.shape for equation in program.eqns for value in equation.outvars}
    for equation in program.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= shapes_inside(inner)
    return found


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["patchcore", "cflow"])
def test_lanes_share_what_the_detector_learned(monkeypatch: pytest.MonkeyPatch, name: str, *, together: bool) -> None:
    """No array of the lanes, and no value that their program computes, holds the detector's arrays once a lane."""
    cases, energy, width = some_cases(name, 3), make_energy(name), 2
    learned = {shape for shape in shapes(energy.detector) if np.prod(shape) >= 100}
    assert learned
    assert not learned & set(shapes(cases))  # of these one could not tell
    stacks = {(width, *shape) for shape in learned}
    calls: list[tuple[list[tuple[int, ...]], set[tuple[int, ...]]]] = []
    advance = engine._advance

    def spied(shared: Any, *stacked: Any, **static: Any) -> Any:
        if not calls:
            program = jax.make_jaxpr(lambda *arguments: advance(*arguments, **static))(shared, *stacked)
            computed = shapes_inside(program.jaxpr)
            assert (width, *cases[0][0].shape) in computed
            assert not computed & stacks
        calls.append((shapes(shared), set(shapes(stacked))))
        return advance(shared, *stacked, **static)

    monkeypatch.setattr(engine, "_advance", spied)
    solved(cases, name, width=width, together=together)
    for shared, stacked in calls:
        assert shared == shapes(energy)
        assert not stacked & (stacks | learned)


DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import AxisType, Mesh
from test_lanes import *

cases, energy = some_cases("patchcore"), make_energy("patchcore")
assert len(jax.devices()) == 8
expected = solved(cases, "patchcore", width=16, devices=jax.devices())
assert_same(expected, solved(cases, "patchcore", width=1))
# Neither order nor width nor the number of several devices changes a bit.
for width, devices in ((8, 8), (2, 2)):
    backwards = solved(cases[::-1], "patchcore", width=width, devices=jax.devices()[:devices])
    assert_same_bits(backwards[::-1], expected)

lane = engine._begin(energy, *engine._strong(cases[0]))
stacks = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], 8, axis=0), lane)
mesh = Mesh(np.asarray(jax.devices()), (engine.AXIS,), axis_types=(AxisType.Auto,))
for together in (True, False):
    program = engine._advance.lower(energy, *stacks, mesh=mesh, together=together).compile().as_text()
    assert "while" in program
    assert not any(word in program for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
"""


def test_eight_devices_give_the_results_of_one_and_never_wait_for_one_another() -> None:
    folder = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

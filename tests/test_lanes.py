"""Lanes against the one-image solver: whatever the width, the order, the neighbours and the devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from solving import RATES, Case, make_case, run, tiny_extractor, with_beta

from f2pad_jax.solver import CONVERGED, NON_FINITE, RUNNING, Solution
from f2pad_jax.solver import lanes as engine
from f2pad_jax.solver.lanes import CHUNK, Lane, lane_widths, solve_lanes

COLOURS = [(0.9, 0.1, 0.2), (0.52, 0.45, 0.41), (0.1, 0.2, 0.9), (0.9, 0.9, 0.1), (0.2, 0.8, 0.3)]
LIMITS = [150, 9, 60, 150, 23, 1, 150, 40, 150, 150, 12]


def some_lanes(name: str, count: int = 11) -> list[Lane]:
    """Pictures, weights, rates and limits all differ."""
    lanes = []
    for index in range(count):
        case = make_case(name, COLOURS[index % len(COLOURS)], index % 4)
        rates = RATES._replace(rate=0.1 - 0.004 * index, warm_up=index)
        lanes.append(Lane(case.start, with_beta(case.problem, 2.0 + 0.2 * index), rates, LIMITS[index]))
    return lanes


def solved(lanes: Sequence[Lane], name: str, **options: Any) -> list[Solution]:
    detector = make_case(name).detector
    found = dict(solve_lanes(iter(lanes), extractor=tiny_extractor(), detector=detector, **options))
    assert sorted(found) == list(range(len(lanes)))
    return [found[index] for index in range(len(lanes))]


def alone(lane: Lane, case: Case) -> Solution:
    return run(tiny_extractor(), lane.start, lane.problem, lane.rates, lane.limit, detector=case.detector)


def assert_same(found: Sequence[Solution], expected: Sequence[Solution]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert int(one.iterations) == int(other.iterations)
        assert int(one.status) == int(other.status)
        # Sums in another order differ in the last bit.
        np.testing.assert_allclose(one.normal, other.normal, atol=2e-6)
        np.testing.assert_allclose(one.info.loss, other.info.loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["padim", "patchcore"])
@pytest.mark.parametrize(("width", "together"), [(1, False), (4, False), (4, True), (16, True)])
def test_lanes_end_as_they_would_alone(name: str, width: int, together: bool) -> None:  # noqa: FBT001
    lanes = some_lanes(name)
    expected = [alone(lane, make_case(name)) for lane in lanes]
    assert {int(one.status) for one in expected} == {RUNNING, CONVERGED}
    assert_same(solved(lanes, name, width=width, together=together), expected)


def test_width_order_and_neighbours_do_not_change_a_bit_on_a_cpu() -> None:
    lanes = some_lanes("padim")
    expected = solved(lanes, "padim", width=8)
    order = np.random.default_rng(0).permutation(len(lanes))
    for width in (2, 4):
        shuffled = solved([lanes[index] for index in order], "padim", width=width)
        for one, other in zip([shuffled[place] for place in np.argsort(order)], expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_lane_that_is_not_finite_harms_no_other() -> None:
    lanes = some_lanes("padim", 6)
    expected = solved(lanes, "padim", width=2)
    problem = lanes[2].problem
    broken = problem._replace(scales=problem.scales._replace(pixel=np.float32("nan")))
    found = solved([*lanes[:2], lanes[2]._replace(problem=broken), *lanes[3:]], "padim", width=2)
    assert int(found[2].status) == NON_FINITE
    assert int(found[2].iterations) == 1
    np.testing.assert_array_equal(found[2].normal, lanes[2].start)
    assert_same(found[:2] + found[3:], expected[:2] + expected[3:])


def test_one_compilation_for_each_width() -> None:
    lanes = some_lanes("padim", 5)
    compiled: Any = engine._advance
    solved(lanes, "padim", width=4)
    before = compiled._cache_size()
    others = [lane._replace(rates=lane.rates._replace(rate=0.05, patience=9), limit=30) for lane in lanes]
    solved(others, "padim", width=4)
    solved(others * 2, "padim", width=4)
    assert compiled._cache_size() == before


def test_few_steps_are_run_for_lanes_that_are_over() -> None:
    lanes = [lane._replace(limit=10 + 13 * (index % 8)) for index, lane in enumerate(some_lanes("padim") * 3)]
    lanes = [lane._replace(rates=lane.rates._replace(tolerance=-1e9)) for lane in lanes]  # all run to their limit
    run_steps: list[int] = []
    found = solved(lanes, "padim", width=8, on_chunk=run_steps.append)
    needed = sum(int(one.iterations) for one in found)
    assert needed == sum(int(lane.limit) for lane in lanes)
    assert needed <= sum(run_steps) <= 1.3 * needed
    assert all(steps % CHUNK == 0 for steps in run_steps)


def test_lanes_are_read_as_slots_become_free() -> None:
    lanes, read, done = some_lanes("padim", 9), [], 0

    def source():
        for index, lane in enumerate(lanes):
            read.append(index)
            yield lane

    for _ in solve_lanes(source(), extractor=tiny_extractor(), detector=make_case("padim").detector, width=2):
        done += 1
        assert len(read) <= done + 2
    assert done == 9


def test_no_lanes_at_all() -> None:
    assert solved([], "padim") == []


def test_widths_halve_down_to_one_for_each_device() -> None:
    assert lane_widths(8) == (8, 4, 2, 1)
    assert lane_widths(32, 8) == (32, 16, 8)
    for width, devices in ((0, 1), (6, 1), (12, 8), (4, 8)):
        with pytest.raises(ValueError, match=f"{width} lanes"):
            lane_widths(width, devices)


def test_lanes_of_other_shapes_are_refused() -> None:
    lanes = some_lanes("padim", 2)
    feature = lanes[1].problem.feature
    problem = lanes[1].problem._replace(feature=jax.tree.map(lambda leaf: leaf[:20] if leaf.ndim else leaf, feature))
    narrow = lanes[1]._replace(problem=problem)
    with pytest.raises(ValueError, match="lane 1 has an array of shape"):
        solved([lanes[0], narrow], "padim", width=2)


DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import AxisType, Mesh
from test_lanes import *

lanes, detector = some_lanes("patchcore"), make_case("patchcore").detector
assert len(jax.devices()) == 8
assert_same(solved(lanes, "patchcore", width=16, devices=jax.devices()), solved(lanes, "patchcore", width=4))

task = engine._Task(lanes[0].problem, lanes[0].rates, np.int32(3))
moving = engine._begin(lanes[0].start, task)
stacks = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], 8, axis=0), (moving, task))
mesh = Mesh(np.asarray(jax.devices()), (engine.AXIS,), axis_types=(AxisType.Auto,))
static = dict(detector=detector, method=engine.Method(), mesh=mesh, together=True)
lowered = engine._advance.lower(tiny_extractor(), *stacks, **static)
program = lowered.compile().as_text()
assert "while" in program
assert not any(word in program for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
"""


def test_eight_devices_give_the_results_of_one_and_never_wait_for_one_another() -> None:
    folder = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

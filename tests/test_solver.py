"""One step and the whole solve, on a tiny network: against NumPy, one by one, and to the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solving import (
    ANOMALY,
    MEAN,
    METHODS,
    REGION,
    SETTINGS,
    SIDE,
    STD,
    Case,
    make_case,
    run,
)

from f2pad_jax.core import (
    Energy,
    PixelMixture,
    Problem,
    Settings,
    Solution,
    Status,
    init,
    objective,
    share,
    solve,
    step,
)
from f2pad_jax.core.solver import no_info, solution

advance = jax.jit(step)
compute_objective = jax.jit(objective)


@pytest.fixture
def padim() -> Case:
    return make_case("padim")


@pytest.fixture(params=["padim", "patchcore"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def value(case: Case, normal: jax.Array) -> float:
    return float(compute_objective(normal, case.energy, case.problem, SETTINGS))


# One step


@pytest.mark.parametrize(
    ("method", "sharing", "rate"),
    [
        *((method, sharing, 0.1) for method in METHODS[1:3] for sharing in ("norm", "all", "none")),
        *((method, "norm", 4.0) for method in METHODS[1:3]),  # whose first steps are taken back
        (METHODS[1] | {"guarded": False, "floor": 0.3}, "norm", 4.0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_steps_are_those_of_numpy(padim: Case, method: dict[str, bool], sharing: str, rate: float) -> None:
    """Order and formulas of the whole iteration: ∇F, sharing, clipping, Adan, γ, sparsity, projection, descent."""
    beta, energy, problem = 2.0, padim.energy, padim.problem
    settings = SETTINGS.replace(
        warm_up=0, rise=64.0, rate=rate, beta0=beta, share_gradient=sharing == "all", limit=1000, **method
    )
    assert (weights := problem.sharing) is not None
    # Sparsity counts differently from place to place.
    factor = np.linspace(0.5, 1.5, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    problem = problem.replace(sharing=None if sharing == "none" else weights, sparsity=jnp.asarray(factor))
    image = np.asarray(problem.image, float)
    smooth = settings.replace(beta0=0.0 if settings.proximal else beta)
    slope = jax.jit(jax.grad(lambda n: objective(n, energy, problem, smooth)))
    # Of the anomaly one part stays and one goes.
    offset = np.where(np.arange(SIDE) < 8, np.float32(1.5), np.float32(0.01))[:, None]
    state = init(padim.start + offset, energy, problem, settings)
    lowest_colour, highest_colour = -MEAN / STD, (1 - MEAN) / STD
    normal = np.where(REGION[..., None], np.clip(image + offset, lowest_colour, highest_colour), image)
    adan = Adan(0, *[np.zeros_like(image)] * 4)
    best, lowest, start, shorter = (normal, adan), np.inf, np.inf, 1.0
    back = 0  # steps that were taken back
    for t in range(1, 9 if rate > 1 else 5):
        np.testing.assert_allclose(state.normal, normal, atol=2e-5)
        normal = np.asarray(state.normal, float)
        value = float(compute_objective(state.normal, energy, problem, settings))
        gradient = slope(state.normal)
        if sharing == "all":
            gradient = share(gradient, weights)
        adan = adan.after(np.asarray(gradient, float).clip(-5, 5))
        if t == 1:
            best, lowest, start = (normal, adan), value, value
        else:
            rose = settings.guarded and value > min(lowest + REGION.sum(), start)
            if value <= min(lowest + 5e-4 * abs(lowest), start):
                best = (normal, adan)
            lowest = min(lowest, value)
            shorter = min(shorter * (0.5 if rose else 1.1), 1.0)
            if rose:
                normal, adan = best
                back += 1
        size = np.full(image.shape, shorter * rate * 64 ** ((t - 1) / 40))
        if settings.adaptive:
            size = size / np.maximum(np.abs(image - normal), settings.floor)
        normal = normal - size * adan.direction
        if settings.proximal:
            weight = beta * factor / np.mean(adan.metric / size, axis=-1)
            own = np.linalg.norm(image - normal, axis=-1, keepdims=True)
            near = own if sharing == "none" else share(jnp.asarray(own, jnp.float32), weights)
            length = np.asarray(near, float)[..., 0]
            normal = image - shrunk(image - normal, weight, length)
        normal = np.where(REGION[..., None], np.clip(normal, lowest_colour, highest_colour), image)
        state, info = advance(state, energy, problem, settings)
        assert int(state.iterations) == t
        np.testing.assert_allclose(info.loss, value, rtol=1e-5)
    np.testing.assert_allclose(state.normal, normal, atol=2e-5)
    changed = np.mean(np.any(normal != image, axis=-1)[REGION])
    assert 0.1 < changed < 0.9 if settings.proximal else changed == 1
    assert 2 <= back <= 6 if rate > 1 and settings.guarded else back == 0


class Adan(NamedTuple):
    """The optimiser's memory in double precision."""

    count: int
    mean: np.ndarray
    difference: np.ndarray
    square: np.ndarray
    previous: np.ndarray

    def after(self, gradient: np.ndarray) -> Adan:
        change = gradient - self.previous if self.count else np.zeros_like(gradient)
        mean, difference = 0.98 * self.mean + 0.02 * gradient, 0.92 * self.difference + 0.08 * change
        square = 0.99 * self.square + 0.01 * (gradient + 0.92 * change) ** 2
        return Adan(self.count + 1, mean, difference, square, gradient)

    @property
    def metric(self) -> np.ndarray:
        return np.sqrt(self.square / (1 - 0.99**self.count)) + 5

    @property
    def direction(self) -> np.ndarray:
        t = self.count
        return (self.mean / (1 - 0.98**t) + 0.92 * self.difference / (1 - 0.92**t)) / self.metric


def shrunk(anomaly: np.ndarray, weight: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The proximal map of the LOG penalty in the region, of given lengths, by search on a grid and on a finer one."""
    factor = np.zeros(anomaly.shape[:2])
    for i, j in zip(*np.nonzero(REGION), strict=True):
        length, grid = lengths[i, j], np.linspace(0, 1, 10_001)
        for width in (1e-4, 1e-7):
            t = grid * length
            cost = 0.5 * (t - length) ** 2 + weight[i, j] * np.log(np.sqrt(t**2 + 1e-4) + t)
            factor[i, j] = grid[cost.argmin()]
            grid = np.clip(factor[i, j] + width * np.linspace(-1, 1, 2_001), 0, 1)
    return anomaly * factor[..., None]


def test_a_step_is_the_same_without_jit(padim: Case) -> None:
    state = init(padim.start, padim.energy, padim.problem, SETTINGS)
    eager, compiled = (function(state, padim.energy, padim.problem, SETTINGS) for function in (step, advance))
    assert jax.tree.structure(eager) == jax.tree.structure(compiled)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("filled", [False, True])
def test_sparsity_sets_in_after_the_warm_up(padim: Case, *, filled: bool) -> None:
    """At once, without a warm-up, where the start is a fill."""
    settings, problem = SETTINGS.replace(warm_up=3), padim.problem.replace(filled=jnp.asarray(filled))
    state = init(padim.start, padim.energy, problem, settings)
    sparsity, losses = [], []
    for _ in range(5):
        state, info = advance(state, padim.energy, problem, settings)
        sparsity.append(float(info.terms.sparsity))
        losses.append((float(info.loss), float(sum(info.terms))))
    first = 0 if filled else 3
    assert sparsity[:first] == [0.0] * first
    assert all(abs(v) > 1 for v in sparsity[first:])
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-6)


# The solve


@pytest.mark.parametrize(("name", "method"), [("patchcore", METHODS[0]), *(("padim", method) for method in METHODS)])
def test_the_objective_falls_and_constraints_hold(name: str, method: dict[str, bool]) -> None:
    case = make_case(name)
    settings = SETTINGS.replace(rate=0.02 if method["adaptive"] else 0.1, limit=80, **method)
    solution = run(case.start, case.energy, case.problem, settings)
    normal = np.asarray(solution.normal)
    before, after = value(case, case.start), value(case, solution.normal)
    assert after < before - 0.3 * abs(before)
    np.testing.assert_array_equal(normal[~REGION], np.asarray(case.problem.image)[~REGION])
    colours = normal * STD + MEAN
    assert colours.min() > -1e-6
    assert colours.max() < 1 + 1e-6
    left = [np.abs(np.asarray(n) - case.truth)[ANOMALY].mean() for n in (normal, case.start)]
    assert left[0] < 0.5 * left[1]  # most of the anomaly is gone from n


def test_the_proximal_solve_leaves_exact_zeros_around_the_anomaly(case: Case) -> None:
    solution = run(case.start, case.energy, case.problem, SETTINGS.replace(limit=200))
    anomaly = np.any(np.asarray(case.problem.image) != np.asarray(solution.normal), axis=-1)
    assert anomaly[ANOMALY].all()
    assert anomaly[REGION & ~ANOMALY].mean() < 0.2
    assert int(solution.status) == Status.CONVERGED
    assert solution.message == "converged"


def test_without_sparsity_nothing_is_exactly_zero(padim: Case) -> None:
    for problem, settings in (
        (padim.problem, SETTINGS.replace(beta0=0.0)),
        (padim.problem.replace(sparsity=jnp.zeros((SIDE, SIDE))), SETTINGS),
    ):
        solution = run(padim.start, padim.energy, problem, settings)
        anomaly = np.any(np.asarray(problem.image) != np.asarray(solution.normal), axis=-1)
        assert anomaly[REGION].mean() > 0.95


@pytest.mark.parametrize(("rate", "message"), [(1.0, "converged"), (10.0, "diverged")])
def test_a_solve_that_lost_its_way_goes_back(padim: Case, rate: float, message: str) -> None:
    """To the best n that it has seen, be it the one it began with."""
    settings = SETTINGS.replace(rate=rate, clip=1e9, warm_up=0, patience=4, limit=10_000)
    start = run(padim.start, padim.energy, padim.problem, SETTINGS).normal
    state, losses, seen = init(start, padim.energy, padim.problem, settings), [], []
    info = no_info()
    while int(state.status) == Status.RUNNING:
        seen.append(np.asarray(state.normal))
        state, info = advance(state, padim.energy, padim.problem, settings)
        losses.append(float(info.loss))
    found = solution(state, info)
    assert found.message == message
    assert max(losses) > losses[0] + REGION.sum()
    assert found.loss <= min(losses) + 5e-4 * abs(min(losses))
    index = int(np.argmin([abs(loss - float(found.loss)) for loss in losses]))
    np.testing.assert_array_equal(found.normal, seen[index])
    np.testing.assert_allclose(found.loss, losses[index], rtol=1e-6)
    np.testing.assert_allclose(found.loss, sum(found.terms), rtol=1e-6)
    assert index > 0 or message == "diverged"
    whole = run(start, padim.energy, padim.problem, settings)
    assert whole.message == message
    np.testing.assert_allclose(whole.loss, found.loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_a_batch_is_solved_as_one_by_one(name: str) -> None:
    settings = SETTINGS.replace(limit=400)
    colours = [(0.9, 0.1, 0.2), (0.52, 0.45, 0.41), (0.1, 0.2, 0.9)]
    cases = [make_case(name, colour, index) for index, colour in enumerate(colours)]
    energy = cases[0].energy
    # One lane fails at once; its neighbours must not notice.
    _, broken, _ = spoiled(cases[0], settings, "scale")
    cases.append(cases[0]._replace(problem=broken))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[c.problem for c in cases])
    starts = jnp.stack([c.start for c in cases])
    together = jax.jit(jax.vmap(solve, in_axes=(0, None, 0, None)))(starts, energy, stacked, settings)
    alone = [run(c.start, energy, c.problem, settings) for c in cases]
    counts = [int(s.iterations) for s in alone]
    assert len(set(counts)) > 2, counts
    assert together.iterations.tolist() == counts
    assert together.status.tolist() == [Status.CONVERGED] * 3 + [Status.NON_FINITE]
    for lane, single in enumerate(alone):
        assert int(single.status) == together.status[lane]
        np.testing.assert_allclose(together.normal[lane], single.normal, atol=1e-5)
        np.testing.assert_allclose(together.loss[lane], single.loss, rtol=1e-5)


def test_a_solve_at_its_limit_says_so(padim: Case) -> None:
    settings = SETTINGS.replace(tolerance=-1e9)  # every iteration is progress
    for limit in (1, settings.warm_up + 1, settings.warm_up + 7):
        solution = run(padim.start, padim.energy, padim.problem, settings.replace(limit=limit))
        assert int(solution.iterations) == limit
        assert int(solution.status) == Status.LIMIT
        assert solution.message == "iteration limit"


def test_every_status_has_its_words() -> None:
    assert {status.name: status.message for status in Status} == {
        "RUNNING": "running",
        "CONVERGED": "converged",
        "LIMIT": "iteration limit",
        "NON_FINITE": "non-finite",
        "DIVERGED": "diverged",
    }


@pytest.mark.parametrize(("warm_up", "patience"), [(0, 1), (4, 3), (10, 5)])
def test_the_stop_rule_waits_for_warm_up_and_patience(padim: Case, warm_up: int, patience: int) -> None:
    # Nothing is progress but the first.
    settings = SETTINGS.replace(warm_up=warm_up, patience=patience, tolerance=1e9, limit=100)
    solution = run(padim.start, padim.energy, padim.problem, settings)
    assert int(solution.iterations) == warm_up + 1 + patience
    assert int(solution.status) == Status.CONVERGED


def test_unguarded_a_solve_ends_where_f_changes_little(padim: Case) -> None:
    """In whatever direction: a rise is no reason to stop, and no reason to go back."""
    settings = SETTINGS.replace(
        guarded=False, proximal=False, adaptive=True, rate=1.0, warm_up=0, patience=1, tolerance=0.02, limit=300
    )
    state, info, losses = init(padim.start, padim.energy, padim.problem, settings), no_info(), []
    while int(state.status) == Status.RUNNING:
        state, info = advance(state, padim.energy, padim.problem, settings)
        losses.append(float(info.loss))
    changes = np.diff(losses)
    assert int(state.status) == Status.CONVERGED
    assert (changes > 0.02 * REGION.sum()).any()  # rises
    assert (np.abs(changes[:-1]) > 0.02 * REGION.sum()).all()
    assert abs(changes[-1]) <= 0.02 * REGION.sum()


def test_a_solve_that_stops_in_its_last_iteration_has_converged(padim: Case) -> None:
    settings = SETTINGS.replace(warm_up=0, patience=3, tolerance=1e9, limit=4)
    assert run(padim.start, padim.energy, padim.problem, settings).message == "converged"
    assert run(padim.start, padim.energy, padim.problem, settings.replace(limit=3)).message == "iteration limit"


def test_a_tighter_tolerance_runs_longer(padim: Case) -> None:
    counts = []
    for tolerance in (30.0, 1.0, 1e-3):
        settings = SETTINGS.replace(tolerance=tolerance, limit=300)
        counts.append(int(run(padim.start, padim.energy, padim.problem, settings).iterations))
    assert counts[0] < counts[2]
    assert counts == sorted(counts)


def spoiled(case: Case, settings: Settings, fault: str) -> tuple[Energy, Problem, Settings]:
    nan, (energy, problem) = jnp.float32(np.nan), case[:2]
    if fault == "scale":
        problem = problem.replace(scales=problem.scales.replace(pixel=nan))
    elif fault == "mixture":
        energy = energy.replace(mixture=PixelMixture(energy.mixture.mean * nan, energy.mixture.precision))
    elif fault == "statistics":
        problem = problem.replace(local=problem.local.replace(mean=problem.local.mean.at[3].set(nan)))
    elif fault == "infinite":
        settings = settings.replace(alpha1=float("inf"))
    else:
        settings = settings.replace(rate=float("nan"))
    return energy, problem, settings


@pytest.mark.parametrize("fault", ["scale", "mixture", "statistics", "infinite", "rate"])
def test_numbers_that_are_not_finite_are_reported(padim: Case, fault: str) -> None:
    solution = run(padim.start, *spoiled(padim, SETTINGS, fault))
    assert int(solution.status) == Status.NON_FINITE
    assert solution.message == "non-finite"
    assert int(solution.iterations) == 1
    np.testing.assert_array_equal(solution.normal, padim.start)


def test_numbers_change_without_another_compilation(padim: Case) -> None:
    """Of all pytrees, every leaf may change; a static choice is another program."""
    traced: list[Settings] = []

    def noted(*arguments: Any) -> Solution:
        traced.append(arguments[-1])
        return solve(*arguments)

    counted: Any = jax.jit(noted)  # a cache of its own

    def call(energy: Energy, settings: Settings) -> None:
        counted(padim.start, energy, padim.problem, settings)

    call(padim.energy, SETTINGS.replace(beta0=2.0, limit=5))
    other: dict[str, Any] = {
        "alpha1": 0.9,
        "alpha2": 0.2,
        "beta0": 1.0,
        "rate": 0.05,
        "rise": 2.0,
        "clip": 1.0,
        "damping": 2.0,
    }
    call(padim.energy, Settings(**other, warm_up=3, limit=6, tolerance=0.1, patience=2))
    call(padim.energy, SETTINGS.replace(warm_up=0, beta0=0.0, limit=2))
    call(jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else 2 * leaf, padim.energy), SETTINGS)
    assert counted._cache_size() == len(traced) == 1
    for choice in ("proximal", "adaptive", "guarded", "share_gradient"):
        # What is traced anew is compiled anew, which takes long.
        counted.trace(
            padim.start, padim.energy, padim.problem, SETTINGS.replace(**{choice: not getattr(SETTINGS, choice)})
        )
    assert len(traced) == 5

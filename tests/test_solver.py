"""One step and the whole solve, on a tiny network: against NumPy, one by one, and to the end."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solving import (
    ANOMALY,
    MEAN,
    METHODS,
    RATES,
    REGION,
    SIDE,
    STD,
    Case,
    TinySpec,
    make_case,
    run,
    tiny,
    tiny_extractor,
    with_beta,
)

from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem, objective
from f2pad_jax.optim import share
from f2pad_jax.priors import PixelMixture
from f2pad_jax.solver import CONVERGED, NON_FINITE, RUNNING, Method, Rates, init, solve, step
from f2pad_jax.solver.step import DIVERGED


@pytest.fixture
def extractor() -> Extractor:
    return tiny_extractor()


@pytest.fixture
def padim() -> Case:
    return make_case("padim")


@pytest.fixture(params=["padim", "patchcore"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def value(extractor: Extractor, case: Case, normal: jax.Array) -> float:
    return float(objective(normal, case.problem, extractor=extractor, detector=case.detector))


# One step


@pytest.mark.parametrize("sharing", ["norm", "all", "none"])
@pytest.mark.parametrize("method", METHODS[1:3], ids=lambda m: f"{m.sparsity}-{m.step_size}")
def test_steps_are_those_of_numpy(extractor: Extractor, padim: Case, method: Method, sharing: Any) -> None:
    """Order and formulas of the whole iteration: ∇F, sharing, clipping, Adan, γ, sparsity, projection."""
    rates = RATES._replace(warm_up=0, rise=64.0)
    beta, method = 2.0, method._replace(share_gradient=sharing == "all")
    problem = with_beta(padim.problem, beta)
    assert (weights := problem.sharing) is not None
    problem = problem._replace(sharing=None) if sharing == "none" else problem
    image = np.asarray(padim.problem.image, float)
    smooth = with_beta(problem, 0.0 if method.sparsity == "proximal" else beta)
    slope = jax.jit(jax.grad(lambda n: objective(n, smooth, extractor=extractor, detector=padim.detector)))
    advance = jax.jit(partial(step, extractor=extractor, detector=padim.detector, method=method))
    # Of the anomaly one part stays and one goes.
    offset = np.where(np.arange(SIDE) < 8, np.float32(1.5), np.float32(0.01))[:, None]
    state = init(padim.start + offset, problem, rates)
    lowest, highest = -MEAN / STD, (1 - MEAN) / STD
    normal = np.where(REGION[..., None], np.clip(image + offset, lowest, highest), image)
    m = v = n = previous = np.zeros_like(image)
    for t in range(1, 5):
        np.testing.assert_allclose(state.normal, normal, atol=2e-5)
        normal = np.asarray(state.normal, float)
        gradient = slope(state.normal)
        if sharing == "all":
            gradient = share(gradient, weights)
        gradient = np.asarray(gradient, float).clip(-5, 5)
        difference = gradient - previous if t > 1 else np.zeros_like(image)
        m, v = 0.98 * m + 0.02 * gradient, 0.92 * v + 0.08 * difference
        n, previous = 0.99 * n + 0.01 * (gradient + 0.92 * difference) ** 2, gradient
        metric = np.sqrt(n / (1 - 0.99**t)) + 5
        direction = (m / (1 - 0.98**t) + 0.92 * v / (1 - 0.92**t)) / metric
        rate = 0.1 * 64 ** ((t - 1) / 40)
        size = np.full(image.shape, rate)
        if method.step_size == "adaptive":
            size = rate / np.maximum(np.abs(image - normal), 0.1)
        normal = normal - size * direction
        if method.sparsity == "proximal":
            weight = beta / np.mean(metric / size, axis=-1)
            own = np.linalg.norm(image - normal, axis=-1, keepdims=True)
            near = own if sharing == "none" else share(jnp.asarray(own, jnp.float32), weights)
            length = np.asarray(near, float)[..., 0]
            normal = image - shrunk(image - normal, weight, length)
        normal = np.where(REGION[..., None], np.clip(normal, lowest, highest), image)
        state, info = advance(state, problem, rates)
        assert int(state.count) == t
        assert np.isfinite(info.loss)
    np.testing.assert_allclose(state.normal, normal, atol=2e-5)
    changed = np.mean(np.any(normal != image, axis=-1)[REGION])
    assert changed == 1 if method.sparsity == "gradient" else 0.1 < changed < 0.9


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


def test_a_step_is_the_same_without_jit(extractor: Extractor, padim: Case) -> None:
    advance = partial(step, extractor=extractor, detector=padim.detector)
    state = init(padim.start, padim.problem, RATES)
    eager, compiled = (function(state, padim.problem, RATES) for function in (advance, jax.jit(advance)))
    assert jax.tree.structure(eager) == jax.tree.structure(compiled)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_sparsity_sets_in_after_the_warm_up(extractor: Extractor, padim: Case) -> None:
    advance = jax.jit(partial(step, extractor=extractor, detector=padim.detector))
    rates = RATES._replace(warm_up=3)
    state = init(padim.start, padim.problem, rates)
    sparsity, losses = [], []
    for _ in range(5):
        state, info = advance(state, padim.problem, rates)
        sparsity.append(float(info.terms.sparsity))
        losses.append((float(info.loss), float(sum(info.terms))))
    assert sparsity[:3] == [0.0, 0.0, 0.0]
    assert all(abs(v) > 1 for v in sparsity[3:])
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-6)


# The solve


@pytest.mark.parametrize(("name", "method"), [("patchcore", METHODS[0]), *(("padim", method) for method in METHODS)])
def test_the_objective_falls_and_constraints_hold(extractor: Extractor, name: str, method: Method) -> None:
    case = make_case(name)
    rates = RATES._replace(rate=0.1 if method.step_size == "constant" else 0.02)
    solution = run(extractor, case.start, case.problem, rates, 80, detector=case.detector, method=method)
    normal = np.asarray(solution.normal)
    before, after = value(extractor, case, case.start), value(extractor, case, solution.normal)
    assert after < before - 0.3 * abs(before)
    np.testing.assert_array_equal(normal[~REGION], np.asarray(case.problem.image)[~REGION])
    colours = normal * STD + MEAN
    assert colours.min() > -1e-6
    assert colours.max() < 1 + 1e-6
    left = [np.abs(np.asarray(n) - case.truth)[ANOMALY].mean() for n in (normal, case.start)]
    assert left[0] < 0.5 * left[1]  # most of the anomaly is gone from n


def test_the_proximal_solve_leaves_exact_zeros_around_the_anomaly(extractor: Extractor, case: Case) -> None:
    solution = run(extractor, case.start, case.problem, RATES, 200, detector=case.detector)
    anomaly = np.any(np.asarray(case.problem.image) != np.asarray(solution.normal), axis=-1)
    assert anomaly[ANOMALY].all()
    assert anomaly[REGION & ~ANOMALY].mean() < 0.2
    assert int(solution.status) == CONVERGED


def test_without_sparsity_nothing_is_exactly_zero(extractor: Extractor, padim: Case) -> None:
    solution = run(extractor, padim.start, with_beta(padim.problem, 0.0), RATES, 60, detector=padim.detector)
    anomaly = np.any(np.asarray(padim.problem.image) != np.asarray(solution.normal), axis=-1)
    assert anomaly[REGION].mean() > 0.95


def test_a_solve_that_lost_its_way_goes_back(extractor: Extractor, padim: Case) -> None:
    advance = jax.jit(partial(step, extractor=extractor, detector=padim.detector))
    rates = RATES._replace(rate=1.0, clip=1e9, warm_up=0, patience=4)
    start = run(extractor, padim.start, padim.problem, RATES, 60, detector=padim.detector).normal
    state, losses, seen = init(start, padim.problem, rates), [], []
    while int(state.status) == RUNNING:
        seen.append(state.normal)
        state, info = advance(state, padim.problem, rates)
        losses.append(float(info.loss))
    lowest = int(np.argmin(losses))
    assert int(state.status) == CONVERGED
    assert losses[-1] > losses[lowest] + DIVERGED * REGION.sum()
    np.testing.assert_array_equal(state.normal, seen[lowest])


@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_a_batch_is_solved_as_one_by_one(extractor: Extractor, name: str) -> None:
    colours = [(0.9, 0.1, 0.2), (0.52, 0.45, 0.41), (0.1, 0.2, 0.9)]
    cases = [make_case(name, colour, index) for index, colour in enumerate(colours)]
    # One lane fails at once; its neighbours must not notice.
    broken, _ = spoiled(cases[0].problem, RATES, "scale")
    cases.append(cases[0]._replace(problem=broken))
    detector = cases[0].detector
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[c.problem for c in cases])
    starts = jnp.stack([c.start for c in cases])
    together = jax.jit(jax.vmap(partial(solve, extractor=extractor, detector=detector), in_axes=(0, 0, None, None)))(
        starts, stacked, RATES, 400
    )
    alone = [run(extractor, c.start, c.problem, RATES, 400, detector=detector) for c in cases]
    counts = [int(s.iterations) for s in alone]
    assert len(set(counts)) > 2, counts
    assert together.iterations.tolist() == counts
    assert together.status.tolist() == [CONVERGED, CONVERGED, CONVERGED, NON_FINITE]
    for lane, single in enumerate(alone):
        assert int(single.status) == together.status[lane]
        np.testing.assert_allclose(together.normal[lane], single.normal, atol=1e-5)
        np.testing.assert_allclose(together.info.loss[lane], single.info.loss, rtol=1e-5)


def test_the_iteration_limit(extractor: Extractor, padim: Case) -> None:
    rates = RATES._replace(tolerance=-1e9)  # every iteration is progress
    for limit in (1, 7):
        solution = run(extractor, padim.start, padim.problem, rates, limit, detector=padim.detector)
        assert int(solution.iterations) == limit
        assert int(solution.status) == RUNNING


@pytest.mark.parametrize(("warm_up", "patience"), [(0, 1), (4, 3), (10, 5)])
def test_the_stop_rule_waits_for_warm_up_and_patience(
    extractor: Extractor, padim: Case, warm_up: int, patience: int
) -> None:
    # Nothing is progress but the first.
    rates = RATES._replace(warm_up=warm_up, patience=patience, tolerance=1e9)
    solution = run(extractor, padim.start, padim.problem, rates, 100, detector=padim.detector)
    assert int(solution.iterations) == warm_up + 1 + patience
    assert int(solution.status) == CONVERGED


def test_a_tighter_tolerance_runs_longer(extractor: Extractor, padim: Case) -> None:
    counts = []
    for tolerance in (30.0, 1.0, 1e-3):
        rates = RATES._replace(tolerance=tolerance)
        solution = run(extractor, padim.start, padim.problem, rates, 300, detector=padim.detector)
        counts.append(int(solution.iterations))
    assert counts[0] < counts[2]
    assert counts == sorted(counts)


def spoiled(problem: Problem, rates: Rates, fault: str) -> tuple[Problem, Rates]:
    nan = jnp.float32(np.nan)
    if fault == "scale":
        return problem._replace(scales=problem.scales._replace(pixel=nan)), rates
    if fault == "mixture":
        return problem._replace(mixture=PixelMixture(problem.mixture.mean * nan, problem.mixture.precision)), rates
    if fault == "statistics":
        local = problem.feature.local | {"mean": problem.feature.local["mean"].at[3].set(nan)}
        return problem._replace(feature=problem.feature._replace(local=local)), rates
    if fault == "infinite":
        return problem._replace(coefficients=problem.coefficients._replace(alpha1=jnp.float32(np.inf))), rates
    return problem, rates._replace(rate=float("nan"))


@pytest.mark.parametrize("fault", ["scale", "mixture", "statistics", "infinite", "rate"])
def test_numbers_that_are_not_finite_are_reported(extractor: Extractor, padim: Case, fault: str) -> None:
    problem, rates = spoiled(padim.problem, RATES, fault)
    solution = run(extractor, padim.start, problem, rates, 50, detector=padim.detector)
    assert int(solution.status) == NON_FINITE
    assert int(solution.iterations) == 1
    np.testing.assert_array_equal(solution.normal, padim.start)


def test_numbers_change_without_another_compilation(extractor: Extractor, padim: Case) -> None:
    def call(network: Extractor, rates: Rates, beta: float, limit: int) -> None:
        run(network, padim.start, with_beta(padim.problem, beta), rates, limit, detector=padim.detector)

    counted: Any = run
    call(extractor, RATES, 2.0, 5)
    compiled = counted._cache_size()
    call(extractor, Rates(0.05, 1.0, 2.0, 3, 0.1, 2), 1.0, 6)
    call(extractor, RATES._replace(warm_up=0), 0.0, 2)
    other = Extractor(jax.tree.map(lambda p: 2 * p, extractor.params), "tiny", tiny, TinySpec(), "")
    call(other, RATES, 2.0, 5)
    assert counted._cache_size() == compiled

"""What a solve keeps while β rises: the last iteration at which a pixel differed from x, and the scores of n."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solving import make_case

from f2pad_jax.core import Settings, init, levels_of, solve, step
from f2pad_jax.core.solver import sparsity_at

SETTINGS = Settings(limit=24, warm_up=4, hold=3, levels=5, clip=5.0, damping=5.0)


@pytest.mark.parametrize("filled", [True, False])
def test_levels_end_where_they_say(filled: bool) -> None:  # noqa: FBT001
    problem = make_case("padim").problem.replace(filled=jnp.bool_(filled))
    ends, factors = levels_of(filled, SETTINGS)
    assert filled or (factors == 1).all()
    first = 0 if filled else 4
    assert ends[-1] == 24
    np.testing.assert_array_equal(ends, first + np.ceil((np.arange(5) + 1) * (24 - first) / 5))
    for end, factor in zip(ends.tolist(), factors.tolist(), strict=True):
        beta = sparsity_at(jnp.int32(end - 1 - first), problem, SETTINGS)
        np.testing.assert_allclose(beta, SETTINGS.beta0 * factor * np.ones_like(beta), rtol=1e-5)


def test_beta_rises_by_equal_factors_and_is_held() -> None:
    problem = make_case("padim").problem.replace(filled=jnp.bool_(True))  # noqa: FBT003
    betas = np.array([sparsity_at(jnp.int32(t), problem, SETTINGS)[0, 0] for t in range(-2, 24)])
    assert (betas[:2] == 0).all()
    assert betas[2] == pytest.approx(SETTINGS.first_beta)
    ratios = betas[3:] / betas[2:-1]
    np.testing.assert_allclose(ratios[:21], ratios[0], rtol=1e-4)
    np.testing.assert_allclose(betas[-3:], SETTINGS.beta0, rtol=1e-6)
    from_x = problem.replace(filled=jnp.bool_(False))  # noqa: FBT003
    np.testing.assert_allclose(sparsity_at(jnp.int32(0), from_x, SETTINGS), SETTINGS.beta0)
    constant = SETTINGS.replace(first_beta=SETTINGS.beta0)
    np.testing.assert_allclose(sparsity_at(jnp.int32(0), problem, constant), SETTINGS.beta0)
    none = problem.replace(sparsity=jnp.zeros_like(problem.sparsity))
    assert not sparsity_at(jnp.int32(19), none, SETTINGS).any()


@pytest.mark.parametrize("filled", [True, False])
def test_a_solve_keeps_what_a_loop_of_steps_shows(filled: bool) -> None:  # noqa: FBT001
    case = make_case("padim")
    case = case._replace(problem=case.problem.replace(filled=jnp.bool_(filled)))
    advance = jax.jit(partial(step, energy=case.energy, problem=case.problem, settings=SETTINGS))
    score = jax.jit(
        lambda n: case.energy.detector.local_scores(
            case.problem.local, tuple(m[0] for m in case.energy.extractor(n[None]))
        )
    )
    state = init(case.start, case.energy, case.problem, SETTINGS)
    ends, _ = levels_of(filled, SETTINGS)
    lasting, left = np.zeros(case.problem.region.shape, int), []
    for iteration in range(1, 25):
        before = state.normal
        state, _ = advance(state)
        lasting[np.linalg.norm(case.problem.image - state.normal, axis=-1) > 0] = iteration
        if iteration in ends.tolist():
            left.append(score(before))
    solution = jax.jit(solve)(case.start, case.energy, case.problem, SETTINGS)
    assert solution.message == "iteration limit"
    np.testing.assert_array_equal(solution.lasting, lasting)
    np.testing.assert_allclose(solution.left, np.stack(left), rtol=2e-4, atol=1e-5)

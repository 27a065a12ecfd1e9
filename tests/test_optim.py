"""Adan against a recorded trace, sharing against a dense loop, the other pieces by their definitions."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from f2pad_jax.core import Energy, PixelMixture, Problem, Scales, Settings, Status, init, step
from f2pad_jax.core.adan import adan_denominator, scale_by_adan
from f2pad_jax.core.pixels import project
from f2pad_jax.core.sharing import share, share_gradients, sharing_weights
from f2pad_jax.core.solver import optimiser

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# Gradients of one number over seven steps, and the directions that a scalar transcription of the authors'
# code (sail-sg/Adan, betas 0.98, 0.92, 0.99, eps 1e-8) gave in double precision.
GRADIENTS = (0.5, -1.25, 0.03, 2.0, -0.7, 0.0, 1e-4)
DIRECTIONS = (
    0.99999998,
    -0.594009944721619,
    -0.194234973293156,
    0.309354510110157,
    -0.0502227822127991,
    0.0118385912903476,
    0.011805439639116,
)


def directions(transformation: optax.GradientTransformation, gradients: object) -> np.ndarray:
    state = transformation.init(jnp.zeros_like(jnp.asarray(gradients)[0]))
    found = []
    for gradient in jnp.asarray(gradients):
        direction, state = transformation.update(gradient, state)
        found.append(np.asarray(direction))
    return np.stack(found)


def test_adan_follows_the_authors_trace() -> None:
    with jax.enable_x64(new_val=True):
        found = directions(scale_by_adan(), jnp.asarray(GRADIENTS))
        np.testing.assert_allclose(found, DIRECTIONS, rtol=1e-12)
    np.testing.assert_allclose(directions(scale_by_adan(), jnp.asarray(GRADIENTS)), DIRECTIONS, rtol=1e-4, atol=1e-6)


def test_adan_takes_other_betas_and_eps() -> None:
    b1, b2, b3, eps = 0.9, 0.5, 0.7, 0.3
    m = v = n = previous = 0.0
    wanted = []
    for t, g in enumerate(GRADIENTS, start=1):
        d = g - previous if t > 1 else 0.0
        m, v, n = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d, b3 * n + (1 - b3) * (g + b2 * d) ** 2
        wanted.append((m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps))
        previous = g
    np.testing.assert_allclose(directions(scale_by_adan(b1, b2, b3, eps), GRADIENTS), wanted, rtol=1e-5, atol=1e-6)


def test_adan_is_not_optaxs() -> None:
    theirs = directions(optax.scale_by_adan(eps_root=0.0), GRADIENTS)
    np.testing.assert_allclose(theirs[0], DIRECTIONS[0], rtol=1e-5)  # the same until a difference counts
    assert np.abs(theirs[1:5] - np.array(DIRECTIONS[1:5])).min() > 0.02


def test_a_fresh_state_restarts_the_bias_correction() -> None:
    adan: Any = scale_by_adan()
    state = adan.init(jnp.float32(0))
    for gradient in GRADIENTS:
        _, state = adan.update(jnp.float32(gradient), state)
    assert state.count == len(GRADIENTS)
    continued, _ = adan.update(jnp.float32(GRADIENTS[0]), state)
    restarted, fresh = adan.update(jnp.float32(GRADIENTS[0]), adan.init(jnp.float32(0)))
    assert fresh.count == 1
    np.testing.assert_allclose(restarted, 1, rtol=1e-5)
    assert abs(float(continued) - float(restarted)) > 0.1


def test_adan_under_vmap_with_lanes_of_different_age() -> None:
    adan: Any = scale_by_adan()
    rng = np.random.default_rng(0)
    gradients = {
        name: jnp.asarray(rng.standard_normal((3, 4, *shape)), jnp.float32) for name, shape in (("a", (2,)), ("b", ()))
    }
    states, singles = [], []
    for lane, steps in enumerate((0, 1, 3)):
        state = adan.init({"a": jnp.zeros(2), "b": jnp.zeros(())})
        for past in range(steps):
            _, state = adan.update(jax.tree.map(lambda g, i=lane, k=past: g[i, k], gradients), state)
        states.append(state)
        singles.append(adan.update(jax.tree.map(lambda g, i=lane: g[i, -1], gradients), state))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together = jax.vmap(adan.update)(jax.tree.map(lambda g: g[:, -1], gradients), stacked)
    np.testing.assert_array_equal(together[1].count, [1, 2, 4])
    for lane, single in enumerate(singles):
        jax.tree.map(lambda many, one, i=lane: np.testing.assert_allclose(many[i], one, rtol=1e-6), together, single)
    blank = jax.vmap(adan.init)(jax.tree.map(lambda g: g[:, 0], gradients))
    assert blank.count.shape == (3,)


def test_the_denominator_is_that_of_the_last_direction() -> None:
    adan: Any = scale_by_adan(eps=0.25)
    gradients = jnp.asarray(GRADIENTS)
    state = adan.init(jnp.float32(0))
    square = 0.0
    for t, gradient in enumerate(gradients, start=1):
        _, state = adan.update(gradient, state)
        difference = GRADIENTS[t - 1] - GRADIENTS[t - 2] if t > 1 else 0.0
        square = 0.99 * square + 0.01 * (GRADIENTS[t - 1] + 0.92 * difference) ** 2
        wanted = np.sqrt(square / (1 - 0.99**t)) + 0.25
        np.testing.assert_allclose(adan_denominator(state, eps=0.25), wanted, rtol=1e-5)


def dense_sharing(
    image: np.ndarray, gradient: np.ndarray, radius: int, sigma_space: float, sigma_colour: float
) -> tuple[np.ndarray, np.ndarray]:
    """Eqs. (13) and (14) by the letter, in double precision."""
    height, width = image.shape[:2]
    image, gradient = image.astype(float), gradient.astype(float)
    side = 2 * radius + 1
    weights, shared = np.zeros((height, width, side, side)), np.zeros(gradient.shape)
    for i, j in np.ndindex(height, width):
        for di, dj in np.ndindex(side, side):
            row, column = i + di - radius, j + dj - radius
            if 0 <= row < height and 0 <= column < width:
                space = np.exp(-((di - radius) ** 2 + (dj - radius) ** 2) / sigma_space)
                colour = np.exp(-np.sum((image[row, column] - image[i, j]) ** 2) / sigma_colour)
                weights[i, j, di, dj] = space * colour
        weights[i, j] /= weights[i, j].sum()
        for di, dj in np.ndindex(side, side):
            row, column = i + di - radius, j + dj - radius
            if 0 <= row < height and 0 <= column < width:
                shared[i, j] += weights[i, j, di, dj] * gradient[row, column]
    return weights.reshape(height, width, -1).swapaxes(1, 2), shared


@pytest.mark.parametrize(
    ("shape", "radius", "sigmas"),
    [((8, 11), 5, (1.1, 3.0)), ((9, 7), 2, (6.0, 0.5)), ((24, 6), 1, (2.0, 1.0))],
)
def test_sharing_is_the_dense_loop(shape: tuple[int, int], radius: int, sigmas: tuple[float, float]) -> None:
    rng = np.random.default_rng(radius)
    image, gradient = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    weights = sharing_weights(jnp.asarray(image), radius=radius, sigma_space=sigmas[0], sigma_colour=sigmas[1])
    wanted_weights, wanted = dense_sharing(image, gradient, radius, *sigmas)
    kept = [(i + radius) * (2 * radius + 1) + j + radius for i, j in weights.offsets]
    np.testing.assert_allclose(weights.weights, wanted_weights[:, kept], rtol=2e-5, atol=1e-7)
    # What is left out is smaller than what float32 resolves.
    assert np.delete(wanted_weights, kept, axis=1).sum(axis=1).max(initial=0.0) < 3e-7
    np.testing.assert_allclose(share(jnp.asarray(gradient), weights), wanted, rtol=1e-5, atol=1e-6)


def test_the_papers_neighbourhood_is_the_default() -> None:
    image = jnp.asarray(np.random.default_rng(0).standard_normal((6, 7, 3)), jnp.float32)
    wanted = sharing_weights(image, radius=5, sigma_space=1.1, sigma_colour=3.0)
    np.testing.assert_array_equal(sharing_weights(image).weights, wanted.weights)
    assert wanted.weights.shape == (6, 57, 7)
    assert max(max(abs(i), abs(j)) for i, j in wanted.offsets) == 4


def test_a_neighbourhood_of_one_pixel_shares_nothing() -> None:
    image, gradient = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 3)), jnp.float32)
    weights = sharing_weights(image, radius=0)
    np.testing.assert_array_equal(weights.weights, 1)
    np.testing.assert_array_equal(share(gradient, weights), gradient)


def test_sharing_is_an_average() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((9, 10, 3)).astype(np.float32)
    weights = sharing_weights(jnp.asarray(image))
    assert np.asarray(weights.weights).min() >= 0
    np.testing.assert_allclose(np.sum(weights.weights, axis=1), 1, rtol=1e-6)
    constant = jnp.broadcast_to(jnp.asarray([1.0, -2.0, 0.5]), image.shape)
    np.testing.assert_allclose(share(constant, weights), constant, rtol=1e-5)
    first, second = jnp.asarray(rng.standard_normal((2, 9, 10, 3)), jnp.float32)
    np.testing.assert_allclose(
        share(2 * first - 3 * second, weights),
        2 * share(first, weights) - 3 * share(second, weights),
        atol=1e-5,
    )


def test_sharing_stays_on_one_side_of_a_strong_edge() -> None:
    image = jnp.zeros((8, 8, 3)).at[:, 4:].set(10.0)
    gradient = jnp.zeros((8, 8, 3)).at[:, 4:].set(1.0)
    np.testing.assert_allclose(share(gradient, sharing_weights(image)), gradient, atol=1e-6)


def test_sharing_as_a_transformation() -> None:
    rng = np.random.default_rng(1)
    image, gradient = jnp.asarray(rng.standard_normal((2, 6, 6, 3)), jnp.float32)
    weights = sharing_weights(image)
    alone = share_gradients(weights)
    shared, _ = alone.update(gradient, alone.init(gradient))
    np.testing.assert_array_equal(shared, share(gradient, weights))
    problem = toy(image).problem.replace(sharing=weights)
    for settings, wanted in (
        (Settings(clip=0.1, share_gradient=True), np.clip(np.asarray(shared), -0.1, 0.1)),
        (Settings(clip=0.1), np.clip(np.asarray(gradient), -0.1, 0.1)),
    ):
        np.testing.assert_array_equal(what_adan_sees(gradient, problem, settings), wanted)


def what_adan_sees(gradient: jax.Array, problem: Problem, settings: Settings) -> jax.Array:
    """The gradient as it is when the optimiser's last part gets it."""
    chain = optimiser(problem, settings)
    moments: Any = chain.update(gradient, chain.init(gradient))[1]
    return moments[-1].previous


def test_clipping_takes_a_traced_limit() -> None:
    gradient = jnp.asarray([-2.0, -0.01, 0.0, 0.02, 5.0])[:, None, None] * jnp.ones((5, 1, 3))
    clipped: Any = jax.jit(lambda settings: what_adan_sees(gradient, toy(gradient).problem, settings))
    for limit in (0.03, 1.0):
        np.testing.assert_array_equal(clipped(Settings(clip=limit)), np.clip(gradient, -limit, limit))
    assert clipped._cache_size() == 1


# What a step does around Adan, with an F that the test makes


@struct.dataclass
class Pixels:
    """In place of a network: one map, the picture itself."""

    strides: ClassVar[tuple[int, ...]] = (1,)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        return (images,)


@struct.dataclass
class Linear:
    """In place of a detector: F is `local[0]`, and its gradient `local[1]` everywhere."""

    level = 0

    def local_scores(self, local: Any, maps: tuple[jax.Array, ...]) -> jax.Array:
        ramp = local[1] * jnp.sum(maps[0])
        return jnp.reshape(local[0] + ramp - jax.lax.stop_gradient(ramp), 1)


class Toy(NamedTuple):
    energy: Energy
    problem: Problem


def toy(image: jax.Array, value: float = 0.0, slope: float = 0.0) -> Toy:
    one, whole = jnp.float32(1), jnp.ones(image.shape[:2])
    problem = Problem(
        image=image,
        region=whole > 0,
        sparsity=whole,
        local=(jnp.float32(value), jnp.float32(slope)),
        present=jnp.ones(1),
        scales=Scales(score=one, pixel=one, variation=one),
        filled=jnp.asarray(True),  # noqa: FBT003
        sharing=None,
    )
    mixture = PixelMixture(jnp.zeros((1, 3)), jnp.eye(3)[None])
    return Toy(Energy(extractor=Pixels(), detector=Linear(), mixture=mixture), problem)


def test_the_adaptive_step_is_equation_15_with_a_floor() -> None:
    """Adan's first direction is g/(|g| + ε): what n moves by, divided by that, is the step size."""
    anomaly = jnp.asarray([-2.0, -0.5, -0.01, 0.0, 0.1, 4.0])
    wanted = [0.05, 0.2, 1.0, 1.0, 1.0, 0.025]
    # All colours are valid before and after.
    image = jnp.stack([jnp.where(anomaly > 1, 2.2, anomaly / 2)] * 3, axis=-1)[None]
    normal = image - anomaly[:, None]
    energy, problem = toy(image, slope=-0.2)
    settings = Settings(
        alpha1=0.0, alpha2=0.0, beta0=0.0, rate=0.1, rise=1.0, damping=0.6, proximal=False, adaptive=True
    )
    state, _ = step(init(normal, energy, problem, settings), energy, problem, settings)
    size = (normal - state.normal) / (-0.2 / (0.2 + 0.6))
    np.testing.assert_allclose(size, np.broadcast_to(np.array(wanted)[:, None], size.shape), rtol=1e-4)


def test_projection() -> None:
    rng = np.random.default_rng(0)
    normal = (10 * rng.standard_normal((6, 7, 3))).astype(np.float32)
    image = rng.standard_normal((6, 7, 3)).astype(np.float32)
    region = rng.random((6, 7)) < 0.5
    found = np.asarray(project(jnp.asarray(normal), jnp.asarray(image), jnp.asarray(region)))
    np.testing.assert_array_equal(found[~region], image[~region])
    colours = found[region] * STD + MEAN
    assert colours.min() > -1e-6
    assert colours.max() < 1 + 1e-6
    np.testing.assert_allclose(colours, np.clip(normal[region] * STD + MEAN, 0, 1), atol=1e-6)
    everywhere, far = jnp.ones((1, 2), bool), jnp.asarray([[[-1e9] * 3, [1e9] * 3]], jnp.float32)
    ends = np.asarray(project(far, jnp.zeros((1, 2, 3)), everywhere)[0])
    np.testing.assert_allclose(ends * STD + MEAN, [[0] * 3, [1] * 3], atol=1e-6)


def test_the_stop_rule_counts_iterations_without_progress() -> None:
    """Of an F that is given: below the best by more than the tolerance is progress, else there is none."""
    losses = [10.0, 8.0, 7.95, 7.85, 9.0, np.nan, 7.7, 7.7]
    energy, problem = toy(jnp.zeros((1, 1, 3)))
    settings = Settings(alpha1=0.0, alpha2=0.0, beta0=0.0, tolerance=0.1, patience=100)
    advance, state, stale = jax.jit(step), init(jnp.zeros((1, 1, 3)), energy, problem, settings), []
    best, wanted = np.inf, []
    for loss in losses:
        now = problem.replace(local=(jnp.float32(loss), problem.local[1]))
        state, info = advance(state, energy, now, settings)
        np.testing.assert_allclose(info.loss, loss)
        assert int(state.status) == (Status.NON_FINITE if np.isnan(loss) else Status.RUNNING)
        stale.append(int(state.stale))
        better = loss < best - 0.1
        best = loss if better else best
        wanted.append(0 if better else wanted[-1] + 1)
    assert stale == wanted == [0, 0, 1, 0, 1, 2, 0, 1]
    np.testing.assert_allclose(state.best, 7.7)

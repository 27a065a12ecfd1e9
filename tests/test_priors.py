"""Pixel terms of F(n) and the penalties against NumPy, SciPy and brute force."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.distance import cdist

from f2pad_jax.core import PixelMixture, priors
from f2pad_jax.core.penalty import L0, L1, LOG, Penalty, log_penalty, pixel_norm, shrink
from f2pad_jax.fitting import fit_pixel_mixture

EPSILON = 1e-4
VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": lambda t: np.log(np.sqrt(t**2 + EPSILON) + t),
    "l1": lambda t: t,
    "l0": lambda t: (t > 0).astype(float),
}
PENALTIES = {"log": LOG, "l1": L1, "l0": L0}


@partial(jax.jit, static_argnames="penalty")
def prox(
    anomaly: jax.Array, weight: jax.Array, length: jax.Array | None = None, *, penalty: Penalty = LOG
) -> jax.Array:
    """`shrink`, with one weight for all where there is only one, and every pixel's own length by default."""
    length = pixel_norm(anomaly) if length is None else length
    return shrink(penalty, anomaly, jnp.broadcast_to(weight, length.shape), length)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_mixture(rng: np.random.Generator, components: int = 5) -> PixelMixture:
    factor = rng.standard_normal((components, 3, 3))
    covariance = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(3)
    return PixelMixture(jnp.asarray(rng.standard_normal((components, 3))), jnp.asarray(np.linalg.inv(covariance)))


def test_the_mixture_distance_is_scipys(rng: np.random.Generator) -> None:
    mixture = random_mixture(rng)
    image = rng.standard_normal((7, 9, 3)).astype(np.float32)
    means, precisions = (np.asarray(leaf, float) for leaf in (mixture.mean, mixture.precision))
    columns = [
        cdist(image.reshape(-1, 3).astype(float), mean[None], "mahalanobis", VI=precision)[:, 0] ** 2
        for mean, precision in zip(means, precisions, strict=True)
    ]
    nearest = np.min(columns, axis=0)
    distances = priors.pixel_mixture_distances(jnp.asarray(image), mixture)
    np.testing.assert_allclose(distances, nearest.reshape(7, 9), rtol=2e-5)
    np.testing.assert_allclose(priors.pixel_prior(jnp.asarray(image), mixture), nearest.sum(), rtol=1e-5)
    assert len(set(np.argmin(columns, axis=0))) == 5  # every Gaussian is somewhere the nearest


def test_em_finds_two_colours_and_ignores_their_weights(rng: np.random.Generator) -> None:
    spread = np.diag([0.3, 0.1, 0.2])
    rare, common = np.array([-1.0, 0.5, 2.0]), np.array([1.0, 1.5, -1.0])
    pixels = np.concatenate(
        [rare + rng.standard_normal((600, 3)) @ spread, common + rng.standard_normal((5800, 3)) @ spread]
    )
    images = rng.permutation(pixels).reshape(4, 40, 40, 3).astype(np.float32)
    mixture = fit_pixel_mixture(images, components=2)
    order = np.argsort(mixture.mean[:, 0])
    np.testing.assert_allclose(mixture.mean[order], [rare, common], atol=0.05)
    wanted = np.linalg.inv(np.cov(pixels[:600].T)), np.linalg.inv(np.cov(pixels[600:].T))
    np.testing.assert_allclose(mixture.precision[order], wanted, rtol=0.2, atol=3.0)
    at_means = priors.pixel_mixture_distances(jnp.asarray([[rare, common]]), mixture)
    np.testing.assert_allclose(at_means, 0, atol=0.1)


def test_em_is_repeatable_and_takes_grey_pictures(rng: np.random.Generator) -> None:
    grey = np.repeat(rng.standard_normal((2, 16, 16, 1)), 3, axis=-1).astype(np.float32)
    first, second = (fit_pixel_mixture(grey, components=3, seed=5) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == jnp.float32
        assert np.isfinite(one).all()
    assert np.linalg.eigvalsh(np.asarray(first.precision, float)).min() > 0


def test_total_variation_is_numpys(rng: np.random.Generator) -> None:
    image = rng.standard_normal((6, 8, 3)).astype(np.float32)
    wanted = sum(np.abs(np.diff(image.astype(float), axis=axis)).sum() for axis in (0, 1))
    np.testing.assert_allclose(priors.total_variation(jnp.asarray(image)), wanted, rtol=1e-6)
    assert priors.total_variation(jnp.ones((4, 5, 3))) == 0


def test_the_log_penalty_is_equation_8(rng: np.random.Generator) -> None:
    anomaly = rng.standard_normal((5, 4, 3))
    anomaly[0] = 0
    norm = np.linalg.norm(anomaly, axis=-1)
    wanted = np.log(np.sqrt(norm**2 + EPSILON) + norm).sum()
    np.testing.assert_allclose(log_penalty(jnp.asarray(anomaly, jnp.float32)), wanted, rtol=1e-5)


def test_the_slope_of_the_log_penalty(rng: np.random.Generator) -> None:
    norms = np.array([0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0])
    towards = rng.standard_normal((len(norms), 3))
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    slope = jax.grad(log_penalty)(jnp.asarray(norms[:, None] * towards, jnp.float32)[None])[0]
    wanted = towards / np.sqrt(norms**2 + EPSILON)[:, None]
    np.testing.assert_allclose(slope[1:], wanted[1:], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(slope[0], 0)
    np.testing.assert_allclose(np.linalg.norm(slope[1]), 100, rtol=1e-3)


@pytest.mark.parametrize("term", ["pixel_prior", "total_variation", "log_penalty"])
def test_gradients(term: str, rng: np.random.Generator) -> None:
    with jax.enable_x64(new_val=True):
        mixture = random_mixture(rng)
        terms: dict[str, Callable[[jax.Array], jax.Array]] = {
            "pixel_prior": lambda image: priors.pixel_prior(image, mixture),
            "total_variation": priors.total_variation,
            "log_penalty": log_penalty,
        }
        image = jnp.asarray(rng.standard_normal((4, 5, 3)))
        check_grads(
            lambda x: terms[term](jnp.asarray(x)), (image,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-6
        )


def cheapest(length: float, weight: float, value: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """argmin and min in [0, length] of ½(t − length)² + weight · φ(t), by ever finer grids."""

    def cost(t: np.ndarray) -> np.ndarray:
        return 0.5 * (t - length) ** 2 + weight * value(t)

    grid = np.concatenate([np.linspace(0, length, 20_001), length * np.geomspace(1e-8, 1, 2_000)])
    width = length / 20_000
    best = grid[np.argmin(cost(grid))]
    for _ in range(5):
        grid = np.append(np.clip(np.linspace(best - 2 * width, best + 2 * width, 401), 0, length), 0.0)
        best, width = grid[np.argmin(cost(grid))], width / 50
    return float(best), float(cost(np.array(best)))


@pytest.mark.parametrize("weight", [1e-6, 1e-4, 2e-4, 2.6e-4, 3e-4, 4e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_prox_is_the_global_minimum(name: str, weight: float) -> None:
    # From small to large anomalies, dense where zero stops to be the best and where roots meet.
    value = VALUES[name]
    middle = {
        "log": 100 * weight * np.linspace(0.8, 1.3, 25),
        "l1": weight * np.linspace(0.8, 1.3, 25),
        "l0": np.sqrt(2 * weight) * np.linspace(0.801, 1.3, 25),
    }
    lengths = np.concatenate(
        [
            np.geomspace(1e-3, 8, 30),
            middle[name],
            2 * np.sqrt(weight) * np.linspace(0.7, 2.5, 40),
        ]
    ).astype(np.float32)
    weight = float(np.float32(weight))
    brute = np.array([cheapest(float(length), weight, value) for length in lengths])
    towards = np.array([2.0, -1.0, 2.0]) / 3
    anomaly = (lengths[:, None] * towards).astype(np.float32)
    shrunk = np.asarray(prox(jnp.asarray(anomaly)[None], jnp.float32(weight), penalty=PENALTIES[name]), float)[0]
    kept = shrunk @ towards
    np.testing.assert_allclose(shrunk, kept[:, None] * towards, atol=1e-6)  # parallel to a
    cost = 0.5 * (kept - lengths) ** 2 + weight * value(kept)
    assert (cost - brute[:, 1] <= 1e-9 + 1e-6 * np.abs(brute[:, 1])).all()
    # Where the cost has two equal minima or is flat, the place may differ although the cost does not.
    places = np.isclose(kept, brute[:, 0], atol=3e-4, rtol=1e-5)
    assert places.mean() > 0.98
    assert (kept[brute[:, 0] == 0] == 0).mean() > 0.95
    assert (kept == 0).any() or weight < 1e-5
    assert (kept > 0).any()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penaltys_value_and_slope(name: str) -> None:
    lengths = np.concatenate([[0.0], np.geomspace(1e-4, 10, 30)])
    value, slope = jax.vmap(jax.value_and_grad(PENALTIES[name].value))(jnp.asarray(lengths, jnp.float32))
    np.testing.assert_allclose(value, VALUES[name](lengths), rtol=1e-5, atol=1e-6)
    wanted = {"log": 1 / np.sqrt(lengths**2 + EPSILON), "l1": np.ones(31), "l0": np.zeros(31)}[name]
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)


def test_the_prox_gives_exact_zeros_and_keeps_large_anomalies() -> None:
    anomaly = jnp.asarray([[[0, 0, 0], [0.3, 0.2, -0.1], [3.0, -2.0, 1.0]]], jnp.float32)
    shrunk = np.asarray(prox(anomaly, jnp.float32(0.3)))
    np.testing.assert_array_equal(shrunk[0, :2], 0)
    length = float(np.linalg.norm(anomaly[0, 2]))
    np.testing.assert_allclose(np.linalg.norm(shrunk[0, 2]), (length + np.sqrt(length**2 - 1.2)) / 2, rtol=1e-4)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_prox_of_no_weight_is_the_identity(name: str, rng: np.random.Generator) -> None:
    anomaly = (rng.standard_normal((8, 8, 3)) * np.geomspace(1e-6, 10, 8)[:, None, None]).astype(np.float32)
    anomaly[3, 3] = 0
    shrunk = prox(jnp.asarray(anomaly), jnp.float32(0), penalty=PENALTIES[name])
    np.testing.assert_allclose(shrunk, anomaly, rtol=5e-7)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_prox_takes_one_weight_per_pixel(name: str, rng: np.random.Generator) -> None:
    anomaly = jnp.asarray(rng.standard_normal((3, 4, 3)), jnp.float32)
    weight = jnp.asarray(rng.uniform(0, 0.5, (3, 4)), jnp.float32)
    together = prox(anomaly, weight, penalty=PENALTIES[name])
    for i, j in np.ndindex(3, 4):
        alone = prox(anomaly[i : i + 1, j : j + 1], weight[i, j], penalty=PENALTIES[name])
        np.testing.assert_allclose(together[i, j], alone[0, 0], rtol=1e-6)


def test_a_shared_length_lets_pixels_stay_or_vanish_together(rng: np.random.Generator) -> None:
    anomaly = rng.standard_normal((2, 8, 3)).astype(np.float32) * np.geomspace(0.01, 3, 8)[:, None].astype(np.float32)
    length = np.stack([np.full(8, 0.4), np.full(8, 2.0)]).astype(np.float32)
    shrunk = prox(jnp.asarray(anomaly), jnp.float32(0.3), jnp.asarray(length))
    np.testing.assert_array_equal(shrunk[0], 0)
    factor = (2 + np.sqrt(2**2 - 1.2)) / 4  # of a length of 2, whose root lies far from ε
    np.testing.assert_allclose(shrunk[1], factor * anomaly[1], rtol=1e-4)

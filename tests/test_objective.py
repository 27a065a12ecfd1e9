"""F(n) on real Lite0 features: terms against NumPy, gradients against differences in double precision."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f2pad_jax.core import Energy, PixelMixture, Problem, Scales, Settings, objective, penalties, sharing_weights, terms
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS
from f2pad_jax.fitting import fit_pixel_mixture
from f2pad_jax.networks.extractor import Extractor

SIDE = 64
SETTINGS = Settings(alpha1=0.9, alpha2=0.4, beta0=2.5)
compute_terms = jax.jit(terms)


class Case(NamedTuple):
    energy: Energy
    problem: Problem
    normal: jax.Array


class Textures(NamedTuple):
    training: np.ndarray
    maps: tuple[np.ndarray, ...]
    mixture: PixelMixture
    image: jax.Array


@pytest.fixture(scope="module")
def textures(lite0: Extractor) -> Textures:
    normals, tests = texture_category("gravel", train=12, test=1, size=SIDE)
    training = normalize(normals)
    maps = tuple(np.asarray(m) for m in jax.jit(lite0.apply)(lite0.params, training))
    return Textures(training, maps, fit_pixel_mixture(training, components=4), jnp.asarray(normalize(tests[0][0])))


@pytest.fixture(scope="module", params=DETECTORS)
def case(request: pytest.FixtureRequest, textures: Textures, lite0: Extractor) -> Case:
    options = {"epochs": 1, "blocks": 2} if request.param == "cflow" else {}
    detector = DETECTORS[request.param].fit(textures.maps, seed=0, **options)
    # Of the positions one in two, and some padding that must not count.
    grid = SIDE // lite0.strides[detector.level]
    positions = jnp.asarray([*range(0, grid * grid, 2), 0, 0, 0], jnp.int32)
    own = tuple(jnp.asarray(m[0]) for m in textures.maps)
    rng = np.random.default_rng(0)
    problem = Problem(
        image=textures.image,
        region=jnp.ones((SIDE, SIDE), bool),
        sparsity=jnp.asarray(rng.uniform(0, 2, (SIDE, SIDE)), jnp.float32),
        local=detector.localize(own, positions),
        present=jnp.ones(len(positions)).at[-3:].set(0),
        scales=Scales(score=jnp.float32(7.0), pixel=jnp.float32(3.0), variation=jnp.float32(0.5)),
        filled=jnp.asarray(False),  # noqa: FBT003
        sharing=sharing_weights(textures.image),
    )
    normal = textures.image + 0.1 * jnp.asarray(rng.standard_normal(textures.image.shape), jnp.float32)
    return Case(Energy(extractor=lite0, detector=detector, mixture=textures.mixture), problem, normal)


def test_terms_are_those_of_numpy(case: Case, lite0: Extractor) -> None:
    problem, detector = case.problem, case.energy.detector
    found = compute_terms(case.normal, case.energy, problem, SETTINGS)
    maps = tuple(m[0] for m in jax.jit(lite0.apply)(lite0.params, case.normal[None]))
    scores = detector.local_scores(problem.local, maps)
    pixels = {"padim": 8 * 8, "patchcore": 8 * 8, "cflow": 4 * 4}[detector.name]
    normal, image = np.asarray(case.normal, float), np.asarray(problem.image, float)
    mean, precision = (np.asarray(leaf, float) for leaf in (case.energy.mixture.mean, case.energy.mixture.precision))
    delta = normal[:, :, None] - mean
    norm = np.linalg.norm(image - normal, axis=-1)
    weight = 2.5 * np.asarray(problem.sparsity, float)
    wanted = {
        "feature": np.asarray(scores[:-3], float).sum() * pixels / 7.0,
        "pixel": 0.9 / 3.0 * np.einsum("hwqi,qij,hwqj->hwq", delta, precision, delta).min(axis=-1).sum(),
        "variation": 0.4 / 0.5 * sum(np.abs(np.diff(normal, axis=axis)).sum() for axis in (0, 1)),
        "sparsity": np.sum(weight * np.log(np.sqrt(norm**2 + 1e-4) + norm)),
    }
    assert found._fields == tuple(wanted)
    for one, other in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    total = jax.jit(objective)(case.normal, case.energy, problem, SETTINGS)
    np.testing.assert_allclose(total, sum(wanted.values()), rtol=1e-4)


def test_gradients_of_every_term_and_of_the_whole(case: Case) -> None:
    """Central differences along the gradient and along a random direction, through the whole network."""
    total, single = jax.jit(jax.value_and_grad(objective))(case.normal, case.energy, case.problem, SETTINGS)
    assert single.dtype == jnp.float32
    with jax.enable_x64(new_val=True):

        def double(tree):
            return jax.tree.map(
                lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
            )

        energy, problem, normal = double(case.energy), double(case.problem), double(case.normal)
        rng = np.random.default_rng(1)

        @jax.jit
        def pulled(normal: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The terms, and the gradient of their weighted sum."""
            values, pull = jax.vjp(lambda n: jnp.stack(terms(n, energy, problem, SETTINGS)), normal)
            return values, pull(weight)[0]

        for weight in (*jnp.eye(4), jnp.ones(4)):
            values, gradient = pulled(normal, weight)
            assert gradient.dtype == jnp.float64
            for direction in (gradient, rng.standard_normal(normal.shape)):
                towards = jnp.asarray(direction / jnp.linalg.norm(direction))
                step = 1e-6
                above, below = (pulled(normal + s * step * towards, weight)[0] @ weight for s in (1, -1))
                np.testing.assert_allclose(
                    (above - below) / (2 * step), jnp.sum(gradient * towards), rtol=1e-4, atol=1e-4
                )
        # The last were those of F itself.
        np.testing.assert_allclose(total, values.sum(), rtol=1e-4)
        np.testing.assert_allclose(single, gradient, atol=1e-3 * float(jnp.abs(gradient).max()))


def test_terms_without_weight_cost_nothing(case: Case) -> None:
    """With all weights zero only l_n is left; with a = 0 the sparsity is that of no anomaly."""
    image, problem = case.problem.image, case.problem
    found = compute_terms(image, case.energy, problem, SETTINGS.replace(alpha1=0.0, alpha2=0.0, beta0=0.0))
    assert [float(v) for v in found[1:]] == [0, 0, 0]
    assert found.feature > 0
    at_rest = compute_terms(image, case.energy, problem, SETTINGS)
    np.testing.assert_allclose(at_rest.sparsity, 2.5 * problem.sparsity.sum() * np.log(0.01), rtol=1e-5)
    for penalty in (penalties.L1, penalties.L0):
        other = jax.jit(terms)(image, case.energy.replace(penalty=penalty), problem, SETTINGS)
        assert other.sparsity == 0
        assert other.feature == at_rest.feature

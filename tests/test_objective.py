"""F(n) on real Lite0 features: terms against NumPy, gradients against differences in double precision."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS, Detector, get_detector
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Coefficients, FeatureLoss, Problem, Scales, objective, terms
from f2pad_jax.optim import sharing_weights
from f2pad_jax.priors import PixelMixture, fit_pixel_mixture

SIDE = 64
compute_terms = jax.jit(terms, static_argnames="detector")


class Case(NamedTuple):
    detector: Detector
    params: dict[str, jax.Array]
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
    detector = get_detector(request.param)
    params = detector.fit(textures.maps, seed=0, **({"epochs": 1, "blocks": 2} if detector.name == "cflow" else {}))
    # Of the positions one in two, and some padding that must not count.
    grid = SIDE // lite0.strides[detector.level]
    positions = jnp.asarray([*range(0, grid * grid, 2), 0, 0, 0], jnp.int32)
    present = jnp.ones(len(positions)).at[-3:].set(0)
    own = tuple(jnp.asarray(m[0]) for m in textures.maps)
    problem = Problem(
        image=textures.image,
        region=jnp.ones((SIDE, SIDE), bool),
        sharing=sharing_weights(textures.image),
        feature=FeatureLoss(positions, present, detector.localize(params, own, positions)),
        mixture=textures.mixture,
        scales=Scales(jnp.float32(7.0), jnp.float32(3.0), jnp.float32(0.5)),
        coefficients=Coefficients(jnp.float32(0.9), jnp.float32(0.4), jnp.float32(2.5)),
    )
    rng = np.random.default_rng(0)
    normal = textures.image + 0.1 * jnp.asarray(rng.standard_normal(textures.image.shape), jnp.float32)
    return Case(detector, params, problem, normal)


def test_terms_are_those_of_numpy(case: Case, lite0: Extractor) -> None:
    problem = case.problem
    found = compute_terms(case.normal, problem, extractor=lite0, detector=case.detector)
    maps = tuple(m[0] for m in jax.jit(lite0.apply)(lite0.params, case.normal[None]))
    scores = case.detector.local_scores(problem.feature.local, maps, problem.feature.positions)
    pixels = {"padim": 4 * 4, "patchcore": 8 * 8, "cflow": 4 * 4}[case.detector.name]
    normal, image = np.asarray(case.normal, float), np.asarray(problem.image, float)
    mean, precision = (np.asarray(leaf, float) for leaf in problem.mixture)
    delta = normal[:, :, None] - mean
    norm = np.linalg.norm(image - normal, axis=-1)
    wanted = {
        "feature": np.asarray(scores[:-3], float).sum() * pixels / 7.0,
        "pixel": 0.9 / 3.0 * np.einsum("hwqi,qij,hwqj->hwq", delta, precision, delta).min(axis=-1).sum(),
        "variation": 0.4 / 0.5 * sum(np.abs(np.diff(normal, axis=axis)).sum() for axis in (0, 1)),
        "sparsity": 2.5 * np.log(np.sqrt(norm**2 + 1e-4) + norm).sum(),
    }
    assert found._fields == tuple(wanted)
    for one, other in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_gradients_of_every_term_and_of_the_whole(case: Case, lite0: Extractor) -> None:
    """Central differences along the gradient and along a random direction, through the whole network."""
    compute = jax.jit(jax.value_and_grad(partial(objective, detector=case.detector)))
    total, single = compute(case.normal, case.problem, extractor=lite0)
    assert single.dtype == jnp.float32
    with jax.enable_x64(new_val=True):

        def double(tree):
            return jax.tree.map(
                lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
            )

        extractor = replace(lite0, params=double(lite0.params))
        problem, normal = double(case.problem), double(case.normal)
        rng = np.random.default_rng(1)

        @jax.jit
        def pulled(normal: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The terms, and the gradient of their weighted sum."""
            values, pull = jax.vjp(
                lambda n: jnp.stack(terms(n, problem, extractor=extractor, detector=case.detector)), normal
            )
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


def test_terms_without_weight_cost_nothing(case: Case, lite0: Extractor) -> None:
    """With all coefficients zero only l_n is left; with a = 0 the sparsity is that of no anomaly."""
    problem = case.problem._replace(coefficients=Coefficients(*jnp.zeros(3)))
    found = compute_terms(case.problem.image, problem, extractor=lite0, detector=case.detector)
    assert [float(v) for v in found[1:]] == [0, 0, 0]
    assert found.feature > 0
    at_rest = compute_terms(case.problem.image, case.problem, extractor=lite0, detector=case.detector)
    np.testing.assert_allclose(at_rest.sparsity, 2.5 * SIDE**2 * np.log(0.01), rtol=1e-5)

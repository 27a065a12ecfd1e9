"""What holds for every extractor, every detector and every pair of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import f2pad_jax
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS, Detector, get_detector
from f2pad_jax.networks import efficientnet, resnet
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.weights.registry import registry

SIDE, COUNT = 64, 6
EXTRACTORS = ("efficientnet_lite0", "resnet18")
OPTIONS: dict[str, dict[str, Any]] = {"cflow": {"epochs": 3, "blocks": 3}}  # that make fits quick
Maps = tuple[np.ndarray, ...]


@pytest.fixture(scope="module", params=EXTRACTORS)
def extractor(request: pytest.FixtureRequest, lite0: Extractor) -> Extractor:
    if request.param == "efficientnet_lite0":
        return lite0
    rng = np.random.default_rng(0)

    def weights(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(spread * rng.standard_normal(leaf.shape), leaf.dtype)

    params = jax.tree.map(weights, resnet.shapes(resnet.RESNET18))
    return Extractor(params, "resnet18", resnet.apply, resnet.RESNET18, "")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return normalize(texture_category("brick", train=COUNT, test=0, size=SIDE)[0])


@pytest.fixture(scope="module")
def maps(extractor: Extractor, images: np.ndarray) -> Maps:
    return tuple(np.asarray(m) for m in jax.jit(extractor.apply)(extractor.params, images))


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return get_detector(request.param)


@pytest.fixture(scope="module")
def params(detector: Detector, maps: Maps) -> dict[str, jax.Array]:
    return detector.fit(tuple(m[:-2] for m in maps), seed=0, **OPTIONS.get(detector.name, {}))


def one(maps: Maps, index: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(m[index]) for m in maps)


def functions(
    detector: Detector, params: dict[str, jax.Array], maps: Maps
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each function of a detector as one of the maps, with the arguments before them."""
    positions = jnp.asarray([3, 0, 9, 3], jnp.int32)
    local = detector.localize(params, one(maps, 0), positions)
    return {
        "score": (detector.score, (params,)),
        "summands": (detector.summands, (params,)),
        "localize": (lambda p, m: detector.localize(p, m, positions), (params,)),
        "local_scores": (lambda p, m: detector.local_scores(p, m, positions), (local,)),
    }


def assert_trees_close(found: Any, wanted: Any, *, tolerance: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one_leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one_leaf.shape, one_leaf.dtype) == (other.shape, other.dtype)
        scale = float(np.abs(np.asarray(other)).max())
        np.testing.assert_allclose(one_leaf, other, rtol=tolerance, atol=tolerance * scale)


# Extractors


def test_the_registry_knows_these_extractors() -> None:
    extractors = {name for name, known in registry().items() if known.kind == "extractor"}
    assert extractors == efficientnet.FAMILY.keys() | resnet.FAMILY.keys() > set(EXTRACTORS)


def test_an_extractors_maps_have_the_promised_shapes(extractor: Extractor, maps: Maps) -> None:
    shapes = [(COUNT, SIDE // s, SIDE // s, c) for s, c in zip(extractor.strides, extractor.channels, strict=True)]
    assert [m.shape for m in maps] == shapes
    assert {m.dtype for m in maps} == {np.dtype(np.float32)}
    assert list(extractor.strides) == sorted(extractor.strides)
    batch = jax.ShapeDtypeStruct((5, 2 * SIDE, 3 * SIDE, 3), jnp.float32)
    traced = jax.eval_shape(extractor.apply, extractor.params, batch)
    assert [m.shape[:3] for m in traced] == [(5, 2 * SIDE // s, 3 * SIDE // s) for s in extractor.strides]


def test_an_extractor_is_the_same_without_jit_and_image_by_image(
    extractor: Extractor, images: np.ndarray, maps: Maps
) -> None:
    eager = extractor(jnp.asarray(images[:1]))
    assert_trees_close(eager, one(tuple(m[None, :1] for m in maps), 0), tolerance=1e-5)


def test_an_extractor_is_a_tree_of_its_parameters_alone(extractor: Extractor) -> None:
    leaves = jax.tree.leaves(extractor)
    assert len(leaves) == len(jax.tree.leaves(extractor.params))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    doubled = jax.tree.map(lambda p: 2 * p, extractor)
    assert (doubled.name, doubled.spec) == (extractor.name, extractor.spec)
    assert jax.tree.structure(doubled) == jax.tree.structure(extractor)


# Pairs


def test_fit_returns_finite_arrays_of_single_precision(params: dict[str, jax.Array]) -> None:
    for name, array in jax.tree.leaves_with_path(params):
        assert isinstance(array, jax.Array), name
        assert array.dtype in (jnp.float32, jnp.int32), name
        assert np.isfinite(array).all(), name


def test_fit_is_repeatable(detector: Detector, params: dict[str, jax.Array], maps: Maps) -> None:
    again = detector.fit(tuple(m[:-2] for m in maps), seed=0, **OPTIONS.get(detector.name, {}))
    assert_trees_close(again, params, tolerance=0)


def test_scores_have_the_shape_of_the_detectors_grid(
    extractor: Extractor, detector: Detector, params: dict[str, jax.Array], maps: Maps
) -> None:
    side = SIDE // extractor.strides[detector.level]
    for function in (detector.score, detector.summands):
        unseen, seen = (function(params, one(maps, index)) for index in (COUNT - 1, 0))
        assert unseen.shape == (side, side)
        assert unseen.dtype == jnp.float32
        assert np.isfinite(unseen).all()
        assert np.min(unseen) >= 0
        assert np.mean(seen) < np.mean(unseen)
    positions = jnp.arange(side * side, dtype=jnp.int32)
    local = detector.localize(params, one(maps, COUNT - 1), positions)
    scores = detector.local_scores(local, one(maps, COUNT - 1), positions)
    summands = np.asarray(detector.summands(params, one(maps, COUNT - 1)))
    np.testing.assert_allclose(scores, summands.ravel(), rtol=1e-3, atol=1e-3 * summands.max())


@pytest.mark.parametrize("name", ["score", "summands", "localize", "local_scores"])
def test_a_function_obeys_the_transformations(
    detector: Detector, params: dict[str, jax.Array], maps: Maps, name: str
) -> None:
    """`eval_shape`, jit = no jit, vmap = loop, and no second compilation for other numbers."""
    function, first = functions(detector, params, maps)[name]
    unseen = tuple(m[-2:] for m in maps)
    eager = [function(*first, one(unseen, index)) for index in range(2)]
    traced, wanted = (
        jax.tree.map(lambda a: (a.shape, a.dtype), tree)
        for tree in (jax.eval_shape(function, *first, one(unseen, 0)), eager[0])
    )
    assert traced == wanted
    compiled: Any = jax.jit(lambda *arguments: function(*arguments))  # a cache of its own
    for index in range(2):
        assert_trees_close(compiled(*first, one(unseen, index)), eager[index], tolerance=1e-4)
    compiled(*jax.tree.map(lambda a: a if a.dtype == jnp.int32 else 1.5 * a, first), one(maps, 2))
    assert compiled._cache_size() == 1
    batched = jax.jit(jax.vmap(partial(function, *first)))(tuple(jnp.asarray(m) for m in unseen))
    assert_trees_close(batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *eager), tolerance=1e-4)


# The package


def modules() -> list[str]:
    found = pkgutil.walk_packages(f2pad_jax.__path__, "f2pad_jax.")
    return [info.name for info in found if not info.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_everything_public_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for label, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == name
        if label.startswith("_") or not own or not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        text = thing.__doc__ or ""
        generated = inspect.isclass(thing) and text.startswith(f"{label}(")
        assert text.strip(), f"{name}.{label}"
        assert not generated, f"{name}.{label}"


def test_the_public_names_exist() -> None:
    for name in f2pad_jax.__all__:
        assert getattr(f2pad_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        f2pad_jax.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]

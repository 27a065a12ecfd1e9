"""What holds for every function of the core, every extractor, every detector and every pair of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from solving import SETTINGS, SIDE, make_case

import f2pad_jax
import f2pad_jax.core
from f2pad_jax.core import adan, descent, energy, penalty, pixels, priors, reduction, sharing, solver
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS, Detector
from f2pad_jax.detectors.cflow import CFlow
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.networks import efficientnet, resnet, vit
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.weights.registry import registry

WIDTH, COUNT = 64, 6
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
    return normalize(texture_category("brick", train=COUNT, test=0, size=WIDTH)[0])


@pytest.fixture(scope="module")
def maps(extractor: Extractor, images: np.ndarray) -> Maps:
    return tuple(np.asarray(m) for m in jax.jit(extractor.apply)(extractor.params, images))


@pytest.fixture(scope="module", params=DETECTORS)
def kind(request: pytest.FixtureRequest) -> type[Detector]:
    return DETECTORS[request.param]


@pytest.fixture(scope="module")
def detector(kind: type[Detector], maps: Maps) -> Detector:
    return kind.fit(tuple(m[:-2] for m in maps), seed=0, **OPTIONS.get(kind.name, {}))


def one(maps: Maps, index: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(m[index]) for m in maps)


def stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def types(tree: Any) -> Any:
    """Of every leaf, as in "float32[16,16,3]"."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}".replace(" ", ""), tree)


def assert_trees_close(found: Any, wanted: Any, *, tolerance: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one_leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one_leaf.shape, one_leaf.dtype) == (other.shape, other.dtype)
        scale = float(np.abs(np.asarray(other)).max())
        np.testing.assert_allclose(one_leaf, other, rtol=tolerance, atol=tolerance * scale)


# The core


class Row(NamedTuple):
    """A function of the core with arguments of one picture.

    Attributes:
      function: under test.
      arguments: pytrees.
      gives: of each attribute of the result, or of "" itself, what `types` says.
      axes: `in_axes` for several pictures; the energy is shared.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    gives: dict[str, str]
    axes: tuple[int | None, ...] | int = 0


PICTURE, PLANE, NUMBER, WHOLE = f"float32[{SIDE},{SIDE},3]", f"float32[{SIDE},{SIDE}]", "float32[]", "int32[]"
HOST = {
    "lanes.solve_many": "reads and yields on the host, see test_lanes",
    "lanes.lane_widths": "counts on the host",
    "energy.scored_stride": "chooses among static strides",
    "sharing.neighbourhood": "computes static offsets",
}


@cache
def rows() -> dict[str, Row]:
    """The table: every public function of the core by module and name; values of penalties besides."""
    case = make_case("padim")
    shared, problem, start = case[:3]
    settings = SETTINGS.replace(limit=6, warm_up=2)
    normal = start + 0.1 * jnp.asarray(np.random.default_rng(0).standard_normal(start.shape), jnp.float32)
    own, axes = (shared, problem, settings), (0, None, 0, 0)
    state, info = jax.jit(solver.advance)(solver.init(normal, *own), solver.no_info(), *own, most=3)
    anomaly = problem.image - normal
    lengths, weights = penalty.pixel_norm(anomaly), jnp.full((SIDE, SIDE), 0.05)
    colours = pixels.denormalize(problem.image)
    terms = dict.fromkeys(energy.Terms._fields, NUMBER)
    of_info = {"loss": NUMBER, **{f"terms.{name}": kind for name, kind in terms.items()}}
    of_state = {"normal": PICTURE, "best": NUMBER, "stale": WHOLE, "iterations": WHOLE, "status": WHOLE}
    of_solution = {"normal": PICTURE, "status": WHOLE, "iterations": WHOLE, **of_info}
    of_descent = {"normal": PICTURE, "shrink": NUMBER, "descended": "bool[]"}
    stepped = {f"{k}.{name}": kind for k, each in enumerate((of_state, of_info)) for name, kind in each.items()}
    every = int(settings.levels)
    table = {
        "adan.adan_denominator": Row(adan.adan_denominator, (state.moments[-1],), {"": PICTURE}),
        "adan.adan_direction": Row(adan.adan_direction, (state.moments[-1],), {"": PICTURE}),
        "adan.scale_by_adan": Row(lambda gradient: updated(adan.scale_by_adan(), gradient), (anomaly,), {"0": PICTURE}),
        "descent.descend": Row(
            lambda *arguments: descent.descend(*arguments, since=jnp.int32(2), climb=jnp.float32(100)),
            (state.descent, normal, state.moments, info.terms),
            {**{f"0.{name}": kind for name, kind in of_descent.items()}, "1": "bool[]"},
        ),
        "descent.total": Row(descent.total, (info.terms,), {"": NUMBER}),
        "descent.undescended": Row(descent.undescended, (normal, state.moments), of_descent),
        "descent.where": Row(descent.where, (problem.filled, problem.image, normal), {"": PICTURE}),
        "energy.objective": Row(energy.objective, (normal, *own), {"": NUMBER}, axes),
        "energy.sparsity": Row(energy.sparsity, (normal, *own), {"": NUMBER}, axes),
        "energy.terms": Row(energy.terms, (normal, *own), terms, axes),
        "energy.terms_and_scores": Row(
            energy.terms_and_scores,
            (normal, *own),
            {**{f"0.{name}": kind for name, kind in terms.items()}, "1": f"float32[{len(problem.present)}]"},
            axes,
        ),
        "penalty.log_penalty": Row(penalty.log_penalty, (anomaly,), {"": NUMBER}),
        "penalty.pixel_norm": Row(penalty.pixel_norm, (anomaly,), {"": PLANE}),
        "penalty.shrink": Row(penalty.shrink, (penalty.LOG, anomaly, weights, lengths), {"": PICTURE}, (None, 0, 0, 0)),
        "pixels.denormalize": Row(pixels.denormalize, (problem.image,), {"": f"uint8[{SIDE},{SIDE},3]"}),
        "pixels.normalize": Row(pixels.normalize, (colours,), {"": PICTURE}),
        "pixels.project": Row(pixels.project, (4 * normal, problem.image, problem.region), {"": PICTURE}),
        "priors.pixel_mixture_distances": Row(
            priors.pixel_mixture_distances, (normal, shared.mixture), {"": PLANE}, (0, None)
        ),
        "priors.pixel_prior": Row(priors.pixel_prior, (normal, shared.mixture), {"": NUMBER}, (0, None)),
        "priors.total_variation": Row(priors.total_variation, (normal,), {"": NUMBER}),
        "reduction.reduce": Row(
            reduction.reduce,
            (
                normal,
                problem.image,
                reduction.Reduction(
                    seen=normal, rows=weights, columns=weights, corner=jnp.zeros(2, jnp.int32), area=jnp.float32(4)
                ),
            ),
            {"": PICTURE},
        ),
        "sharing.share": Row(sharing.share, (anomaly, problem.sharing), {"": PICTURE}),
        "sharing.share_gradients": Row(
            lambda gradient, weights: updated(sharing.share_gradients(weights), gradient),
            (anomaly, problem.sharing),
            {"0": PICTURE},
        ),
        "sharing.sharing_weights": Row(
            sharing.sharing_weights, (problem.image,), {"weights": f"float32[{SIDE},57,{SIDE}]"}
        ),
        "solver.advance": Row(
            lambda *arguments: solver.advance(*arguments, most=2), (state, info, *own), stepped, (0, *axes)
        ),
        "solver.init": Row(solver.init, (normal, *own), of_state, axes),
        "solver.levels_of": Row(
            solver.levels_of, (problem.filled, settings), {"0": f"int32[{every}]", "1": f"float32[{every}]"}
        ),
        "solver.no_info": Row(solver.no_info, (), of_info),
        "solver.optimiser": Row(
            lambda gradient, *rest: updated(solver.optimiser(*rest), gradient),
            (anomaly, problem, settings),
            {"0": PICTURE},
        ),
        "solver.solution": Row(solver.solution, (state, info), of_solution),
        "solver.solve": Row(solver.solve, (normal, *own), of_solution, axes),
        "solver.sparsity_at": Row(solver.sparsity_at, (state.iterations, problem, settings), {"": PLANE}),
        "solver.step": Row(solver.step, (state, *own), stepped, axes),
    }
    for name, chosen in (("LOG", penalty.LOG), ("L1", penalty.L1), ("L0", penalty.L0)):
        table[f"penalty.{name}.value"] = Row(chosen.value, (lengths,), {"": PLANE})
        table[f"penalty.{name}.prox"] = Row(chosen.prox, (lengths, weights), {"": PLANE})
    return table


def updated(transform: optax.GradientTransformation, gradient: jax.Array) -> Any:
    return transform.update(gradient, transform.init(gradient))


def of_the_core() -> set[str]:
    """All public functions of the core by module and name."""
    found = set()
    for info in pkgutil.iter_modules(f2pad_jax.core.__path__, "f2pad_jax.core."):
        for label, thing in vars(importlib.import_module(info.name)).items():
            function = callable(thing) and not inspect.isclass(thing) and hasattr(thing, "__name__")
            if function and thing.__module__ == info.name and not label.startswith("_"):
                found.add(f"{info.name.rpartition('.')[2]}.{label}")
    return found


def other_numbers(tree: Any) -> Any:
    """A tree of the same types, with another number wherever that is no count, choice or index."""

    def other(leaf: Any) -> Any:
        if isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return 0.97 * leaf
        return 255 - leaf if getattr(leaf, "dtype", None) == jnp.uint8 else leaf

    return jax.tree.map(other, tree)


def attribute(result: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        result = result[int(name)] if name.isdigit() else getattr(result, name)
    return result


def test_the_table_has_every_public_function_of_the_core() -> None:
    assert {name for name in rows() if name.count(".") == 1} | HOST.keys() == of_the_core()
    public = {name for name in f2pad_jax.core.__all__ if inspect.isfunction(getattr(f2pad_jax.core, name))}
    assert public <= {name.partition(".")[2] for name in of_the_core()}


PENALTIES = [f"penalty.{name}.{function}" for name in ("L0", "L1", "LOG") for function in ("prox", "value")]


@pytest.mark.parametrize("name", [*sorted(of_the_core() - HOST.keys()), *PENALTIES])
def test_a_function_of_the_core_obeys_the_transformations(name: str) -> None:
    """Shapes and types, jit = no jit, vmap = loop, and no second compilation for other numbers."""
    function, arguments, gives, axes = rows()[name]
    others = other_numbers(arguments)
    eager = [function(*arguments), function(*others)]
    for path, kind in gives.items():
        assert types(attribute(eager[0], path)) == kind, path
    assert types(jax.eval_shape(function, *arguments)) == types(eager[0])
    compiled: Any = jax.jit(lambda *given: function(*given))  # a cache of its own
    for given, wanted in zip((arguments, others), eager, strict=True):
        assert_trees_close(compiled(*given), wanted, tolerance=1e-4)
    assert compiled._cache_size() == 1
    if arguments:
        axes = axes if isinstance(axes, tuple) else (axes,) * len(arguments)
        # What has no axis is shared, so only the rest is of other numbers.
        mixed = tuple(a if axis is None else b for a, b, axis in zip(arguments, others, axes, strict=True))
        batch = tuple(a if axis is None else stack(a, b) for a, b, axis in zip(arguments, mixed, axes, strict=True))
        wanted = stack(eager[0], function(*mixed))
        assert_trees_close(jax.jit(jax.vmap(function, axes))(*batch), wanted, tolerance=1e-4)


def test_a_static_choice_is_another_program() -> None:
    function, arguments, _, _ = rows()["solver.step"]
    *state_energy_problem, settings = arguments
    compiled: Any = jax.jit(lambda *given: function(*given))
    for count, choice in enumerate(("proximal", "adaptive", "share_gradient"), start=1):
        compiled(*state_energy_problem, settings.replace(**{choice: not getattr(settings, choice)}))
        assert compiled._cache_size() == count
    compiled(*state_energy_problem, settings)
    assert compiled._cache_size() == 4


# Extractors


def test_the_registry_knows_these_extractors() -> None:
    extractors = {name for name, known in registry().items() if known.kind == "extractor"}
    assert extractors == efficientnet.FAMILY.keys() | resnet.FAMILY.keys() | vit.FAMILY.keys() > set(EXTRACTORS)


def test_an_extractors_maps_have_the_promised_shapes(extractor: Extractor, maps: Maps) -> None:
    shapes = [(COUNT, WIDTH // s, WIDTH // s, c) for s, c in zip(extractor.strides, extractor.channels, strict=True)]
    assert [m.shape for m in maps] == shapes
    assert {m.dtype for m in maps} == {np.dtype(np.float32)}
    assert list(extractor.strides) == sorted(extractor.strides)
    batch = jax.ShapeDtypeStruct((5, 2 * WIDTH, 3 * WIDTH, 3), jnp.float32)
    traced = jax.eval_shape(extractor.apply, extractor.params, batch)
    assert [m.shape[:3] for m in traced] == [(5, 2 * WIDTH // s, 3 * WIDTH // s) for s in extractor.strides]


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


def functions(detector: Detector, maps: Maps) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each method of a detector as a function of the maps, with the arguments before them."""
    positions = jnp.asarray([3, 0, 9, 3], jnp.int32)
    local = detector.localize(one(maps, 0), positions)
    return {
        "score": (lambda d, m: d.score(m), (detector,)),
        "summands": (lambda d, m: d.summands(m), (detector,)),
        "localize": (lambda d, m: d.localize(m, positions), (detector,)),
        "local_scores": (lambda d, own, m: d.local_scores(own, m), (detector, local)),
        "stale": (lambda d, own, m: d.stale(own, m), (detector, local)),
    }


def with_other_numbers(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: 1.5 * leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def test_a_fitted_detector_is_finite_arrays_of_single_precision(detector: Detector) -> None:
    assert isinstance(detector, Detector)
    leaves = jax.tree.leaves_with_path(detector)
    assert leaves
    for name, array in leaves:
        assert isinstance(array, jax.Array), name
        assert array.dtype in (jnp.float32, jnp.int32), name
        assert np.isfinite(array).all(), name


def test_fit_is_repeatable(kind: type[Detector], detector: Detector, maps: Maps) -> None:
    again = kind.fit(tuple(m[:-2] for m in maps), seed=0, **OPTIONS.get(kind.name, {}))
    assert_trees_close(again, detector, tolerance=0)


def test_scores_have_the_shape_of_the_detectors_grid(extractor: Extractor, detector: Detector, maps: Maps) -> None:
    side = WIDTH // extractor.strides[detector.level]
    for function in (detector.score, detector.summands):
        unseen, seen = (function(one(maps, index)) for index in (COUNT - 1, 0))
        assert unseen.shape == (side, side)
        assert unseen.dtype == jnp.float32
        assert np.isfinite(unseen).all()
        assert np.min(unseen) >= 0
        assert np.mean(seen) < np.mean(unseen)
    positions = jnp.arange(side * side, dtype=jnp.int32)
    local = detector.localize(one(maps, COUNT - 1), positions)
    scores = detector.local_scores(local, one(maps, COUNT - 1))
    summands = np.asarray(detector.summands(one(maps, COUNT - 1)))
    np.testing.assert_allclose(scores, summands.ravel(), rtol=1e-3, atol=1e-3 * summands.max())


@pytest.mark.parametrize("name", ["score", "summands", "localize", "local_scores"])
def test_a_method_obeys_the_transformations(detector: Detector, maps: Maps, name: str) -> None:
    first, other = both_detectors(detector, maps, name)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)  # its arrays are no constants of the program


def test_patchcores_check_of_its_candidates_obeys_too(extractor: Extractor, maps: Maps) -> None:
    first, _ = both_detectors(PatchCore.fit(tuple(m[:-2] for m in maps)), maps, "stale")
    assert first.shape == (4,)
    assert first.dtype == bool


def both_detectors(detector: Detector, maps: Maps, name: str) -> tuple[Any, Any]:
    """`eval_shape`, jit = no jit, vmap = loop, and no second compilation for a detector of other numbers.

    Returns:
      What the method gives for one picture of this detector and of another one.
    """
    function, first = functions(detector, maps)[name]
    unseen = tuple(m[-2:] for m in maps)
    eager = [function(*first, one(unseen, index)) for index in range(2)]
    assert types(jax.eval_shape(function, *first, one(unseen, 0))) == types(eager[0])
    compiled: Any = jax.jit(lambda *arguments: function(*arguments))  # a cache of its own
    for index in range(2):
        assert_trees_close(compiled(*first, one(unseen, index)), eager[index], tolerance=1e-4)
    other = compiled(*with_other_numbers(first), one(unseen, 0))
    assert compiled._cache_size() == 1
    assert types(other) == types(eager[0])
    batched = jax.jit(jax.vmap(partial(function, *first)))(tuple(jnp.asarray(m) for m in unseen))
    assert_trees_close(batched, stack(*eager), tolerance=1e-4)
    return eager[0], other


def test_detectors_may_be_stacked(detector: Detector, maps: Maps) -> None:
    """As in a sweep over detectors of one kind and of equal shapes."""
    two = (detector, with_other_numbers(detector))
    picture = one(maps, 0)
    batched = jax.jit(jax.vmap(lambda d, m: d.score(m), in_axes=(0, None)))(stack(*two), picture)
    assert_trees_close(batched, jnp.stack([d.score(picture) for d in two]), tolerance=1e-4)


def test_a_static_choice_of_a_detector_is_another_program(detector: Detector, maps: Maps) -> None:
    compiled: Any = jax.jit(lambda d, m: d.summands(m))
    found = compiled(detector, one(maps, 0))
    if isinstance(detector, CFlow):
        other = compiled(detector.replace(divided=not detector.divided), one(maps, 0))
        assert compiled._cache_size() == 2
        assert not np.allclose(other, detector.summands(one(maps, 0)))
    else:
        other: Any = detector
        np.testing.assert_array_equal(compiled(other.replace(convention="own"), one(maps, 0)), found)
        assert compiled._cache_size() == 1
        compiled(other.replace(convention="anomalib"), one(maps, 0))
        assert compiled._cache_size() == 2


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

"""The core by itself: what it imports, its example, its types and its documentation."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped
from solving import ROUNDING, SETTINGS, Case, make_case, run, tiny_extractor

import f2pad_jax as f2
from f2pad_jax import core
from f2pad_jax.core.solver import no_info, solution
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit

FILES = sorted(Path(core.__file__).parent.glob("*.py"))
ALLOWED = {"jax", "optax", "flax", "jaxtyping"}
BETAS = (0.5, 2.0, 8.0)
PICTURES = [((0.9, 0.1, 0.2), 0), ((0.1, 0.2, 0.9), 2)]
step, solve_batch = jax.jit(f2.step), jax.jit(jax.vmap(f2.solve, in_axes=(0, None, 0, None)))


def modules() -> list[ModuleType]:
    return [core] + [
        importlib.import_module(info.name) for info in pkgutil.iter_modules(core.__path__, "f2pad_jax.core.")
    ]


# What it stands on


def test_importing_the_core_loads_nothing_else_of_the_package() -> None:
    program = "import sys, f2pad_jax.core; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.partition(".")[0] == "f2pad_jax"}
    assert ours == {"f2pad_jax", *(module.__name__ for module in modules())}
    assert not {"PIL", "scipy", "sklearn", "skimage", "matplotlib", "tqdm"} & set(done.stdout.split())


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in full are what this test can read"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_of_the_core_imports_jax_optax_and_flax_alone(file: Path) -> None:
    for name in imported(file.read_text()):
        root = name.partition(".")[0]
        assert root in ALLOWED | sys.stdlib_module_names or name.startswith("f2pad_jax.core."), name


# The example


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case("padim")


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, core.Problem]:
    """The starts and problems of two pictures, stacked."""
    cases = [make_case("padim", *each) for each in PICTURES]
    return jnp.stack([c.start for c in cases]), jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[c.problem for c in cases]
    )


def assert_same_solution(found: core.Solution, wanted: core.Solution) -> None:
    assert int(found.iterations) == int(wanted.iterations)
    assert found.message == wanted.message
    np.testing.assert_allclose(found.normal, wanted.normal, atol=ROUNDING)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-5)


def test_value_and_gradient_of_the_objective(case: Case) -> None:
    start, arguments = case.start + 0.1, (case.energy, case.problem, SETTINGS)
    value, slope = jax.jit(jax.value_and_grad(f2.objective))(start, *arguments)
    assert value.shape == ()
    assert slope.shape == start.shape
    np.testing.assert_allclose(value, sum(jax.jit(f2.terms)(start, *arguments)), rtol=1e-6)
    towards = slope / jnp.linalg.norm(slope)
    above, below = (jax.jit(f2.objective)(start + s * 1e-2 * towards, *arguments) for s in (1, -1))
    np.testing.assert_allclose((above - below) / 2e-2, jnp.vdot(slope, towards), rtol=2e-2)


def test_jit_of_solve(case: Case) -> None:
    arguments = (case.energy, case.problem, SETTINGS.replace(limit=200))
    found = jax.jit(f2.solve)(case.start, *arguments)
    assert_same_solution(found, f2.solve(case.start, *arguments))
    assert found.message == "converged"
    value = f2.objective(found.normal, *arguments)
    np.testing.assert_allclose(found.loss, value, rtol=1e-5)


def test_a_batch_of_pictures_shares_the_energy(case: Case, batch: tuple[jax.Array, core.Problem]) -> None:
    together = solve_batch(batch[0], case.energy, batch[1], SETTINGS)
    for index, each in enumerate(PICTURES):
        own = make_case("padim", *each)
        alone = run(own.start, case.energy, own.problem, SETTINGS)
        assert_same_solution(jax.tree.map(lambda leaf, k=index: leaf[k], together), alone)


def test_a_sweep_over_pictures_and_beta(case: Case, batch: tuple[jax.Array, core.Problem]) -> None:
    def solve(start: jax.Array, problem: core.Problem, beta: jax.Array) -> core.Solution:
        return f2.solve(start, case.energy, problem, SETTINGS.replace(beta0=beta))

    over_beta = jax.vmap(solve, in_axes=(None, None, 0))
    both = jax.jit(jax.vmap(over_beta, in_axes=(0, 0, None)))(*batch, jnp.asarray(BETAS))
    assert both.iterations.shape == (2, 3)
    for (row, each), (column, beta) in [(p, b) for p in enumerate(PICTURES) for b in enumerate(BETAS)]:
        own = make_case("padim", *each)
        alone = run(own.start, case.energy, own.problem, SETTINGS.replace(beta0=beta))
        assert_same_solution(jax.tree.map(lambda leaf, i=row, k=column: leaf[i, k], both), alone)
    areas = jnp.any(both.normal[0] != case.problem.image, axis=-1).sum(axis=(1, 2))
    assert areas[0] > areas[2] > 0  # sparser for a larger β


def test_a_loop_of_steps_is_the_solve_until_ones_own_rule_stops_it(case: Case) -> None:
    arguments = (case.energy, case.problem, SETTINGS)
    state, info = f2.init(case.start, *arguments), no_info()
    while state.status == f2.Status.RUNNING:
        state, info = step(state, *arguments)
    assert_same_solution(solution(state, info), run(case.start, *arguments))
    # One's own rule: the first time that F lies below a value on its way.
    wanted, states = float(solution(state, info).loss) + 100.0, f2.init(case.start, *arguments)
    losses: list[float] = []
    while not losses or losses[-1] > wanted:
        states, info = step(states, *arguments)
        losses.append(float(info.loss))
    assert 1 < int(states.iterations) == len(losses) < int(state.iterations)
    assert int(states.status) == f2.Status.RUNNING


def test_another_penalty_and_one_of_ones_own(case: Case) -> None:
    arguments = (case.problem, SETTINGS.replace(beta0=40.0))
    lengths = lambda found: jnp.linalg.norm(case.problem.image - found.normal, axis=-1)  # noqa: E731
    by_log, by_l1, by_l0 = (
        run(case.start, case.energy.replace(penalty=penalty), *arguments)
        for penalty in (f2.penalties.LOG, f2.penalties.L1, f2.penalties.L0)
    )
    np.testing.assert_array_equal(by_log.normal, run(case.start, case.energy, *arguments).normal)
    np.testing.assert_allclose(by_l1.terms.sparsity, 40 * lengths(by_l1).sum(), rtol=1e-4)
    np.testing.assert_allclose(by_l0.terms.sparsity, 40 * (lengths(by_l0) > 0).sum(), rtol=1e-6)
    assert len({float(found.loss) for found in (by_log, by_l1, by_l0)}) == 3
    mine = f2.Penalty(value=lambda t: 2 * t, prox=lambda t, weight: jnp.maximum(t - 2 * weight, 0))
    doubled = run(case.start, case.energy.replace(penalty=mine), case.problem, SETTINGS.replace(beta0=20.0))
    np.testing.assert_allclose(doubled.normal, by_l1.normal, atol=1e-5)
    np.testing.assert_allclose(doubled.loss, by_l1.loss, rtol=1e-5)


def test_the_example_with_a_fitted_model() -> None:
    """From `fit` to a sweep, a batch and another penalty; README's example is on features of a real network."""
    normals, [(image, _, _)] = texture_category("brick", train=8, test=1, size=64)
    model = fit(normals, detector="padim", extractor=tiny_extractor())
    # Where the scores are highest, n is free, although so few pictures do not tell what is normal.
    model = replace(model, procedure=replace(model.procedure, threshold=0.0))
    energy, settings = model.energy, model.settings.replace(first_beta=1e9)  # β is constant
    problem, start = f2.prepare(model, image)
    assert problem.region.any()
    assert_conforms(energy)
    assert_conforms(problem)
    value, slope = jax.jit(jax.value_and_grad(f2.objective))(start, energy, problem, settings)
    assert np.isfinite(value)
    assert slope.shape == problem.image.shape == (64, 64, 3)
    solve = jax.jit(f2.solve)
    alone = solve(start, energy, problem, settings)
    assert_conforms(alone)
    assert alone.message in ("iteration limit", "converged")

    def sweep(start: jax.Array, problem: core.Problem) -> core.Solution:
        over = jax.vmap(lambda beta: f2.solve(start, energy, problem, settings.replace(beta0=beta)))
        return over(jnp.asarray([settings.beta0, 1e6]))

    both = jax.jit(jax.vmap(sweep))(*jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (start, problem)))
    assert both.normal.shape == (2, 2, 64, 64, 3)
    [(_, lane)] = f2.solve_many([(start, problem, settings)], energy, width=1)
    mask, region = jnp.any(alone.normal != problem.image, axis=-1), problem.region
    assert 0 < mask.sum() < region.sum()
    for normal, loss in (
        (both.normal[0, 0], both.loss[0, 0]),
        (both.normal[1, 0], both.loss[1, 0]),
        (lane.normal, lane.loss),
    ):
        # Roundings decide which way some pixels end; neither F nor the mask hangs on that.
        np.testing.assert_allclose(loss, alone.loss, rtol=1e-3)
        assert (mask != jnp.any(normal != problem.image, axis=-1)).sum() <= 0.01 * region.sum()
    assert not jnp.any(both.normal[:, 1] != problem.image)  # whatever F is, this β is too much
    other = solve(start, energy.replace(penalty=f2.penalties.L1), problem, settings)
    np.testing.assert_allclose(
        other.terms.sparsity, settings.beta0 * jnp.linalg.norm(problem.image - other.normal, axis=-1).sum(), rtol=1e-4
    )


# Types


def assert_conforms(tree: Any) -> None:
    """That every array of a pytree has the shape and type that its class promises."""
    hints = get_type_hints(type(tree))
    arrays = 0
    with jaxtyped("context"):
        for field in dataclasses.fields(tree):
            value, kind = getattr(tree, field.name), hints[field.name]
            if inspect.isclass(kind) and issubclass(kind, AbstractArray):
                assert isinstance(value, kind), (field.name, kind, value.shape, value.dtype)
                arrays += 1
    nested = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    nested = [value for value in nested if type(value).__module__.startswith("f2pad_jax.core")]
    for value in nested:
        if dataclasses.is_dataclass(value) and not isinstance(value, core.Penalty):
            assert_conforms(value)
    assert arrays or nested


def test_what_the_solver_makes_has_the_shapes_that_its_classes_promise(
    case: Case, batch: tuple[jax.Array, core.Problem]
) -> None:
    arguments = (case.energy, case.problem, SETTINGS.replace(limit=5))
    state = core.init(case.start, *arguments)
    for tree in (case.energy, case.problem, state, *step(state, *arguments), run(case.start, *arguments)):
        assert_conforms(tree)
    assert_conforms(solve_batch(batch[0], case.energy, batch[1], arguments[-1]))
    with pytest.raises(AssertionError, match="image"):
        assert_conforms(case.problem.replace(image=case.problem.region))


def test_wrong_shapes_and_types_are_refused_while_tests_run(case: Case) -> None:
    image, sharing = case.problem.image, case.problem.sharing
    assert sharing is not None
    for wrong in (lambda: core.share(image[..., 0], sharing), lambda: core.sharing_weights(image.astype(jnp.int32))):
        with pytest.raises(TypeCheckError):
            wrong()
    with pytest.raises(TypeCheckError, match="settings"):
        core.objective(image, case.energy, case.problem, None)  # pyright: ignore[reportArgumentType]


# Documentation


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """Read off the source, because a checked function hides where it is from."""
    parser, found = doctest.DocTestParser(), []
    tree = ast.parse(Path(str(module.__file__)).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            name = f"{module.__name__}.{getattr(node, 'name', '')}"
            found.append(parser.get_doctest(text, dict(vars(module)), name, module.__file__, 0))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_examples_in_docstrings_are_true(module: ModuleType) -> None:
    for test in examples(module):
        report: list[str] = []
        runner = doctest.DocTestRunner()
        assert runner.run(test, out=report.append).failed == 0, "".join(report)


def test_most_examples_are_run() -> None:
    found = [example for module in modules() for test in examples(module) for example in test.examples]
    skipped = [example for example in found if example.options.get(doctest.SKIP)]
    assert len(found) - len(skipped) >= 5
    assert all("prepare" in e.source or "energy" in e.source for e in skipped)  # which take a fitted model


def test_every_public_name_is_documented() -> None:
    assert list(core.__all__) == sorted(core.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in core.__all__:
        text = getattr(core, name).__doc__ or ""
        assert text.strip(), name
        assert not text.startswith(f"{name}("), f"{name} has only what dataclasses write"
    # Functions name their arguments and classes their attributes.
    for name in core.__all__:
        thing = getattr(core, name)
        if inspect.isfunction(thing) and len(inspect.signature(thing).parameters) > 1:
            text = inspect.getdoc(thing) or ""
            known = f"{text} {inspect.getdoc(core.terms)}" if "arguments as there" in text else text
            assert all(f"{a}:" in known for a in inspect.signature(thing).parameters), name
        if dataclasses.is_dataclass(thing):
            text = inspect.getdoc(thing) or ""
            assert all(f"  {field.name}:" in text for field in dataclasses.fields(thing)), name


def test_every_penalty_is_documented() -> None:
    tree = ast.parse(Path(str(core.penalties.__file__)).read_text()).body
    constants = [
        (node.targets[0].id, after)
        for node, after in zip(tree, tree[1:], strict=False)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(getattr(core.penalties, node.targets[0].id), core.Penalty)
    ]
    assert {name for name, _ in constants} >= {"LOG", "L1", "L0"}
    for name, after in constants:
        assert isinstance(after, ast.Expr), name
        assert isinstance(after.value, ast.Constant), name

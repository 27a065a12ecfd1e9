"""What each precision asks of the compiler, forward and backward, and how far its results are off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision
from solving import make_case

from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS
from f2pad_jax.errors import InputError
from f2pad_jax.networks import resnet, vit
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.sights import apply_extractor
from f2pad_jax.weights import load_extractor

WANTED = {"parity": Precision.HIGHEST, "fast": Precision.DEFAULT, "bf16": Precision.DEFAULT}
# Relative errors of the maps and of the gradient; roundings that flip a ReLU change the gradient by more.
NEAR = {"parity": (1e-5, 1e-4), "fast": (1e-5, 1e-4), "bf16": (0.03, 0.6)}


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(normalize(texture_category("brick", train=2, test=0, size=64)[0]))


@pytest.fixture(scope="module", params=["efficientnet_lite0", "resnet18"])
def extractor(request: pytest.FixtureRequest, lite0: Extractor) -> Extractor:
    if request.param == "efficientnet_lite0":
        return lite0
    rng = np.random.default_rng(0)

    def weights(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(np.sqrt(2 / np.prod(leaf.shape[:-1])) * rng.standard_normal(leaf.shape), leaf.dtype)

    return Extractor(
        jax.tree.map(weights, resnet.shapes(resnet.RESNET18)), "resnet18", resnet.apply, resnet.RESNET18, ""
    )


def energy(extractor: Extractor, images: jax.Array) -> jax.Array:
    return jnp.stack([jnp.square(m).mean() for m in extractor(images)]).sum()


def products(jaxpr: Any) -> Iterator[Any]:
    """All convolutions and matrix products of a program, in loops and inner functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from products(inner)
            elif hasattr(inner, "jaxpr"):
                yield from products(inner.jaxpr)


@pytest.mark.parametrize("precision", WANTED)
@pytest.mark.parametrize("around", ["highest", "bfloat16"])
def test_every_product_has_the_precision_asked_for(
    extractor: Extractor, images: jax.Array, precision: Any, around: str
) -> None:
    chosen = replace(extractor, precision=precision)
    # The gradient of a compiled function is traced after it, when its contexts are gone.
    both = jax.value_and_grad(jax.jit(lambda x: energy(chosen, x)))
    with jax.default_matmul_precision(around):
        forward = list(products(jax.make_jaxpr(lambda x: energy(chosen, x))(images).jaxpr))
        found = list(products(jax.make_jaxpr(both)(images).jaxpr))
    assert len(found) >= 2 * len(forward) > 20
    kind = jnp.bfloat16 if precision == "bf16" else jnp.float32
    for equation in found:
        assert equation.params["precision"] == (WANTED[precision],) * 2
        assert [operand.aval.dtype for operand in equation.invars] == [kind, kind]


def test_every_product_of_a_transformer_has_full_precision() -> None:
    spec = vit.ViTSpec(8, 24, 2, (1, 2), table=4)

    def gradient(params: Any, x: jax.Array) -> jax.Array:
        return jax.grad(jax.jit(lambda x: energy(Extractor(params, "", vit.apply, spec, ""), x)))(x)

    with jax.default_matmul_precision("bfloat16"):
        picture = jax.ShapeDtypeStruct((1, 40, 48, 3), jnp.float32)
        found = list(products(jax.make_jaxpr(gradient)(vit.shapes(spec), picture).jaxpr))
    assert len(found) > 15
    assert all(equation.params["precision"] == (Precision.HIGHEST,) * 2 for equation in found)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_compute_in_full_precision(name: str) -> None:
    case = make_case(name)
    maps = tuple(jnp.ones((side, side, width)) for side, width in ((8, 6), (4, 8)))
    both = jax.value_and_grad(lambda m: case.energy.detector.local_scores(case.problem.local, m).sum())
    found = list(products(jax.make_jaxpr(both)(maps).jaxpr))
    assert found
    assert all(equation.params["precision"] == (Precision.HIGHEST,) * 2 for equation in found)


def relative(found: Any, wanted: Any) -> float:
    assert (found.shape, found.dtype) == (wanted.shape, jnp.float32)
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


@pytest.mark.parametrize("precision", ["parity", "bf16"])  # on a CPU "fast" is "parity", see below
def test_maps_and_gradient_are_the_same_without_jit_and_one_by_one(
    extractor: Extractor, images: jax.Array, precision: Any
) -> None:
    spec: Any = extractor.spec
    # The first two maps need layers of every form, and far fewer shapes to compile one by one.
    chosen = replace(extractor, precision=precision, spec=replace(spec, taps=spec.taps[:2]))

    def maps_and_gradient(x: jax.Array) -> tuple[jax.Array, ...]:
        maps, pull = jax.vjp(chosen, x)
        return *maps, pull(maps)[0]

    whole = jax.jit(maps_and_gradient)(images)
    one_by_one = jax.jit(jax.vmap(lambda x: tuple(leaf[0] for leaf in maps_and_gradient(x[None]))))(images)
    eager = maps_and_gradient(images[:1])
    for index, wanted in enumerate(whole):
        near = NEAR[precision][index == len(whole) - 1]
        assert relative(one_by_one[index], wanted) < near
        assert relative(eager[index], wanted[:1]) < near


def test_how_far_bfloat16_is_off(lite0: Extractor, images: jax.Array) -> None:
    exact, fast, half = (replace(lite0, precision=precision) for precision in ("parity", "fast", "bf16"))
    for found, same, wanted in zip(*(apply_extractor(each, images) for each in (half, fast, exact)), strict=True):
        assert 1e-3 < relative(found, wanted) < 0.05
        np.testing.assert_array_equal(same, wanted)  # on a CPU
    wanted, found = (np.ravel(jax.jit(jax.grad(energy, argnums=1))(e, images)) for e in (exact, half))
    assert np.corrcoef(wanted, found)[0, 1] > 0.85


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="no precision is called 'half'; choose one of parity, fast, bf16"):
        load_extractor("efficientnet_lite0", precision="half")
    assert load_extractor("efficientnet_lite0", precision="fast").precision == "fast"

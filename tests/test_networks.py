"""Layers against XLA's own convolutions, forward and gradient; what holds for every network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from f2pad_jax.networks import efficientnet, layers, resnet

PER_OP, PER_BLOCK = 1e-6, 1e-5


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(actual: object, expected: object, tolerance: float) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def with_gradient(function: Callable[..., jax.Array], images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """The output, and the gradient of its product with fixed random numbers."""

    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, pull = jax.vjp(function, x)
        return out, pull(jnp.asarray(draw(*out.shape, seed=7)))[0]

    return both(jnp.asarray(images))


def xla_conv(images: jax.Array, params: layers.Params, stride: int, pads: layers.Pads, groups: int = 1) -> jax.Array:
    return (
        lax.conv_general_dilated(
            images,
            params["kernel"],
            (stride, stride),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        + params["bias"]
    )


@pytest.mark.parametrize("form", [layers.conv, layers.phase_conv])
@pytest.mark.parametrize("side", [(16, 12), (15, 13)])
@pytest.mark.parametrize(("size", "stride", "pad"), [(7, 2, (3, 3)), (3, 2, (0, 1)), (3, 2, (1, 1)), (3, 1, (1, 1))])
def test_dense_forms_equal_xla(form, side, size, stride, pad):
    params = {"kernel": jnp.asarray(draw(size, size, 3, 8, seed=1)), "bias": jnp.asarray(draw(8, seed=2))}
    images, pads = draw(2, *side, 3), (pad, pad)
    ours = with_gradient(lambda x: form(params, x, stride=stride, pads=pads), images)
    xla = with_gradient(lambda x: xla_conv(x, params, stride, pads), images)
    for actual, expected in zip(ours, xla, strict=True):
        assert_near(actual, expected, PER_OP)


@pytest.mark.parametrize("side", [(14, 12), (15, 11)])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_equals_grouped_convolution(side, size, stride):
    params = {"kernel": jnp.asarray(draw(size, size, 1, 6, seed=1)), "bias": jnp.asarray(draw(6, seed=2))}
    images = draw(2, *side, 6)
    pads = layers.same_pads(images.shape, size, stride)
    ours = with_gradient(lambda x: layers.depthwise(params, x, stride=stride), images)
    xla = with_gradient(lambda x: xla_conv(x, params, stride, pads, groups=6), images)
    tensorflow = lax.padtype_to_pads(images.shape[1:3], (size, size), (stride, stride), "SAME")
    assert [tuple(pad) for pad in tensorflow] == list(pads)
    for actual, expected in zip(ours, xla, strict=True):
        assert_near(actual, expected, PER_OP)


@pytest.mark.parametrize("side", [(14, 12), (15, 11)])
def test_max_pool_equals_window_reduction(side):
    def window(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    images = draw(2, *side, 5)
    for actual, expected in zip(with_gradient(layers.max_pool, images), with_gradient(window, images), strict=True):
        assert_near(actual, expected, PER_OP)


def test_max_pool_shares_the_gradient_of_ties():
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.zeros((1, 8, 8, 1)))
    assert float(gradient.sum()) == pytest.approx(16)
    assert float(gradient.min()) >= 0


@pytest.mark.parametrize("form", ["conv", "phase_conv", "depthwise"])
def test_gradients_in_images_and_kernels_are_exact(form):
    kernel, images = jnp.asarray(draw(3, 3, 1, 1, seed=1)), jnp.asarray(draw(1, 6, 5, 1))
    bias = jnp.zeros(1)
    apply = {
        "conv": lambda k, x: layers.conv({"kernel": k, "bias": bias}, x, stride=2, pads=((1, 1), (1, 1))),
        "phase_conv": lambda k, x: layers.phase_conv({"kernel": k, "bias": bias}, x, stride=2, pads=((1, 1), (1, 1))),
        "depthwise": lambda k, x: layers.depthwise({"kernel": k, "bias": bias}, x, stride=2),
    }[form]
    check_grads(apply, (kernel, images), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def random_params(shapes: layers.Params) -> layers.Params:
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([jnp.asarray(draw(*leaf.shape, seed=i) * 0.05) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (resnet, resnet.RESNET18),
        (resnet, resnet.FAMILY["resnet50"]),
        (efficientnet, efficientnet.LITE0),
        (efficientnet, efficientnet.FAMILY["efficientnet_b0"]),
    ],
    ids=["resnet18", "resnet50", "lite0", "b0"],
)
def test_contract_of_every_network(network, spec):
    params = random_params(network.shapes(spec))
    images = jnp.asarray(draw(2, 64, 96, 3))
    traced: list[tuple[int, ...]] = []

    @partial(jax.jit, static_argnames="spec")
    def apply(params: layers.Params, images: jax.Array, *, spec) -> tuple[jax.Array, ...]:
        traced.append(images.shape)
        return network.apply(params, images, spec=spec)

    maps = apply(params, images, spec=spec)
    apply(params, images + 1, spec=dataclasses.replace(spec))
    assert traced == [images.shape]  # an equal spec compiles nothing new
    assert [m.shape for m in maps] == [
        (2, 64 // s, 96 // s, c) for c, s in zip(spec.channels, spec.strides, strict=True)
    ]
    assert all(m.dtype == jnp.float32 for m in maps)
    one_by_one = jax.vmap(lambda image: apply(params, image[None], spec=spec))(images)
    for batched, single in zip(maps, one_by_one, strict=True):
        assert_near(single[:, 0], batched, PER_BLOCK)


@pytest.mark.parametrize("name", [*resnet.FAMILY, *efficientnet.FAMILY])
def test_every_member_has_the_maps_it_promises(name):
    network: Any = resnet if name in resnet.FAMILY else efficientnet
    spec = network.FAMILY[name]
    images = jax.ShapeDtypeStruct((2, 224, 256, 3), jnp.float32)
    maps = jax.eval_shape(partial(network.apply, spec=spec), network.shapes(spec), images)
    promised = zip(spec.channels, spec.strides, strict=True)
    assert [m.shape for m in maps] == [(2, 224 // s, 256 // s, c) for c, s in promised]
    assert hash(spec) == hash(dataclasses.replace(spec))


def test_the_maps_of_the_members_that_papers_use():
    b6 = efficientnet.FAMILY["efficientnet_b6"]
    assert (b6.channels, b6.strides, b6.stem) == ((72, 200, 344), (8, 16, 32), 56)
    assert [stage.repeats for stage in b6.stages] == [3, 6, 6, 8, 8, 11, 3]
    assert (efficientnet.LITE0.channels, efficientnet.LITE0.strides) == ((24, 40, 112), (4, 8, 16))
    lite4 = efficientnet.FAMILY["efficientnet_lite4"]
    assert (lite4.stem, lite4.head, [stage.repeats for stage in lite4.stages]) == (32, 1280, [1, 4, 4, 6, 6, 8, 1])
    wide = resnet.FAMILY["wide_resnet50_2"]
    assert (wide.channels, wide.strides) == ((256, 512, 1024), (4, 8, 16))


def test_gradient_inside_a_loop_equals_the_gradient_alone():
    spec = resnet.RESNET18
    params, images = random_params(resnet.shapes(spec)), jnp.asarray(draw(1, 32, 32, 3))
    gradient = jax.grad(lambda x: sum(jnp.square(m).mean() for m in resnet.apply(params, x, spec=spec)))
    looped = jax.jit(lambda x: lax.fori_loop(0, 1, lambda _, __: gradient(x), x))(images)
    assert_near(looped, jax.jit(gradient)(images), PER_BLOCK)


def test_a_cut_network_has_no_deeper_parameters():
    assert "layer4" not in resnet.shapes(resnet.RESNET18)
    assert set(efficientnet.shapes(efficientnet.LITE0)["blocks"]) == {str(i) for i in range(11)}
    deep = dataclasses.replace(resnet.RESNET18, taps=(4,))
    assert (deep.channels, deep.strides) == ((512,), (32,))
    assert "layer4" in resnet.shapes(deep)

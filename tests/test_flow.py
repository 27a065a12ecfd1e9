"""The conditional flow against FrEIA, an independent transcription, and automatic Jacobians."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.weights.flow_files import from_freia, to_freia

ROWS = 6
KINDS = [("soft", "tanh"), ("hard", "atan")]  # permutations and clamps


@pytest.fixture(autouse=True)
def _highest():
    with jax.default_matmul_precision("highest"):
        yield


def lively(spec: FlowSpec, seed: int = 0) -> flow.Params:
    """Random parameters in which every part has its say."""
    params = flow.init(jax.random.key(seed), spec)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 4))
    return params | {
        "outer": 8 * params["outer"],
        "outer_bias": jax.random.normal(next(keys), params["outer_bias"].shape),
        "scale": params["scale"] + jax.random.normal(next(keys), params["scale"].shape),
        "offset": 0.3 * jax.random.normal(next(keys), params["offset"].shape),
    }


def inputs(channels: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    condition = rng.uniform(-1, 1, (ROWS, flow.CONDITION)).astype(np.float32)
    return jnp.asarray(rng.standard_normal((ROWS, channels)), jnp.float32), jnp.asarray(condition)


def transcribed(params: flow.Params, spec: FlowSpec, features: jax.Array, condition: jax.Array):
    """The blocks in double precision, from FrEIA's keys and the formulas of its documentation: z and log|det|."""
    state = {name: array.astype(float) for name, array in to_freia(params).items()}
    x = np.asarray(features, float)
    determinant, half = np.zeros(len(x)), spec.channels // 2
    for k in range(spec.blocks):
        block = {name.removeprefix(f"module_list.{k}."): a for name, a in state.items() if f"list.{k}." in name}
        left, right = x[:, : spec.channels - half], x[:, spec.channels - half :]
        hidden = np.concatenate([left, condition], axis=1) @ block["subnet.0.weight"].T + block["subnet.0.bias"]
        a = 0.1 * (np.maximum(hidden, 0) @ block["subnet.2.weight"].T + block["subnet.2.bias"])
        s = spec.alpha * (np.tanh(a[:, :half]) if spec.clamp == "tanh" else 0.636 * np.arctan(a[:, :half]))
        y = np.concatenate([left, right * np.exp(s) + a[:, half:]], axis=1)
        scale = 0.1 * np.log1p(np.exp(0.5 * block["global_scale"])) / 0.5
        x = (y * scale + block["global_offset"]) @ block["w_perm"].T
        determinant += s.sum(axis=1) + np.log(scale).sum()
    return x, determinant


def ours(params: flow.Params, spec: FlowSpec, x: jax.Array, condition: jax.Array):
    return flow.forward(params, x, flow.condition_terms(params, condition), spec=spec)


def assert_close(found, wanted, *, tolerance: float) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("channels", "permutation", "clamp"),
    [(7, "soft", "tanh"), (7, "soft", "atan"), (7, "hard", "tanh"), (6, "hard", "atan")],
)
def test_a_block_is_the_transcribed_one(channels: int, permutation, clamp) -> None:
    spec = FlowSpec(channels, blocks=1, clamp=clamp, permutation=permutation)
    params, (x, condition) = lively(spec), inputs(channels)
    for found, wanted in zip(ours(params, spec, x, condition), transcribed(params, spec, x, condition), strict=True):
        assert_close(found, wanted, tolerance=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("permutation", ["soft", "hard"])
@pytest.mark.parametrize(("channels", "blocks", "tolerance"), [(9, 1, 1e-5), (24, 8, 1e-4)])
def test_decoders_are_freias(channels: int, blocks: int, tolerance: float, permutation) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("FrEIA")
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    def subnet(dims_in: int, dims_out: int):
        first, last = torch.nn.Linear(dims_in, 2 * dims_in), torch.nn.Linear(2 * dims_in, dims_out)
        return torch.nn.Sequential(first, torch.nn.ReLU(), last)

    torch.manual_seed(0)
    network = SequenceINN(channels)
    for _ in range(blocks):
        network.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(flow.CONDITION,),
            subnet_constructor=subnet,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=permutation == "soft",
        )
    with torch.no_grad():
        for name, leaf in network.named_parameters():
            if "w_perm" not in name:
                leaf += (0.3 if "global" in name else 0.1) * torch.randn_like(leaf)
    state = {name: leaf.detach().numpy() for name, leaf in network.state_dict().items()}
    params, spec = from_freia(state)
    assert spec == FlowSpec(channels, blocks, permutation=permutation)
    x, condition = inputs(channels)
    theirs = torch.from_numpy(np.array(x)).requires_grad_()
    z, determinant = network(theirs, [torch.from_numpy(np.array(condition))])
    terms = flow.condition_terms(params, condition)
    found = flow.forward(params, x, terms, spec=spec)
    assert_close(found[0], z.detach(), tolerance=tolerance)
    assert_close(found[1], determinant.detach(), tolerance=tolerance)
    wanted = -channels * 0.9189385332 - 0.5 * (z**2).sum(1) + determinant
    assert_close(flow.log_prob(params, x, terms, spec=spec), wanted.detach(), tolerance=tolerance)
    torch.nn.functional.logsigmoid(wanted / channels).mean().backward()

    def loss(p, f):
        logs = flow.log_prob(p, f, flow.condition_terms(p, condition), spec=spec)
        return jnp.mean(jax.nn.log_sigmoid(logs / channels))

    for_params, for_features = jax.grad(loss, argnums=(0, 1), allow_int=True)(params, jnp.asarray(x))
    assert theirs.grad is not None
    assert_close(for_features, theirs.grad, tolerance=tolerance)
    exported = to_freia({k: v for k, v in params.items() if k in flow.FIXED} | drop_fixed(for_params))
    for name, leaf in network.named_parameters():
        if leaf.grad is not None:
            assert_close(exported[name], leaf.grad, tolerance=tolerance)
    back = to_freia(params)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_allclose(back[name], array, atol=1e-6, err_msg=name)


def drop_fixed(params: flow.Params) -> flow.Params:
    return {name: leaf for name, leaf in params.items() if name not in flow.FIXED}


@pytest.mark.parametrize(("permutation", "clamp"), KINDS)
def test_the_determinant_is_that_of_the_jacobian(permutation, clamp) -> None:
    spec = FlowSpec(5, blocks=3, clamp=clamp, permutation=permutation)
    params, (x, condition) = lively(spec), inputs(5)
    terms = flow.condition_terms(params, condition)
    _, found = flow.forward(params, x, terms, spec=spec)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 1))
    def jacobians(one: jax.Array, term: jax.Array) -> jax.Array:
        return jax.jacobian(lambda f: flow.forward(params, f[None], term[:, None], spec=spec)[0][0])(one)

    _, wanted = np.linalg.slogdet(np.asarray(jacobians(x, terms), float))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("permutation", "clamp"), KINDS)
def test_the_inverse_undoes_the_flow(permutation, clamp) -> None:
    spec = FlowSpec(7, blocks=3, clamp=clamp, permutation=permutation)
    params, (x, condition) = lively(spec), inputs(7)
    terms = flow.condition_terms(params, condition)
    z, _ = flow.forward(params, x, terms, spec=spec)
    assert np.abs(np.asarray(z) - x).max() > 0.5
    np.testing.assert_allclose(flow.inverse(params, z, terms, spec=spec), x, atol=2e-5)


def test_init_is_torchs_and_the_rotations_turn() -> None:
    spec = FlowSpec(8, blocks=16)
    params = flow.init(jax.random.key(3), spec)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), flow.shapes(spec)
    )
    for name, fan_in in {"inner": 132, "condition": 132, "inner_bias": 132, "outer": 264, "outer_bias": 264}.items():
        largest = float(np.abs(params[name]).max())
        assert 0.9 < largest * math.sqrt(fan_in) <= 1, name
    scales = 0.1 * np.log1p(np.exp(0.5 * np.asarray(params["scale"], float))) / 0.5
    np.testing.assert_allclose(scales, 1, rtol=1e-6)
    for rotation in np.asarray(params["rotation"], float):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
    hard = flow.init(jax.random.key(3), FlowSpec(8, blocks=2, permutation="hard"))
    assert [sorted(order) for order in hard["order"].tolist()] == [list(range(8))] * 2
    assert hard["order"].dtype == flow.shapes(FlowSpec(8, permutation="hard"))["order"].dtype


def test_the_position_code_is_a_loops() -> None:
    found = flow.position_code(3, 5)
    assert found.shape == (3, 5, 128)
    for y in range(3):
        for x in range(5):
            for k in range(32):
                speed = math.exp(-2 * k * math.log(1e4) / 64)
                wanted = [math.sin(x * speed), math.cos(x * speed), math.sin(y * speed), math.cos(y * speed)]
                np.testing.assert_allclose(found[y, x, [2 * k, 2 * k + 1, 64 + 2 * k, 65 + 2 * k]], wanted, atol=1e-6)


def test_tables_of_rows_and_columns_give_the_conditions_terms() -> None:
    params = lively(FlowSpec(7, blocks=3))
    rows, columns = jnp.asarray([0, 2, 1, 2]), jnp.asarray([4, 0, 3, 4])
    tables = flow.position_tables(params, 3, 5)
    wanted = flow.condition_terms(params, jnp.asarray(flow.position_code(3, 5)[rows, columns]))
    np.testing.assert_allclose(flow.position_terms(tables, rows, columns), wanted, atol=1e-5)

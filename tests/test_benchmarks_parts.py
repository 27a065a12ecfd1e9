"""What the benchmarks count and compute: shared gradients, operations, memory, and the suite for accelerators."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from solving import METHODS, RATES, make_case, run, tiny_extractor

from f2pad_jax.fitting import Model
from f2pad_jax.optim.sharing import share, sharing_weights
from f2pad_jax.solver import Lane

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SHAPE = (16, 32, 3)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def variants() -> ModuleType:
    return import_module("sharing_variants")


def pictures() -> tuple[jax.Array, jax.Array]:
    """An image and a gradient."""
    first, second = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    return jnp.asarray(first / 2), jnp.asarray(second)


def difference(found: jax.Array, wanted: jax.Array) -> float:
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


@pytest.mark.parametrize("name", ["blocks of rows, all 121 offsets", "shifted adds", "im2col"])
def test_exact_ways_to_share_agree(name: str, variants: ModuleType) -> None:
    image, gradient = pictures()
    way = variants.EXACT[name]
    wanted = share(gradient, sharing_weights(image))
    assert difference(way.apply(gradient, way.prepare(image)), wanted) < 1e-6


def test_the_kernel_agrees_in_a_batch(variants: ModuleType) -> None:
    image, gradient = pictures()
    # Few offsets: interpreted, each takes its time to compile.
    sharing = sharing_weights(image, radius=1)
    assert len(sharing.offsets) == 9
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), sharing)
    found = jax.jit(jax.vmap(variants.pallas))(jnp.stack([gradient, -gradient]), both)
    wanted = share(gradient, sharing)
    assert difference(found[0], wanted) < 1e-6
    assert difference(found[1], -wanted) < 1e-6


@pytest.mark.parametrize(("platform", "call"), [("cuda", "triton"), ("tpu", "tpu_custom_call")])
def test_the_kernel_is_lowered_for_accelerators(
    platform: str, call: str, variants: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, gradient = pictures()
    sharing = sharing_weights(image, radius=1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if platform == "cuda" else platform)
    # A function of its own: what was traced for the CPU is not taken again.
    traced = jax.jit(lambda g, s: variants.pallas(g, s)).trace(gradient, sharing)
    assert call in traced.lower(lowering_platforms=(platform,)).as_text()


def test_approximations_are_what_their_names_say(variants: ModuleType) -> None:
    image, gradient = pictures()
    wanted = share(gradient, sharing_weights(image))
    errors = {
        name: difference(way.apply(gradient, way.prepare(image)), wanted) for name, way in variants.APPROXIMATE.items()
    }
    assert 1e-6 < errors["radius 3"] < errors["radius 2"] < errors["radius 1"] < 1
    assert 1e-6 < errors["rank 16"] < errors["rank 4"] < errors["rank 1"] < 1
    assert 1e-6 < errors["two passes"] < 1
    flat = jnp.zeros(SHAPE)  # where colours do not differ, the map is separable
    way = variants.APPROXIMATE["two passes"]
    assert difference(way.apply(gradient, way.prepare(flat)), share(gradient, sharing_weights(flat))) < 1e-3


def test_all_of_the_singular_vectors_are_exact(variants: ModuleType) -> None:
    image, gradient = pictures()
    found = variants.low_rank(gradient, variants._factors(image, rank=81))
    assert difference(found, share(gradient, sharing_weights(image))) < 1e-4


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_operations_are_those_that_xla_counts(stride: int, padding: str) -> None:
    limits = import_module("limits")
    images, kernel = jnp.ones((2, 11, 12, 4)), jnp.ones((3, 3, 4, 6))

    def loss(images: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=names).sum()

    # XLA leaves products with the zeros out that a gradient's stride puts between elements, and so do we.
    for function in (loss, jax.grad(loss), jax.value_and_grad(loss)):
        traced = jax.jit(function).trace(images)
        counted = traced.lower().cost_analysis()
        assert counted is not None
        assert limits.operations(traced.jaxpr) == pytest.approx(counted["flops"], rel=0.02)


def test_operations_of_loops_and_products() -> None:
    limits = import_module("limits")
    square = jnp.ones((8, 8))

    def repeated(a: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry @ a, None), a, length=5)[0]

    assert limits.operations(jax.make_jaxpr(repeated)(square)) == 5 * 2 * 8**3
    assert limits.operations(jax.make_jaxpr(jax.jit(lambda a: jnp.sum(a + a)))(square)) == 128


def test_a_compiled_call_tells_its_size() -> None:
    timing = import_module("timing")
    call = timing.prepared(jax.jit(lambda a: a @ a), jnp.ones((64, 64)))
    np.testing.assert_array_equal(call.run(), 64)
    assert call.flops == 2 * 64**3
    assert call.memory["arguments"] == call.memory["results"] == 4 * 64**2
    assert call.bytes >= 2 * 4 * 64**2
    assert call.compile_s > 0
    assert timing.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median_s": 3.0, "quartile1_s": 2.0, "quartile3_s": 4.0, "min_s": 1.0, "max_s": 5.0, "repeats": 5,
    }  # fmt: skip


def test_shares_stand_beside_the_right_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = import_module("limits")
    monkeypatch.setattr(limits, "peak_of", lambda device: limits.PEAKS["NVIDIA H200"])
    half = limits.shares(494.7e12, 2.4e12, 2.0, precision="fast")
    assert half == pytest.approx({"share_of_peak": 0.5, "share_of_bandwidth": 0.25})
    assert limits.shares(67e12, 0.0, 1.0, precision="parity")["share_of_peak"] == pytest.approx(1)
    assert limits.shares(989.4e12, 0.0, 1.0, precision="bf16")["share_of_peak"] == pytest.approx(1)
    monkeypatch.setattr(limits, "peak_of", lambda device: None)
    assert limits.shares(1.0, 1.0, 1.0, precision="fast") == {}


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = import_module("limits").peak_of(jax.devices("cpu")[0])
    assert peak.float32 > 1e8
    assert peak.bandwidth > 1e7
    assert peak.tensor_float32 is None
    assert "measured" in peak.source


def test_a_sharing_table_has_an_error_for_every_row(
    tmp_path: Path, variants: ModuleType, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, run, out = import_module("sharing"), import_module("run"), tmp_path / "sharing.json"
    few = {name: variants.EXACT[name] for name in ("blocks of rows", "shifted adds", "Pallas kernel")}
    monkeypatch.setattr(sharing, "EXACT", few)
    monkeypatch.setattr(sharing, "APPROXIMATE", {"radius 2": variants.APPROXIMATE["radius 2"]})
    monkeypatch.setattr(sharing, "model_of", lambda *_: tiny_model)
    assert run.main(["sharing", "--only", "1", "--size", "64", "--repeats", "2", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["cases"]
    assert [row["variant"] for row in rows] == ["blocks of rows", "shifted adds", "radius 2"]
    errors = [row["error"] for row in rows]
    assert errors[0] == 0
    assert errors[1] < 1e-6 < errors[2] < 1
    for row in rows:
        assert row["precision"]
        assert row["jaxlib"]
        assert row["batch"] == 1
        assert row["compile_s"] > 0
        assert row["min_s"] <= row["quartile1_s"] <= row["median_s"] <= row["quartile3_s"] <= row["max_s"]


def test_a_case_of_scaling_runs_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "scaling.json"
    case = ["--only", "bank", "1024", "--size", "64", "--repeats", "2", "--json", str(out)]
    assert import_module("run").main(["scaling", *case]) == 0
    (row,) = json.loads(out.read_text())["cases"]
    assert (row["kind"], row["value"], row["ratio"]) == ("bank", 1024, 1)
    # The bank alone is 1024 × 384 numbers.
    assert row["call_bytes"] > 4 * 1024 * 384
    assert 100e6 < row["peak_bytes"] < 4 * 2**30


def test_the_suite_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = import_module("gpu_suite")
    reports = []

    def broken() -> None:
        reports.extend(tmp_path.glob("*.json"))
        raise ValueError("no")

    monkeypatch.setattr(
        suite, "assemble", lambda options, extent: suite.Suite(options, extent, None, "", [], [], [], 0)
    )
    monkeypatch.setattr(suite, "sections", lambda _: {"good": lambda: 1, "bad": broken, "late": lambda: 2})
    assert suite.main(["--quick", "--out", str(tmp_path)]) == 1
    assert [path.name for path in reports] == [path.name for path in tmp_path.iterdir()]
    found = json.loads(reports[0].read_text())["sections"]
    assert found["good"]["result"] == 1
    assert found["bad"]["failed"].startswith("ValueError: no")
    assert found["late"]["result"] == 2
    assert suite.main(["--quick", "--out", str(tmp_path), "--minutes", "0"]) == 0
    assert "skipped" in json.loads(reports[0].read_text())["sections"]["good"]


def test_a_schedule_changes_the_rate_only() -> None:
    schedules = import_module("choices").SCHEDULES
    shares = jnp.linspace(0, 1, 11)
    for name, schedule in schedules.items():
        factors = schedule(shares)
        assert factors[0] == pytest.approx(1)
        assert factors[-1] == pytest.approx(1 if name == "constant" else 0.1)
        assert (jnp.diff(factors) <= 1e-6).all()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_constant_schedule_is_the_solve(schedule: str) -> None:
    choices, case, extractor = import_module("choices"), make_case("padim"), tiny_extractor()
    lane = Lane(case.start, case.problem, RATES, 40)
    method = METHODS[0]
    normal, count = choices.descend(extractor, lane, detector=case.detector, method=method, schedule=schedule)
    solution = run(extractor, case.start, case.problem, RATES, 40, detector=case.detector, method=method)
    if schedule == "constant":
        np.testing.assert_array_equal(normal, solution.normal)
        assert count == solution.iterations
    else:
        assert np.isfinite(normal).all()
        assert np.abs(normal - solution.normal).max() > 1e-3

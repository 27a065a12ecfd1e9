"""What the benchmarks count and measure: operations, memory, peaks, growth, and the suite for accelerators."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from solving import tiny_extractor

from f2pad_jax.calibration import GAIN
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit
from f2pad_jax.metrics import iou
from f2pad_jax.segmentation import segment

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def test_operations_are_those_that_convolutions_need() -> None:
    operations = import_module("timing").operations
    images, kernel = jnp.ones((2, 11, 12, 4)), jnp.ones((3, 3, 4, 6))

    def loss(images: jax.Array, stride: int, padding: str) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=names).sum()

    # Each output is a sum of 9 · 4 products, but where the kernel lies on padding: 9 · 10 places have none, and along
    # the border 2 · 9 + 2 · 10 have 6 of 9, the four corners 4 of 9.
    valid, same = 2 * 6 * 90 * 36, 2 * 6 * 4 * (90 * 9 + 38 * 6 + 4 * 4)
    for padding, products in (("VALID", valid), ("SAME", same)):
        forward = jax.jit(lambda x, padding=padding: loss(x, 1, padding))
        assert operations(forward, images) == pytest.approx(2 * products, rel=0.02)
    # The gradient asks for the same products again; those with the zeros that a stride puts between do not count.
    strided = [jax.jit(how(lambda x: loss(x, 2, "VALID"))) for how in (lambda f: f, jax.grad, jax.value_and_grad)]
    products = 2 * 6 * 25 * 36
    for function, times in zip(strided, (1, 1, 2), strict=True):
        assert operations(function, images) == pytest.approx(2 * times * products, rel=0.03)


def test_operations_of_products() -> None:
    operations, square = import_module("timing").operations, jnp.ones((8, 8))
    assert operations(jax.jit(lambda a: a @ a), square) == pytest.approx(2 * 8**3)
    assert operations(jax.jit(lambda a: jnp.sum(a + a)), square) == pytest.approx(128, abs=2)


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
    out, suite, written = tmp_path / "out.json", import_module("gpu_suite"), []
    good = {"median_s": 2.0, "min_s": 1.0, "max_s": 3.0}

    def broken() -> Any:
        written.extend(json.loads(out.read_text())["cases"])
        raise ValueError("no")

    known = {"good": lambda: good, "bad": broken, "nan": lambda: good | {"F": float("nan")}, "late": lambda: good}
    monkeypatch.setattr(suite, "sections", lambda _: known)
    assert import_module("run").main(["gpu_suite", "--json", str(out)]) == 1
    assert [case["section"] for case in written] == ["good"]  # on record before the next one began
    assert [*tmp_path.iterdir()] == [out]
    first, second, third, last = json.loads(out.read_text())["cases"]
    assert first["ratio"] == last["ratio"] == 1
    assert second["failed"].startswith("ValueError: no")
    assert third["failed"].startswith("ValueError: Out of range float")
    monkeypatch.setattr(suite, "sections", lambda _: {"good": lambda: good})
    assert import_module("run").main(["gpu_suite", "--json", str(out)]) == 0


def test_the_suite_runs_where_there_is_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    suite, out = import_module("gpu_suite"), tmp_path / "out.json"
    monkeypatch.setattr(import_module("problems"), "TRAINING", 8)
    monkeypatch.setattr(suite, "BATCHES", (1,))
    monkeypatch.setattr(suite, "LANES", (2,))
    small = ["--size", "64", "--images", "2", "--limit", "4", "--repeats", "1", "--json", str(out)]
    for only, cases in (("steps", 3), ("jobs", 2)):
        assert import_module("run").main(["gpu_suite", "--only", only, *small]) == 0
        rows = json.loads(out.read_text())["cases"]
        assert len(rows) == cases
        for row in rows:
            assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
            assert row["ratio"] > 0
            assert row["flops"] > 0
    assert [(row["lanes"], row["stop_rule"]) for row in rows] == [(2, "paper"), (2, "library")]
    assert all(1 <= row["iterations"] <= 4 for row in rows)


def test_the_default_rule_of_masks_is_among_those_that_are_compared(tmp_path: Path) -> None:
    """What the benchmark reads off kept solves at the default numbers is the mask of `segment`."""
    rules = import_module("mask_rules")
    normals, cases = texture_category("brick", train=16, test=3, size=32)
    model = fit(normals, detector="padim", extractor=tiny_extractor())
    model = replace(model, procedure=replace(model.procedure, start="matching", threshold=0.5 * model.threshold))
    images, masks = (np.stack([case[part] for case in cases]) for part in (0, 1))
    rules.solve(model, images, masks, "brick", tmp_path)
    kept = [rules.Kept(**np.load(path)) for path in sorted(tmp_path.glob("brick-*.npz"))]
    assert len(kept) == 3
    name = f"gain {GAIN}, evidence {rules.EVIDENT} below β0"
    expected = [iou(found.mask, truth) for found, truth in zip(segment(model, images), masks, strict=True)]
    assert max(expected) > 0
    np.testing.assert_allclose([rules.RULES[name](one) for one in kept], expected)
    assert all(rules.RULES["the best level of each picture (an oracle)"](one) >= 0 for one in kept)

"""The benchmarks run, and write what their contract says."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from f2pad_jax.core import Terms, solve, terms
from f2pad_jax.core.adan import scale_by_adan
from f2pad_jax.core.sharing import share_gradients
from f2pad_jax.data.textures import texture_category
from f2pad_jax.fitting import fit
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.preparing import Start, build, locate

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("run")


def test_the_list_has_one_name_a_line(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    names = ["step_ratio", "extractor_vs_torch", "pytorch_loop", "lane_waste", "scaling", "native", "whole_job"]
    names.append("gpu_suite")
    assert capsys.readouterr().out.splitlines() == names
    for name in names:
        assert callable(import_module(name).cases)


def test_measurements_take_turns(run: ModuleType) -> None:
    timing, calls = import_module("timing"), []

    def timer(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times, first = timing.interleaved({"a": lambda: timer("a"), "b": lambda: timer("b")}, repeats=3)
    assert calls == ["a", "b"] * 5
    assert first == {"a": 1, "b": 2}
    assert times == {"a": [5, 7, 9], "b": [6, 8, 10]}
    figures = timing.summary([6.0, 1.0, 4.0], [2.0, 3.0, 1.0])
    assert figures["ratio"] == 2
    assert (figures["min_s"], figures["median_s"], figures["max_s"]) == (1, 4, 6)


def test_a_tiny_case_writes_the_contracts_json(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(import_module("problems"), "TRAINING", 8)
    out = tmp_path / "out" / "step.json"
    out.parent.mkdir()
    case = ["--only", "resnet18", "patchcore", "1", "12%", "step", "--size", "64", "--repeats", "3"]
    assert run.main(["step_ratio", *case, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [*out.parent.iterdir()] == [out]
    assert set(report) == {"name", "device", "versions", "cases"}
    assert report["name"] == "step_ratio"
    assert "jax" in report["versions"]
    (figures,) = report["cases"]
    assert (figures["extractor"], figures["detector"], figures["weights"]) == ("resnet18", "patchcore", "random")
    assert 0 < figures["min_s"] <= figures["median_s"] <= figures["max_s"]
    assert figures["ratio"] == pytest.approx(figures["median_s"] / figures["base_median_s"], abs=1e-3)
    assert {"device", "jaxlib", "precision", "compile_s", "share_of_peak", "share_of_bandwidth"} <= set(figures)
    assert figures["flops"] > figures["base_flops"] > 0
    assert figures["bytes"] > 0
    assert f"ratio {figures['ratio']:.2f}" in capsys.readouterr().out


def test_lanes_are_compared_with_the_batch_and_with_their_like(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(import_module("problems"), "TRAINING", 8)
    out = tmp_path / "lanes.json"
    case = ["--only", "resnet18", "padim", "12%", "lanes", "--size", "96", "--repeats", "3", "--json", str(out)]
    assert run.main(["step_ratio", *case]) == 0
    (figures,) = json.loads(out.read_text())["cases"]
    assert figures["batch"] == 8
    assert figures["ratio"] == pytest.approx(figures["median_s"] / figures["base_median_s"], abs=1e-3)
    assert figures["ratio_alike"] == pytest.approx(figures["median_s"] / figures["alike_median_s"], abs=1e-3)


@pytest.mark.parametrize("name", ["extractor_vs_torch", "pytorch_loop"])
def test_without_torch_one_line_says_so(
    name: str, run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run.main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch is not installed" in line
    assert "pip install" in line


@pytest.mark.parity
def test_torch_runs_the_same_network_in_its_own_process(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "torch.json"
    case = ["--only", "resnet18", "value_and_grad", "1", "--size", "64", "--repeats", "1", "--json", str(out)]
    subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "extractor_vs_torch", *case],
        check=True,
        cwd=FOLDER.parent,
        env=os.environ | {"F2PAD_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"},
        timeout=600,
    )
    (figures,) = json.loads(out.read_text())["cases"]
    assert statistics.median([figures["min_s"], figures["max_s"]]) == pytest.approx(figures["median_s"])


def test_lane_steps_are_counted(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("problems"), "TRAINING", 8)
    out = tmp_path / "lanes.json"
    case = ["--only", "patchcore", "grid", "--size", "64", "--images", "2", "--limit", "20", "--json", str(out)]
    assert run.main(["lane_waste", *case]) == 0
    (figures,) = json.loads(out.read_text())["cases"]
    assert (figures["lanes"], figures["batch"]) == (6, 8)
    assert 6 <= figures["iterations"] <= 6 * 20
    # At most one call of eight steps, of as many lanes as are left, too much for each lane.
    assert figures["iterations"] <= figures["lane_steps"] <= figures["iterations"] + 6 * 8
    assert figures["ratio"] == pytest.approx(figures["lane_steps"] / figures["iterations"], abs=1e-3)
    assert figures["ratio"] >= 1
    assert 0 < figures["min_s"] <= figures["median_s"] <= figures["max_s"]
    assert 0 <= figures["images_below_threshold"] <= 2


def test_a_region_needs_no_truth(run: ModuleType, tiny_model: Model) -> None:
    tasks, image = import_module("loop_tasks"), texture_category("brick", train=1, test=1, size=64)[1][0][0][None]
    (found,) = spots = tasks.spots_of(tiny_model, image)
    np.testing.assert_array_equal(found.region, locate(tiny_model, found.sight).region)
    assert found.region.any()
    assert tasks.unreached(spots) == {"images_below_threshold": 0}
    # Where nothing reaches the threshold, the highest scores are taken.
    strict = replace(tiny_model, procedure=replace(tiny_model.procedure, threshold=1e9))
    (other,) = spots = tasks.spots_of(strict, image)
    assert tasks.unreached(spots) == {"images_below_threshold": 1}
    assert other.region[other.sight.scores > np.quantile(other.sight.scores, 1 - tasks.HIGHEST)].all()
    assert not other.region.all()


def test_stages_of_a_job_are_counted_once(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_job = import_module("whole_job")
    now = iter(range(100))
    monkeypatch.setattr(whole_job.time, "perf_counter", lambda: next(now))
    clock = whole_job.Clock()
    features = clock.timed("features", lambda: None)
    look = clock.timed("score", features)

    def solve() -> Iterator[int]:
        look()  # what is left in n is a part of the solve
        yield 1
        yield 2

    look()
    assert list(clock.timed("solve", solve)()) == [1, 2]
    assert {name: seconds for name, seconds in clock.seconds.items() if seconds} == {
        "features": 1,  # of the three that looking takes by this clock
        "score": 2,
        "solve": 4,  # its call, two values and the end
    }


def test_a_whole_job_tells_its_stages(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("whole_job"), "TRAINING", 8)
    out = tmp_path / "job.json"
    assert run.main(["whole_job", "--only", "padim", "--size", "64", "--images", "2", "--json", str(out)]) == 0
    cold, warm = json.loads(out.read_text())["cases"]
    assert [case["run"] for case in (cold, warm)] == ["cold", "warm"]
    for case in (cold, warm):
        assert sum(case["shares"].values()) == pytest.approx(1, abs=0.01)
        assert {"read", "features", "score", "region and fill", "solve", "re-estimate"} <= case["shares"].keys()
        assert case["shares"]["solve"] > 0
        assert case["images_per_s"] == pytest.approx(1 / case["median_s"], abs=1e-3)
    assert warm["ratio"] < 1 == cold["ratio"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["padim", "patchcore"])
def test_the_loop_in_torch_minimises_our_objective(name: str, run: ModuleType, lite0: Extractor) -> None:
    torch = pytest.importorskip("torch")
    loop, tasks = import_module("torch_loop"), import_module("loop_tasks")
    normals, cases = texture_category("ihc", train=10, test=1, size=64)
    model = fit(normals, detector=name, extractor=lite0)
    ((chosen, task),) = tasks.given(model, tasks.spots_of(model, cases[0][0][None]))
    assert task.region.any()
    # From the fill, neighbours share.
    fill = chosen.start.fill
    _, ours, settings = build(model, chosen._replace(start=Start(fill, fill, filled=True), shared=True))
    image, region = np.asarray(ours.image), np.asarray(ours.region)
    rng = np.random.default_rng(0)
    # Noise all over: where neighbours are equal, total variation has many gradients.
    n = image + rng.normal(0, np.where(region, 0.3, 0.01)[..., None], image.shape).astype(np.float32)

    @jax.jit
    def our_terms(normal: jax.Array, cotangent: Terms) -> tuple[Terms, jax.Array]:
        values, pull = jax.vjp(lambda n: terms(n, model.energy, ours, settings), normal)
        return values, pull(cotangent)[0]

    setup = loop.upload(tasks.setup_of(model), torch.device("cpu"))
    theirs = loop.prepare(task, setup, settings.beta0)
    normal = loop.picture(n, torch.device("cpu")).requires_grad_()
    their_terms = loop.terms(normal, theirs, setup, (settings.alpha1, settings.alpha2))

    positions = np.asarray(chosen.affected.positions)
    np.testing.assert_array_equal(theirs.positions, positions[np.asarray(ours.present) > 0])
    for index, their_term in enumerate(their_terms):
        values, gradient = our_terms(n, Terms(*np.eye(4, dtype=np.float32)[index]))
        np.testing.assert_allclose(their_term.detach(), values[index], rtol=1e-4)
        (their_gradient,) = torch.autograd.grad(their_term, normal, retain_graph=True)
        largest = float(np.abs(gradient).max())
        assert largest > 0
        np.testing.assert_allclose(their_gradient[0].permute(1, 2, 0), gradient, atol=1e-4 * largest)

    mask, iterations, loss = loop.segment(task, setup, 3)
    assert (mask.shape, mask.dtype, iterations) == (task.region.shape, bool, 3)
    assert np.isfinite(loss)

    # From a gradient to a direction: sharing and Adan.
    assert ours.sharing is not None
    adan, transform = loop.Adan(normal), optax.chain(share_gradients(ours.sharing), scale_by_adan())
    state = transform.init(jnp.asarray(n))
    for _ in range(4):
        gradient = rng.standard_normal(n.shape).astype(np.float32)
        direction, state = transform.update(jnp.asarray(gradient), state)
        shared = loop.share(loop.picture(gradient, torch.device("cpu")), theirs.sharing)
        np.testing.assert_allclose(adan.direction(shared)[0].permute(1, 2, 0), np.asarray(direction), atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("filled", [False, True])
def test_our_algorithm_in_torch_takes_the_same_steps(
    filled: bool,  # noqa: FBT001
    run: ModuleType,
    lite0: Extractor,
) -> None:
    torch = pytest.importorskip("torch")
    loop, tasks, solver = import_module("torch_loop"), import_module("loop_tasks"), import_module("torch_solver")
    normals, cases = texture_category("ihc", train=10, test=1, size=64)
    model = fit(normals, detector="padim", extractor=lite0)
    ((chosen, task),) = tasks.given(model, tasks.spots_of(model, cases[0][0][None]))
    start = Start(chosen.start.fill if filled else task.image, chosen.start.fill, filled=filled)
    chosen = chosen._replace(start=start, shared=filled)
    setup = loop.upload(tasks.setup_of(model), torch.device("cpu"))
    # Total variation has many gradients where neighbours are equal, and from a fill steps amplify roundings.
    settings = model.settings.replace(alpha2=0.0, warm_up=4, limit=5 if filled else 12, hold=1)
    begun, problem, _ = build(model, chosen)
    ours = jax.jit(solve)(begun, model.energy, problem, settings)
    theirs = solver.segment(task._replace(start=start.normal, filled=filled), setup, settings)
    assert theirs.iterations == int(ours.iterations)
    assert theirs.loss == pytest.approx(float(ours.loss), rel=1e-5)
    assert np.abs(np.asarray(ours.normal) - task.image).max() > 0.5
    np.testing.assert_allclose(theirs.normal, np.asarray(ours.normal), atol=2e-3 if filled else 1e-4)
    np.testing.assert_array_equal(theirs.lasting, np.asarray(ours.lasting))
    assert theirs.lasting.any()
    present = np.asarray(problem.present) > 0
    np.testing.assert_allclose(theirs.left[0], np.asarray(ours.left)[0, present], rtol=1e-2)


@pytest.mark.parity
def test_torch_takes_turns_with_ours(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    peer = "same"
    out = tmp_path / "loop.json"
    case = ["--only", peer, "patchcore", "brick", "--size", "64", "--images", "2", "--limit", "6", "--repeats", "1"]
    subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "pytorch_loop", *case, "--json", str(out)],
        check=True,
        cwd=FOLDER.parent,
        env=os.environ | {"F2PAD_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"},
        timeout=600,
    )
    (figures,) = json.loads(out.read_text())["cases"]
    assert (figures["detector"], figures["category"], figures["images"]) == ("patchcore", "brick", 2)
    assert figures["peer"] == peer
    assert figures["ratio"] == pytest.approx(figures["base_mean_s"] / figures["median_s"], rel=1e-2)
    assert 0 < figures["min_s"] <= figures["median_s"] <= figures["max_s"]
    assert 0 < figures["base_min_s"] <= figures["base_median_s"] <= figures["base_max_s"]
    assert figures["iterations"] <= 6
    assert 1 <= figures["base_iterations"] <= 6
    assert 0 <= figures["iou"] <= 100
    assert 0 <= figures["base_iou"] <= 100
    assert figures["base_threads"] >= 1

"""The benchmarks run, and write what their contract says."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("run")


def test_the_list_has_one_name_a_line(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    assert {"step_ratio", "extractor_vs_torch"} <= set(capsys.readouterr().out.splitlines())


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
    assert f"ratio {figures['ratio']:.2f}" in capsys.readouterr().out


def test_without_torch_one_line_says_so(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run.main(["extractor_vs_torch"]) == 2
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
        timeout=120,
    )
    (figures,) = json.loads(out.read_text())["cases"]
    assert statistics.median([figures["min_s"], figures["max_s"]]) == pytest.approx(figures["median_s"])

"""The scripts of `examples/` run as they are, stay short, and do what they say."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import f2pad_jax as f2
from f2pad_jax.detectors import DETECTORS
from f2pad_jax.metrics import iou

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LONGEST = 40  # lines
FEW = 8  # pixels of 4096: a batch rounds in another order, which decides for pixels that have not settled


def run(name: str) -> dict[str, Any]:
    """Runs a script as a user does; its variables."""
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def anomalous(solution: f2.Solution, problem: f2.Problem) -> np.ndarray:
    return np.asarray(jnp.any(solution.normal != problem.image, axis=-1))


def differing(first: Any, second: Any) -> int:
    return int((np.asarray(first) != np.asarray(second)).sum())


@pytest.fixture
def clean_table() -> Iterator[None]:
    """Takes a detector that a script adds out of the table again."""
    before = dict(DETECTORS)
    yield
    DETECTORS.clear()
    DETECTORS.update(before)


def test_scripts_are_there_and_short() -> None:
    names = {path.stem for path in SCRIPTS}
    assert names == {
        "batch_pictures",
        "own_detector",
        "own_penalty",
        "own_stopping_rule",
        "refine_any_map",
        "sweep_beta",
    }
    assert max(len(path.read_text("utf-8").splitlines()) for path in SCRIPTS) <= LONGEST


def test_sweep_beta() -> None:
    made = run("sweep_beta")
    counts = np.asarray(made["masks"]).sum(axis=(1, 2))
    assert len(counts) == len(made["weights"]) == 5
    assert counts[0] > 1.2 * counts[3]  # more weight on sparsity, fewer anomalous pixels
    chosen = 3
    assert iou(np.asarray(made["masks"][chosen]), made["truth"]) > 0.9
    settings = made["model"].settings.replace(beta0=made["weights"][chosen])
    alone = f2.solve(made["start"], made["model"].energy, made["problem"], settings)
    assert differing(made["masks"][chosen], anomalous(alone, made["problem"])) <= FEW
    np.testing.assert_allclose(made["solutions"].loss[chosen], alone.loss, rtol=5e-3)


def test_own_penalty(capsys: pytest.CaptureFixture[str]) -> None:
    made = run("own_penalty")
    printed = capsys.readouterr().out.splitlines()
    quality = {line.partition(":")[0]: float(line.split("IoU = ")[1].partition(",")[0]) for line in printed}
    assert set(quality) == {"LOG", "log-sum"}
    assert min(quality.values()) > 0.9

    # Its proximal map is the minimum on a fine grid.
    value, prox = made["value"], made["prox"]
    lengths, weights = np.linspace(0, 3, 31, dtype=np.float32), np.array([0.001, 0.1, 0.5, 2.0], np.float32)
    grid = np.linspace(0, 4, 40001, dtype=np.float32)
    for weight in weights:
        found = np.asarray(prox(lengths, weight))
        costs = np.square(grid - lengths[:, None]) / 2 + weight * np.asarray(value(grid))
        reached = np.square(found - lengths) / 2 + weight * np.asarray(value(found))
        np.testing.assert_allclose(reached, costs.min(axis=1), atol=2e-6)
        assert (found >= 0).all()


def test_own_stopping_rule() -> None:
    made = run("own_stopping_rule")
    state = made["state"]
    assert made["unchanged"] == 5
    assert state.status == f2.Status.RUNNING  # the script's rule ended it, not the library's
    assert made["settings"].warm_up + 5 <= state.iterations < made["settings"].limit
    assert iou(np.asarray(made["mask"]), made["truth"]) > 0.9


def test_batch_pictures() -> None:
    made = run("batch_pictures")
    assert sum(map(len, made["groups"].values())) == len(made["cases"]) == 4
    # What was solved in the last stack is what `solve` makes of its first picture alone.
    start, problem, truth = made["members"][0]
    assert len(made["members"]) > 1
    alone = f2.solve(start, made["model"].energy, problem, made["model"].settings)
    assert differing(made["masks"][0], anomalous(alone, problem)) <= FEW
    np.testing.assert_allclose(made["solutions"].loss[0], alone.loss, rtol=5e-3)
    assert iou(anomalous(alone, problem), truth) > 0.9


@pytest.mark.usefixtures("clean_table")
def test_own_detector() -> None:
    made = run("own_detector")
    assert made["model"].detector.name == "average"
    assert "average" in DETECTORS
    result, truth = made["result"], made["truth"]
    assert iou(result.mask, truth) > 0.9
    assert iou(result.mask, truth) > iou(result.initial_mask, truth)


def test_refine_any_map(capsys: pytest.CaptureFixture[str]) -> None:
    made = run("refine_any_map")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(made["cases"])
    for line in printed:
        before, after = (float(part.split(" ")[0].rstrip(",")) for part in line.split("IoU = ")[1].split("refined: "))
        assert after > 0.9 > before

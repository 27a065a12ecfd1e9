from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from results import a_result
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from f2pad_jax import evaluation
from f2pad_jax.core import Settings
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import evaluate, gap_closed, metrics_file, plain_settings
from f2pad_jax.procedure import Procedure
from f2pad_jax.segmentation import Segmentation

SIZE = 24
MODEL: Any = SimpleNamespace(
    detector=SimpleNamespace(name="patchcore"),
    extractor=SimpleNamespace(name="efficientnet_lite0"),
    shape=(SIZE, SIZE),
    normals=np.zeros((9, SIZE, SIZE, 3), np.uint8),
    held_out=np.zeros((3, SIZE, SIZE, 3), np.uint8),
    settings=Settings(beta0=jnp.float32(2.5)),  # pyright: ignore[reportArgumentType]
    procedure=Procedure(start="harmonic"),
    tuned_on="synthetic-validation",
    seed=5,
    roi=None,
)


def _result(seed: int, truth: np.ndarray) -> Segmentation:
    rng = np.random.default_rng(seed)
    scores = (truth + rng.normal(0, 0.7, truth.shape)).astype(np.float32)
    initial, mask = scores > 0.3, truth ^ (rng.random(truth.shape) < 0.02)
    return a_result(
        np.zeros((*truth.shape, 3), np.uint8),
        mask,
        initial_mask=initial,
        score_map=scores,
        threshold=0.3,
        refined_map=scores + mask,
        iterations=100 + seed,
        seconds=0.5 + seed,
    )


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, list[Segmentation]]:
    """Three images, the last without a defect, and what segmenting them will give."""
    masks = np.zeros((3, SIZE, SIZE), bool)
    masks[0, 4:14, 5:20] = True
    masks[1, 10:13, 2:8] = True
    results = [_result(index, mask) for index, mask in enumerate(masks)]
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    monkeypatch.setattr(evaluation, "segment", lambda model, images, **_: results)
    return images, masks, results


def _run(case: tuple[np.ndarray, np.ndarray, list[Segmentation]], **options: Any) -> dict[str, Any]:
    images, masks, _ = case
    return evaluate(MODEL, images, masks, ["a/0", "a/1", "good/0"], dataset="set", category="part", **options).run


def test_the_record_has_what_outside_callers_rely_on(case) -> None:
    whole = json.loads(json.dumps(metrics_file([_run(case)]), allow_nan=False))
    assert whole["schema"] == 1
    (run,) = whole["runs"]
    types = {
        "dataset": str, "category": str, "detector": str, "extractor": str, "train_images": int,
        "test_images": int, "seed": int, "tuned_on": str, "backbone": dict, "f2pad": dict,
        "per_image": list, "device": str, "jax": str,
    }  # fmt: skip
    for name, kind in types.items():
        assert type(run[name]) is kind, name
    assert (run["dataset"], run["category"], run["train_images"], run["test_images"]) == (
        "set",
        "part",
        12,
        3,
    )
    assert {"iou", "dice", "pooled_iou", "pixel_auroc", "aupro", "f1max"} <= run["backbone"].keys()
    assert {"iou", "dice", "pooled_iou", "boundary_f1", "pixel_auroc", "aupro", "f1max"} <= run["f2pad"].keys()
    for name in ("backbone", "f2pad", "backbone_oracle"):
        assert all(type(value) is float for value in run[name].values())
    for image in run["per_image"]:
        kinds = {"image": str, "backbone_iou": float, "f2pad_iou": float, "iterations": int, "status": str}
        assert {name: type(image[name]) for name in kinds} == kinds
        assert type(image["seconds"]) is float


def test_the_record_tells_settings_as_plain_data(case) -> None:
    run = json.loads(json.dumps(_run(case), allow_nan=False))
    assert (run["detector"], run["extractor"]) == ("patchcore", "efficientnet_lite0")
    assert run["settings"].keys() == vars(Settings()).keys() | vars(Procedure()).keys()
    assert run["settings"] == plain_settings(MODEL)
    assert (run["settings"]["beta0"], run["settings"]["alpha1"], run["settings"]["start"]) == (2.5, 1.0, "harmonic")
    assert run["settings"]["proximal"] is True


def test_means_are_over_defects_and_agree_with_scikit_learn(case) -> None:
    run, (_, masks, results) = _run(case), case
    for name, found in (("backbone", "initial_mask"), ("f2pad", "mask")):
        pairs = [(masks[i].ravel(), getattr(results[i], found).ravel()) for i in (0, 1)]
        assert run[name]["iou"] == pytest.approx(100 * np.mean([jaccard_score(*p) for p in pairs]), abs=0.006)
        assert run[name]["dice"] == pytest.approx(100 * np.mean([f1_score(*p) for p in pairs]), abs=0.006)
        pooled = jaccard_score(masks.ravel(), np.stack([getattr(r, found) for r in results]).ravel())
        assert run[name]["pooled_iou"] == pytest.approx(100 * pooled, abs=0.006)
    scores = np.stack([result.score_map for result in results])
    assert run["backbone"]["pixel_auroc"] == pytest.approx(
        100 * roc_auc_score(masks.ravel(), scores.ravel()), abs=0.006
    )
    refined = np.stack([result.refined_map for result in results])
    assert run["f2pad"]["pixel_auroc"] == pytest.approx(100 * roc_auc_score(masks.ravel(), refined.ravel()), abs=0.006)
    assert run["good_marked"] == 1
    assert run["per_image"][0]["f2pad_iou"] == pytest.approx(
        100 * jaccard_score(masks[0].ravel(), results[0].mask.ravel()), abs=0.006
    )
    assert run["per_image"][2]["f2pad_iou"] == 0  # something was found where nothing is
    closed = gap_closed(run["backbone"]["iou"], run["f2pad"]["iou"])
    assert run["closed"] == pytest.approx(closed, abs=0.006)
    assert run["seconds"] == 1.5


def test_the_oracle_threshold_is_the_best_there_is(case) -> None:
    run, (_, masks, results) = _run(case), case
    scores = np.stack([result.score_map for result in results])
    every = [f1_score(masks.ravel(), (scores >= level).ravel()) for level in np.unique(scores)[::7]]
    assert run["backbone"]["f1max"] >= 100 * max(every) - 0.006
    threshold = run["backbone_oracle"]["threshold"]
    pairs = [(masks[i].ravel(), (scores[i] > threshold).ravel()) for i in (0, 1)]
    assert run["backbone_oracle"]["iou"] == pytest.approx(100 * np.mean([jaccard_score(*p) for p in pairs]), abs=0.006)


def test_pictures_that_could_not_be_read_are_listed_and_lose_nothing_else(case) -> None:
    unread = [("a/9", InputError("cannot be read", where="a/9.png"))]
    run = _run(case, unread=unread)
    assert (run["test_images"], run["failed"]) == (3, 1)
    assert [image["image"] for image in run["per_image"]] == ["a/0", "a/1", "good/0", "a/9"]
    assert [image["status"] for image in run["per_image"]] == ["converged"] * 3 + ["failed"]
    assert run["per_image"][3]["error"] == "a/9.png: cannot be read"
    assert run["f2pad"] == _run(case)["f2pad"]


def test_nothing_to_measure_is_said_before_any_work(case, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks, _ = case
    monkeypatch.setattr(evaluation, "segment", lambda *_, **__: pytest.fail("worked in vain"))
    with pytest.raises(InputError, match="one kind of pixel only"):
        evaluate(MODEL, images, np.zeros_like(masks), ["x"] * 3, dataset="d", category="c")


def test_gap_closed() -> None:
    assert gap_closed(60, 90) == 75
    assert gap_closed(60, 50) == -25
    assert gap_closed(100, 100) is None

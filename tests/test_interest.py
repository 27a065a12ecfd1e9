"""Regions of interest: outside nothing is scored or marked, thresholds are those inside, and models keep them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import a_result

from f2pad_jax import windows
from f2pad_jax.calibration import limits_of
from f2pad_jax.cli import main
from f2pad_jax.data.images import read_mask, resize_mask, write_png
from f2pad_jax.data.textures import make_textures, texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import fit
from f2pad_jax.interest import cells_inside, check_roi, digest_of, read_roi
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.segmentation import Segmentation, restrict, segment
from f2pad_jax.sights import look, smooth_map
from f2pad_jax.windows import segment_windows, training_windows

SIDE = 64


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    """A picture with an anomaly, and its mask."""
    image, truth, _ = texture_category("brick", train=8, test=1, size=SIDE)[1][0]
    return image, truth


def _half(truth: np.ndarray) -> np.ndarray:
    """The part of a picture left of the middle of its anomaly."""
    return np.broadcast_to(np.arange(SIDE) < np.mean(np.nonzero(truth)[1]), truth.shape)


@pytest.mark.parametrize(("own", "shape", "seen"), [((9, 7), (64, 96), (32, 32)), ((500, 300), (70, 50), (64, 32))])
def test_cells_hold_what_is_inspected(own: tuple[int, int], shape: tuple[int, int], seen: tuple[int, int]) -> None:
    roi = np.random.default_rng(0).random(own) < 0.1
    cells, inside = cells_inside(roi, shape, seen), resize_mask(roi, shape)
    assert (resize_mask(cells, shape) | ~inside).all()
    numbers = resize_mask(np.arange(cells.size).reshape(seen), shape)
    np.testing.assert_array_equal(np.unique(numbers[inside]), np.flatnonzero(cells))


def test_outside_nothing_is_scored_or_marked(tiny_model: Model, case: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = case
    large = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    inside = _half(truth)
    found, whole = segment(tiny_model, large, roi=inside), segment(tiny_model, large)
    far = np.kron(~inside, np.ones((2, 2), bool))
    assert whole.mask[far].any()
    assert found.mask[~far].any()
    assert not found.mask[far].any()
    assert not found.initial_mask[far].any()
    assert set(found.score_map[far]) == set(found.refined_map[far]) == {found.score_map.min()}
    np.testing.assert_array_equal(found.score_map[~far].max(), whole.score_map[~far].max())
    np.testing.assert_array_equal(found.normal[far], large[far])
    assert not found.anomaly[far].any()

    (sight,) = look(tiny_model, image[None])
    clean = segment(tiny_model, image, roi=sight.scores < np.quantile(sight.scores, 0.3))
    assert (clean.verdict, clean.defects) == ("ok", [])
    (everywhere,) = segment(tiny_model, [image], roi=np.ones((3, 5)))
    np.testing.assert_array_equal(everywhere.mask, segment(tiny_model, image).mask)


def test_thresholds_are_those_inside_and_the_model_keeps_the_region(
    lite0: Extractor, tmp_path: Path, case: tuple[np.ndarray, np.ndarray]
) -> None:
    normals = texture_category("brick", train=8, test=0, size=SIDE)[0]
    roi = np.zeros((16, 16), bool)
    roi[:5, :9] = True
    model = fit(normals, detector="padim", extractor=lite0, roi=roi)
    inside = np.kron(roi, np.ones((4, 4), bool))
    sights = look(replace(model, roi=None), model.held_out)
    costs = [smooth_map(sight.costs, model.seen)[inside] for sight in sights]
    assert model.limits == limits_of([sight.scores[inside] for sight in sights], costs)
    parts = np.broadcast_to(inside, normals.shape[:3])
    each = fit(normals, detector="padim", extractor=lite0, roi=parts)
    assert (each.limits, each.roi) == (model.limits, None)

    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.roi is not None
    np.testing.assert_array_equal(loaded.roi, roi)
    result = segment(loaded, case[0])
    assert not result.mask[~inside].any()
    assert not (result.score_map[~inside] > result.score_map.min()).any()


@pytest.mark.parametrize(
    ("roi", "line"), [(np.zeros((4, 4)), "is empty"), (np.ones(3), r"is float64 \(3,\)"), (["a"], "is <U1")]
)
def test_what_is_no_region_is_refused(roi: Any, line: str) -> None:
    with pytest.raises(InputError, match=f"the region of interest {line}"):
        check_roi(roi)


def test_digests_tell_regions_apart() -> None:
    roi = np.eye(4, dtype=bool)
    others = [None, roi, ~roi, roi[:2], roi[:2].reshape(4, 2)]
    assert len({digest_of(other) for other in others}) == 5


def test_only_windows_of_interest_are_looked_at(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []

    def alike(model: Model, images: np.ndarray, **options: Any) -> list[Segmentation]:
        assert model.roi is not None
        seen.append((model.procedure.false_alarms, int(model.roi.sum())))
        scores = images[0, ..., 0].astype(np.float32)
        return [
            a_result(
                images[0], scores > 128, normal=255 - images[0], initial_mask=scores > 200, score_map=scores, residual=0
            )
        ]

    monkeypatch.setattr(windows, "segment_alike", alike)
    image = np.random.default_rng(0).integers(1, 256, (50, 150, 3), dtype=np.uint8)
    roi = np.zeros((50, 150), bool)
    roi[10:20, 110:150] = True
    result = segment(replace(tiny_model, windowed=True), image, roi=roi)
    assert seen == [(tiny_model.procedure.false_alarms, 400)]
    np.testing.assert_array_equal(result.mask, (image[..., 0] > 128) & roi)
    np.testing.assert_allclose(result.score_map, np.where(roi, image[..., 0], 0), rtol=1e-5)
    with pytest.raises(InputError, match="nothing is left of the region of interest in 150 × 50 pixels"):
        segment_windows(replace(tiny_model, windowed=True, roi=np.eye(1, 2000, 3, dtype=bool)), image)


def test_a_region_that_vanishes_is_not_passed(tiny_model: Model, case: tuple[np.ndarray, np.ndarray]) -> None:
    """A stripe of the full picture that no pixel of the model's, or of a smaller picture's, falls on."""
    stripe = np.zeros((3000, 4000), bool)
    stripe[:, 2001] = True
    with pytest.raises(InputError, match="nothing is left of the region of interest in 64 × 64 pixels"):
        segment(tiny_model, np.zeros((3000, 4000, 3), np.uint8), roi=stripe)
    line = np.arange(SIDE) == np.full((SIDE, 1), 1)
    with pytest.raises(InputError, match="nothing is left of the region of interest in 8 × 8 pixels"):
        restrict(a_result(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)), np.zeros((8, 8, 3)), roi=line)


def test_training_windows_lie_around_the_region(tmp_path: Path) -> None:
    roi = np.zeros((100, 200), bool)
    roi[50:60, 150:180] = True
    image = np.zeros((100, 200, 3), np.uint8)
    image[roi] = 255
    write_png(tmp_path / "a.png", image)
    found, inside = training_windows([tmp_path / "a.png"], (SIDE, SIDE), roi=roi, count=5)
    assert inside is not None
    assert found.shape[:3] == inside.shape == (5, SIDE, SIDE)
    np.testing.assert_array_equal(found[..., 0] == 255, inside)
    assert inside.any(axis=(1, 2)).all()


def test_the_command_line_takes_masks_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_textures(tmp_path / "set", train=6, test=1, size=SIDE, categories=["brick"])
    truth = read_mask(tmp_path / "set/brick/ground_truth/color/000_mask.png")
    inside, black, model, out = (str(tmp_path / name) for name in ("roi.png", "black.png", "model", "out"))
    write_png(inside, np.kron(_half(truth), np.ones((2, 2), bool)))
    write_png(black, np.zeros((8, 8), bool))
    fitting = ["fit", str(tmp_path / "set/brick"), "--detector", "padim", "--extractor", "efficientnet_lite0"]
    assert main([*fitting, "--size", str(SIDE), "--false-alarms", "0.4", "--roi", inside, "--out", model]) == 0
    np.testing.assert_array_equal(load_model(model).roi, read_roi(inside))
    picture = str(tmp_path / "set/brick/test/color/000.png")
    assert main(["segment", model, picture, "--out", out]) == 0
    mask = read_mask(tmp_path / "out/000_mask.png")
    assert mask.any()
    assert not mask[~_half(truth)].any()
    (record,) = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert max(defect["box"][0] + defect["box"][2] for defect in record["defects"]) <= _half(truth)[0].sum()
    write_png(tmp_path / "stripe.png", np.arange(4000) == np.full((3000, 1), 2001))
    capsys.readouterr()
    assert main(["segment", model, picture, "--roi", str(tmp_path / "stripe.png"), "--out", f"{out}2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing is left of the region of interest in 64 × 64 pixels" in line
    assert not (tmp_path / "out2").exists()
    assert main(["segment", model, picture, "--roi", black, "--out", out]) == 2
    line = f"f2pad: error: {black}: the region of interest is empty; what is inspected has to be white\n"
    assert capsys.readouterr().err == line

"""Defects as records: measures of pieces whose measures are known, run lengths, COCO, and pieces too small to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import a_result
from skimage.draw import polygon

from f2pad_jax.cli import main
from f2pad_jax.data.images import read_mask, write_png
from f2pad_jax.data.textures import texture_category
from f2pad_jax.defects import coco, find_defects, run_lengths, smallest_box
from f2pad_jax.model import Model
from f2pad_jax.model_file import save_model
from f2pad_jax.segmentation import Segmentation, restrict

SHAPE = (48, 64)


def _decoded(rle: dict[str, Any]) -> np.ndarray:
    """A mask from COCO's run lengths, pixel by pixel."""
    height, width = rle["size"]
    flat: list[bool] = []
    for number, count in enumerate(rle["counts"]):
        flat += [number % 2 == 1] * count
    assert len(flat) == height * width
    mask = np.zeros((height, width), bool)
    for place, value in enumerate(flat):
        mask[place % height, place // height] = value
    return mask


def _result(mask: np.ndarray, initial_mask: np.ndarray) -> tuple[Segmentation, np.ndarray]:
    """A result with a mask, and its picture."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    normal = np.where(mask[..., None], 255 - image, image)
    scores = rng.random(mask.shape).astype(np.float32)
    anomaly = (image.astype(np.float32) - normal.astype(np.float32)) / 255
    result = a_result(image, mask, normal=normal, anomaly=anomaly, initial_mask=initial_mask, score_map=scores)
    return result, image


def test_a_rectangle_measures_what_it_is() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[10:14, 20:30] = True
    scores, image = np.zeros(SHAPE, np.float32), np.full((*SHAPE, 3), 255, np.uint8)
    scores[12, 25], scores[0, 0] = 3.5, 9
    anomaly = np.where(mask[..., None], np.float32(1), np.float32(0)) * np.ones(3, np.float32)  # white on black
    (defect,) = find_defects(mask, scores, anomaly, image)
    assert (defect.area, defect.box, defect.centroid) == (40, (20, 10, 10, 4), (25.0, 12.0))
    assert (defect.length, defect.width, defect.orientation) == (10, 4, 0)
    assert (defect.max_score, defect.mean_anomaly) == (3.5, pytest.approx(3**0.5))
    assert defect.colour_difference == pytest.approx(100, abs=0.01)
    record = defect.record(2.5)
    assert record["micrometres"] == {
        "area": 250, "box": [50, 25, 25, 10], "centroid": [62.5, 30], "length": 25, "width": 10
    }  # fmt: skip
    assert "micrometres" not in defect.record()
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("angle", [0, 30, 63, 90, 120, 151])
def test_a_turned_bar_has_its_length_width_and_direction(angle: int) -> None:
    along = np.array([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])  # y grows downwards
    across = np.array([-along[1], along[0]])
    corners = 100 + np.array([a * 60 * along + b * 8 * across for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
    mask = np.zeros((200, 200), bool)
    mask[polygon(corners[:, 1], corners[:, 0], mask.shape)] = True
    found = smallest_box(mask)
    assert found.length == pytest.approx(120, abs=2.5)
    assert found.width == pytest.approx(16, abs=2.5)
    assert abs((found.orientation - angle + 90) % 180 - 90) < 2
    assert 0 <= found.orientation < 180


def test_pieces_are_connected_at_corners_and_a_dot_is_one() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2, 3] = mask[3, 4] = mask[40, 60] = True
    result, _ = _result(mask, mask)
    first, second = result.defects
    assert (first.area, first.width, first.orientation) == (2, pytest.approx(2**0.5), 135)
    assert first.length == pytest.approx(2 * 2**0.5)
    assert (second.area, second.length, second.width) == (1, 1, 1)
    assert second.centroid == (60.5, 40.5)


def test_run_lengths_are_those_of_coco() -> None:
    rng = np.random.default_rng(1)
    for share in (0.02, 0.5, 1.0):
        mask = rng.random((7, 9)) < share
        mask[0, 0] |= share == 0.5
        rows, columns = np.nonzero(mask)
        rle = run_lengths(rows, columns, (7, 9))
        np.testing.assert_array_equal(_decoded(rle), mask)
        assert min(rle["counts"][1:]) > 0
    assert run_lengths(np.array([0, 1, 1]), np.array([1, 0, 1]), (2, 2)) == {"size": [2, 2], "counts": [1, 3]}


def test_what_is_too_small_leaves_mask_records_and_verdict() -> None:
    mask, initial = np.zeros((2, *SHAPE), bool)
    mask[5:7, 5:9] = True
    mask[20:30, 20:30] = True
    initial[3:10, 3:11] = initial[18:32, 18:32] = initial[40, :5] = True
    result, image = _result(mask, initial)
    assert restrict(result, image, smallest=8) is result
    large = restrict(result, image, smallest=9)
    assert [defect.area for defect in large.defects] == [100]
    assert not large.mask[5:7].any()
    assert not large.initial_mask[:12].any()
    assert large.initial_mask[40, :5].all()  # the mask never accounted for it
    outside = ~large.mask
    np.testing.assert_array_equal(large.normal[outside], image[outside])
    assert not large.anomaly[outside].any()
    assert large.verdict == "defect"
    nothing = restrict(result, image, smallest=101)
    assert (nothing.defects, nothing.verdict) == ([], "unexplained")
    initial[40] = False
    assert restrict(result, image, smallest=101).verdict == "ok"


def test_the_command_line_writes_records_and_coco(tiny_model: Model, tmp_path: Path) -> None:
    image = texture_category("brick", train=8, test=1, size=64)[1][0][0]
    save_model(tiny_model, tmp_path / "model")
    write_png(tmp_path / "a.png", image)
    (tmp_path / "b.png").touch()
    options = ["--smallest-defect", "3", "--pixel-size", "2", "--out", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "model"), *(str(tmp_path / f"{x}.png") for x in "ba"), *options]) == 2
    failed, record = (json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines())
    mask = read_mask(tmp_path / "out/a_mask.png")
    assert (failed["status"], record["size"]) == ("failed", [64, 64])
    assert record["defects"]
    pieces = [_decoded(defect["rle"]) for defect in record["defects"]]
    np.testing.assert_array_equal(np.sum(pieces, axis=0), mask)
    assert [piece.sum() for piece in pieces] == [defect["area"] for defect in record["defects"]]
    assert [defect["micrometres"]["area"] for defect in record["defects"]] == [4 * piece.sum() for piece in pieces]
    whole = json.loads((tmp_path / "out/coco.json").read_text())
    assert whole == coco([failed, record])
    assert whole["images"] == [{"id": 1, "file_name": str(tmp_path / "a.png"), "height": 64, "width": 64}]
    assert [note["segmentation"] for note in whole["annotations"]] == [defect["rle"] for defect in record["defects"]]
    assert {(note["image_id"], note["category_id"], note["iscrowd"]) for note in whole["annotations"]} == {(1, 1, 0)}

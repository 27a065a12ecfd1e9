"""Large pictures in windows: where they lie, who decides where, and what is joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import a_result

from f2pad_jax import windows
from f2pad_jax.boxes import Box
from f2pad_jax.data.images import write_png
from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.outcomes import refined_map
from f2pad_jax.segmentation import Segmentation, segment
from f2pad_jax.tuning import tune
from f2pad_jax.windows import OVERLAP, of_one_window, owned, padded, training_windows, windows_of

WINDOW = (64, 64)


@pytest.mark.parametrize("shape", [(64, 64), (65, 200), (300, 64), (131, 517)])
def test_windows_cover_a_picture_and_overlap(shape: tuple[int, int]) -> None:
    boxes = windows_of(shape, WINDOW)
    seen, decided = np.zeros(shape, int), np.zeros(shape, int)
    for box in boxes:
        box.cut(seen)[:] += 1
        own = owned(box, shape, boxes)
        own.cut(decided)[:] += 1
        assert box.top <= own.top < own.top + own.height <= box.top + box.height
        assert box.left <= own.left < own.left + own.width <= box.left + box.width
    assert seen.min() >= 1
    np.testing.assert_array_equal(decided, 1)
    for starts in ({box.top for box in boxes}, {box.left for box in boxes}):
        assert all(np.diff(sorted(starts)) <= (1 - OVERLAP) * 64 + 1)


def test_small_pictures_are_continued() -> None:
    image = np.arange(50 * 70 * 3).reshape(50, 70, 3).astype(np.uint8)
    larger = padded(image, WINDOW)
    assert larger.shape == (64, 70, 3)
    np.testing.assert_array_equal(larger[:50], image)
    np.testing.assert_array_equal(larger[50:], image[:35:-1])
    assert padded(larger, WINDOW) is larger


def test_training_windows_come_from_all_pictures(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), []
    for k in range(3):
        paths.append(tmp_path / f"{k}.png")
        write_png(paths[-1], rng.integers(80 * k, 80 * k + 60, (100, 64, 3), dtype=np.uint8))
    found, inside = training_windows(paths, WINDOW, count=7)
    assert inside is None
    assert found.shape == (9, 64, 64, 3)
    assert (found.max(axis=(1, 2, 3)) // 80).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(found, training_windows(paths, WINDOW, count=7)[0])
    with pytest.raises(InputError, match="no such file"):
        training_windows([tmp_path / "none.png"], WINDOW)


def test_what_windows_find_is_joined(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows that judge each pixel by itself, the whole is what one look at all pixels gives."""
    seen: list[float] = []

    def alike(model: Model, images: np.ndarray, **options: Any) -> list[Segmentation]:
        seen.append(model.procedure.false_alarms)
        assert not model.windowed
        assert images.shape == (1, 64, 64, 3)
        scores = images[0, ..., 0].astype(np.float32)
        mask = scores > 128
        number = len(seen)
        return [
            a_result(
                images[0], mask, normal=np.where(mask[..., None], np.uint8(7), images[0]), initial_mask=scores > 200,
                score_map=scores, residual=0.1 * number, iterations=number,
                status=("converged", "iteration limit", "normal")[number % 3],
            )
        ]  # fmt: skip

    monkeypatch.setattr(windows, "segment_alike", alike)
    image = np.random.default_rng(0).integers(0, 256, (50, 150, 3), dtype=np.uint8)
    model = replace(tiny_model, windowed=True)
    (result,) = segment(model, [image])
    mask = image[..., 0] > 128
    assert seen == [model.procedure.false_alarms / 3] * 3
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_array_equal(result.initial_mask, image[..., 0] > 200)
    np.testing.assert_array_equal(result.normal, np.where(mask[..., None], 7, image))
    np.testing.assert_allclose(result.anomaly, (image.astype(float) - result.normal) / 255, atol=1e-6)
    np.testing.assert_allclose(result.score_map, image[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(result.refined_map, refined_map(result.score_map, mask))
    assert (result.iterations, result.status, result.residual) == (6, "iteration limit", pytest.approx(0.3))
    assert result.seconds > 0


def test_a_model_of_windows_is_kept_and_not_tuned_on_whole_pictures(tiny_model: Model, tmp_path: Path) -> None:
    model = replace(tiny_model, windowed=True)
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").windowed
    assert not of_one_window(model, 4).windowed
    with pytest.raises(InputError, match="windows cannot be tuned on whole pictures"):
        tune(model, oracle=(model.held_out, np.zeros((1, 64, 64), bool)))


def test_weights_are_positive_and_highest_in_the_middle() -> None:
    weight = windows.blend(Box(0, 0, 5, 7))
    assert weight.min() > 0
    assert np.unravel_index(weight.argmax(), weight.shape) == (2, 3)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])

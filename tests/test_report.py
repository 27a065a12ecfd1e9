from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from f2pad_jax import report, tiles
from f2pad_jax.errors import InputError
from f2pad_jax.output import make_folder, write_bytes, write_json


def _row(height: int = 60, width: int = 60, *, truth: bool = True) -> report.Row:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = np.zeros((height, width), bool)
    wanted[10:30, 20:40] = True
    wide = np.zeros_like(wanted)
    wide[10:30, 20:60] = True
    normal = np.where(wanted[..., None], np.uint8(128), image)
    scores = wide.astype(np.float32)
    return report.Row("part", image, scores, 0.5, wide, wanted, normal, wanted if truth else None)


def _drawn(rows: list[report.Row]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(report.png(report.draw(rows)))).convert("RGB")).astype(int)


def _texts(monkeypatch: pytest.MonkeyPatch, rows: list[report.Row]) -> list[str]:
    """All that is written into a panel."""
    texts, write = list[str](), ImageDraw.ImageDraw.text

    def text(pen: ImageDraw.ImageDraw, place: Any, shown: str, *rest: Any, **options: Any) -> None:
        texts.append(shown)
        write(pen, place, shown, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    report.draw(rows)
    return texts


def test_columns_and_agreement_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, [_row(), _row()])
    names = ["input", "truth", "backbone map", "backbone mask", "F2PAD mask", "recovered n*", "anomaly a"]
    assert [text for text in texts if text in names] == names
    assert texts.count("IoU 50.0") == 2  # 400 of 800 pixels
    assert texts.count("IoU 100.0") == 2


def test_long_labels_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, [_row()._replace(label="x" * 100 + ".end")])
    assert "…" + "x" * (report.LABEL - 5) + ".end" in texts


@pytest.mark.parametrize("label", ["W" * 24, "price$$", "漢字\n\udc80", "Ünïcode κόσμος", "عربي"])
def test_labels_of_any_signs_are_drawn_in_the_margin(label: str) -> None:
    bare, named = (_drawn([_row()._replace(label=text)]) for text in ("", label))
    margin = named.shape[1] - bare.shape[1]
    assert (named[:, :margin] < 128).any()
    np.testing.assert_array_equal(named[:, margin:], bare)


def test_without_truth_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(monkeypatch, [_row(truth=False)])
    assert "truth" not in texts
    assert not any("IoU" in text for text in texts)


def test_outlines_of_the_truth_lie_on_its_border() -> None:
    truth = np.zeros((50, 50), bool)
    truth[10:20, 10:30] = True
    drawn = np.asarray(tiles.draw_tile(tiles.Tile(np.full((50, 50, 3), 90, np.uint8), truth=truth), 100 / tiles.DPI))
    rows, columns = np.nonzero(drawn[..., 0] == 255)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (19, 41, 19, 61)
    assert (drawn[25, 30], drawn[5, 5]) == (pytest.approx(90), pytest.approx(90))  # neither inside nor outside


def test_frames_and_captions_are_drawn() -> None:
    plain = tiles.Tile(np.full((50, 50, 3), 90, np.uint8))
    framed = np.asarray(tiles.draw_tile(plain._replace(box=(10, 20, 5)), 100 / tiles.DPI))
    rows, columns = np.nonzero(framed[..., 0] == 255)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 30, 40, 50)
    bare, told = (np.asarray(tiles.draw_tiles([[plain._replace(caption=text)]])) for text in ("", "‖a‖ → 0"))
    assert told.shape[0] > bare.shape[0]
    assert (told[bare.shape[0] :] < 128).any()


def test_rows_are_equally_high_and_pictures_keep_their_shape() -> None:
    one, three = _drawn([_row()]), _drawn([_row()] * 3)
    assert one.shape[1] == three.shape[1]
    step = (tiles.HEIGHT + tiles.GAP) * tiles.DPI
    assert three.shape[0] - one.shape[0] == pytest.approx(2 * step, abs=2)
    wide = _drawn([_row(60, 120)])
    assert wide.shape[1] - one.shape[1] == pytest.approx(7 * tiles.HEIGHT * tiles.DPI, abs=8)


@pytest.mark.parametrize("shape", [(60, 2000), (4, 4096), (2000, 60), (4096, 4), (700, 5000), (2048, 2048)])
def test_panels_of_long_and_large_pictures_stay_small(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*shape, 3), dtype=np.uint8), np.zeros(shape, bool)
    mask[: shape[0] // 2, : shape[1] // 2] = True
    picture = _drawn([report.Row("line", image, mask.astype(np.float32), 0.5, mask, mask, image, mask)])
    assert max(picture.shape[:2]) <= 10.2 * tiles.DPI
    fills = np.array(Image.new("RGB", (1, 1), tiles.REFINED))[0, 0] * 0.75 + 0.25 * 150
    assert (np.abs(picture - fills) < 40).all(axis=-1).sum() > 500


def test_masks_are_filled_in_their_colours() -> None:
    picture = _drawn([_row()])
    for colour in (tiles.BACKBONE, tiles.REFINED):
        wanted = np.array(Image.new("RGB", (1, 1), colour))[0, 0].astype(int)
        # fills are three parts colour and one part grey picture
        near = (np.abs(picture - (0.75 * wanted + 0.25 * 150)) < 25).all(axis=-1)
        assert near.sum() > 2000


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_score_maps_and_full_masks_draw_without_warnings(value: float) -> None:
    row = _row()
    flat = np.full(row.truth.shape, value, np.float32) if row.truth is not None else None
    assert flat is not None
    full = np.full(flat.shape, bool(value))
    assert _drawn([row._replace(score_map=flat, threshold=0.0, initial_mask=full, truth=full)]).size


def test_a_map_below_the_threshold_stays_dark() -> None:
    row = _row()
    quiet = row._replace(score_map=row.score_map * 0.1, truth=None)
    loud = row._replace(truth=None)
    assert _drawn([quiet]).sum() < _drawn([loud]).sum()


def test_the_table_shows_each_run_and_the_mean() -> None:
    def run(category: str, before: float, after: float) -> dict:
        scores = [{"iou": value, "dice": value} for value in (before, after)]
        closed = 100 * (after - before) / (100 - before)
        return {"category": category, "detector": "padim", "test_images": 4, "backbone": scores[0],
                "f2pad": scores[1], "closed": closed, "seconds": 2.0}  # fmt: skip

    stream = io.StringIO()
    report.print_table([run("brick", 60, 90), run("ihc", 40, 80)], Console(file=stream, width=80))
    text = stream.getvalue()
    assert "60.0 → 90.0" in text
    assert "50.0 → 85.0" in text
    assert "70 %" in text
    assert "mean" in text
    stream = io.StringIO()
    report.print_table([run("brick", 60, 90)], Console(file=stream, width=80))
    assert "mean" not in stream.getvalue().split("┏")[1]


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(InputError, match="cannot be written"):
        write_bytes(tmp_path / "no" / "a.bin", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_bytes(tmp_path / "folder", b"x")
    with pytest.raises(InputError, match="cannot be made"):
        make_folder(tmp_path / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'

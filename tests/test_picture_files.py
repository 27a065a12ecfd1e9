"""Many picture files: every one is tried, its record is written as it is done, and a run that was cut off goes on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from results import a_result

from f2pad_jax import grouping, picture_jobs
from f2pad_jax.console import plain, prepare_console
from f2pad_jax.data.images import read_image, write_png
from f2pad_jax.errors import LONGEST, InputError, InputWarning
from f2pad_jax.model import Model
from f2pad_jax.picture_files import FILES, output_stems, segment_files
from f2pad_jax.picture_jobs import Job
from f2pad_jax.segmentation import Segmentation

MODEL = cast(Model, SimpleNamespace(threshold=0.5, shape=(20, 24), windowed=False, white_level=None))
BAD = 13  # first value of a picture that cannot be solved


def _result(image: np.ndarray) -> Segmentation:
    mask, scores = image[..., 0] > 128, image[..., 0].astype(np.float32) / 255
    return a_result(image, mask, score_map=scores, iterations=3, seconds=0.25)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the solve by one that fails on some pictures; the number of pictures in each call."""
    calls: list[int] = []

    def segment(model: Model, images: Sequence[np.ndarray]) -> list[Segmentation]:
        calls.append(len(images))
        if any(image[0, 0, 0] == BAD for image in images):
            raise ZeroDivisionError("nobody foresaw\nthis")
        return [_result(image) for image in images]

    monkeypatch.setattr(picture_jobs, "segment", segment)
    return calls


def _picture(path: Path, first: int = 0) -> Path:
    image = np.random.default_rng(first).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image[0, 0, 0] = first
    path.write_bytes(b"")  # names that Pillow could not handle by itself
    write_png(path, image)
    return path


def _segment(paths: Sequence[Path], out: Path, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    out.mkdir(exist_ok=True)
    errors: list[str] = []
    records = segment_files(Job(MODEL, out, "m"), paths, on_failure=errors.append, **options)
    assert records == [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return records, errors


def test_odd_names_are_pictures_like_others(tmp_path: Path, solved: list[int]) -> None:
    names = [
        "price$$.png",
        "$\\frac$.png",
        "s" * 215 + ".png",
        "l" * 250 + ".png",
        "ü" * 120 + ".png",
        "日本.png",
        "a\nb.png",
    ]
    paths = [_picture(tmp_path / name, k) for k, name in enumerate(names)]
    paths.append(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    paths[-1].write_bytes(paths[0].read_bytes())
    records, errors = _segment(paths, tmp_path / "out")
    assert errors == []
    assert [record["status"] for record in records] == ["converged"] * len(paths)
    for path, record in zip(paths, records, strict=True):
        assert all((tmp_path / "out" / record[kind]).is_file() for kind in FILES)
        np.testing.assert_array_equal(read_image(tmp_path / "out" / record["normal"]), read_image(path))
    assert len(list((tmp_path / "out").iterdir())) == 5 * len(paths) + 2


def test_stems_are_cut_where_no_name_of_a_file_would_fit() -> None:
    long = "ü" * 124
    stems = output_stems([Path(f"a/{long}1.png"), Path(f"a/{long}2.png"), Path(f"b/{long}2.png"), Path("a/short.png")])
    assert stems[3] == "short"
    assert len(set(stems)) == 4
    assert all(len(f"{stem}_refined.tiff".encode()) <= 255 for stem in stems)
    assert stems[0].startswith("ü" * 100)


def test_a_picture_that_fails_takes_no_other_with_it(
    tmp_path: Path, solved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_picture(tmp_path / f"{k}.png", first) for k, first in enumerate([1, BAD, 2, 3])]
    draw = picture_jobs.report.draw

    def draw_some(rows: Sequence[Any]) -> Any:
        if rows[0].label == "3":
            raise RuntimeError("no ink")
        return draw(rows)

    monkeypatch.setattr(picture_jobs.report, "draw", draw_some)
    records, errors = _segment([*paths, tmp_path / "none.png"], tmp_path / "out")
    assert [record["status"] for record in records] == ["converged", "failed", "converged", "failed", "failed"]
    assert solved == [4, 1, 1, 1, 1]
    assert sorted(errors) == sorted(record["error"] for record in records if "error" in record)
    assert records[1]["error"] == f"{paths[1]}: failed (ZeroDivisionError: nobody foresaw this)"
    assert "RuntimeError: no ink" in records[3]["error"]


def test_records_are_written_as_pictures_are_done_and_the_rest_is_resumed(
    tmp_path: Path, solved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "GROUP", 2)
    paths = [_picture(tmp_path / f"{k}.png", k) for k in range(6)]
    whole, _ = _segment(paths, tmp_path / "whole")
    write, done = picture_jobs._write_result, []

    def cut_off(*arguments: Any) -> Any:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(picture_jobs, "_write_result", cut_off)
    with pytest.raises(KeyboardInterrupt):
        _segment(paths, tmp_path / "out")
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole[:3]
    with (tmp_path / "out/results.jsonl").open("a") as file:
        file.write(lines[0][:20])  # as a kill leaves it
    (tmp_path / "out/0_score.tiff").unlink()
    _picture(paths[1], 77)  # another picture than was segmented
    solved.clear()
    with pytest.warns(InputWarning, match=r"results\.jsonl: holds lines that cannot be read \(1\)"):
        records, errors = _segment(paths, tmp_path / "out", resume=True)
    assert (errors, solved) == ([], [2, 2, 1])  # 2.png was done
    _picture(paths[1], 1)
    assert _segment(paths, tmp_path / "out", resume=True)[0] == whole
    assert records[2:] == whole[2:]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    segment_files(Job(MODEL, tmp_path / "out", "another"), paths, resume=True, on_failure=lambda error: None)
    assert solved[-3:] == [2, 2, 2]


def test_files_of_earlier_results_stay_only_where_they_are_resumed(tmp_path: Path, solved: list[int]) -> None:
    paths, out = [_picture(tmp_path / f"{k}.png", k) for k in range(4)], tmp_path / "out"

    def stems() -> set[str]:
        return {path.name.partition("_")[0] for path in out.glob("*_*.*")}

    _segment(paths[:3], out)
    own = [out / "notes_mask.txt", out / "0_mask.png.bak", tmp_path / "secret_mask.png"]
    for path in own:
        path.touch()
    before = {path: path.stat().st_mtime_ns for path in out.glob("1_*")}
    _segment(paths[1:2], out, resume=True)
    assert stems() == {"1", "notes", "0"}
    assert {path: path.stat().st_mtime_ns for path in out.glob("1_*")} == before
    line = json.loads((out / "results.jsonl").read_text())
    for name in ("../secret_mask.png", "results.jsonl", "\0_mask.png", "x" * 300 + "_mask.png"):
        (out / "results.jsonl").write_text(json.dumps(line | {"mask": name}) + "\n")
        _segment(paths[3:], out)
    own[1].unlink()
    assert stems() == {"3", "notes", "1"}  # the mask of 1, which no record names any more
    _picture(paths[3], BAD)
    _segment(paths[3:], out)
    assert stems() == {"notes", "1"}
    assert [path.exists() for path in own] == [True, False, True]


def test_a_spoiled_line_loses_no_other(tmp_path: Path, solved: list[int]) -> None:
    paths = [_picture(tmp_path / f"{k}.png", k) for k in range(4)]
    _segment(paths, tmp_path / "out")
    lines = (tmp_path / "out/results.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"1.png", b"\xff.png")
    lines[2] = lines[2].replace(b"2_mask.png", b"m" * 300)  # longer than a name can be
    (tmp_path / "out/results.jsonl").write_bytes(b"".join(lines))
    solved.clear()
    with pytest.warns(InputWarning, match=r"cannot be read \(1\)"):
        assert _segment(paths, tmp_path / "out", resume=True)[1] == []
    assert solved == [2]


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize(
    "text", ["", "[]\n", "{}\n3\n", '{"image": [], "status": "normal"}\n', "\0\xff", "[" * 100_000]
)
def test_records_of_any_content_are_no_obstacle(tmp_path: Path, solved: list[int], text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.jsonl").write_bytes(text.encode("latin-1"))
    _segment([_picture(tmp_path / "0.png")], tmp_path / "out", resume=True)
    assert solved == [1]


def test_lines_about_errors_are_short_and_control_no_terminal() -> None:
    line = str(InputError("x" * 10**6 + "\n", where="a\n\x1b[31mb\udcff", hint="try  again"))
    assert len(line) <= LONGEST + 40
    assert line.startswith("a \ufffd[31mb\ufffd: xxx")
    assert line.endswith("…; try again")
    assert len(str(InputError("y" * 100, where="w" * 10**6, hint="h" * 10**6))) <= 2 * LONGEST + 104


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_consoles_that_lack_signs_show_plain_ones(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    prepare_console()
    print("224 × 224 → ✓ \udcff", end="", file=stream, flush=True)
    expected = {"ascii": "224 x 224 -> ? ?", "cp1252": "224 × 224 -> ? ?", "utf-8": "224 × 224 → ✓ ?"}[encoding]
    assert stream.buffer.getvalue().decode(encoding) == expected  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UnicodeDecodeError):
        plain(UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"))


def test_a_png_under_an_open_name_is_a_png(tmp_path: Path) -> None:
    write_png(tmp_path / ("x" * 251 + ".png"), np.zeros((2, 3), bool))
    with Image.open(tmp_path / ("x" * 251 + ".png")) as picture:
        assert picture.size == (3, 2)
    assert len(list(tmp_path.iterdir())) == 1

"""Another detector's score maps: read from files, calibrated, and refined in their own units."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2pad_jax import calibrate, maps, refine
from f2pad_jax.calibration import units_of
from f2pad_jax.cli import main
from f2pad_jax.data.images import read_mask, resize_map, write_png, write_tiff
from f2pad_jax.data.textures import make_textures, texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.maps import check_map, list_maps, map_of, read_map
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.sights import foreign_scores, look, with_map

SIDE = 64
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 7)).astype(np.float32)
WHOLE = RNG.integers(0, 60_000, (5, 7)).astype(np.uint16)


def _zip(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


# how a file of this name is written, and the map that it holds
FILES: dict[str, tuple[Callable[[Path], Any], np.ndarray]] = {
    "a.npy": (lambda path: np.save(path, VALUES), VALUES),
    "double.npy": (lambda path: np.save(path, VALUES.astype(np.float64)[None, :, :, None]), VALUES),
    "a.npz": (lambda path: _zip(path, anything=VALUES), VALUES),
    "a.TIFF": (lambda path: write_tiff(path, VALUES), VALUES),
    "eight.png": (lambda path: Image.fromarray((WHOLE // 256).astype(np.uint8)).save(path), WHOLE // 256),
    "sixteen.png": (lambda path: Image.fromarray(WHOLE).save(path), WHOLE),
}


@pytest.mark.parametrize("name", FILES)
def test_maps_are_read_in_the_units_they_have(name: str, tmp_path: Path) -> None:
    write, wanted = FILES[name]
    write(tmp_path / name)
    found = read_map(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def _pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


# what cannot be read as a map, and what its line says
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none.npy": (lambda path: None, "no such file"),
    "none.png": (lambda path: None, "no such file"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\0v"), "cannot be read"),
    "cut.npz": (lambda path: path.write_bytes(b"PK"), "cannot be read"),
    "objects.npy": (_pickled, "cannot be read"),
    "two.npz": (lambda path: _zip(path, scores=VALUES, labels=VALUES), "holds the arrays scores, labels"),
    "flat.npy": (lambda path: np.save(path, VALUES[0]), r"the map is float32 \(7,\)"),
    "many.npy": (lambda path: np.save(path, np.zeros((2, 5, 7))), r"the map is float64 \(2, 5, 7\)"),
    "text.npy": (lambda path: np.save(path, np.array([["a"]])), "the map is <U1"),
    "nan.npy": (lambda path: np.save(path, np.full((4, 4), np.nan)), "not finite"),
    "heat.png": (lambda path: write_png(path, np.zeros((4, 4, 3), np.uint8)), r"a picture in colours \(RGB\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_map_is_one_line(name: str, tmp_path: Path) -> None:
    write, line = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=line) as caught:
        read_map(tmp_path / name)
    assert name in str(caught.value)


def test_maps_of_too_many_values_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MAX_PIXELS", 30)
    _zip(tmp_path / "a.npz", scores=np.zeros((10, 10)))
    np.save(tmp_path / "a.npy", np.zeros((10, 10)))
    for name, line in (("a.npz", "more than 30 values"), ("a.npy", r"float64 \(10, 10\)")):
        with pytest.raises(InputError, match=line):
            read_map(tmp_path / name)


def test_maps_are_found_by_their_stems(tmp_path: Path) -> None:
    for name in ("b.npy", "a.png", "a.txt", "c.TIF"):
        (tmp_path / name).touch()
    found = list_maps(tmp_path)
    assert {stem: path.name for stem, path in found.items()} == {"a": "a.png", "b": "b.npy", "c": "c.TIF"}
    assert map_of(found, Path("elsewhere/c.bmp")).name == "c.TIF"
    with pytest.raises(InputError, match=r"d\.png: there is no score map of its name"):
        map_of(found, Path("d.png"))
    (tmp_path / "a.npy").touch()
    with pytest.raises(InputError, match=r"two maps have one name \(a\.npy, a\.png\)"):
        list_maps(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, line in (("empty", "holds no score maps"), ("none", "no such folder")):
        with pytest.raises(InputError, match=line):
            list_maps(tmp_path / folder)


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    """A picture and its mask."""
    image, truth, _ = texture_category("brick", train=8, test=1, size=SIDE)[1][0]
    return image, truth


def _maps(truth: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> list[np.ndarray]:
    """Maps of four normal pictures and of one with an anomaly, noisy, at half of the size."""
    rng = np.random.default_rng(1)
    made = [rng.random((SIDE // 2, SIDE // 2)) for _ in range(5)]
    made[-1] += 3 * resize_map(truth.astype(np.float32), made[-1].shape)
    return [factor * values + shift for values in made]


def test_units_come_from_normal_maps_and_are_kept(tiny_model: Model, tmp_path: Path) -> None:
    made = _maps(np.zeros((SIDE, SIDE)))
    model = calibrate(tiny_model, made)
    assert model.units == units_of([foreign_scores(check_map(values), model.seen) for values in made])
    assert model.units is not None
    assert model.units.zero == pytest.approx(0.5, abs=0.02)
    other = calibrate(tiny_model, [10 * values - 7 for values in made]).units
    assert other is not None
    assert other.zero == pytest.approx(10 * model.units.zero - 7, rel=1e-4)
    assert other.peak == pytest.approx(10 * model.units.peak, rel=1e-4)
    assert other.spread == pytest.approx(model.units.spread, rel=1e-3)

    half = np.arange(SIDE) < SIDE // 2
    inside = calibrate(replace(tiny_model, roi=np.broadcast_to(half, (SIDE, SIDE))), [v * half[::2] for v in made])
    assert inside.units is not None
    assert inside.units.zero == pytest.approx(0.5, abs=0.02)

    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").units == model.units


def test_the_map_decides_where_in_its_own_units(tiny_model: Model, case: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = case
    found = []
    for factor, shift in ((1.0, 0.0), (50.0, -400.0)):
        *normal, values = _maps(truth, factor, shift)
        model = calibrate(tiny_model, normal)
        (result,) = refine(model, [image], [values])
        found.append(result)
        assert model.units is not None
        (sight,) = look(model, image[None])
        scores = with_map(model, sight, check_map(values)).scores + model.units.zero
        np.testing.assert_allclose(result.score_map, scores, rtol=1e-4, atol=1e-3 * factor)
        threshold = model.threshold_in(model.units.limits(1)) + model.units.zero
        assert result.threshold == pytest.approx(threshold)
        np.testing.assert_array_equal(result.initial_mask, result.score_map > result.threshold)
        assert result.refined_map[result.mask].max() > result.score_map.max()
    first, second = found
    assert first.mask.any()
    assert first.status != "normal"
    assert (first.mask != second.mask).mean() < 0.01
    assert second.threshold == pytest.approx(50 * first.threshold - 400, rel=1e-3)
    # Where the map shows nothing, nothing is looked at, whatever the model's own scores say.
    nothing = refine(calibrate(tiny_model, _maps(truth)[:4]), image, np.full((9, 5), 0.5))
    assert (nothing.status, nothing.verdict) == ("normal", "ok")


def test_units_that_are_not_known_are_not_guessed(tiny_model: Model, case: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = case
    made = _maps(truth)
    with pytest.raises(InputError, match="units of the score maps are not known; calibrate the model"):
        refine(tiny_model, image, made[-1])
    with pytest.raises(InputError, match="2 maps of normal pictures are too few"):
        calibrate(tiny_model, made[:2])
    with pytest.raises(InputError, match="hold one value or two; give scores, not masks"):
        calibrate(tiny_model, [truth] * 3)
    with pytest.raises(InputError, match="hold one value; give scores, not masks"):
        calibrate(tiny_model, [np.minimum(np.linspace(-1, 3, 64).reshape(8, 8), 0)] * 3)
    with pytest.raises(InputError, match="works in windows"):
        calibrate(replace(tiny_model, windowed=True), made)
    with pytest.raises(InputError, match="there are 2 score maps of 1 pictures"):
        refine(calibrate(tiny_model, made), [image], made[:2])


def test_the_command_line_calibrates_and_refines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_textures(tmp_path / "set", train=6, test=1, size=SIDE, categories=["brick"])
    truth = read_mask(tmp_path / "set/brick/ground_truth/color/000_mask.png")
    *normal, values = _maps(truth)
    for folder in ("normal", "maps", "pictures"):
        (tmp_path / folder).mkdir()
    for number, each in enumerate(normal):
        np.save(tmp_path / f"normal/{number}.npy", each)
    write_tiff(tmp_path / "maps/000.tif", values)
    picture, normals, own = (str(tmp_path / name) for name in ("set/brick/test/color/000.png", "normal", "maps"))
    other, model, out = (str(tmp_path / name) for name in ("pictures/other.png", "model", "out"))
    Path(other).write_bytes(Path(picture).read_bytes())
    fitting = ["fit", str(tmp_path / "set/brick"), "--detector", "padim", "--extractor", "efficientnet_lite0"]
    assert main([*fitting, "--size", str(SIDE), "--maps", normals, "--out", model]) == 0
    capsys.readouterr()
    assert main(["segment", model, picture, other, "--maps", own, "--out", out]) == 2
    assert capsys.readouterr().err.startswith(f"f2pad: error: {other}: there is no score map of its name")
    first, second = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert second["status"] == "failed"
    assert first["max_score"] == pytest.approx(float(read_map(tmp_path / "out/000_score.tiff").max()))
    assert 0.6 < first["threshold"] < first["max_score"] < 4
    # Another map is another result.
    assert main(["segment", model, picture, "--maps", own, "--resume", "--out", out]) == 0
    assert json.loads((tmp_path / "out/results.jsonl").read_text()) == first
    write_tiff(tmp_path / "maps/000.tif", np.full((9, 5), 0.5))
    assert main(["segment", model, picture, "--maps", own, "--resume", "--out", out]) == 0
    assert json.loads((tmp_path / "out/results.jsonl").read_text())["verdict"] == "ok"
    capsys.readouterr()
    assert main(["segment", model, picture, "--maps", own, "--grow", "--out", out]) == 2
    assert "--grow does not go with --maps" in capsys.readouterr().err
    Path(other).rename(tmp_path / "pictures/000.png")
    assert main(["segment", model, picture, str(tmp_path / "pictures"), "--maps", own, "--out", f"{out}2"]) == 2
    line = "2 pictures are called 000, and score maps are found by this name; segment one folder at a time"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()

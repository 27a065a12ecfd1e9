from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from f2pad_jax.cli import parser
from f2pad_jax.commands.pictures import run_synthesize
from f2pad_jax.data.anomalies import KINDS
from f2pad_jax.data.changes import half_swap
from f2pad_jax.data.images import read_image, write_png
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_tests
from f2pad_jax.data.paints import CONTRAST, cut_paste, paint
from f2pad_jax.data.shapes import AREA, draw_mask
from f2pad_jax.data.synthesize import synthesize_category
from f2pad_jax.errors import InputError

SHAPE = (96, 120)


def _noise(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _part(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A black and an orange half on a light ground, with a little noise."""
    rows, columns = shape
    picture = np.full((*shape, 3), 220)
    picture[rows // 4 : -rows // 4, columns // 10 : columns // 2] = 30
    picture[rows // 4 : -rows // 4, columns // 2 : -columns // 10] = (200, 110, 60)
    return np.clip(picture + np.random.default_rng(seed).integers(-5, 6, picture.shape), 0, 255).astype(np.uint8)


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one / 255 - other / 255, axis=-1)


def _masks() -> list[np.ndarray]:
    bar, corner = np.zeros((50, 60), bool), np.zeros((200, 100), bool)
    bar[20:24, 10:50] = True
    corner[:40, :50] = True
    corner[20:40, 20:50] = False
    return [bar, corner]


@pytest.mark.parametrize("masks", [None, _masks()], ids=["generated", "given"])
@pytest.mark.parametrize(
    "normal", [_noise(0), _part(0), np.zeros((*SHAPE, 3), np.uint8)], ids=["noise", "part", "black"]
)
def test_the_mask_is_exactly_what_differs(normal: np.ndarray, masks: list[np.ndarray] | None) -> None:
    before = normal.copy()
    for seed in range(30):
        x, mask = cut_paste(normal, np.random.default_rng(seed), masks=masks)
        assert (x.dtype, x.shape, mask.dtype, mask.shape) == (np.uint8, normal.shape, bool, SHAPE)
        np.testing.assert_array_equal((x != normal).any(axis=-1), mask)
        assert _apart(x, normal)[mask].min() >= CONTRAST - 1e-9
        assert AREA[0] <= mask.mean() <= AREA[1]
    np.testing.assert_array_equal(normal, before)


def test_one_colour_where_it_stands_out_and_a_multiple_of_it_where_not() -> None:
    normal = np.zeros((4, 4, 3), np.uint8)
    normal[2:] = (120, 80, 200)
    x = paint(normal, np.ones((4, 4), bool), np.array([125, 80, 200]))
    np.testing.assert_array_equal(x[:2], np.broadcast_to([125, 80, 200], (2, 4, 3)))
    assert _apart(x, normal)[2:].min() >= CONTRAST
    factors = x[2, 0] / [125, 80, 200]
    np.testing.assert_allclose(factors, factors[0], rtol=0.01)


@pytest.mark.parametrize(
    "colour", [(64, 0, 0), (0, 64, 64), (255, 255, 255), (255, 0, 0), (64, 64, 64), (90, 100, 120)]
)
def test_any_colour_can_be_told_from_any_pixel(colour: tuple[int, int, int]) -> None:
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    normal = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 18, 3)
    x = paint(normal, np.ones(normal.shape[:2], bool), np.array(colour))
    assert _apart(x, normal).min() >= CONTRAST - 1e-9


def test_colours_and_places_vary() -> None:
    normal = np.full((*SHAPE, 3), 128, np.uint8)
    cases = [cut_paste(normal, np.random.default_rng(seed)) for seed in range(60)]
    colours = np.array([x[mask][0] for x, mask in cases])
    assert len(np.unique(colours, axis=0)) == 60
    assert colours.std(axis=0).min() > 40
    ever = np.mean([mask for _, mask in cases], axis=0)
    assert (ever > 0).mean() > 0.6
    assert ever.max() < 0.35
    areas = [mask.mean() for _, mask in cases]
    assert min(areas) < 0.006
    assert max(areas) > 0.08


def test_given_masks_keep_their_shape_and_about_their_place() -> None:
    disc = np.hypot(*(np.indices((64, 64)) - 31.5)) < 8
    disc = np.roll(disc, (-16, 16), (0, 1))  # at a quarter of the height and three quarters of the width
    sizes = set()
    for seed in range(40):
        mask = draw_mask((128, 128), np.random.default_rng(seed), masks=[disc])
        rows, columns = np.nonzero(mask)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        sizes.add(int(height))
        assert abs(height - width) <= 1
        assert mask.sum() / (height * width) == pytest.approx(np.pi / 4, abs=0.06)
        for centre in (rows.mean() / 128, columns.mean() / 128):
            assert min(abs(centre - 0.25), abs(centre - 0.75)) < 0.115
    assert min(sizes) < 20
    assert max(sizes) > 50


def test_given_masks_that_cannot_fit() -> None:
    corners = np.zeros((100, 100), bool)
    corners[0, 0] = corners[-1, -1] = True
    with pytest.raises(InputError, match="no mask could be resized to a fitting area"):
        draw_mask(SHAPE, np.random.default_rng(0), masks=[corners])
    assert draw_mask(SHAPE, np.random.default_rng(0), masks=[np.ones((9, 1), bool)]).mean() <= AREA[1]


@pytest.mark.parametrize("masks", [None, _masks()], ids=["generated", "given"])
def test_half_swap_shows_the_other_half_and_nothing_else(masks: list[np.ndarray] | None) -> None:
    normal, donor = _part(0), _part(1)
    middle = SHAPE[1] // 2
    for seed in range(15):
        x, mask = half_swap(normal, donor, np.random.default_rng(seed), masks=masks)
        np.testing.assert_array_equal((x != normal).any(axis=-1), mask)
        assert _apart(x, normal)[mask].min() >= CONTRAST - 1e-9
        assert AREA[0] <= mask.mean() <= AREA[1]
        assert mask[:, :middle].any() != mask[:, middle:].any()
        rows, columns = np.nonzero(mask)
        shifts = [
            shift
            for shift in range(-SHAPE[1] + 1, SHAPE[1])
            if columns.min() >= shift
            and columns.max() - shift < SHAPE[1]
            and (donor[rows, columns - shift] == x[rows, columns]).all()
        ]
        assert len(shifts) == 1
        assert ((columns < middle) != (columns - shifts[0] < middle)).all()


def test_half_swap_refuses_what_it_cannot_do() -> None:
    grey = np.full((*SHAPE, 3), 90, np.uint8)
    with pytest.raises(InputError, match="halves look too much alike"):
        half_swap(grey, grey, np.random.default_rng(0))
    with pytest.raises(InputError, match="differ in size"):
        half_swap(grey, grey[1:], np.random.default_rng(0))


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    folder = tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        write_png(folder / f"{index:02d}.png", _part(index, (64, 64)))
    return folder


def test_sources_leave_the_training_set(normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "part"
    synthesize_category(normals, out, count=5, structural=True, seed=3)
    category = open_category(out)
    assert (len(category.train), len(category.test)) == (7, 5)
    assert [case.id for case in category.test] == [
        "color/000", "color/002", "color/004", "structural/001", "structural/003"
    ]  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    sources = [case["source"] for case in manifest["test"]]
    assert sorted(manifest["train"] + sources) == sorted(path.name for path in normals.iterdir())
    for path, name in zip(category.train, manifest["train"], strict=True):
        np.testing.assert_array_equal(read_image(path), read_image(normals / name))
    images, masks, cases, failures = load_tests(category.test, 64)
    assert not failures
    record = {case["image"]: case for case in manifest["test"]}
    for image, mask, case in zip(images, masks, cases, strict=True):
        normal = read_image(normals / record[case.id]["source"])
        np.testing.assert_array_equal((image != normal).any(axis=-1), mask)
        donor = record[case.id].get("donor")
        assert (donor is not None) == (case.defect == "structural")
        assert donor is None or (donor in sources and donor != record[case.id]["source"])
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["part"]


def test_kinds_in_turn(normals: Path, tmp_path: Path) -> None:
    synthesize_category(normals, tmp_path / "plain", count=6, seed=3)
    synthesize_category(normals, tmp_path / "mixed", count=6, kinds=("grey", "colour", "missing"), seed=3)
    plain = {case.path.stem: case for case in open_category(tmp_path / "plain").test}
    mixed = open_category(tmp_path / "mixed").test
    assert [case.id for case in mixed] == [
        "color/001", "color/004", "grey/000", "grey/003", "missing/002", "missing/005"
    ]  # fmt: skip
    _, masks, cases, _ = load_tests(mixed, 64)
    for mask, case in zip(masks, cases, strict=True):
        other, shape = read_image(plain[case.path.stem].path), load_tests([plain[case.path.stem]], 64)[1][0]
        assert (read_image(case.path) == other).all() == (case.defect == "color")
        assert (mask == shape).all() or case.defect == "missing"  # paints share shapes
    assert json.loads((tmp_path / "mixed" / "manifest.json").read_text())["kinds"] == ["grey", "colour", "missing"]
    synthesize_category(normals, tmp_path / "both", count=4, kinds=("own", "grey"), structural=True)
    assert [case.id for case in open_category(tmp_path / "both").test] == [
        "grey/002", "own/000", "structural/001", "structural/003"
    ]  # fmt: skip


def test_a_kind_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for index in range(2):
        write_png(tmp_path / "flat" / f"{index}.png", np.full((32, 32, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"flat/\d.png: warp: no such anomaly can be seen on the picture; choose"):
        synthesize_category(tmp_path / "flat", tmp_path / "out", count=1, kinds=("warp",))
    assert not (tmp_path / "out").exists()


def _run(command: str) -> int:
    return run_synthesize(parser().parse_args(["synthesize", *command.split()]))


def test_the_command_takes_kinds(
    normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run("normals --out made --count 4 --kind blur --kind own --kind blur") == 0
    assert sorted(path.name for path in (tmp_path / "made/test").iterdir()) == ["blur", "own"]
    assert sorted(path.name for path in (tmp_path / "made/ground_truth/own").iterdir()) == [
        "001_mask.png", "003_mask.png"
    ]  # fmt: skip
    assert _run("textures --out textures --size 48 --kind grey --kind scratch --count 2") == 0
    assert len(list((tmp_path / "textures").glob("*/test/grey/000.png"))) == 4
    assert len(list((tmp_path / "textures").glob("*/test/scratch/001.png"))) == 4
    for command, message in {
        "normals --out bad --kind grau": "grau: no such kind of anomaly; choose from colour, grey",
        "textures --out bad --kind grau": "grau: no such kind of anomaly; choose from colour, grey",
        "normals --out bad --count 1 --kind own --kind grey": "ask for 2 to 11",
        "normals --out bad --structural --kind structural": "structural anomalies are asked for twice",
    }.items():
        with pytest.raises(InputError, match=message):
            _run(command)
    assert not (tmp_path / "bad").exists()
    with pytest.raises(SystemExit):
        _run("--help")
    text = capsys.readouterr().out
    assert all(kind in text for kind in KINDS)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_seed_decides(normals: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize_category(normals, tmp_path / name, count=3, seed=seed)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a") != _files(tmp_path / "c")


def test_from_a_category_with_its_own_masks(normals: Path, tmp_path: Path) -> None:
    root = tmp_path / "set" / "part"
    (root / "train").mkdir(parents=True)
    normals.rename(root / "train" / "good")
    (root / "ground_truth" / "poke").mkdir(parents=True)
    write_png(root / "ground_truth" / "poke" / "000_mask.png", _masks()[1])
    write_png(root / "ground_truth" / "poke" / "001_mask.png", np.zeros((9, 9), bool))
    synthesize_category(root, tmp_path / "out", masks=root / "ground_truth", count=4, size=48)
    images, masks, _, _ = load_tests(open_category(tmp_path / "out").test, 48)
    assert images.shape == (4, 48, 48, 3)
    assert read_image(tmp_path / "out" / "train" / "good" / "000.png").shape == (48, 48, 3)
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        filled = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean()
        assert filled == pytest.approx(0.7, abs=0.15)  # an L of 1400 of 2000 pixels


def test_bad_input_leaves_nothing_behind(
    normals: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path / "out"

    def refused(message: str, normals: Path = normals, **options) -> None:
        with pytest.raises(InputError, match=message):
            synthesize_category(normals, out, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["normals"]

    refused("nowhere: no such folder", tmp_path / "nowhere")
    refused("12 test pictures cannot be made from 12 normal ones; ask for 1 to 11", count=12)
    refused("1 test pictures cannot be made from 12 normal ones; ask for 2 to 11", count=1, structural=True)
    refused("0 test pictures", count=0)
    refused("nowhere: no such folder", masks=tmp_path / "nowhere", count=3)
    refused("holds no mask with a defect", masks=_made_empty(tmp_path_factory.mktemp("others") / "masks"), count=3)
    (normals / "05.png").write_bytes(b"")
    refused("05.png: the file is empty", count=3)
    for path in normals.glob("*.png"):
        path.unlink()
    refused("normals: holds no pictures", count=3)
    out.mkdir()
    (out / "mine.txt").write_text("")
    for index in range(4):
        write_png(normals / f"{index}.png", _part(index))
    with pytest.raises(InputError, match="out: exists already and is not an empty folder"):
        synthesize_category(normals, out, count=2)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def _made_empty(folder: Path) -> Path:
    folder.mkdir()
    write_png(folder / "000_mask.png", np.zeros((9, 9), bool))
    return folder


@pytest.mark.realdata
def test_capsule_as_in_the_paper(mvtec_root: Path, tmp_path: Path) -> None:
    root = mvtec_root / "capsule"
    out = tmp_path / "capsule"
    synthesize_category(root, out, masks=root / "ground_truth", count=54, structural=True, size=64)
    category = open_category(out)
    assert (len(category.train), len(category.test)) == (165, 54)

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from results import a_result
from test_layouts import COPIES

import f2pad_jax
from f2pad_jax import commands, evaluation, picture_jobs, segmentation
from f2pad_jax.cli import main, parser
from f2pad_jax.commands import measures
from f2pad_jax.commands import models as making
from f2pad_jax.data.images import read_image, read_mask, write_png
from f2pad_jax.data.textures import make_textures
from f2pad_jax.detectors import CFlow, PaDiM, cflow, cflow_training
from f2pad_jax.errors import InputError
from f2pad_jax.export import EXPORTERS
from f2pad_jax.growing import let_grow
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.output import owned
from f2pad_jax.picture_files import output_stems
from f2pad_jax.preparing import Place, begin, find_region
from f2pad_jax.procedure import paper_settings
from f2pad_jax.segmentation import Segmentation
from f2pad_jax.sights import Sight, look
from f2pad_jax.weights.flow_files import to_freia

SIZE = 64
FIT = ["--detector", "patchcore", "--extractor", "efficientnet_lite0"]
PLAIN = ["--option", "plain=true"]
CFLOW = ["--detector", "cflow", "--extractor", "efficientnet_lite0", "--size", str(SIZE)]
QUICK = ["--option", "epochs=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the category `set/brick` and the model `model` fitted to it."""
    root = tmp_path_factory.mktemp("cli")
    make_textures(root / "set", train=10, test=2, size=SIZE, categories=["brick"])
    options = ["--size", str(SIZE), "--shots", "8", "--seed", "1"]
    assert main(["fit", str(root / "set/brick"), *FIT, *PLAIN, *options, "--out", str(root / "model")]) == 0
    return root


@pytest.fixture
def work(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `root` to spoil, which is also the current folder."""
    work = Path(shutil.copytree(root, tmp_path / "work"))
    monkeypatch.chdir(work)
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    return work


def test_help_needs_no_jax() -> None:
    code = "import sys; from f2pad_jax.cli import main\ntry: main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in commands.COMMANDS:
        assert f"  {name}" in done.stdout


def test_version_is_that_of_the_project() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert f2pad_jax.__version__ == tomllib.loads(project.read_text("utf-8"))["project"]["version"]


def test_the_public_names_exist() -> None:
    for name in f2pad_jax.__all__:
        assert getattr(f2pad_jax, name) is not None
        assert name in dir(f2pad_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        f2pad_jax.nothing  # noqa: B018


def test_segment_lets_regions_grow(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region that is cut in half is completed with `--grow`, as by `let_grow`."""
    model, path = load_model("model"), work / "set/brick/test/color/000.png"
    image, truth = read_image(path), read_mask(work / "set/brick/ground_truth/color/000_mask.png")
    left = np.arange(SIZE)[None] < np.mean(np.nonzero(truth)[1])

    def half(model: Model, sight: Sight) -> Place:
        region = find_region(model, sight.scores) & left
        return Place(region, begin(model, sight.image, region))

    monkeypatch.setattr(segmentation, "locate", half)
    sights = look(model, image[None])
    threshold = float(np.quantile(sights[0].scores, 0.9))
    model = replace(model, procedure=replace(model.procedure, start="image", threshold=threshold))
    save_model(model, Path("growing"))
    regions = [find_region(model, sights[0].scores) & left]
    results = segmentation.segment_regions(model, image[None], sights, regions)
    (wanted,) = let_grow(model, image[None], sights, regions, results)
    assert wanted.rounds > 0
    for options, out in ((["--grow"], "grown"), ([], "plain")):
        assert main(["segment", "growing", str(path), "--threshold", repr(threshold), *options, "--out", out]) == 0
    grown, plain = (json.loads((work / out / "results.jsonl").read_text()) for out in ("grown", "plain"))
    assert grown["iterations"] == wanted.result.iterations > plain["iterations"]
    assert not read_mask(work / "plain/000_mask.png")[~np.broadcast_to(left, truth.shape)].any()
    np.testing.assert_array_equal(read_mask(work / "grown/000_mask.png"), wanted.result.mask)


def test_segment_writes_every_result_and_survives_bad_pictures(work: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("one", "two"):
        (work / name).mkdir()
    picture = read_image(work / "set/brick/test/color/000.png")
    wide = np.asarray(Image.fromarray(picture).resize((90, 50)))
    write_png(work / "one/same.png", wide)
    write_png(work / "two/same.png", picture)
    (work / "two/broken.png").write_bytes((work / "one/same.png").read_bytes()[:300])
    (work / "two/empty.png").touch()
    (work / "out").mkdir()
    (work / "out/results.parquet").touch()  # of an earlier run
    capsys.readouterr()
    assert main(["segment", "model", "one", "two", "missing.png", "--out", "out"]) == 2
    output = capsys.readouterr()
    errors = output.err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith("f2pad: error: ") for line in errors)

    lines = [json.loads(line) for line in (work / "out/results.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [
        "one/same.png", "two/broken.png", "two/empty.png", "two/same.png", "missing.png"
    ]  # fmt: skip
    assert [line["status"] == "failed" for line in lines] == [False, True, True, False, True]
    assert all(line["error"] in error for line, error in zip([*lines[1:3], lines[4]], errors, strict=True))
    stems = ["one_same", "two_same"]
    kinds = ["mask.png", "normal.png", "panel.png", "score.tiff", "refined.tiff"]
    assert sorted(path.name for path in (work / "out").iterdir()) == sorted(
        ["coco.json", "results.jsonl", "settings.toml"] + [f"{stem}_{kind}" for stem in stems for kind in kinds]
    )
    assert {line.get("verdict") for line in lines} <= {None, "ok", "defect", "unexplained"}
    for stem, image in zip(stems, (wide, picture), strict=True):
        stored = np.asarray(Image.open(work / f"out/{stem}_mask.png"))
        assert stored.shape == image.shape[:2]
        assert set(np.unique(stored)) <= {0, 255}
        mask, normal = read_mask(work / f"out/{stem}_mask.png"), read_image(work / f"out/{stem}_normal.png")
        assert normal.shape == image.shape
        np.testing.assert_array_equal(normal[~mask], image[~mask])
        for kind in ("score", "refined"):
            with Image.open(work / f"out/{stem}_{kind}.tiff") as file:
                values = np.asarray(file)
            assert (values.dtype, values.shape) == (np.float32, image.shape[:2])
            assert np.isfinite(values).all()


def test_evaluate_writes_metrics_and_pictures(work: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copy(work / "set/brick/test/color/000.png", work / "set/brick/test/color/002.png")
    shutil.copy(work / "set/brick/ground_truth/color/000_mask.png", work / "set/brick/ground_truth/color/002_mask.png")
    spoiled = work / "set/brick/test/color/002.png"
    spoiled.write_bytes(spoiled.read_bytes()[:300])
    capsys.readouterr()
    assert main(["evaluate", "model", "set/brick", "--out", "out"]) == 2
    output = capsys.readouterr()
    (error,) = output.err.strip().splitlines()
    assert "002.png" in error
    assert "brick" in output.out
    assert "→" in output.out
    whole = json.loads((work / "out/metrics.json").read_text())
    (run,) = whole["runs"]
    assert (whole["schema"], run["dataset"], run["category"], run["seed"]) == (1, "set", "brick", 1)
    assert (run["train_images"], run["test_images"], run["failed"]) == (8, 2, 1)
    assert [image["image"] for image in run["per_image"]] == ["color/000", "color/001", "color/002"]
    assert sorted(path.name for path in (work / "out/panels").iterdir()) == [
        "brick_patchcore_color_000.png", "brick_patchcore_color_001.png"
    ]  # fmt: skip
    with Image.open(work / "out/overview.png") as overview:
        assert min(overview.size) > 300


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments in no time: what differs from pixel to pixel as little as a normal picture scores least."""

    def segment(model: Model, images: list[np.ndarray], title: str, memory: float | None) -> list[Segmentation]:
        return [
            a_result(image, image.max(axis=-1) > 250, score_map=np.ptp(image, axis=-1).astype(np.float32), seconds=0.1)
            for image in images
        ]

    monkeypatch.setattr(evaluation, "segment", segment)


def test_evaluate_without_masks_measures_whole_pictures(work: Path, found: None, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(work / "set/brick/ground_truth")
    (work / "set/brick/test/ok").mkdir()
    shutil.copy(work / "set/brick/train/good/000.png", work / "set/brick/test/ok/000.png")
    (work / "set/brick/test/ok/broken.png").write_bytes(b"")
    written = work / "out/settings.toml"
    capsys.readouterr()
    assert main(["evaluate", "model", "set/brick", "--layout", "mvtec", "--out", "out"]) == 2  # for the broken one
    output = capsys.readouterr()
    assert "brick, patchcore: no masks; image AUROC 100.0 → 100.0" in output.out
    assert "the file is empty" in output.err
    (run,) = json.loads((work / "out/metrics.json").read_text())["runs"]
    assert run["backbone"] == run["f2pad"] == {"image_auroc": 100.0, "image_f1max": 100.0}
    assert (run["test_images"], run["failed"]) == (3, 1)
    assert [(image["image"], image.get("defect")) for image in run["per_image"]] == [
        ("color/000", True), ("color/001", True), ("good/000", False), ("good/broken", None)
    ]  # fmt: skip
    assert len(list((work / "out/panels").iterdir())) == 3
    assert main(["--config", str(written), "--out", "again"]) == 2
    (again,) = json.loads((work / "again/metrics.json").read_text())["runs"]
    assert again == run
    capsys.readouterr()
    assert main(["evaluate", "model", "set/brick", "--oracle", "--out", "tuned"]) == 2
    assert "has no masks" in capsys.readouterr().err
    shutil.rmtree(work / "set/brick/test/ok")
    assert main(["evaluate", "model", "set/brick", "--out", "tuned"]) == 2
    assert "has no masks, and its test pictures are all defective; add the other kind" in capsys.readouterr().err
    assert not (work / "tuned").exists()


def test_panels_of_any_names_are_told_apart(
    work: Path, found: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Names that are one with "_" in place of "/", or too long with the category before them; a name like markup."""
    shutil.rmtree(work / "set/brick/ground_truth")
    category = (work / "set/brick").rename(work / "set/part[old]")
    names = ["a/b_c", "a_b/c", f"a/{'x' * 230}", "good/0"]
    picture = (category / "test/color/000.png").rename(work / "picture.png")
    shutil.rmtree(category / "test")
    for name in names:
        (category / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, category / "test" / f"{name}.png")
    shutil.copy(category / "train/good/000.png", category / "test/good/0.png")

    def measured(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(InputError, match="writes there"), owned(work / "out"):
            pass
        return evaluation.evaluate_images(*arguments, **options)

    monkeypatch.setattr(measures, "evaluate_images", measured)
    assert main(["evaluate", "model", str(category), "--layout", "mvtec", "--out", "out"]) == 0
    assert "part[old], patchcore: no masks; image AUROC" in capsys.readouterr().out
    assert len(list((work / "out/panels").iterdir())) == len(names)
    (work / "out/panels/own.png").touch()
    (category / "test/a/b_c.png").unlink()
    assert main(["evaluate", "model", str(category), "--layout", "mvtec", "--out", "out"]) == 0
    assert len(list((work / "out/panels").iterdir())) == len(names)  # own.png in place of one that is gone
    (work / "out/metrics.json").unlink()
    monkeypatch.setattr(measures, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "model", str(category), "--layout", "mvtec", "--out", "out"])
    assert (work / "out/metrics.json").is_file()


def test_pictures_of_cameras_through_the_command_line(
    work: Path, found: None, tiny_model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Twelve bits in training and test pictures, masks after JPEG, and files that are not used."""
    read: list[np.ndarray] = []

    def fit(images: np.ndarray, *, white_level: int | None, **_: Any) -> Model:
        read.append(images)
        return replace(tiny_model, white_level=white_level)

    monkeypatch.setattr(making, "fit", fit)
    for path in (*(work / TRAIN).iterdir(), *(work / TEST).iterdir()):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(np.minimum(grey * 16, 4095).astype(np.uint16)).save(path)
    for path in (work / TRUTH).iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    (work / TRAIN / "notes.txt").write_text("")
    command = ["fit", "set/brick", *FIT, "--size", str(SIZE), "--shots", "8"]
    capsys.readouterr()
    assert main([*command, "--out", "dark"]) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert "files for training are not used: notes.txt" in lines[0]
    assert "upper ones are unused; if its white is 4095, give that as the white level (--white-level 4095)" in lines[1]
    assert lines[2].startswith("f2pad: warning: so it is with 7 more: has 16 bits")
    assert main([*command, "--white-level", "4095", "--out", "bright"]) == 0
    assert load_model("bright").white_level == 4095
    assert read[1].max() > 4 * read[0].max()
    capsys.readouterr()
    assert main(["evaluate", "bright", "set/brick", "--out", "out"]) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    # Masks are read in threads: any may be the first.
    assert "_mask.jpg: has more levels than black and white; cut at the middle" in lines[0]
    assert lines[1] == "f2pad: warning: so it is with 1 more: has more levels than black and white; cut at the middle"


@pytest.mark.parametrize("name", COPIES)
def test_layouts_through_the_command_line(
    work: Path, found: None, tiny_model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out, train, tests = COPIES[name]
    lay_out(work / "sets/pictures/part")
    read: list[int] = []
    monkeypatch.setattr(making, "fit", lambda images, **_: read.append(len(images)) or tiny_model)
    assert main(["fit", "sets/pictures/part", *FIT, "--size", str(SIZE), "--out", "other"]) == 0
    assert read == [len(train)]
    assert main(["evaluate", "other", "sets/pictures/part", "--layout", name.partition(":")[0], "--out", "out"]) == 0
    (run,) = json.loads((work / "out/metrics.json").read_text())["runs"]
    assert (run["dataset"], run["category"], run["failed"]) == ("pictures", "part", 0)
    assert [image["image"] for image in run["per_image"]] == list(tests)


def test_files_of_all_kinds_through_the_command_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What cameras and programs write is segmented, each picture once and as it is seen; what is doubtful is told."""
    seen: dict[str, np.ndarray] = {}

    def segment(model: Model, images: list[np.ndarray], **_: Any) -> list[Segmentation]:
        return [a_result(image, image[..., 0] > 130) for image in images]

    monkeypatch.setattr(picture_jobs, "segment", segment)
    picture = np.full((24, 32, 3), 60, np.uint8)
    picture[8:16, 8:24, 0] = 200
    colour, folder, names = Image.fromarray(picture), work / "new", []
    folder.mkdir()

    def save(name: str, image: Image.Image = colour, **options: Any) -> None:
        image.save(folder / name, **options)
        names.append(name)

    for suffix in ("jp2", "webp", "avif", "jfif", "tga", "pnm", "bmp", "TIF"):
        lossy: dict[str, Any] = {"quality": 95} if suffix in ("jfif", "webp", "avif") else {}
        save(f"{suffix}.{suffix}", **lossy)
    turned = Image.Exif()
    turned[0x0112] = 8  # lies on its right side
    save("turned.jpg", Image.fromarray(np.rot90(picture, -1)), exif=turned, quality=95)
    save("palette.png", colour.quantize(4))
    save("pages.tiff", save_all=True, append_images=[colour])
    names[-1:] = ["pages_1.tiff", "pages_2.tiff"]
    save("clear.png", Image.fromarray(np.dstack([picture, np.zeros((24, 32), np.uint8)])))
    save("dark.png", Image.fromarray(np.full((24, 32), 4000, np.uint16)))
    capsys.readouterr()
    assert main(["segment", "model", "new", "new/../new/bmp.bmp", "--out", "out"]) == 0
    lines = [json.loads(line) for line in (work / "out/results.jsonl").read_text().splitlines()]
    assert sorted(Path(line["image"]).name for line in lines) == sorted(names)
    truth = picture[..., 0] > 130
    for line in lines:
        seen[Path(line["image"]).name] = mask = read_mask(work / "out" / line["mask"])
        assert mask.shape == truth.shape
    assert not seen.pop("dark.png").any()
    for name, mask in seen.items():
        assert iou(mask, truth) > 0.7, name
    told = capsys.readouterr().err
    assert "clear.png: is transparent everywhere, which is ignored" in told
    assert "dark.png: has 16 bits of which the upper ones are unused; if its white is 4095" in told


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """Makes the training of flows quick, and collects the models that `fit` writes."""
    monkeypatch.setattr(cflow_training, "STEPS", 2)
    kept: list[Model] = []
    monkeypatch.setattr(making, "save_model", lambda model, out: kept.append(model) or save_model(model, out))
    return kept


def _decoders(model: Model) -> tuple[cflow.Decoder, ...]:
    assert isinstance(model.detector, CFlow)
    return model.detector.decoders


def _assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_interrupted_training_of_flows_goes_on(
    work: Path, models: list[Model], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, done = cflow_training._run, []

    def cut_off(*arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return run(*arguments)

    assert main(["fit", "set/brick", *CFLOW, *QUICK, "--option", "used=3", "--out", "whole"]) == 0
    options = [*QUICK, "--option", "used=3", "--option", "checkpoint=training"]
    command = ["fit", "set/brick", *CFLOW, *options, "--out", "flows"]
    monkeypatch.setattr(cflow_training, "_run", cut_off)
    assert main(command) == 130
    assert not (work / "flows").exists()
    again: list[int] = []
    monkeypatch.setattr(cflow_training, "_run", lambda *arguments: again.append(1) or run(*arguments))
    assert main(command) == 0
    assert len(again) == 2 * 3 - 3
    whole, resumed = models
    assert len(_decoders(whole)) == 3
    _assert_same(resumed.detector, whole.detector)
    loaded = load_model("flows")
    _assert_same((loaded.detector, loaded.scales), (whole.detector, whole.scales))
    assert loaded.threshold == whole.threshold
    capsys.readouterr()
    assert main([*command[:-1], "other", "--seed", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "training: holds a training of other pictures or settings" in line
    assert not (work / "other").exists()


def test_few_pictures_train_two_flows(work: Path, models: list[Model]) -> None:
    assert main(["fit", "set/brick", *CFLOW, *QUICK, "--shots", "8", "--out", "flows"]) == 0
    assert len(_decoders(models[0])) == 2


@pytest.mark.parametrize(("options", "blocks"), [([], 3), (["--option", "blocks=1"], 1), (["--paper"], 8)])
def test_couplings_of_a_flow(work: Path, models: list[Model], options: list[str], blocks: int) -> None:
    assert main(["fit", "set/brick", *CFLOW, *QUICK, *options, "--out", "flows"]) == 0
    assert len(_decoders(models[0])[1].flow["scale"]) == blocks


def _flow_file(path: Path, widths: tuple[int, ...]) -> None:
    states = [to_freia(flow.init(jax.random.key(0), FlowSpec(width, 1, permutation="hard"))) for width in widths]
    named = {f"model.decoders.{k}.{name}": array for k, state in enumerate(states) for name, array in state.items()}
    np.savez(path, **named)  # pyright: ignore[reportArgumentType]


def test_trained_flows_are_imported(work: Path, models: list[Model]) -> None:
    _flow_file(work / "flows.npz", (24, 40))
    assert main(["fit", "set/brick", *CFLOW, "--option", "flow=flows.npz", "--out", "flows"]) == 0
    assert len(_decoders(models[0])) == 2
    _assert_same(load_model("flows").detector, models[0].detector)
    with np.load(work / "flows.npz") as file:
        outer = file["model.decoders.1.module_list.0.subnet.2.weight"]
    np.testing.assert_array_equal(_decoders(models[0])[1].flow["outer"][0], outer.T)


def test_flows_that_do_not_fit_are_one_line(work: Path, capsys: pytest.CaptureFixture) -> None:
    _flow_file(work / "flows.npz", (24, 41))
    blocks = "fit set/brick {cflow} --option flow=flows.npz --option blocks=4"
    _fails(work, blocks, "the flows have 1 couplings, not 4", capsys)
    command = "fit set/brick {cflow} --option flow=flows.npz"
    _fails(work, command, "the flows are of maps with 24, 41 channels, not 24, 40", capsys)


def test_fit_takes_rank_precision_and_the_papers_settings(work: Path) -> None:
    padim = ["--detector", "padim", "--extractor", "efficientnet_lite0", "--size", str(SIZE)]
    options = ["--option", "rank=4", "--precision", "bf16", "--paper"]
    assert main(["fit", "set/brick", *padim, *options, "--out", "chosen"]) == 0
    model = load_model("chosen")
    assert isinstance(model.detector, PaDiM)
    assert [leaf.shape for leaf in jax.tree.leaves(model.detector.inverse)] == [(256, 4, 176), (256, 4), (256, 1)]
    assert model.extractor.precision == "bf16"
    assert (model.settings, model.procedure) == paper_settings()
    assert main(["segment", "chosen", TEST, "--out", "out"]) == 0
    lines = [json.loads(line) for line in (work / "out/results.jsonl").read_text().splitlines()]
    assert {line["status"] for line in lines} <= {"converged", "iteration limit"}
    assert all(1 < line["iterations"] <= 1200 for line in lines)


def test_synthesize_makes_a_data_set(work: Path) -> None:
    options = ["--count", "3", "--size", "48", "--seed", "2"]
    assert main(["synthesize", "set/brick", "--out", "made", *options]) == 0
    assert len(list((work / "made/train/good").iterdir())) == 7
    assert len(list((work / "made/test/color").iterdir())) == 3
    assert main(["synthesize", "textures", "--out", "textures", "--count", "1", "--size", "48"]) == 0
    assert len(list((work / "textures").glob("*/test/color/*.png"))) == 4


def test_weights_are_listed(work: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["weights", "list"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert " ".join(rows["efficientnet_lite0"]) == "19 Apache-2.0 57934424… installed"
    assert " ".join(rows["resnet18"]) == "47 BSD-3-Clause f37072fd… no"
    assert " ".join(rows["efficientnet_b6"]) == "? Apache-2.0 c76e70fd… no"
    assert main(["weights", "verify"]) == 0
    text = capsys.readouterr().out
    assert "efficientnet_lite0: package, Apache-2.0, SHA-256 579344248a93e230" in text
    assert ", as published\n" in text
    assert "resnet18" not in text


def test_a_device_that_is_not_there_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def devices() -> None:
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    for command in (COMMANDS["fit"], "demo", "experiment kinds --jobs 1", "weights verify"):
        _fails(work, command, "JAX_PLATFORMS=cuda: JAX finds no device (AssertionError); name what is there", capsys)
    assert main(["weights", "list"]) == 0


MISTYPED = [
    "fit nowhere {fit}",
    "fit set/brick {fit} --roi nowhere",
    "fit set/brick {fit} --maps nowhere",
    "fit set/brick {fit} --weights nowhere",
    "fit set/brick {fit} --inpainter nowhere",
    "fit set/brick --from nowhere",
    "train-mae nowhere",
    "tune nowhere set/brick",
    "tune model nowhere",
    "segment nowhere set/brick/train/good",
    "segment model nowhere",
    "segment model nowhere nowhere/1.png nowhere.tif",
    "segment model set/brick/train/good --roi nowhere",
    "segment model set/brick/train/good --maps nowhere",
    "segment model set/brick/train/good --weights nowhere",
    "evaluate nowhere set/brick",
    "evaluate model nowhere",
    "export nowhere --out model.onnx",
    "export model --out nowhere/model.onnx",
    "experiment real --data nowhere",
    "experiment table1 --extractor resnet18 --weights nowhere",
]


@pytest.mark.parametrize("command", MISTYPED)
def test_a_mistyped_path_does_not_wait_for_devices(
    work: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("waited"))
    _fails(work, command, "nowhere: ", capsys)


def test_an_interruption_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "demo", interrupted)
    assert main(["demo", "--out", "out"]) == 130
    assert capsys.readouterr().err == "f2pad: interrupted\n"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _bomb(path: Path) -> None:
    Image.new("1", (12_000, 9_000)).save(path)


def _drop_tests(category: Path) -> None:
    shutil.rmtree(category / "test")
    shutil.rmtree(category / "ground_truth")


def _clear_masks(folder: Path) -> None:
    for path in folder.iterdir():
        write_png(path, np.zeros((SIZE, SIZE), bool))


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


TRAIN, TEST, TRUTH = "set/brick/train/good", "set/brick/test/color", "set/brick/ground_truth/color"

# commands that cannot work, and what their error names
MISUSES = {
    "fit nowhere {fit}": "no such folder",
    "fit set {fit}": "has no train/good",
    "fit set/brick {fit} --shots 11": "10 training pictures",
    "fit set/brick --detector magic --extractor efficientnet_lite0": "magic",
    "fit set/brick --detector padim --extractor vgg": "vgg",
    "fit set/brick --detector padim --extractor resnet18": "weights import resnet18",
    "fit set/brick {fit} --weights set/manifest.json": "not a usable weight file",
    "fit set/brick {fit} --weights nowhere.pth": "nowhere.pth",
    "fit set/brick {fit} --out set": "exists already",
    "fit set/brick {fit} --option blocks=4": "patchcore has no option 'blocks'; its options are ratio, limit",
    "fit set/brick {fit} --option ratio": "--option ratio has no value",
    "fit set/brick {fit} --option ratio=much": "option ratio of patchcore is 'much'",
    "fit set/brick {cflow} --option rank=4": "cflow has no option 'rank'",
    "fit set/brick {fit} --precision half": "choose one of parity, fast, bf16",
    "fit set/brick {fit} --inpainter nowhere": "no such autoencoder",
    "fit set/brick {fit} --inpainter model": "is no autoencoder",
    "fit set/brick {cflow} --option flow=set/manifest.json": "not a usable weight file",
    "fit set/brick {cflow} --option flow=set/manifest.json --option checkpoint=training": "leave checkpoint out",
    "fit set/brick {cflow} --option checkpoint=set": "is no flow-training",
    "train-mae nowhere": "no such folder",
    "train-mae set/brick --size 50": "multiple of 16",
    "train-mae set/brick --out model": "is no autoencoder",
    "fit set/brick {fit} --layout round": "no layout 'round'; choose one of mvtec, mvtec2",
    "tune nowhere set/brick": "no such folder",
    "tune model nowhere": "no such folder",
    "tune model set/brick --out set": "exists already",
    "export model --out model.bin": "is of no known form; end it in .stablehlo, .onnx, or in nothing for a folder",
    "export model --out set": "exists already and is no such model",
    "export model --out bare --without-pictures": "the fill comes from the training pictures",
    "export nowhere --out model.stablehlo": "no such folder",
    f"segment nowhere {TEST}": "no such folder",
    f"segment set {TEST}": "is no model",
    f"segment model {TEST} --out {TEST}": "name another folder",
    f"segment model {TEST} --out model": "folder of a model",
    f"segment model {TEST} --out set/manifest.json": "cannot be made",
    f"segment model {TEST} --out model/results": "model: is the folder of a model; name a place outside of it",
    f"segment model {TEST} --workers 2": "--workers goes with --ray",
    "segment model set": "holds no pictures",
    "evaluate model nowhere": "no such folder",
    "evaluate model set/brick --out model": "folder of a model",
    "evaluate model set/brick --out model/deep/results": "folder of a model",
    "evaluate model set/brick --layout btad": "is not of layout btad",
    "synthesize nowhere": "no such folder",
    "synthesize set/brick --count 10": "cannot be made",
    "synthesize set/brick --count 2 --out set": "exists already",
    "synthesize set/brick --count 2 --masks nowhere": "no such folder",
    "synthesize textures --structural": "textures take no --structural; leave it out",
    "synthesize textures --layout mvtec": "textures take no --layout",
    "synthesize textures --white-level 255": "textures take no --white-level",
    "synthesize textures --out model/set": "folder of a model",
    "report set --out model/report.html": "folder of a model",
    "experiment kinds --out model/results": "folder of a model",
    "demo --detector magic": "magic",
    "weights import vgg set/manifest.json": "vgg",
    "weights import resnet18 nowhere.pth": "nowhere.pth",
    "weights fetch vgg": "vgg",
    "weights fetch efficientnet_lite0": "just use it",
}


@pytest.mark.parametrize("command", MISUSES)
def test_misuse_is_one_line_and_leaves_nothing(work: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    _fails(work, command, MISUSES[command], capsys)


# commands that would lose their work at the end, and what their error names
VAIN = {
    "fit set/brick {fit} --out set/manifest.json/model": "cannot be written (Not a directory)",
    "fit set/brick {fit} --out model/other": "folder of a model",
    f"fit set/brick {{fit}} --maps {TRUTH}": "2 maps of normal pictures are too few",
    "fit set/brick {fit} --maps blank": "hold one value or two; give scores, not masks",
    "fit set/brick {cflow} --option flow=nowhere.pt": "option flow of cflow is 'nowhere.pt'; path does not point to a",
    "tune model set/brick --out model/tuned": "folder of a model",
    "export model --out nowhere/model.stablehlo": "nowhere: no such folder",
    "export model --out model/model.stablehlo": "folder of a model",
    "export model --out set.stablehlo": "it is no file",
}


@pytest.mark.parametrize("command", VAIN)
def test_work_that_would_be_lost_is_not_begun(
    work: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("fit", "tune"):
        monkeypatch.setattr(making, name, lambda *_, **__: pytest.fail("worked in vain"))
    monkeypatch.setitem(EXPORTERS, ".stablehlo", lambda *_: pytest.fail("worked in vain"))
    (work / "set.stablehlo").mkdir()
    (work / "blank").mkdir()
    for number in range(3):
        write_png(work / f"blank/{number}.png", np.zeros((SIZE, SIZE), bool))
    _fails(work, command, VAIN[command], capsys)


def test_a_model_is_not_damaged_by_what_a_file_browser_leaves(work: Path, capsys: pytest.CaptureFixture) -> None:
    (work / "model/.DS_Store").touch()
    load_model("model")
    (work / "model/notes.txt").touch()
    _fails(work, COMMANDS["segment"], "model/notes.txt: does not belong there; remove it", capsys)


# what is spoiled, how, the command that meets it, and what its error names
SPOILED: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "empty folder": (
        TRAIN,
        lambda path: [file.unlink() for file in path.iterdir()],
        "fit",
        "holds no pictures",
    ),
    "truncated": (
        f"{TRAIN}/003.png",
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        "fit",
        "003.png",
    ),
    "zero bytes": (f"{TRAIN}/003.png", lambda path: path.write_bytes(b""), "fit", "the file is empty"),
    "bomb": (f"{TRAIN}/003.png", _bomb, "fit", "more than 89,478,485 pixels"),
    "mask without image": (f"{TEST}/001.png", Path.unlink, "fit", "mask without a picture"),
    "image without mask": (f"{TRUTH}/001_mask.png", Path.unlink, "evaluate", "has no mask"),
    "no test pictures": ("set/brick", _drop_tests, "evaluate", "has no test pictures"),
    "no defect": (TRUTH, _clear_masks, "evaluate", "one kind of pixel only"),
    "no defect to tune on": (TRUTH, _clear_masks, "tune", "one kind of pixel only"),
    "flipped bit": ("model", lambda path: _flip(_largest(path)), "segment", "damaged model"),
    "flipped bit in the facts": ("model/model.json", _flip, "segment", "damaged model"),
    "lost file": ("model", lambda path: _largest(path).unlink(), "segment", "is missing"),
}
COMMANDS = {
    "fit": "fit set/brick {fit}",
    "evaluate": "evaluate model set/brick",
    "tune": "tune model set/brick --oracle",
    "segment": f"segment model {TEST}",
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_input_is_one_line_and_leaves_nothing(work: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    path, spoil, command, named = SPOILED[name]
    spoil(work / path)
    _fails(work, COMMANDS[command], named, capsys)


def _fails(work: Path, command: str, named: str, capsys: pytest.CaptureFixture) -> None:
    before = sorted(work.rglob("*"))
    arguments = command.format(fit=" ".join([*FIT, "--size", str(SIZE)]), cflow=" ".join(CFLOW)).split()
    if "--out" not in arguments and arguments[0] != "weights":
        arguments += ["--out", "out"]
    capsys.readouterr()
    assert main(arguments) == 2
    *told, line = capsys.readouterr().err.strip().splitlines()
    assert all("is the mask of a defect, but black" in each for each in told)  # of each picture, before the error
    assert line.startswith("f2pad: error: ")
    assert named in line
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["fit"],
        ["demo", "--images", "0"],
        ["demo", "--images", "few"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "4294967295"],
        ["train-mae", "part", "--out", "f", "--seed", "4294967295"],
        ["synthesize", "textures", "--out", "x", "--size", "32769"],
        ["synthesize", "textures", "--out", "x", "--count", "1000001"],
        ["fit", "part", "--out", "m", "--size", "32769"],
        ["fit", "part", "--out", "m", "--work-size", "32769"],
        ["segment", "m", "a.png", "--out", "r", "--memory", "1e300"],
        ["segment", "m", "a.png", "--out", "r", "--memory", "nan"],
        ["segment", "m", "a.png", "--out", "r", "--pixel-size", "1e300"],
        ["weights"],
    ],
    ids=" ".join,
)
def test_mistyped_commands_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("f2pad: error: ")
    assert line.endswith("--help")


def test_the_largest_numbers_are_taken() -> None:
    words = ["--size", "32768", "--seed", "4294967294", "--shots", "1000000", "--memory", "1048576"]
    found = parser().parse_args(["fit", "part", "--out", "m", *words])
    assert (found.size, found.seed, found.shots, found.memory) == (2**15, 2**32 - 2, 10**6, 2**20)


def test_equal_stems_are_told_apart() -> None:
    names = ["a/x.png", "b/x.png", "b/x.jpg", "c/a_x.png", "c/y.png", "d/b/x.png", "a/X.png"]
    stems = output_stems([Path(name) for name in names])
    assert stems[3:5] == ["a_x", "y"]  # a stem of its own is kept
    assert stems[1] == "b_x"
    assert stems[2] == "b_x_jpg"
    assert len({stem.casefold() for stem in stems}) == len(names)

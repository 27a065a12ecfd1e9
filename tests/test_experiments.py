from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from piecework import IMAGES, SIZE, TRAIN, shrink, small_worker
from PIL import Image
from scipy import ndimage
from solving import tiny_extractor

from f2pad_jax.cli import main
from f2pad_jax.configuration import SETTINGS
from f2pad_jax.core import Settings, Solution, solve
from f2pad_jax.core.pixels import STD
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import cflow_training
from f2pad_jax.errors import InputError
from f2pad_jax.evaluation import plain_settings
from f2pad_jax.experiments import (
    cases,
    command,
    curves,
    models,
    paper,
    records,
    registry,
    results,
    runs,
    sets,
    tables,
    variants,
)
from f2pad_jax.fitting import fit, refit_mixture
from f2pad_jax.metrics import f1max
from f2pad_jax.preparing import build, find_region, plan
from f2pad_jax.procedure import Procedure, paper_settings
from f2pad_jax.segmentation import segment, segment_regions
from f2pad_jax.sights import look, score_maps

ONE = ("--category", "brick", "--detector", "padim", "--untuned")


def experiment(name: str, out: Path, *options: str) -> int:
    return main(["experiment", name, "--out", str(out), *options])


def files(folder: Path) -> dict[str, bytes]:
    """All but the settings, which name the folder."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SETTINGS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module", autouse=True)
def small():
    patch = pytest.MonkeyPatch()
    shrink(patch)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of Table I for one category and detector, in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert experiment("table1", out, *ONE) == 0
    return out


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call solved."""
    counts: list[int] = []

    def counting(model: Any, images: np.ndarray, *rest: Any, **options: Any) -> Any:
        counts.append(len(images))
        return segment_regions(model, images, *rest, **options)

    monkeypatch.setattr(variants, "segment_regions", counting)
    return counts


def test_table1_writes_what_callers_rely_on(whole: Path) -> None:
    content = json.loads((whole / "table1.json").read_text("utf-8"))
    assert content["schema"] == 1
    (run,) = content["runs"]
    assert (run["dataset"], run["category"], run["detector"]) == ("textures", "brick", "padim")
    assert (run["train_images"], run["test_images"], run["shots"], run["variant"]) == (TRAIN, IMAGES, None, "full")
    assert {"iou", "dice", "pooled_iou", "pixel_auroc", "aupro", "f1max"} <= run["backbone"].keys()
    assert [image["image"] for image in run["per_image"]] == [f"color/{k:03d}" for k in range(IMAGES)]
    assert run["f2pad"]["iou"] == pytest.approx(np.mean([image["f2pad_iou"] for image in run["per_image"]]), abs=0.01)
    assert {*run["interval"].values()} == {None}  # three pictures are too few
    assert run["outline"]["f2pad"].keys() == {"boundary_f1_1", "boundary_f1_2", "boundary_f1_4", "hausdorff95"}
    assert run["outline"]["f2pad"]["boundary_f1_2"] == run["f2pad"]["boundary_f1"]
    assert content["paper"]["numbers"]["padim"]["mean"]["f2pad_iou"] == 90.4
    assert (
        content["protocol"]["command"]
        == "f2pad experiment table1 --detector padim --category brick --untuned --out DIR"
    )
    page = (whole / "table1.md").read_text("utf-8")
    assert content["protocol"]["command"] in page
    assert "Fewer than 5 pictures of a category or group are too few for an interval: (–)." in page
    (printed,) = re.findall(r"([\d.]+) / ([\d.]+) \(", page)
    assert [float(value) for value in printed] == pytest.approx([run["f2pad"]["iou"], run["f2pad"]["dice"]], abs=0.06)


def test_the_record_is_that_of_the_pictures(whole: Path) -> None:
    """What the parts hold is what the pipeline finds on the pictures of the set."""
    category = sets.read_category(whole / "sets" / "brick")
    train, cases = texture_category("brick", train=TRAIN, test=IMAGES, size=SIZE)
    np.testing.assert_array_equal(category.train, train)
    np.testing.assert_array_equal(category.masks, [case[1] for case in cases])
    model = fit(train, detector="padim", extractor=tiny_extractor())
    facts, parts = runs.load_unit(runs.Unit("brick", "padim", None, "full"), whole, category, range(IMAGES))
    assert facts["settings"] == plain_settings(model) == vars(Settings()) | vars(Procedure())
    for part, result in zip(parts, segment(model, category.images), strict=True):
        for name in ("mask", "initial_mask", "normal", "score_map"):
            np.testing.assert_array_equal(getattr(part.result, name), getattr(result, name))
        assert (part.result.iterations, part.result.status) == (result.iterations, result.status)


def test_an_interrupted_run_goes_on_and_ends_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[int]
) -> None:
    counted = variants.segment_regions

    def cut_off(*arguments: Any, **options: Any) -> Any:
        if solved:
            raise KeyboardInterrupt
        return counted(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(variants, "segment_regions", cut_off)
        assert experiment("table1", tmp_path, *ONE) == 130
    assert not (tmp_path / "table1.json").exists()
    assert solved == [2]
    assert experiment("table1", tmp_path, *ONE) == 0
    assert solved == [2, 1]  # the last chunk only
    assert experiment("table1", tmp_path, *ONE) == 0
    assert solved == [2, 1]
    assert files(tmp_path) == files(whole)


def test_shares_are_merged_to_what_one_run_writes(tmp_path: Path, solved: list[int]) -> None:
    asked = ("--category", "gravel", "--category", "brick", "--detector", "padim", "--images", "2", "--untuned")
    assert experiment("fig11", tmp_path / "one", *asked) == 0
    together = sum(solved)
    for index in ("0", "1"):
        share = ("--shard-index", index, "--shard-count", "2")
        assert experiment("fig11", tmp_path / index, *asked, *share) == 0
        assert len(list((tmp_path / index / "parts").iterdir())) == 1
    assert sum(solved) == 2 * together
    assert main(["experiment", "merge", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "all")]) == 0
    assert sum(solved) == 2 * together
    assert files(tmp_path / "all") == files(tmp_path / "one")


def test_a_merge_that_is_cut_off_leaves_no_half_file(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = ["experiment", "merge", str(whole), "--out", str(tmp_path / "all")]
    replace_file = os.replace

    def cut_off(source: Path, target: Path) -> None:
        if target.name == "001.json":
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut_off)
        assert main(merge) == 130
    copied = files(tmp_path / "all")
    assert copied.keys() < files(whole).keys()
    assert main(merge) == 0
    assert files(tmp_path / "all") == files(whole)


def test_processes_write_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: list[int]) -> None:
    asked = ("--category", "gravel", "--category", "brick", "--detector", "padim", "--images", "2", "--untuned")
    assert experiment("table4", tmp_path / "one", *asked) == 0
    monkeypatch.setattr(command, "begin_worker", small_worker)
    here = sum(solved)
    assert experiment("table4", tmp_path / "two", *asked, "--jobs", "2") == 0
    assert sum(solved) == here
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_share_alone_is_incomplete(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    part = Path(shutil.copytree(whole, tmp_path / "part"))
    (part / "parts" / "brick-padim-all-full" / "001.json").unlink()
    assert main(["experiment", "merge", str(part), "--out", str(tmp_path / "all")]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first == "f2pad: error: brick-padim-all-full: 1 of 3 test pictures are not done"
    assert "no unit is complete" in second


def test_a_unit_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = models.make_model

    def failing(recipe: models.Recipe, *rest: Any) -> Any:
        if recipe.category == "brick":
            raise MemoryError("out\nof memory")
        return made(recipe, *rest)

    monkeypatch.setattr(runs, "make_model", failing)
    asked = ("--category", "brick", "--category", "gravel", "--detector", "padim", "--images", "2", "--untuned")
    assert experiment("table4", tmp_path, *asked) == 2
    assert capsys.readouterr().err == "f2pad: error: brick-padim-all-full: MemoryError: out of memory\n"
    content = json.loads((tmp_path / "table4.json").read_text("utf-8"))
    assert [run["category"] for run in content["runs"]] == ["gravel"]
    assert content["protocol"]["absent"] == ["brick-padim-all-full"]


def test_a_picture_that_fails_loses_no_other(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bad = sets.read_category(whole / "sets" / "brick").images[1]

    def failing(model: Any, images: np.ndarray, *rest: Any, **options: Any) -> Any:
        if any((image == bad).all() for image in images):
            raise MemoryError("too large")
        return segment_regions(model, images, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(variants, "segment_regions", failing)
        assert experiment("table3", tmp_path, *ONE) == 2
    problem = "color/001: MemoryError: too large"
    names = ("full", "no-pixel-prior", "no-sharing")
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"f2pad: error: brick-padim-all-{name}: {problem}" for name in names]
    content = json.loads((tmp_path / "table3.json").read_text("utf-8"))
    assert content["protocol"]["absent"] == [f"brick-padim-all-{name} color/001" for name in names]
    assert len(content["runs"]) == 1 + len(variants.ABLATIONS)
    for run in content["runs"]:  # the others are those of the ablations that could be done, too
        assert [image["image"] for image in run["per_image"]] == ["color/000", "color/002"]
    assert "color/001" in (tmp_path / "table3.md").read_text("utf-8")
    capsys.readouterr()
    assert experiment("table1", tmp_path, *ONE) == 0  # tries again
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.rglob("*_failed.json")) or experiment("table3", tmp_path, *ONE) == 0
    assert not list(tmp_path.rglob("*_failed.json"))


def test_settings_are_tuned_once_on_synthetic_anomalies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose tuning chose other settings, and another mixture, is the same when a run goes on."""
    seen = []

    def tune(model: Any, *, seed: int, oracle: Any) -> Any:
        seen.append(oracle)
        tuned = replace(refit_mixture(model, 4), tuned_on="synthetic-validation")
        return replace(tuned, settings=tuned.settings.replace(beta0=2.0))

    monkeypatch.setattr(models, "tune", tune)
    asked = ("--category", "brick", "--detector", "padim")
    one, two = tmp_path / "one", tmp_path / "two"
    assert experiment("fig9", one, *asked) == 0
    assert seen == [None]  # once for both variants
    assert experiment("table1", two, *asked) == 0
    (two / "parts" / "brick-padim-all-full" / "001.json").unlink()
    assert experiment("fig9", two, *asked) == 0
    assert len(seen) == 2
    for kind in ("parts", "models"):
        assert files(one / kind) == files(two / kind)
    content = json.loads((one / "fig9.json").read_text("utf-8"))
    assert content["protocol"]["tuning"] == "synthetic"
    for run in content["runs"]:
        assert (run["tuned_on"], run["settings"]["beta0"], run["settings"]["components"]) == (
            "synthetic-validation",
            2,
            4,
        )
    assert experiment("table1", one, *asked, "--oracle") == 2
    assert experiment("table1", tmp_path / "three", *asked, "--oracle") == 0
    np.testing.assert_array_equal(seen[-1][1], sets.read_category(one / "sets" / "brick").masks)


def test_flows_are_trained_once(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    category, made = sets.read_category(whole / "sets" / "brick"), models.Recipe("brick", "cflow", None, 0, "default")
    monkeypatch.setattr(cflow_training, "STEPS", 2)
    monkeypatch.setattr(cflow_training, "PATIENCE", 1)
    first, seconds = models.make_model(made, tmp_path, category, tiny_extractor())
    monkeypatch.setattr(cflow_training, "_run", lambda *_: pytest.fail("trained again"))
    again, same = models.make_model(made, tmp_path, category, tiny_extractor())
    assert same == seconds
    for leaf, other in zip(jax.tree.leaves(first.detector), jax.tree.leaves(again.detector), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    ("variant", "seed", "tuning", "options"),
    [
        ("full", 3, "oracle", ()),
        ("seed=1", 1, "oracle", ()),
        ("tuning=default", 3, "default", ()),
        ("rank=4,beta0=x2,precision=bf16", 3, "oracle", (("rank", "4"), ("precision", "bf16"))),
    ],
)
def test_a_variant_may_bring_its_own_fit(variant: str, seed: int, tuning: str, options: tuple) -> None:
    unit = models.Unit("brick", "padim", 16, variant)
    assert models.recipe(unit, seed=3, tuning="oracle") == ("brick", "padim", 16, seed, tuning, options)
    assert variants.shares_scores(variant) is False


def test_results_of_several_folders_are_joined(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = (Path(shutil.copytree(whole, tmp_path / "results" / name)) for name in ("a", "b"))
    assert experiment("fig6", first, *ONE) == 0
    own = (first / "results.md").read_text("utf-8")
    assert re.findall(r"^## (.*)", own, re.MULTILINE) == [
        f"{section}, textures, default settings" for section in ("Table I", "Figure 6")
    ]
    assert "](fig6.png)" in own
    assert main(["experiment", "results", str(first), str(second), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "results.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", page)
    assert targets == ["results/runs.jsonl", "results/a-fig6.png"]
    for target in targets:
        assert (tmp_path / target).is_file(), target
    assert (tmp_path / targets[1]).stat().st_size <= results.SMALL
    (line,) = (tmp_path / targets[0]).read_text("utf-8").splitlines()  # three experiments show one run
    run = json.loads(line)
    assert run.pop("experiments") == ["a/table1", "a/fig6", "b/table1"]
    assert [run] == json.loads((whole / "table1.json").read_text("utf-8"))["runs"]
    links = re.findall(r"\]\(#(.+?)\)", page)
    assert links == re.findall(r'<a id="(.+?)">', page)
    assert len(set(links)) == 3
    for name in ("table1", "fig6"):
        assert f"`f2pad experiment {name} --detector padim --category brick --untuned --out DIR`" in page
    assert "cores, jax " in page.splitlines()[2]
    table = (whole / "table1.md").read_text("utf-8").splitlines()
    assert all(line in page for line in table[1:])
    (first / "table1.md").unlink()
    (first / "fig6.md").unlink()
    assert main(["experiment", "results", str(first), "--out", str(tmp_path)]) == 2
    assert "holds no finished experiment" in capsys.readouterr().err


def _change(path: Path, **facts: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | {"protocol": content["protocol"] | facts}), "utf-8")


DAMAGED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "bytes": ("table1.md", lambda path: path.write_bytes(b"# Table I\n\xff"), "is no UTF-8 ("),
    "not there": ("table1.json", Path.unlink, "cannot be read (No such file or directory)"),
    "no JSON": ("table1.json", lambda path: path.write_text("{", "utf-8"), "is no JSON ("),
    "no object": ("table1.json", lambda path: path.write_text("[]", "utf-8"), "damaged results ("),
    "a number": ("table1.json", lambda path: _change(path, machines=[3]), "(protocol.machines.0 is '3': "),
    "no list": ("table1.json", lambda path: _change(path, machines=3), "(protocol.machines is '3': "),
    "no tuning": ("table1.json", lambda path: _change(path, tuning="luck"), "(protocol.tuning is 'luck': "),
    "cut off": ("fig1.png", lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be decoded ("),
    "no picture": ("fig1.png", lambda path: path.write_bytes(b"PNG"), "is no picture that can be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_results_is_one_line(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "a"))
    with (folder / "table1.md").open("a", encoding="utf-8") as page:
        page.write("\n![Figure 1](fig1.png)\n")
    Image.effect_noise((64, 64), 50).save(folder / "fig1.png")
    path, damage, named = DAMAGED[name]
    damage(folder / path)
    assert main(["experiment", "results", str(folder), "--out", str(tmp_path / "page")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"f2pad: error: {folder / path}: ")
    assert named in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["table9"], "table9: no such experiment"),
        (["table1", "--data", "nowhere"], "nowhere: no such folder"),
        (["table1", "--category", "steel"], "steel: no such category"),
        (["table1", "--detector", "oracle"], "oracle"),
        (["fig1", "--extractor", "efficientnet_lite9"], "efficientnet_lite9: no such extractor; choose from "),
        (["table1", "--weights", "file.npz"], "file.npz: the textures need no weights"),
        (["table1", "some", "folders"], "table1: takes no folders"),
        (["table1", "--shard-index", "2", "--shard-count", "2"], "share 2 of 2 does not exist"),
        (["real"], "real: needs MVTec AD"),
        (["merge"], "merge: no folder was named"),
        (["results"], "results: no folder was named"),
        (["results", "nowhere"], "nowhere: holds no experiment"),
        (["merge", "nowhere"], "nowhere: holds no experiment"),
    ],
)
def test_unusable_requests_are_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["experiment", *words, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_keeps_one_protocol(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before = files(out)
    assert experiment("table1", out, *ONE, "--seed", "1") == 2
    assert "holds results with another seed" in capsys.readouterr().err
    assert files(out) == before


def test_categories_of_a_folder_become_cut_paste_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "mvtec"
    good, truth = root / "nut" / "train" / "good", root / "nut" / "ground_truth" / "bent"
    good.mkdir(parents=True)
    truth.mkdir(parents=True)
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(good / f"{k}.png")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 12:22] = 255
    Image.fromarray(mask).save(truth / "0_mask.png")
    (root / "notes").mkdir()
    assert sets.find_categories(root) == ["nut"]
    choices = {"dataset": sets.CUT_PASTE, "data": root, "images": 2, "seed": 3}
    made = [sets.load_category("nut", tmp_path / k, **choices) for k in ("a", "b")]
    assert made[0].train.shape == (3, SIZE, SIZE, 3)
    assert made[0].masks.any(axis=(1, 2)).all()
    for name in ("train", "images", "masks"):
        np.testing.assert_array_equal(getattr(made[0], name), getattr(made[1], name))
    assert sets.extractor_name("padim", sets.CUT_PASTE) == "resnet18"
    assert sets.extractor_name("cflow", sets.CUT_PASTE) == sets.extractor_name("padim", sets.EMBEDDED)


def test_what_is_named_twice_counts_once(tmp_path: Path) -> None:
    twice = command.Request("table1", None, None, tmp_path, categories=["brick"] * 2, detectors=["padim"] * 2)
    plan = command._plan(twice)
    assert (plan["categories"], plan["detectors"]) == (["brick"], ["padim"])
    assert plan["command"] == "f2pad experiment table1 --detector padim --category brick --out DIR"


def test_one_network_is_that_of_all_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(command, "load_extractor", lambda name, weights: asked.append((name, weights)))
    file = tmp_path / "model.safetensors"
    file.touch()
    request = command.Request("table1", None, file, tmp_path / "out", extractor="dinov2_vits14")
    plan = command._plan(request)
    assert set(command._networks(["padim", "cflow"], request, plan)) == {"padim", "cflow"}
    assert asked == [("dinov2_vits14", file)]
    assert "--weights FILE --extractor dinov2_vits14" in plan["command"]
    (tmp_path / "out").mkdir()
    assert command._keep_plan(plan, "table1", tmp_path / "out")["extractor"] == "dinov2_vits14"
    assert records.read_plan(tmp_path / "out")["extractor"] == "dinov2_vits14"
    with pytest.raises(InputError, match="holds results with another extractor"):
        command._keep_plan(command._plan(request._replace(extractor=None, weights=None)), "table1", tmp_path / "out")


def test_variants_change_one_thing_each(whole: Path) -> None:
    category = sets.read_category(whole / "sets" / "brick")
    model = fit(category.train, detector="padim", extractor=tiny_extractor())
    image = category.images[:1]
    region = find_region(model, score_maps(model, image)[0])

    def solve(variant: str) -> variants.Outcome:
        (outcome,) = variants.solve_variant(variants.change(model, variant, category), variant, image)
        return outcome

    start = solve("initialisation").result
    difference = (np.abs(image[0].astype(float) - start.normal) / 255 / STD).sum(-1)
    assert not start.mask[(difference < 0.2 - 1e-6) | ~region].any()
    assert start.mask[(difference > 0.2 + 1e-6) & region].all()
    assert 0 < start.mask.mean() < region.mean()
    np.testing.assert_array_equal(start.normal[~region], image[0][~region])
    assert start.iterations == 0
    loose = solve("no-sparsity").result
    assert loose.iterations > 0
    assert not loose.mask[~region].any()
    curve, _, extra = solve("curves")
    constant = replace(model, procedure=replace(model.procedure, sparsity="constant"))
    np.testing.assert_array_equal(curve.mask, segment(constant, image)[0].mask)
    losses = extra["losses"]
    assert list(losses) == ["shared", "gradient", "plain"]
    for values in losses.values():
        assert values[0] == pytest.approx(losses["plain"][0])
        assert 0 <= values[-1] < values[0]
        assert 1 < len(values) <= model.settings.limit + 1


def test_a_detector_without_an_option_goes_without_its_variant() -> None:
    selection = {"categories": ["brick"], "detectors": ["padim", "cflow"]}
    units = command.list_units("choices", {"experiments": {"choices": selection}})
    for option, detector in (("rank", "padim"), ("blocks", "cflow")):
        assert {unit.detector for unit in units if unit.variant.startswith(f"{option}=")} == {detector}
    assert {unit.detector for unit in units if unit.variant == "precision=bf16"} == {"padim", "cflow"}


def test_options_of_the_fit_reach_the_detector_and_the_extractor(tmp_path: Path, whole: Path) -> None:
    category = sets.read_category(whole / "sets" / "brick")
    made = models.recipe(models.Unit("brick", "padim", None, "rank=2,precision=bf16"), seed=0, tuning="default")
    model, _ = models.make_model(made, tmp_path, category, tiny_extractor())
    assert model.extractor.precision == "bf16"
    assert model.detector.state()[0]["basis"].shape[1] == 2


def test_choices_are_settings_that_there_are(whole: Path) -> None:
    category = sets.read_category(whole / "sets" / "brick")
    model = fit(category.train, detector="padim", extractor=tiny_extractor())
    for name in variants.CHOICES:
        changed = plain_settings(variants.change(model, name, category))
        different = {key for key, value in plain_settings(model).items() if changed[key] != value}
        asked = variants.changes(name).keys() - variants.fit_changes(name).keys()
        assert different == asked - ({"share_gradient"} if name == "no-sharing" else set()), name
        assert bool(different) != bool(variants.fit_changes(name)), name


def test_the_papers_settings_are_those_of_its_text(tmp_path: Path, whole: Path) -> None:
    category = sets.read_category(whole / "sets" / "brick")
    unit = models.Unit("brick", "padim", None, "full")
    model, _ = models.make_model(models.recipe(unit, seed=0, tuning="paper"), tmp_path, category, tiny_extractor())
    settings, procedure = paper_settings()
    best = f1max(score_maps(model, category.images), category.masks)[1]
    assert model.settings == settings
    assert model.procedure == replace(procedure, threshold=best)
    assert (model.procedure.region, model.tuned_on) == ("threshold", "oracle")
    assert model.detector.level == 0  # the finest grid, as in the reference code
    again, _ = models.make_model(models.recipe(unit, seed=0, tuning="paper"), tmp_path, category, tiny_extractor())
    assert (again.settings, again.procedure, again.tuned_on) == (model.settings, model.procedure, "oracle")
    plain = plain_settings(model)
    for name in variants.UNSTATED:
        changed = plain_settings(variants.change(model, name, category))
        asked = set(variants.changes(name))
        assert {key for key in plain if changed[key] != plain[key]} == (
            {"threshold"} if "quantile" in asked else asked
        ), name
    curve = variants.change(model, variants.CURVES, category)
    assert curve.procedure.sparsity == "area"


def test_tables_of_the_papers_settings(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "paper_settings", lambda: (paper_settings()[0].replace(limit=30), paper_settings()[1]))
    out = tmp_path / "out"
    shutil.copytree(whole / "sets", out / "sets")
    for name in ("table1", "fig10"):
        assert experiment(name, out, *ONE[:-1], "--paper") == 0
    run = json.loads((out / "table1.json").read_text("utf-8"))["runs"][0]
    assert (run["tuned_on"], run["settings"]["adaptive"], run["settings"]["sparsity"]) == ("oracle", True, "area")
    assert run["backbone"]["iou"] == run["backbone_oracle"]["iou"]
    page = (out / "fig10.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| padim")]
    assert row.split("|")[3:5] == [" – ", " – "]
    assert "the paper's settings" in (out / "results.md").read_text("utf-8")
    assert "--paper" in (out / "results.md").read_text("utf-8")


def test_curves_take_the_steps_of_the_solve(whole: Path) -> None:
    category = sets.read_category(whole / "sets" / "brick")
    model = fit(category.train, detector="padim", extractor=tiny_extractor())
    (sight,) = look(model, category.images[:1])
    start, problem, settings = build(model, plan(model, sight, find_region(model, sight.scores)))
    end, losses = curves.descend(start, model.energy, problem, settings)
    wanted: Solution = jax.jit(solve)(start, model.energy, problem, settings)
    assert len(losses) == wanted.iterations + 1
    np.testing.assert_allclose(end.normal, wanted.normal, atol=1e-5)
    assert (end.iterations, end.status) == (wanted.iterations, wanted.status)


def test_every_experiment_of_the_paper_draws_and_tabulates(tmp_path: Path, whole: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    for name, made in registry.EXPERIMENTS.items():
        if not made.printed:
            continue
        assert experiment(name, out, *ONE) == 0, name
        content = json.loads((out / f"{name}.json").read_text("utf-8"))
        assert content["runs"], name
        assert (out / f"{name}.md").read_text("utf-8").startswith(f"# {made.section}\n")
        if name.startswith("fig"):
            with Image.open(out / f"{name}.png") as picture:
                assert min(picture.size) > 150, name
                assert np.asarray(picture.convert("L")).std() > 5, name


def test_groups_of_anomaly_size() -> None:
    areas = [0.0, 0.01, 0.02, 0.039, 0.04, 0.06, 0.0799, 0.08, 0.13]
    assert [tables.GROUPS[tables.size_group(area)] for area in areas] == (
        ["I", "I", "II", "II", "III", "IV", "IV", "V", "V"]
    )
    done: Any = []
    for seed in (0, 1):
        masks = np.zeros((3, 10, 10), bool)
        masks[0, 0, 0], masks[1, 0, :5], masks[2, :, 0] = True, True, True  # 1, 5 and 10 %
        category = sets.Category("c", masks, masks, masks, [])
        scores = {"backbone_iou": np.arange(3) + 10.0 * seed, "f2pad_iou": np.arange(3) + 50.0 + 10 * seed}
        done.append(cases.Case(runs.Unit("c", "d", None, "full"), category, [], {"seed": 0}, scores))
    groups = tables.by_size(done)
    assert [sorted(f2pad) for _, f2pad in groups] == [[50, 60], [], [51, 61], [], [52, 62]]
    assert [sorted(backbone) for backbone, _ in groups] == [[0, 10], [], [1, 11], [], [2, 12]]
    assert "| III | 0.04 to 0.06 | 2 | 6.0 (" in tables.sizes("fig7", done)


def _direct(samples: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    means = [rng.choice(sample, (20000, len(sample))).mean(axis=1) for sample in samples]
    return np.percentile(np.mean(means, axis=0), [2.5, 97.5])


@pytest.mark.parametrize("sizes", [(8,), (8, 20)])
def test_intervals_are_those_of_drawing_again(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(80, 10, size) for size in sizes]
    ends = cases.interval(samples, seed=0)
    np.testing.assert_allclose(ends, _direct(samples, rng), atol=0.4)
    assert ends == cases.interval(samples, seed=0)
    assert tables.span(ends) == f"({ends[0]:.1f} to {ends[1]:.1f})"
    # Of few pictures a category there is none, however many categories there are.
    assert tables.span(cases.interval([*samples, np.array([70.0, 75.0, 80.0, 85.0])], seed=0)) == "(–)"


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_papers_means_are_those_of_its_categories(name: str) -> None:
    """A digit misread in the scan would show here."""
    for per in paper.numbers(name).values():
        assert set(per) == {*paper.CATEGORIES, "mean"}
        for key, mean in per["mean"].items():
            assert np.mean([per[category][key] for category in paper.CATEGORIES]) == pytest.approx(mean, abs=0.07)


def _ends(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return np.argwhere(padded & ~np.asarray(ndimage.binary_erosion(padded), bool))


@pytest.mark.parametrize("make", [lambda m: m, lambda m: np.roll(m, 3, axis=1), lambda m: ndimage.binary_dilation(m)])
def test_hausdorff_distance_by_all_pairs(make: Callable[[np.ndarray], np.ndarray]) -> None:
    from f2pad_jax.metrics import hausdorff95

    truth = np.zeros((24, 30), bool)
    truth[5:14, 4:20] = True
    found = np.asarray(make(truth), bool)
    found[20:22, 25:27] = True
    gaps = np.linalg.norm(_ends(found)[:, None] - _ends(truth)[None], axis=-1)
    wanted = max(np.percentile(gaps.min(axis=1), 95), np.percentile(gaps.min(axis=0), 95))
    assert hausdorff95(found, truth) == pytest.approx(wanted)
    empty = np.zeros_like(truth)
    assert hausdorff95(empty, empty) == 0
    assert hausdorff95(empty, truth) == hausdorff95(truth, empty) == pytest.approx(np.hypot(24, 30))

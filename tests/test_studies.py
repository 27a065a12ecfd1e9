from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from solving import tiny_extractor

from f2pad_jax import preparing
from f2pad_jax.cli import main
from f2pad_jax.data.categories import TestImage
from f2pad_jax.data.textures import texture_category
from f2pad_jax.experiments import baselines, command, registry, runs, sets, studies, variants
from f2pad_jax.experiments.models import Unit
from f2pad_jax.fitting import fit
from f2pad_jax.growing import Growth, grow, let_grow
from f2pad_jax.metrics import f1max, iou
from f2pad_jax.model import Model
from f2pad_jax.preparing import find_region
from f2pad_jax.segmentation import Segmentation, segment, segment_regions
from f2pad_jax.sights import look, score_maps

SIZE, TRAIN, IMAGES = 32, 16, 3
ONE = ("--category", "brick", "--detector", "padim", "--untuned")


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small pictures and a tiny network."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sets, "SIZE", SIZE)
    patch.setattr(sets, "TEXTURE_TRAIN", TRAIN)
    patch.setattr(sets, "TEXTURE_IMAGES", IMAGES)
    patch.setattr(preparing, "SHARES", (1.0,))
    patch.setattr(command, "load_extractor", lambda name, weights: tiny_extractor())
    yield
    patch.undo()


@pytest.fixture(scope="module")
def category() -> sets.Category:
    train, cases = texture_category("brick", train=TRAIN, test=IMAGES, size=SIZE)
    images, masks = (np.stack([case[k] for case in cases]) for k in (0, 1))
    return sets.Category("brick", train, images, masks, [f"color/{k:03d}" for k in range(IMAGES)])


@pytest.fixture(scope="module")
def model(category: sets.Category) -> Model:
    return fit(category.train, detector="padim", extractor=tiny_extractor())


@pytest.fixture(scope="module")
def out(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with every study of textures."""
    folder = tmp_path_factory.mktemp("studies") / "out"
    for name in ("thresholds", "growth", "sensitivity"):
        assert main(["experiment", name, "--out", str(folder), *ONE]) == 0, name
    return folder


def rows(out: Path, name: str) -> list[list[str]]:
    """The body of the first table of a page."""
    lines = [line for line in (out / f"{name}.md").read_text("utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def run_of(out: Path, name: str, variant: str) -> dict[str, Any]:
    (run,) = (run for run in json.loads((out / f"{name}.json").read_text("utf-8"))["runs"] if run["variant"] == variant)
    return run


def test_thresholds_are_those_of_their_rules(model: Model, category: sets.Category) -> None:
    normal = score_maps(model, model.held_out)
    loose, strict = (variants.change(model, name, category) for name in ("quantile=0.99", "quantile=0.999"))
    assert (normal > loose.threshold).mean() == pytest.approx(0.01, abs=2e-3)
    assert loose.threshold < strict.threshold
    best = variants.change(model, "f1", category)
    maps = score_maps(model, category.images)
    assert best.threshold == f1max(maps, category.masks)[1]
    for scores in maps:
        np.testing.assert_array_equal(
            find_region(best, scores), ndimage.binary_dilation(scores > best.threshold, iterations=4)
        )
    outcomes = list(variants.solve_variant(variants.change(model, "otsu", category), "otsu", category.images))
    for outcome, scores in zip(outcomes, maps, strict=True):
        threshold = threshold_otsu(scores)
        assert outcome.extra["threshold"] == pytest.approx(threshold)
        np.testing.assert_array_equal(outcome.result.initial_mask, scores > threshold)
        procedure = replace(model.procedure, threshold=threshold, region="threshold")
        np.testing.assert_array_equal(outcome.region, find_region(replace(model, procedure=procedure), scores))
        assert not outcome.result.mask[~outcome.region].any()


def test_thresholds_show_both_masks(out: Path) -> None:
    table = rows(out, "thresholds")
    assert [row[1] for row in table] == list(studies.RULES.values())
    for row, variant in zip(table, studies.RULES, strict=True):
        run = run_of(out, "thresholds", variant)
        assert row[2] == f"{run['backbone']['iou']:.1f} / {run['backbone']['dice']:.1f}"
        assert row[4].startswith(f"{run['f2pad']['iou']:.1f} / {run['f2pad']['dice']:.1f} (")
    best = run_of(out, "thresholds", "f1")
    assert best["backbone"]["iou"] == best["backbone_oracle"]["iou"]


def test_a_rule_for_single_pictures_is_read_back(out: Path) -> None:
    category = sets.read_category(out / "sets" / "brick")
    _, parts = runs.load_unit(Unit("brick", "padim", None, "otsu"), out, category, range(IMAGES))
    for part in parts:
        np.testing.assert_array_equal(
            part.result.initial_mask, part.result.score_map > threshold_otsu(part.result.score_map)
        )


def test_sensitivity_changes_one_setting_at_a_time(out: Path, model: Model) -> None:
    full = run_of(out, "sensitivity", "full")["settings"]
    for factor, values in variants.FACTORS.items():
        for value in values:
            run = run_of(out, "sensitivity", f"{factor}={value}")
            changed = {name for name in full if run["settings"][name] != full[name]}
            if factor == "seed":
                assert not changed
                assert run["seed"] == int(value)
            else:
                assert changed == {factor}
                wanted = full[factor] * float(value[1:]) if value.startswith("x") else float(value)
                assert run["settings"][factor] == pytest.approx(wanted)
    table = rows(out, "sensitivity")
    assert len(table) == len(variants.SENSITIVITY) + len(variants.FACTORS)
    bold = [(row[0], row[1]) for row in table if "**" in row[1]]
    assert [symbol for symbol, _ in bold] == list(studies.SYMBOLS.values())
    assert [value for _, value in bold] == ["**× 1**", "**× 1**", "**4**", "**0.01**", "**0**"]
    assert len({row[2] for row in table if row[0] == "β0"}) > 1  # the setting has an effect


def test_a_seed_is_another_fit(out: Path) -> None:
    scores = [
        np.load(out / "parts" / f"brick-padim-all-{name}" / "000_scores.npz")["scores"] for name in ("full", "seed=1")
    ]
    assert not np.allclose(*scores)


def test_a_region_grows_where_scores_are_high_at_its_border() -> None:
    region = np.zeros((32, 32), bool)
    region[10:20, 10:20] = True
    scores = np.zeros((32, 32))
    assert grow(region, scores, threshold=1, reach=2) is not region
    np.testing.assert_array_equal(grow(region, scores, threshold=1, reach=2), region)
    scores[14:16, 18:25] = 2  # begins inside the region, and leads out of it
    scores[2:4, 2:4] = 2  # far from it
    scores[14:16, 13:15] = 2  # in its middle
    grown = grow(region, scores, threshold=1, reach=2)
    piece = np.zeros_like(region)
    piece[14:16, 18:25] = True
    np.testing.assert_array_equal(grown, region | ndimage.binary_dilation(piece, iterations=2))
    np.testing.assert_array_equal(grow(region, scores, threshold=2, reach=2), region)


def growing(
    model: Model, images: np.ndarray, regions: list[np.ndarray], **rounds: int
) -> tuple[list[Segmentation], list[Growth]]:
    """Results before and after regions have grown."""
    sights = look(model, images)
    before = segment_regions(model, images, sights, regions)
    return before, let_grow(model, images, sights, regions, before, **rounds)


def test_growing_finds_what_the_region_missed(model: Model, category: sets.Category) -> None:
    """Where nothing is missing growing changes nothing; a region cut in half is completed."""
    regions = [find_region(model, scores) for scores in score_maps(model, category.images)]
    _, grown = growing(model, category.images, regions, rounds=0)
    for growth, plain in zip(grown, segment(model, category.images), strict=True):
        np.testing.assert_array_equal(growth.result.mask, plain.mask)
        assert growth.rounds == 0

    whole, truth = regions[0], category.masks[0]
    left = np.arange(SIZE)[None] < np.mean(np.nonzero(truth)[1])
    (before,), (after,) = growing(model, category.images[:1], [whole & left])
    assert after.rounds > 0
    assert after.region[truth & whole].mean() > (whole & left)[truth & whole].mean()
    assert iou(after.result.mask, truth) > iou(before.mask, truth)
    assert after.result.iterations > before.iterations
    outside = ~after.result.mask
    np.testing.assert_array_equal(after.result.normal[outside], category.images[0][outside])


def test_the_variant_that_grows_is_segment_with_grow(model: Model, category: sets.Category) -> None:
    outcomes = variants.solve_variant(model, variants.GROWTH, category.images)
    for outcome, result in zip(outcomes, segment(model, category.images, grow=True), strict=True):
        np.testing.assert_array_equal(outcome.result.mask, result.mask)
        assert outcome.result.iterations == result.iterations


def test_growth_is_compared_with_the_full_method(out: Path) -> None:
    (row, *rest) = rows(out, "growth")
    assert row[:3] == ["padim", "all", str(IMAGES)]
    full, growth = (run_of(out, "growth", name)["f2pad"]["iou"] for name in ("full", "growth"))
    assert [float(value) for value in row[4].split(" → ")] == pytest.approx([full, growth], abs=0.051)
    assert len(rest) <= 1


def test_choices_are_rows_beside_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: variants.CHOICES[name] for name in ("limit=30", "rank=16", "blocks=2")}
    made = replace(registry.EXPERIMENTS["choices"], variants=(variants.FULL, *few))
    monkeypatch.setitem(registry.EXPERIMENTS, "choices", made)
    assert main(["experiment", "choices", "--out", str(tmp_path), *ONE, "--images", "1"]) == 0
    table = rows(tmp_path, "choices")
    assert [row[0] for row in table] == ["**default**", few["limit=30"], few["rank=16"]]  # PaDiM has no couplings
    for row, name in zip(table, ("full", "limit=30", "rank=16"), strict=True):
        run = run_of(tmp_path, "choices", name)
        assert row[1].startswith(f"{run['f2pad']['iou']:.1f} / {run['f2pad']['dice']:.1f} (")
        assert float(row[2]) == np.round(np.mean([image["iterations"] for image in run["per_image"]]))
    assert float(table[1][2]) <= 30


@pytest.mark.parametrize("name", ["thresholds", "growth", "sensitivity"])
def test_studies_draw(out: Path, name: str) -> None:
    with Image.open(out / f"{name}.png") as picture:
        assert min(picture.size) > 150
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.fixture
def mvtec(tmp_path: Path, category: sets.Category) -> Path:
    """A category in MVTec AD's layout, larger than the experiments work on, with a defect and a good test picture."""
    root = tmp_path / "mvtec"
    folder = root / "nut"
    for path in ("train/good", "test/good", "test/bent", "ground_truth/bent"):
        (folder / path).mkdir(parents=True)

    def save(pixels: np.ndarray, path: str) -> None:
        Image.fromarray(pixels).resize((2 * SIZE, 2 * SIZE), Image.Resampling.NEAREST).save(folder / path)

    for k, image in enumerate(category.train[1:]):
        save(image, f"train/good/{k:03d}.png")
    save(category.train[0], "test/good/000.png")
    for k in range(2):
        save(category.images[k], f"test/bent/{k:03d}.png")
        save(category.masks[k].astype(np.uint8) * 255, f"ground_truth/bent/{k:03d}_mask.png")
    return root


def test_real_defects_are_measured_apart(mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ("--data", str(mvtec), "--detector", "padim", "--untuned", "--out", str(tmp_path / "out"))
    assert main(["experiment", "real", *asked]) == 0
    content = json.loads((tmp_path / "out" / "real.json").read_text("utf-8"))
    informed, run = content["runs"]
    assert (informed["variant"], run["variant"]) == ("best-iou", "full")
    assert (run["dataset"], run["train_images"], run["test_images"]) == ("mvtec", TRAIN - 1, 3)
    assert [(image["image"], image["defect"]) for image in run["per_image"]] == [
        ("bent/000", True), ("bent/001", True), ("good/000", False)
    ]  # fmt: skip
    bent = [image["f2pad_iou"] for image in run["per_image"] if image["defect"]]
    assert run["f2pad"]["iou"] == pytest.approx(np.mean(bent), abs=0.01)  # the good picture does not count
    row = rows(tmp_path / "out", "real")[0]
    assert row[2] == "2 / 1"
    assert float(row[3]) >= run["backbone_oracle"]["iou"] - 0.05  # no threshold has a higher mean IoU
    assert row[3] == f"{informed['backbone']['iou']:.1f}"  # whose own threshold that is
    assert row[4].startswith(f"{informed['f2pad']['iou']:.1f} / ")
    assert row[5] == f"{run['backbone']['iou']:.1f}"
    assert row[8].startswith(f"{run['f2pad']['iou']:.1f} / ")
    assert row[9] in ("0 of 1", "1 of 1")
    assert row[10] == f"{run['good_marked']} of 1"
    text = (tmp_path / "out" / "real.md").read_text("utf-8")
    (maps,) = (line for line in text.partition("refined map")[2].splitlines() if line.startswith("| padim"))
    measures = ("pixel_auroc", "aupro", "aupro_5", "f1max", "image_auroc", "image_f1max")
    wanted = [f"{run['backbone'][key]:.1f} → {run['f2pad'][key]:.1f}" for key in measures]
    assert [cell.strip() for cell in maps.strip("|").split("|")][2:] == wanted
    assert main(["experiment", "table1", *asked]) == 2  # cut-paste sets go to another folder
    assert "another dataset" in capsys.readouterr().err


def test_a_category_without_good_pictures_has_dashes_in_the_mean(mvtec: Path, tmp_path: Path) -> None:
    shutil.rmtree(shutil.copytree(mvtec / "nut", mvtec / "bolt") / "test" / "good")
    asked = ("--data", str(mvtec), "--detector", "padim", "--untuned", "--out", str(tmp_path / "out"))
    assert main(["experiment", "real", *asked]) == 0
    text = (tmp_path / "out" / "real.md").read_text("utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.partition("refined map")[2].splitlines()[4:7]]
    assert [row[1] for row in cells] == ["bolt", "nut", "**mean**"]
    assert [row[-2:] == ["–", "–"] for row in cells] == [True, False, True]
    assert all("→" in cell for row in cells for cell in row[2:-2])


def test_pictures_of_several_lots_are_kept_apart(mvtec: Path, tmp_path: Path) -> None:
    for kind, suffix in (("test", ""), ("ground_truth", "_mask")):
        for lot, number in (("mon", 0), ("tue", 1)):
            folder = mvtec / "nut" / kind / "bent"
            (folder / lot).mkdir()
            shutil.copyfile(folder / f"{number:03d}{suffix}.png", folder / lot / f"001{suffix}.png")
    made = sets.load_category("nut", tmp_path / "set", dataset=sets.REAL, data=mvtec, images=9, seed=0)
    assert made.names == ["bent/000", "bent/001", "bent/mon/001", "bent/tue/001", "good/000"]
    for one, other in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(made.images[one], made.images[other])
        np.testing.assert_array_equal(made.masks[one], made.masks[other])
    assert (made.images[0] != made.images[1]).any()


def test_of_real_pictures_some_of_each_kind_are_taken(mvtec: Path, tmp_path: Path) -> None:
    made = sets.load_category("nut", tmp_path / "set", dataset=sets.REAL, data=mvtec, images=1, seed=0)
    assert made.names == ["bent/000", "good/000"]
    assert made.train.shape == (TRAIN - 1, SIZE, SIZE, 3)
    assert made.masks.any(axis=(1, 2)).tolist() == [True, False]


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"bent": 40, "colour": 20, "scratch": 4}, {"bent": 10, "colour": 5, "scratch": 1}),
        ({"bent": 12, "broken": 12, "glue": 11, "metal": 11, "thread": 11}, {"bent": 4, "broken": 3, "glue": 3}),
        ({"colour": 25, "combined": 17, "crack": 26, "type": 9}, {"colour": 5, "combined": 4, "crack": 5, "type": 2}),
    ],
)
def test_a_sample_has_of_each_kind_its_share(counts: dict[str, int], wanted: dict[str, int]) -> None:
    sample = sets.stratified(cases_of(counts), 16)
    found = Counter(case.defect for case in sample)
    assert found.items() >= wanted.items()
    assert len({*map(id, sample)}) == 16


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1), st.integers(1, 60))
def test_no_kind_is_off_its_share_by_a_picture(counts: dict[str, int], most: int) -> None:
    cases = cases_of(counts)
    sample = sets.stratified(cases, most)
    assert len({*map(id, sample)}) == len(sample) == min(most, len(cases))
    found = Counter(case.defect for case in sample)
    for kind, count in counts.items():
        assert abs(found[kind] - count * len(sample) / len(cases)) < 1


def cases_of(counts: dict[str, int]) -> list[TestImage]:
    return [TestImage(Path(f"{k:03d}.png"), kind, None) for kind, count in counts.items() for k in range(count)]


def test_every_kind_of_anomaly_has_a_row_beside_what_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(registry.EXPERIMENTS["kinds"], kinds=("colour", "grey"))
    monkeypatch.setitem(registry.EXPERIMENTS, "kinds", made)
    assert main(["experiment", "kinds", *ONE, "--images", "6", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "kinds.png").is_file()
    colour, grey, mean = rows(tmp_path, "kinds")
    assert [row[:2] for row in (colour, grey, mean)] == [["padim", name] for name in ("colour", "grey", "**mean**")]
    assert [row[2] for row in (colour, grey, mean)] == ["3", "3", "6"]
    alone = run_of(tmp_path, "kinds", "composing=False")
    run = run_of(tmp_path, "kinds", "full")
    low, high = run["interval"]["f2pad_iou"]
    assert low <= run["f2pad"]["iou"] <= high
    assert mean[9] == f"{run['f2pad']['iou']:.1f} ({low:.1f} to {high:.1f})"
    category = sets.read_category(tmp_path / "sets" / "brick")
    for row, folder in ((colour, "color"), (grey, "grey")):
        chosen = [k for k, name in enumerate(category.names) if name.startswith(folder)]
        images = [image for image in run["per_image"] if image["image"].startswith(folder)]
        assert row[3] == f"{np.mean([image['backbone_iou'] for image in images]):.1f}"
        assert row[9] == f"{np.mean([image['f2pad_iou'] for image in images]):.1f} (–)"
        before = [image["f2pad_iou"] for image in alone["per_image"] if image["image"].startswith(folder)]
        assert row[8] == f"{np.mean(before):.1f}"
        # Grey photographs have no chroma: whatever has any is marked.
        marked = [np.ptp(category.images[k].astype(int), axis=-1) > 0 for k in chosen]
        ious = [100 * iou(mask, category.masks[k]) for mask, k in zip(marked, chosen, strict=True)]
        assert row[5] == f"{np.mean(ious):.1f}"
    assert float(colour[5]) > 95 > float(grey[5])


def test_masks_from_score_maps_alone() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((48, 48), bool)
    truth[16:30, 18:34] = True
    image = np.where(truth[..., None], 200, 60) + rng.integers(0, 20, (48, 48, 3))
    scores = ndimage.gaussian_filter(truth.astype(float), 5)
    for rule in baselines.MAPS.values():
        assert not rule(image.astype(np.uint8), scores, 2.0).any()
    walked = baselines.random_walk(image.astype(np.uint8), scores, 0.1)
    assert iou(walked, truth) > 0.95 > iou(baselines.otsu(image, scores, 0.1), truth)
    np.testing.assert_array_equal(baselines.otsu(image, scores, 0.1), scores > threshold_otsu(scores))


def test_tunings_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from f2pad_jax import tuning

    monkeypatch.setattr(tuning, "COUNT", 2)
    for name in ("BETA0", "ALPHA1", "COMPONENTS"):
        monkeypatch.setattr(tuning, name, getattr(tuning, name)[:1])
    assert main(["experiment", "tuning", *ONE[:4], "--images", "2", "--out", str(tmp_path)]) == 0
    runs = {run["variant"]: run for run in json.loads((tmp_path / "tuning.json").read_text("utf-8"))["runs"]}
    assert {name: run["tuned_on"] for name, run in runs.items()} == {
        "tuning=default": "default", "tuning=synthetic": "synthetic-validation", "tuning=oracle": "oracle"
    }  # fmt: skip
    (row,) = rows(tmp_path, "tuning")
    means = [f"{runs[f'tuning={name}']['f2pad']['iou']:.1f}" for name in ("default", "synthetic", "oracle")]
    assert [row[k].split(" / ")[0] for k in (2, 3, 5)] == means
    assert runs["tuning=oracle"]["f2pad"]["iou"] >= runs["tuning=default"]["f2pad"]["iou"]

"""Limits of host memory: fewer pictures together, the same bytes, and one line where not even one fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from f2pad_jax import picture_jobs, segmentation
from f2pad_jax.cli import main
from f2pad_jax.data.images import write_png
from f2pad_jax.data.synthesize import write_category
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.grouping import GIB, GROUP, OWN, Budget, budget, check_fit, groups, kept_by_gradient
from f2pad_jax.model import Model
from f2pad_jax.model_file import save_model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.segmentation import Segmentation, segment

SIDE = 64


def gib(limit: Budget, count: float) -> float:
    """A limit into which so many pictures fit."""
    return (limit.shared + count * limit.needed((SIDE, SIDE))) / GIB


def test_groups_are_as_large_as_a_limit_allows(tiny_model: Model) -> None:
    shapes = [(SIDE, SIDE)] * (GROUP + 5)
    limit = budget(tiny_model, 1)
    assert list(groups(tiny_model, shapes, None)) == [range(GROUP), range(GROUP, GROUP + 5)]
    for count, size in [(0.5, 1), (1.5, 1), (2.5, 2), (7, 7), (1e3, GROUP)]:
        allowed = limit._replace(limit=round(gib(limit, count) * GIB))
        found = list(groups(tiny_model, shapes, allowed))
        assert [index for group in found for index in group] == [*range(len(shapes))]
        assert {len(group) for group in found[:-1]} == {size}
    # of pictures of several sizes each counts as what it is
    allowed = limit._replace(limit=round(gib(limit, 4.5) * GIB))
    large = SIDE, 4 * round(limit.needed((SIDE, SIDE)) / OWN / SIDE)
    shapes = [(SIDE, SIDE)] * 3 + [large] + [(SIDE, SIDE)] * 3
    assert list(groups(tiny_model, shapes, allowed)) == [range(3), range(3, 4), range(4, 7)]


def test_what_is_counted_grows_with_what_is_held(tiny_model: Model, lite0: Extractor) -> None:
    small, large = (kept_by_gradient(lite0, (1, side, side, 3)) for side in (64, 128))
    weights = sum(leaf.nbytes for _, leaf in _leaves(lite0.params))
    assert 64 * 64 * 12 < small - weights < large - weights < 4 * small
    with pytest.raises(InputError, match=r"^0\.10 GiB of memory are too little: a fit to 9 pictures takes about"):
        check_fit(lite0, 9, (SIDE, SIDE), (SIDE, SIDE), 0.1)
    check_fit(lite0, 9, (SIDE, SIDE), (SIDE, SIDE), 2)
    with pytest.raises(InputError, match="a fit to 90000 pictures"):
        check_fit(lite0, 90_000, (SIDE, SIDE), (SIDE, SIDE), 2)


def _leaves(tree: dict, name: str = "") -> list[tuple[str, np.ndarray]]:
    found = []
    for key, leaf in tree.items():
        found += _leaves(leaf, key) if isinstance(leaf, dict) else [(key, np.asarray(leaf))]
    return found


@pytest.fixture(scope="module")
def work(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a category of six test pictures of which two show a defect."""
    folder = tmp_path_factory.mktemp("work")
    save_model(tiny_model, folder / "model")
    normals, cases = texture_category("brick", train=6, test=2, size=SIDE)
    tests = [("color", str(k), image, mask) for k, (image, mask, _) in enumerate(cases)]
    tests += [("good", str(k), normal, np.zeros((SIDE, SIDE), bool)) for k, normal in enumerate(normals[:4])]
    write_category(folder / "brick", normals, tests)
    (folder / "pictures").mkdir()
    for kind, name, image, _ in tests:
        write_png(folder / "pictures" / f"{kind}{name}.png", image)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    """All files of a results folder, times and the name of the folder aside."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "settings.toml"}
    records = [json.loads(line) for line in found.pop("results.jsonl").splitlines()]
    return found | {"records": json.dumps([record | {"seconds": 0} for record in records]).encode()}


def test_less_memory_gives_smaller_groups_and_the_same_bytes(
    work: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(model: Model, pictures: list[np.ndarray]) -> list[Segmentation]:
        calls.append(len(pictures))
        return segment(model, pictures)

    monkeypatch.setattr(picture_jobs, "segment", lambda model, pictures, **_: counted(model, pictures))
    limit = budget(tiny_model, 1)
    for name, options in {
        "all": [],
        "two": ["--memory", str(gib(limit, 2.5))],
        "one": ["--memory", str(gib(limit, 1.5))],
    }.items():
        asked = ["segment", str(work / "model"), str(work / "pictures"), "--out", str(work / name), *options]
        assert main(asked) == 0
    assert calls == [6, 2, 2, 2, *[1] * 6]
    assert _bytes(work / "all") == _bytes(work / "two") == _bytes(work / "one")
    # the results of one limit are those of another, also for --resume
    asked = ["segment", str(work / "model"), str(work / "pictures"), "--out", str(work / "one")]
    assert main([*asked, "--resume"]) == 0
    assert sum(calls[10:]) == 0


def test_what_does_not_fit_is_one_line(work: Path, tiny_model: Model, capsys: pytest.CaptureFixture) -> None:
    model, pictures, out = str(work / "model"), str(work / "pictures"), str(work / "none")
    for command in (
        ["segment", model, pictures],
        ["evaluate", model, str(work / "brick")],
        ["fit", str(work / "brick"), "--detector", "padim", "--extractor", "efficientnet_lite0", "--size", "64"],
    ):
        assert main([*command, "--memory", "0.1", "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("f2pad: error: 0.10 GiB of memory are too little: ")
        assert not (work / "none/results.jsonl").exists()
        assert not (work / "none/metrics.json").exists()
    write_png(work / "large.png", np.zeros((SIDE, 100 * SIDE, 3), np.uint8))
    limit = budget(tiny_model, 1)
    asked = ["segment", model, str(work / "large.png"), str(work / "pictures/good0.png"), "--out", str(work / "some")]
    assert main([*asked, "--memory", str(gib(limit, 1.5))]) == 2
    large, good = map(json.loads, (work / "some/results.jsonl").read_text().splitlines())
    assert "of memory are too little: one picture of 6400 × 64 takes about" in large["error"]
    assert good["status"] in ("normal", "converged")


def test_in_python_pictures_and_results_stay_and_count(
    work: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 5
    limit, sizes = budget(tiny_model, 1), list[int]()
    alike = segmentation.segment_alike

    def counted(model: Model, images: np.ndarray, **options: object) -> list[Segmentation]:
        sizes.append(len(images))
        return alike(model, images, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(segmentation, "segment_alike", counted)
    held = len(images) * OWN * SIDE * SIDE
    assert len(segment(tiny_model, images, memory=(limit.shared + held + 2.5 * limit.worked) / GIB)) == 5
    assert sizes == [2, 2, 1]
    with pytest.raises(InputError, match="5 pictures and what is found in them take about"):
        segment(tiny_model, images, memory=(limit.shared + limit.needed((SIDE, SIDE)) + 1) / GIB)

"""Parts of one's own: each is added from this file alone, and fit, segment and evaluate run with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from f2pad_jax import evaluate, export, fit, load_extractor, load_model, metrics, prepare, save_model, segment, solve
from f2pad_jax.cli import main
from f2pad_jax.core import Penalty, terms
from f2pad_jax.data import layouts
from f2pad_jax.data.images import write_png
from f2pad_jax.data.synthesize import write_category
from f2pad_jax.detectors import DETECTORS, Detector, Maps
from f2pad_jax.errors import InputError
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.weights.registry import NETWORKS, Entry, Network, registry

SIDE = 64

# A detector


class Mean(struct.PyTreeNode):
    """Distance of the finest map's features to their mean over all positions, in units of their variance."""

    name: ClassVar[str] = "mean"
    level = 0
    anchored: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Any]] = {}

    mean: jax.Array
    variance: jax.Array
    root: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def fit(cls, maps: tuple[np.ndarray, ...], *, floor: float = 1e-3, root: bool = False, seed: int = 0) -> Self:
        del seed
        rows = maps[0].reshape(-1, maps[0].shape[-1])
        return cls(jnp.asarray(rows.mean(axis=0)), jnp.asarray(rows.var(axis=0) + floor), root)

    def score(self, maps: Maps) -> jax.Array:
        return jnp.sqrt(self.summands(maps)) if self.root else self.summands(maps)

    def summands(self, maps: Maps) -> jax.Array:
        return jnp.sum(jnp.square(maps[0] - self.mean) / self.variance, axis=-1)

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> jax.Array:
        del maps, coarser
        return positions

    def local_scores(self, local: jax.Array, maps: Maps) -> jax.Array:
        return self.summands(maps).reshape(-1)[local]

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"mean": self.mean, "variance": self.variance}, {"root": self.root}

    @classmethod
    def from_state(cls, arrays: dict[str, Any], facts: dict[str, Any]) -> Self:
        return cls(**arrays, **facts)


# An extractor


class ColoursSpec(NamedTuple):
    channels: tuple[int, ...] = (5, 5)
    strides: tuple[int, ...] = (4, 8)


def colours(params: dict[str, jax.Array], images: jax.Array, *, spec: ColoursSpec) -> tuple[jax.Array, ...]:
    """Mixed colours, averaged over cells."""
    mixed = jnp.tanh(images @ params["mix"])

    def pooled(stride: int) -> jax.Array:
        batch, height, width, channels = mixed.shape
        return mixed.reshape(batch, height // stride, stride, width // stride, stride, channels).mean((2, 4))

    return tuple(pooled(stride) for stride in spec.strides)


def shapes(spec: ColoursSpec) -> dict[str, Any]:
    return {"mix": jax.ShapeDtypeStruct((3, spec.channels[0]), jnp.float32)}


def convert(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if state.keys() != {"mix"}:
        raise ValueError("it holds no array mix alone")
    return dict(state)


MIX = (np.random.default_rng(0).standard_normal((3, 5)) / 2).astype(np.float32)


# A penalty

CAP = 0.5


def capped(length: jax.Array) -> jax.Array:
    """φ(t) = min(t, cap): large anomalies cost no more than medium ones."""
    return jnp.minimum(length, CAP)


def capped_prox(length: jax.Array, weight: jax.Array) -> jax.Array:
    """The better of the minima below and above the cap."""
    below, above = jnp.clip(length - weight, 0, CAP), jnp.maximum(length, CAP)

    def cost(s: jax.Array) -> jax.Array:
        return 0.5 * jnp.square(s - length) + weight * capped(s)

    return jnp.where(cost(below) <= cost(above), below, above)


CAPPED = Penalty(value=capped, prox=capped_prox)


# All that they are tried on


def surfaces(count: int, seed: int) -> np.ndarray:
    """Grey surfaces with a little noise, uint8 (N, S, S, 3)."""
    noise = np.random.default_rng(seed).normal(0, 6, (count, SIDE, SIDE, 3))
    return np.clip(np.array([130, 120, 100]) + noise, 0, 255).astype(np.uint8)


NORMALS = surfaces(12, seed=1)
MASKS = np.zeros((3, SIDE, SIDE), bool)
MASKS[0, 20:34, 30:48] = True
MASKS[1, 8:26, 12:22] = True
IMAGES = np.where(MASKS[..., None], np.array([190, 60, 60], np.uint8), surfaces(3, seed=2))
NAMES = ("paint/0", "paint/1", "good/0")


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in a table each."""
    monkeypatch.setitem(DETECTORS, "mean", Mean)
    monkeypatch.setitem(NETWORKS, "colours", Network(ColoursSpec(), colours, shapes, convert))
    monkeypatch.setitem(registry(), "colours", Entry("colours", file="colours.npz", url="", licence="MIT"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    np.savez(tmp_path / "colours.npz", mix=MIX)
    return tmp_path / "colours.npz"


def assert_works(model: Model) -> None:
    """Segments and evaluates."""
    for image, mask in zip(IMAGES[:2], MASKS[:2], strict=True):
        result = segment(model, image)
        assert iou(result.mask, mask) > 0.9
        assert iou(result.mask, mask) > iou(result.initial_mask, mask)
        assert result.status in ("converged", "iteration limit")
    run, results = evaluate(model, IMAGES, MASKS, NAMES, dataset="surfaces", category="paint")
    assert run["f2pad"]["iou"] == pytest.approx(
        100 * np.mean([iou(result.mask, mask) for result, mask in zip(results[:2], MASKS[:2], strict=True)]), abs=0.01
    )
    assert (run["detector"], run["extractor"]) == (model.detector.name, model.extractor.name)


def test_a_detector_of_ones_own(rooms: None, lite0: Extractor, tmp_path: Path) -> None:
    assert isinstance(Mean(jnp.zeros(2), jnp.ones(2)), Detector)
    model = fit(NORMALS, detector="mean", extractor=lite0, options={"root": True})
    assert isinstance(model.detector, Mean)
    assert model.detector.root
    assert_works(model)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert jax.tree.structure(loaded.detector) == jax.tree.structure(model.detector)
    np.testing.assert_array_equal(segment(loaded, IMAGES[0]).mask, segment(model, IMAGES[0]).mask)
    with pytest.raises(InputError, match="mean has no option 'rank'; its options are floor, root"):
        fit(NORMALS, detector="mean", extractor=lite0, options={"rank": 3})


def test_an_extractor_of_ones_own(rooms: None, weights: Path, tmp_path: Path) -> None:
    """As an object, and by its name with weights from a file."""
    made = Extractor({"mix": jnp.asarray(MIX)}, "colours", colours, ColoursSpec(), digest="")
    model = fit(NORMALS, detector="padim", extractor=made)
    assert_works(model)
    named = load_extractor("colours", weights=weights)
    again = fit(NORMALS, detector="padim", extractor=named)
    np.testing.assert_array_equal(segment(again, IMAGES[0]).mask, segment(model, IMAGES[0]).mask)
    save_model(again, tmp_path / "model")
    loaded = load_model(tmp_path / "model", weights=weights)
    assert loaded.extractor.digest == named.digest
    np.savez(tmp_path / "other.npz", kernel=MIX)
    with pytest.raises(InputError, match="not the weights of colours: it holds no array mix alone"):
        load_extractor("colours", weights=tmp_path / "other.npz")


def test_a_penalty_of_ones_own(rooms: None) -> None:
    lengths = np.linspace(0, 2, 41)
    fine = np.linspace(0, 2, 4001)
    for weight in (0.05, 0.3, 1.0):
        costs = 0.5 * np.square(fine[:, None] - lengths) + weight * np.asarray(capped(jnp.asarray(fine)))[:, None]
        chosen = np.asarray(capped_prox(jnp.asarray(lengths), jnp.float32(weight)))
        cost = 0.5 * np.square(chosen - lengths) + weight * np.minimum(chosen, CAP)
        np.testing.assert_allclose(cost, costs.min(axis=0), atol=1e-5)
    extractor = Extractor({"mix": jnp.asarray(MIX)}, "colours", colours, ColoursSpec(), digest="")
    model = fit(NORMALS, detector="mean", extractor=extractor)
    mine = replace(model, energy=model.energy.replace(penalty=CAPPED), settings=model.settings.replace(beta0=60.0))
    assert_works(mine)
    problem, start = prepare(mine, IMAGES[0])
    solution = jax.jit(solve)(start, mine.energy, problem, mine.settings)
    norms = np.linalg.norm(np.asarray(problem.image) - np.asarray(solution.normal), axis=-1)
    found = terms(solution.normal, mine.energy, problem, mine.settings)
    np.testing.assert_allclose(found.sparsity, 60.0 * np.minimum(norms, CAP).sum(), rtol=1e-5)


def test_the_command_line_finds_them_too(
    rooms: None, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parts = zip(NAMES, IMAGES, MASKS, strict=True)
    cases = [(name[:-2], name[-1], image, mask) for name, image, mask in parts]
    write_category(tmp_path / "paint", NORMALS, cases)
    model, category = str(tmp_path / "model"), str(tmp_path / "paint")
    own = ["--extractor", "colours", "--weights", str(weights), "--option", "floor=0.002", "--option", "root=true"]
    assert main(["fit", category, "--detector", "mean", *own, "--size", str(SIDE), "--out", model]) == 0
    assert main(["evaluate", model, category, "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    (run,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"]
    assert (run["detector"], run["extractor"]) == ("mean", "colours")
    assert run["f2pad"]["iou"] > 90
    capsys.readouterr()
    assert main(["fit", category, "--detector", "median", *own, "--out", str(tmp_path / "none")]) == 2
    assert "choose one of padim, patchcore, cflow, mean" in capsys.readouterr().err


# A layout: good/, and bad/ with masks beside the pictures


def lots(root: Path) -> layouts.Category | None:
    if not (root / "bad").is_dir():
        return None
    good = sorted((root / "good").iterdir())
    bad = sorted(path for path in (root / "bad").iterdir() if "-truth" not in path.stem)
    tests = [layouts.TestImage(path, "bad", path.with_stem(f"{path.stem}-truth")) for path in bad]
    return layouts.Category(
        root, root.name, "lots", tuple(good[:-1]), (*tests, layouts.TestImage(good[-1], "good", None))
    )


# A metric


def area_error(found: np.ndarray, truth: np.ndarray) -> float:
    return abs(int(found.sum()) - int(truth.sum())) / truth.sum()


# An exporter


def write_threshold(model: Model, path: Path) -> None:
    path.write_text(f"{model.threshold!r}\n", encoding="utf-8")


def test_a_layout_a_metric_and_an_exporter_of_ones_own(
    rooms: None, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layouts.LAYOUTS, "lots", lots)
    monkeypatch.setitem(metrics.MASK_METRICS, "area_error", area_error)
    monkeypatch.setitem(export.EXPORTERS, ".threshold", write_threshold)
    root = tmp_path / "lot7"
    for folder in ("good", "bad"):
        (root / folder).mkdir(parents=True)
    for k, image in enumerate([*NORMALS, IMAGES[2]]):
        write_png(root / "good" / f"{k:02d}.png", image)
    for k in range(2):
        write_png(root / "bad" / f"{k}.png", IMAGES[k])
        write_png(root / "bad" / f"{k}-truth.png", MASKS[k])
    model, out = tmp_path / "model", tmp_path / "out"
    network = ["--extractor", "colours", "--weights", str(weights), "--size", str(SIDE)]
    assert main(["fit", str(root), "--detector", "padim", *network, "--out", str(model)]) == 0
    assert main(["evaluate", str(model), str(root), "--weights", str(weights), "--out", str(out)]) == 0
    (run,) = json.loads((out / "metrics.json").read_text())["runs"]
    assert (run["dataset"], run["category"]) == ("lots", "lot7")
    assert (run["train_images"], run["test_images"]) == (len(NORMALS), 3)
    loaded = load_model(model, weights=weights)
    wanted = [area_error(segment(loaded, image).mask, mask) for image, mask in zip(IMAGES[:2], MASKS[:2], strict=True)]
    assert run["f2pad"]["area_error"] == pytest.approx(100 * np.mean(wanted), abs=0.01)
    assert run["f2pad"]["iou"] > 90
    target = tmp_path / "line.threshold"
    assert main(["export", str(model), "--weights", str(weights), "--out", str(target)]) == 0
    assert float(target.read_text("utf-8")) == loaded.threshold

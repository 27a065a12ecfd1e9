"""Refinement as one traced function: its parts against SciPy and scikit-image, the whole against `segment`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnxruntime
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import remove_small_objects
from solving import SETTINGS, make_case, tiny_extractor
from test_readme import ROOT, blocks

from f2pad_jax import fills
from f2pad_jax.calibration import piece_maxima
from f2pad_jax.cli import main
from f2pad_jax.core import solve
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.images import resize_image
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.export import PLATFORMS, export
from f2pad_jax.fills import Normals
from f2pad_jax.fitting import fit
from f2pad_jax.metrics import iou
from f2pad_jax.model import Model
from f2pad_jax.model_file import save_model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.preparing import SQUARE as FULL
from f2pad_jax.procedure import Procedure, paper_settings
from f2pad_jax.segmentation import segment
from f2pad_jax.traced import VERDICTS, pieces, refine_one, score_one
from f2pad_jax.traced.fills import harmonic_fill, matching_fill

LOADER = ROOT / "docs" / "how-to" / "elsewhere.md"
MASKS = [np.random.default_rng(k).random((23, 31)) < share for k, share in enumerate((0.0, 0.3, 0.5, 0.62, 0.8, 1.0))]
MASKS.append(np.indices((23, 31)).sum(0) % 2 == 0)  # joined by corners alone
SPIRAL = np.zeros((21, 21), bool)
for turn in range(5):
    SPIRAL[2 * turn, max(2 * turn - 2, 0) : 21 - 2 * turn] = SPIRAL[2 * turn : 21 - 2 * turn, 20 - 2 * turn] = True
    SPIRAL[20 - 2 * turn, 2 * turn : 21 - 2 * turn] = SPIRAL[2 * turn + 2 : 21 - 2 * turn, 2 * turn] = True
MASKS.append(SPIRAL)


@pytest.mark.parametrize("mask", MASKS)
def test_binary_pictures_are_treated_as_by_scipy(mask: np.ndarray) -> None:
    square, cross = jax.jit(pieces.pieces)(mask), jax.jit(partial(pieces.pieces, offsets=pieces.CROSS))(mask)
    for found, connectivity in ((square, 2), (cross, 1)):
        # Numbers rise in the order of first pixels in both, so their ranks are equal.
        ranks = np.unique(np.append(0, found), return_inverse=True)[1][1:].reshape(mask.shape)
        np.testing.assert_array_equal(ranks, label(mask, connectivity=connectivity))
    values = np.random.default_rng(9).standard_normal(mask.shape).astype(np.float32)
    wanted = np.asarray(label(mask, connectivity=2))
    np.testing.assert_array_equal(pieces.highest(jnp.asarray(values), square), piece_maxima(values, wanted)[wanted])
    large = mask & np.asarray(pieces.areas(square) > 5)
    np.testing.assert_array_equal(large, remove_small_objects(mask, max_size=5, connectivity=2))
    np.testing.assert_array_equal(jax.jit(pieces.filled_holes)(mask), ndimage.binary_fill_holes(mask))
    np.testing.assert_array_equal(pieces.opened(jnp.asarray(mask)), ndimage.binary_opening(mask, FULL))
    np.testing.assert_array_equal(pieces.dilated(jnp.asarray(mask), 3), ndimage.binary_dilation(mask, iterations=3))
    if mask.any():
        distance = np.asarray(ndimage.distance_transform_edt(~mask))
        np.testing.assert_allclose(pieces.squared_distance(jnp.asarray(mask)), np.square(distance), rtol=1e-6)
    highest = pieces.local_maximum(jnp.asarray(values), 4)
    np.testing.assert_array_equal(highest, ndimage.maximum_filter(values, 9))


@pytest.mark.parametrize("side", [slice(20, 44), slice(0, 30), slice(None)])
def test_the_membrane_is_that_of_the_sparse_solver(side: slice) -> None:
    image = normalize(texture_category("gravel", train=3, test=1, size=64)[0][0])
    region = np.zeros((64, 64), bool)
    region[side, side] = True
    found = jax.jit(harmonic_fill)(image, region)
    np.testing.assert_allclose(found, fills.harmonic_fill(image, region), atol=1e-4)


def test_the_matching_fill_is_that_of_the_host(tiny_model: Model) -> None:
    shape, scale = (96, 144), 2.0
    normals, cases = texture_category("brick", train=9, test=1, size=96)
    wide = [resize_image(each, (shape[0] + 8, shape[1] + 8)) for each in [*normals, cases[0][2]]]
    material = Normals(np.stack([each[: shape[0], : shape[1]] for each in wide[:4]]), scale)
    image = normalize(wide[2][8 : 8 + shape[0], 7 : 7 + shape[1]])  # another crop of one of them
    region = np.zeros(shape, bool)
    region[20:36, 24:50] = True
    doubtful = np.zeros(shape, bool)
    doubtful[60:70, 90:110] = True
    model = replace(tiny_model, normals=material, shape=shape)
    filled, error = jax.jit(lambda *given: matching_fill(model, *given))(image, region, doubtful)
    wanted = fills.matching_fill(image, region, material, doubtful=doubtful)
    assert float(error) == pytest.approx(wanted.error, abs=0.03)  # pixels far away count there, not here
    assert wanted.error < 0.1  # it is found
    np.testing.assert_allclose(filled, wanted.filled, atol=0.05)


@pytest.mark.parametrize("detector", ["padim", "patchcore"])
def test_the_solve_lowers_for_every_platform(detector: str) -> None:
    case = make_case(detector)
    arguments = (case.start, case.energy, case.problem, SETTINGS)
    exported = jax.export.export(jax.jit(solve), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == case.start.shape


def compare(model: Model, pictures: np.ndarray, found: dict[str, np.ndarray]) -> tuple[float, float]:
    """The share of equal verdicts, and the mean IoU of the masks where there is one."""
    results = segment(model, pictures)
    equal = [result.verdict == VERDICTS[verdict] for result, verdict in zip(results, found["verdict"], strict=True)]
    pairs = [(r.mask, m) for r, m in zip(results, found["mask"], strict=True) if r.mask.any() or m.any()]
    assert pairs
    for k, result in enumerate(results):
        np.testing.assert_allclose(found["score_map"][k], result.score_map, atol=1e-4 * result.score_map.max())
        assert found["threshold"][k] == pytest.approx(result.threshold, rel=1e-6)
        # Roundings have grown by the end of a level, so what is left in n differs a little.
        assert found["residual"][k] == pytest.approx(result.residual, abs=0.05)
        assert (found["status"][k] == 0) == (result.status == "normal")
        if np.array_equal(found["mask"][k], result.mask):
            np.testing.assert_allclose(found["refined_map"][k], result.refined_map, atol=1e-4 * result.score_map.max())
    return float(np.mean(equal)), float(np.mean([iou(*pair) for pair in pairs]))


@pytest.fixture(scope="module")
def written(lite0: Extractor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model, and the folder with its program as the command line writes it."""
    folder = tmp_path_factory.mktemp("program")
    model = fit(texture_category("gravel", train=16, test=1, size=64)[0], detector="padim", extractor=lite0)
    save_model(model, folder / "model")
    assert main(["export", str(folder / "model"), "--out", str(folder / "capsule.stablehlo")]) == 0
    return model, folder


def test_a_program_that_jax_alone_runs_finds_what_segment_finds(written: tuple[Model, Path]) -> None:
    model, folder = written
    kinds = ("colour", "texture", "scratch", "missing")
    _, cases = texture_category("gravel", train=3, test=15, size=64, kinds=kinds)
    pictures = np.stack([x for x, _, _ in cases] + [n for _, _, n in cases[:5]])
    np.save(folder / "pictures.npy", pictures)
    (loader,) = blocks(LOADER, "python")[:1]
    assert len(loader.splitlines()) <= 20
    hidden = "import sys; sys.modules['f2pad_jax'] = None\n"  # to import it would raise
    ran = subprocess.run(
        [sys.executable, "-I", "-c", hidden + loader], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(folder / "found.npz") as arrays:
        found = dict(arrays)
    assert ran.stdout.split() == [VERDICTS[verdict] for verdict in found["verdict"]]
    verdicts, overlap = compare(model, pictures, found)
    print(f"20 pictures: {100 * verdicts:.0f} % equal verdicts, mean IoU of the masks {overlap:.4f}")
    assert verdicts == 1
    assert overlap > 0.99


PAPER = paper_settings()
VARIANTS = {
    "paper": {"settings": PAPER[0].replace(limit=60), "procedure": PAPER[1]},
    "image": {"seen": (32, 32), "procedure": Procedure(start="image", sparsity="area", sharing=False)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_choices_are_followed(name: str) -> None:
    normals, cases = texture_category("brick", train=12, test=3, size=64)
    model = fit(normals, detector="padim", extractor=tiny_extractor(), **VARIANTS[name])
    if name == "image":
        model = replace(model, roi=np.broadcast_to(np.arange(64) < 56, (64, 64)))
    pictures = np.stack([x for x, _, _ in cases])
    refine = jax.jit(partial(refine_one, model))
    found = [jax.tree.map(np.asarray, refine(picture)) for picture in pictures]
    verdicts, overlap = compare(model, pictures, {key: np.stack([f[key] for f in found]) for key in found[0]})
    assert verdicts == 1
    assert overlap > 0.97


@pytest.mark.parametrize("detector", ["padim", "patchcore"])
@pytest.mark.filterwarnings("ignore")  # of the converter
def test_scores_as_onnx(lite0: Extractor, tmp_path: Path, detector: str) -> None:
    normals, cases = texture_category("brick", train=8, test=20, size=96)
    model = fit(normals, detector=detector, extractor=lite0, seen=(64, 64))
    export(model, tmp_path / "scores.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "scores.onnx")
    (given,) = session.get_inputs()
    score, largest = jax.jit(partial(score_one, model)), 0.0
    for image, _, _ in cases:
        (found,), wanted = session.run(None, {given.name: image}), np.asarray(score(image))
        largest = max(largest, float(np.abs(found - wanted).max() / wanted.max()))
    print(f"{detector}, {len(cases)} pictures: scores as ONNX differ by at most {largest:.1e} of the highest")
    assert largest < 1e-5


def test_a_model_that_the_converter_does_not_take_is_one_line(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("no operation\n'sort'")

    monkeypatch.setattr(jax2onnx, "to_onnx", fail)
    message = r"scores.onnx: jax2onnx cannot convert the model \(AttributeError: no operation.*'sort'\); try another"
    with pytest.raises(InputError, match=message) as caught:
        export(tiny_model, tmp_path / "scores.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores.onnx").exists()


def test_a_missing_converter_is_one_line(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"jax2onnx is missing; pip install 'f2pad_jax\[onnx\]'"):
        export(tiny_model, tmp_path / "scores.onnx")

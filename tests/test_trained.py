"""Detectors that anomalib has trained give its score maps, and what cannot do so is one line."""

from __future__ import annotations

import enum
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from torch_parts import import_torchvision

import f2pad_jax as f2
from f2pad_jax.cli import main
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.reducing import reduce_images
from f2pad_jax.sights import features, score_maps
from f2pad_jax.traced import score_one
from f2pad_jax.trained import load_trained
from f2pad_jax.weights.torch_file import read_checkpoint
from f2pad_jax.weights.unpickling import Inert

torch = pytest.importorskip("torch")
import_torchvision()  # for timm
import anomalib_formulae as formulae  # noqa: E402

pytestmark = pytest.mark.parity
SEEN, SIZE = (64, 80), (72, 100)  # height and width for the extractor, and of the pictures
KEPT = {"padim": 20, "patchcore": 60}


class Case(NamedTuple):
    folder: Path
    pictures: np.ndarray
    network: Any
    state: dict[str, Any]


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A folder with pictures, a checkpoint of a detector of some of them, and the model that the command makes."""
    folder = tmp_path_factory.mktemp(request.param)
    normals, tests = texture_category("grass", train=12, test=2, size=128)
    pictures = np.stack([*normals, *(x for x, _, _ in tests)])[:, : SIZE[0], : SIZE[1]]
    (folder / "set/train/good").mkdir(parents=True)
    for index, picture in enumerate(pictures[:12]):
        Image.fromarray(picture).save(folder / f"set/train/good/{index:03}.png")
    network = formulae.network(request.param)
    found = formulae.embedding(request.param, network, pictures[:8], SEEN)
    fit = {"padim": formulae.fit_padim, "patchcore": formulae.fit_patchcore}[request.param]
    state = fit(found, KEPT[request.param])
    torch.save(formulae.checkpoint(request.param, network, state, SEEN), folder / "model.ckpt")
    command = ["fit", str(folder / "set"), "--from", str(folder / "model.ckpt"), "--out", str(folder / "model")]
    assert main(command) == 0
    return Case(folder, pictures, network, state)


@pytest.fixture(scope="module")
def model(case: Case) -> f2.Model:
    return f2.load_model(case.folder / "model")


def test_score_maps_are_those_of_anomalib(case: Case, model: f2.Model) -> None:
    name = model.detector.name
    assert (model.shape, model.seen) == (SIZE, SEEN)
    found = formulae.embedding(name, case.network, case.pictures[8:], SEEN)
    wanted = formulae.score_map(case.state, found, SEEN)
    np.testing.assert_allclose(score_maps(model, case.pictures[8:]), wanted, rtol=1e-4)


def test_a_model_needs_nothing_but_its_folder(case: Case, model: f2.Model, tmp_path: Path) -> None:
    trained = load_trained(case.folder / "model.ckpt")
    assert model.extractor.kept
    assert model.extractor.digest == trained.extractor.digest
    jax.tree.map(np.testing.assert_array_equal, model.energy.extractor.params, trained.extractor.params)
    jax.tree.map(np.testing.assert_array_equal, model.detector, trained.detector)
    with pytest.raises(InputError, match="holds the weights of its extractor; leave others out"):
        f2.load_model(case.folder / "model", weights=case.folder / "model.ckpt")


def test_local_scores_and_the_exported_map_follow_the_convention(case: Case, model: f2.Model) -> None:
    maps = tuple(m[0] for m in features(model.extractor, reduce_images(case.pictures[-1:], SEEN)))
    positions, detector = jnp.arange(0, 20, 3), model.detector
    found = detector.local_scores(detector.localize(maps, positions), maps)
    np.testing.assert_allclose(found, detector.summands(maps).ravel()[positions], rtol=1e-4)
    np.testing.assert_allclose(detector.score(maps) ** 2, detector.summands(maps), rtol=1e-4)
    (scores,) = score_maps(model, case.pictures[-1:])
    exported = jax.jit(partial(score_one, model))(jnp.asarray(case.pictures[-1]))
    np.testing.assert_allclose(exported, jax.image.resize(scores, SIZE, "bilinear"), rtol=1e-4)


@pytest.mark.parametrize("case", ["patchcore"], indirect=True)
def test_defects_are_outlined(case: Case, model: f2.Model) -> None:
    picture = case.pictures[9].copy()
    picture[20:40, 30:50] = (255, 0, 255)
    result = f2.segment(model, picture)
    assert result.verdict == "defect"
    assert result.mask[20:40, 30:50].mean() > 0.9
    assert result.mask.sum() < 3 * 400


def test_a_detector_is_for_its_own_features(case: Case, lite0: Any) -> None:
    trained = load_trained(case.folder / "model.ckpt")._asdict()
    with pytest.raises(InputError, match=r"does not fit what efficientnet_lite0 gives of 80 × 64 pixels"):
        f2.fit(case.pictures, **(trained | {"extractor": lite0}))
    with pytest.raises(InputError, match="is fitted already; leave its options out"):
        f2.fit(case.pictures, **trained, options={"rank": 2})


# Checkpoints that are none


def _saved(path: Path, change: Callable[[dict[str, Any]], object] = lambda whole: None, *, detector: str = "padim"):
    """A checkpoint of a detector that was trained on zeros, with a change."""
    network = formulae.network(detector)
    if detector == "padim":
        state = {
            "model.idx": torch.arange(4),
            "model.gaussian.mean": torch.zeros(4, 320),
            "model.gaussian.inv_covariance": torch.eye(4).expand(320, 4, 4).clone(),
        }
    else:
        state = {"model.memory_bank": torch.zeros(5, 384)}
    whole = formulae.checkpoint(detector, network, state, SEEN)
    change(whole)
    torch.save(whole, path)
    return path


def _steps(whole: dict[str, Any]) -> list[Any]:
    return whole["anomalib_pre_processor_config"]["transform"]["init_args"]["transforms"]


def _set(*names: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value, the last of the names, at the place of the others."""

    def change(whole: Any) -> None:
        for name in names[:-2]:
            whole = whole[name]
        whole[names[-2]] = names[-1]

    return change


CONFIG = "anomalib_pre_processor_config"
UNFIT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "network": (_set("hyper_parameters", "backbone", "vit_base"), "was trained on vit_base, not on resnet18"),
    "no network": (_set("hyper_parameters", None), "was trained on None"),
    "layers": (_set("hyper_parameters", "layers", ["layer2"]), "was trained on the layers"),
    "crop": (_set(CONFIG, "transform", formulae.transform(SEEN, "CenterCrop")), "by Resize, CenterCrop, Normalize"),
    "no transform": (_set(CONFIG, "transform", None), "does not tell how its pictures are prepared"),
    "short side": (lambda whole: _steps(whole)[0]["init_args"].update(size=256), "does not tell how"),
    "side": (lambda whole: _steps(whole)[0]["init_args"].update(size=[256.0, 64]), r"to the size \[256.0, 64\]"),
    "odd sides": (lambda whole: _steps(whole)[0]["init_args"].update(size=[72, 90]), "no multiples of 16"),
    "filter": (lambda whole: _steps(whole)[0]["init_args"].update(antialias=False), "otherwise than bilinearly"),
    "colours": (lambda whole: _steps(whole)[1]["init_args"].update(mean=[0, 0, 0]), "does not normalise"),
    "smoothing": (
        lambda whole: whole["state_dict"].update({"model.anomaly_map_generator.blur.kernel": torch.ones(1, 1, 33, 33)}),
        "smooths its maps by another Gaussian",
    ),
    "another detector": (lambda whole: whole.update(state_dict={"w": torch.zeros(2)}), "neither PaDiM nor PatchCore"),
    "grid": (_set(CONFIG, "transform", formulae.transform((64, 64))), r"mean has shape \(4, 320\), not \(4, 256\)"),
    "channels": (lambda whole: whole["state_dict"]["model.idx"].add_(445), "not among the 448"),
    "no channels": (lambda whole: whole["state_dict"].pop("model.idx"), "does not tell which channels"),
    "numbers": (lambda whole: whole["state_dict"]["model.gaussian.mean"].fill_(torch.inf), "non-finite"),
    "matrices": (
        lambda whole: whole["state_dict"].pop("model.gaussian.inv_covariance"),
        "missing model.gaussian.inv_covariance",
    ),
    "weights": (
        lambda whole: whole["state_dict"].pop("model.feature_extractor.feature_extractor.layer3.1.bn2.bias"),
        "not the weights of resnet18: missing layer3.1.bn2.bias",
    ),
    "not Lightning's": (lambda whole: whole.pop("pytorch-lightning_version"), "no checkpoint of Lightning's"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_one_line(name: str, tmp_path: Path) -> None:
    change, complaint = UNFIT[name]
    with pytest.raises(InputError, match=complaint) as caught:
        load_trained(_saved(tmp_path / "model.ckpt", change))
    assert "\n" not in str(caught.value)
    assert "model.ckpt" in str(caught.value)


def test_sizes_that_a_checkpoint_does_not_tell(tmp_path: Path) -> None:
    """Before anomalib 2.7 nothing is noted of the transform."""

    def older(whole: dict[str, Any]) -> None:
        whole.pop(CONFIG)
        if "model.idx" in whole["state_dict"]:
            whole["state_dict"]["model.gaussian.mean"] = torch.zeros(4, 576)
            whole["state_dict"]["model.gaussian.inv_covariance"] = torch.zeros(576, 4, 4)

    assert load_trained(_saved(tmp_path / "padim.ckpt", older)).seen == (96, 96)
    path = _saved(tmp_path / "patchcore.ckpt", older, detector="patchcore")
    assert load_trained(path).seen == (256, 256)
    assert load_trained(path, size=128).seen == (128, 128)
    with pytest.raises(InputError, match="was trained on pictures of 80 × 64 pixels, not 128 × 128"):
        load_trained(_saved(tmp_path / "told.ckpt"), size=128)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--from model.ckpt --detector padim", "--detector does not go with --from"),
        ("--from model.ckpt --option rank=2", "--option does not go with --from"),
        ("--from nowhere.ckpt", "nowhere.ckpt: cannot be read"),
        ("--detector padim", "--detector and --extractor are needed; name both, or a checkpoint by --from"),
    ],
)
def test_the_command_refuses(case: Case, options: str, complaint: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(case.folder)
    capsys.readouterr()
    assert main(["fit", "set", "--out", "other", *options.split()]) == 2
    assert complaint in capsys.readouterr().err
    assert not (case.folder / "other").exists()


# Safety


class Colour(enum.Enum):
    RED = "red"


class Thing(list):
    """Pickled by nearly all opcodes for objects."""

    def __init__(self, function: object) -> None:
        super().__init__([1, 2])
        self.function = function


class Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _bytes(whole: Any) -> bytes:
    file = io.BytesIO()
    torch.save(whole, file)
    return file.getvalue()


def _whole(**more: Any) -> dict[str, Any]:
    state = OrderedDict({"w": torch.arange(3.0)})
    return {"pytorch-lightning_version": "2.6.6", "state_dict": state, **more}


def test_objects_beside_the_tensors_are_inert(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hostile = [Call(os.system, f"touch {mark}"), Call(eval, f"open({str(mark)!r}, 'w')"), Thing(os.system)]
    things = {"path": Path("x"), "colour": Colour.RED, "type": torch.float16, "thing": Thing(print), "calls": hostile}
    things |= {"keyed": {Colour.RED: 1}, "layers": ("layer2", "layer3"), "counter": OrderedDict(a=1)}
    arrays, beside = read_checkpoint(_bytes(_whole(hyper_parameters=things, counts={1, 2})))
    assert not mark.exists()
    np.testing.assert_array_equal(arrays["w"], np.arange(3, dtype=np.float32))
    found = beside["hyper_parameters"]
    assert found["layers"] == ("layer2", "layer3")
    assert beside["counts"] == {1, 2}
    inert = [found[name] for name in ("path", "colour", "thing")] + found["calls"]
    assert {type(value) for value in inert} == {Inert}


def test_the_stand_in_cannot_be_changed() -> None:
    before = dict(vars(Inert))
    name = b"cos\nsystem\n"
    for use in (
        name + b"}(Vappend\nK\x01u" + b"b",  # BUILD of the class
        name + b")R}(Vappend\nK\x01ub",  # BUILD of the object
        name + b")\x81}(Vappend\nK\x01ub",
        name + b"(K\x01e",
        name + b")R(K\x01e",
        name + b")R(K\x01K\x01u",
    ):
        root = pickle.dumps(_whole(state_dict={}), 2)[:-1] + b"(Vx\n" + use + b"u."
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", root)
        assert read_checkpoint(file.getvalue())[0] == {}
    assert dict(vars(Inert)) == before


@pytest.mark.parametrize(
    ("whole", "complaint"),
    [
        (_whole(state_dict={"w": torch.zeros(2), "x": Call(os.getpid)}), "other things than tensors"),
        (_whole(state_dict=Call(os.getpid)), "not a tensor"),
        ({"state_dict": {"w": torch.zeros(2)}}, "no checkpoint of Lightning's"),
        (Call(os.getpid), "not a mapping"),
    ],
)
def test_checkpoints_that_are_none_are_refused(whole: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint(_bytes(whole))

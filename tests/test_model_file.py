from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer

from f2pad_jax.calibration import Limits
from f2pad_jax.checkpoint import ARRAYS, SUMS, _digests, flat, load_arrays, nested, save_arrays
from f2pad_jax.core import Energy, PixelMixture, Scales, Settings
from f2pad_jax.detectors.cflow import CFlow, Decoder
from f2pad_jax.detectors.padim import PaDiM
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Normals
from f2pad_jax.model import Model
from f2pad_jax.model_file import VERSION, ModelFacts, _fields, load_model, save_model
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.procedure import Procedure
from f2pad_jax.schemas import read_facts
from f2pad_jax.weights import load_extractor

SIZE, PLACES, CHANNELS = 64, 64, 152  # of the two coarser maps of EfficientNet-Lite0
FIELDS = ("shape", "seen", "windowed")


def _tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "detector": {"bank": rng.random((40, CHANNELS), np.float32), "scalar": np.float32(3)},
        "index": np.arange(5, dtype=np.int32),
        "pictures": rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8),
        "none": np.zeros((0, SIZE, SIZE, 3), np.uint8),
    }


def _save(folder: Path) -> Path:
    save_arrays(folder, _tree(), {"colour": "red"}, kind="model", version=1)
    return folder


def _seal(folder: Path) -> None:
    """Rewrites the sums, as somebody who forges a model would."""
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items()))


def _edit(folder: Path, change: dict[str, Any]) -> None:
    head = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(head | change))
    _seal(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("arrays") / "model")


@pytest.fixture(scope="module")
def model() -> Model:
    tree = _tree()
    detector = PatchCore(jnp.ones(CHANNELS), jnp.ones(PLACES), jnp.asarray(tree["detector"]["bank"]), jnp.zeros(40))
    energy = Energy(
        extractor=load_extractor("efficientnet_lite0"),
        detector=detector,
        mixture=PixelMixture(jnp.zeros((2, 3)), jnp.ones((2, 3, 3))),
    )
    return Model(
        energy=energy,
        settings=Settings(beta0=2.5, limit=70, proximal=False),
        procedure=Procedure(start="harmonic", dilation=3, sharing=False, threshold=0.7),
        scales=Scales(score=jnp.float32(0.1), pixel=jnp.float32(0.2), variation=jnp.float32(0.3)),
        shape=(SIZE, SIZE),
        seen=(SIZE, SIZE),
        limits=Limits(peak=0.1, spread=0.25, pixel=0.05, cost=1.5),
        normals=Normals(tree["pictures"]),
        held_out=tree["none"],
        tuned_on="synthetic-validation",
        seed=3,
    )


def test_arrays_return_bit_for_bit(saved: Path) -> None:
    tree, facts = load_arrays(saved, kind="model", version=1)
    assert facts["colour"] == "red"
    wanted = _tree()
    assert tree.keys() == wanted.keys()
    for found, original in (
        (tree["detector"]["bank"], wanted["detector"]["bank"]),
        (tree["detector"]["scalar"], wanted["detector"]["scalar"]),
        *((tree[name], wanted[name]) for name in ("index", "pictures", "none")),
    ):
        assert found.dtype == original.dtype
        np.testing.assert_array_equal(found, original)


def test_one_flipped_bit_anywhere_is_found(saved: Path, tmp_path: Path) -> None:
    names = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(names) > 5
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        shutil.copytree(saved, folder)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(InputError, match="damaged model"):
            load_arrays(folder, kind="model", version=1)


def test_missing_and_added_files_are_found(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "less"))
    (folder / ARRAYS / "_METADATA").unlink()
    with pytest.raises(InputError, match="_METADATA is missing"):
        load_arrays(folder, kind="model", version=1)
    folder = Path(shutil.copytree(saved, tmp_path / "more"))
    (folder / "note.txt").write_text("x")
    with pytest.raises(InputError, match=r"note\.txt: does not belong there; remove it"):
        load_arrays(folder, kind="model", version=1)


def test_the_table_must_fit_the_arrays(saved: Path, tmp_path: Path) -> None:
    table = json.loads((saved / "model.json").read_text())["arrays"]
    bank = table["detector/bank"]
    changes: dict[str, Any] = {
        "dtype": bank | {"dtype": "int32"},
        "object": bank | {"dtype": "object"},
        "shape": bank | {"shape": [40, 153]},
        "negative": bank | {"shape": [-1, 152]},
        "huge": bank | {"shape": [10**9, 10**9]},
    }
    for name, entry in changes.items():
        folder = Path(shutil.copytree(saved, tmp_path / name))
        _edit(folder, {"arrays": table | {"detector/bank": entry}})
        with pytest.raises(InputError, match="damaged model"):
            load_arrays(folder, kind="model", version=1)
    folder = Path(shutil.copytree(saved, tmp_path / "extra"))
    _edit(folder, {"arrays": table | {"ghost": bank}})
    with pytest.raises(InputError, match="ghost is in the table"):
        load_arrays(folder, kind="model", version=1)


def test_spoiled_arrays_are_one_error_and_nothing_later(saved: Path, tmp_path: Path) -> None:
    """With sums that are right again; what reading leaves behind would be an error of this test."""
    chunks = [path.relative_to(saved) for path in (saved / ARRAYS).glob("*/*") if path.name[0].isdigit()]
    assert len(chunks) > 3
    for name, spoil in {"cut": lambda path: path.write_bytes(path.read_bytes()[:9]), "gone": Path.unlink}.items():
        folder = Path(shutil.copytree(saved, tmp_path / name))
        for chunk in chunks:
            spoil(folder / chunk)
        _edit(folder, {})
        with pytest.raises(InputError, match="damaged model"):
            load_arrays(folder, kind="model", version=1)
        gc.collect()
    folder = Path(shutil.copytree(saved, tmp_path / "wide"))
    for path in (folder / ARRAYS).rglob(".zarray"):
        kept = json.loads(path.read_text())
        chunks = [2**28, *kept["chunks"][1:]]  # of one side alone: a product beyond 64 bits is refused by the driver
        path.write_text(json.dumps(kept | {"chunks": chunks}))
    _edit(folder, {})
    with pytest.raises(InputError, match="in parts larger than itself"):
        load_arrays(folder, kind="model", version=1)


def test_orbax_reads_the_same(saved: Path) -> None:
    tree, _ = load_arrays(saved, kind="model", version=1)
    with StandardCheckpointer() as checkpointer:
        theirs = flat(checkpointer.restore((saved / ARRAYS).absolute()))
    ours = {name: leaf for name, leaf in flat(tree).items() if leaf.size}
    assert theirs.keys() == ours.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(theirs[name], leaf)


def test_other_kinds_and_versions_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_arrays(tmp_path / "none", kind="model", version=1)
    with pytest.raises(InputError, match=r"holds no model\.json"):
        load_arrays(tmp_path, kind="model", version=1)
    with pytest.raises(InputError, match="is of version 1"):
        load_arrays(saved, kind="model", version=2)
    folder = Path(shutil.copytree(saved, tmp_path / "other"))
    _edit(folder, {"format": "something else"})
    with pytest.raises(InputError, match="its format is"):
        load_arrays(folder, kind="model", version=1)
    (folder / "model.json").write_text("[" * 100_000)
    _seal(folder)
    with pytest.raises(InputError, match="damaged model"):
        load_arrays(folder, kind="model", version=1)


def test_non_finite_values_are_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = _tree()
    tree["detector"]["bank"][3, 4] = np.nan
    with pytest.raises(InputError, match="non-finite values"):
        save_arrays(tmp_path / "model", tree, {}, kind="model", version=1)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("f2pad_jax.checkpoint.np.isfinite", lambda array: np.ones(np.shape(array), bool))
        save_arrays(tmp_path / "model", tree, {}, kind="model", version=1)
    with pytest.raises(InputError, match="detector/bank holds non-finite values"):
        load_arrays(tmp_path / "model", kind="model", version=1)


def test_only_a_model_is_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="exists already and is no model"):
        _save(precious)
    assert (precious / "thesis.txt").read_text() == "years"
    with pytest.raises(InputError, match="cannot be written"):
        _save(precious / "thesis.txt" / "model")
    _save(tmp_path / "model")
    save_arrays(tmp_path / "model", {"x": np.zeros(1, np.float32)}, {}, kind="model", version=1)
    assert load_arrays(tmp_path / "model", kind="model", version=1)[0].keys() == {"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "precious"]


def test_a_model_returns_as_it_was(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    for name in (*FIELDS, "limits", "threshold", "settings", "procedure", "tuned_on", "seed", "inpainter"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.extractor.digest == model.extractor.digest
    assert loaded.detector.name == "patchcore"
    assert jax.tree.structure(loaded.energy) == jax.tree.structure(model.energy)
    jax.tree.map(np.testing.assert_array_equal, loaded.energy, model.energy)
    jax.tree.map(np.testing.assert_array_equal, loaded.scales, model.scales)
    np.testing.assert_array_equal(loaded.normals.pictures, model.normals.pictures)
    assert loaded.held_out.shape == (0, SIZE, SIZE, 3)


def test_a_detectors_static_choices_return(model: Model, tmp_path: Path) -> None:
    params = flow.init(jax.random.key(0), FlowSpec(24, blocks=2))
    decoder = Decoder(jnp.zeros(24), jnp.ones(24), params, jnp.float32(-1.5))
    detector = CFlow((decoder,), divided=False, clamp="atan")
    save_model(replace(model, energy=model.energy.replace(detector=detector)), tmp_path / "model")
    loaded = load_model(tmp_path / "model").detector
    assert jax.tree.structure(loaded) == jax.tree.structure(detector)
    jax.tree.map(np.testing.assert_array_equal, loaded, detector)


def test_numbers_that_were_swept_return_as_plain_ones(model: Model, tmp_path: Path) -> None:
    swept = model.settings.replace(beta0=jnp.float32(1.5), warm_up=jnp.int32(7))
    save_model(replace(model, settings=swept), tmp_path / "model")
    assert load_model(tmp_path / "model").settings == model.settings.replace(beta0=1.5, warm_up=7)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_models_of_other_versions_are_refused_in_one_line(model: Model, tmp_path: Path, version: int) -> None:
    assert VERSION == 6
    save_model(model, tmp_path / "model")
    _edit(tmp_path / "model", {"version": version})
    with pytest.raises(InputError, match=f"is of version {version}, this program reads version 6") as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def with_extractor(model: Model, **changes: Any) -> Model:
    return replace(model, energy=model.energy.replace(extractor=replace(model.extractor, **changes)))


def test_other_weights_are_refused(model: Model, tmp_path: Path) -> None:
    save_model(with_extractor(model, digest="0" * 64), tmp_path / "model")
    with pytest.raises(InputError, match="was fitted with other weights of efficientnet_lite0"):
        load_model(tmp_path / "model")


def test_the_precision_returns_and_older_models_have_the_default(model: Model, tmp_path: Path) -> None:
    save_model(with_extractor(model, precision="bf16"), tmp_path / "model")
    assert load_model(tmp_path / "model").extractor.precision == "bf16"
    known = {"name": model.extractor.name, "sha256": model.extractor.digest}
    _edit(tmp_path / "model", {"extractor": known})
    assert load_model(tmp_path / "model").extractor.precision == "parity"
    _edit(tmp_path / "model", {"extractor": known | {"precision": ["bf16"]}})
    with pytest.raises(InputError, match="damaged model .extractor.precision is"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"rate": -1.0}},
        {"settings": {"warm_up": 20.0}},
        {"settings": {"tolerance": float("nan")}},
        {"settings": {"proximal": 1}},
        {"procedure": {"largest": -1e9}},
        {"procedure": {"threshold": float("nan")}},
        {"procedure": {"start": "nowhere"}},
        {"procedure": {"dilation": 10**30}},
        {"limits": {"peak": float("inf")}},
        {"extractor": {"sha256": None}},
        {"seed": -1},
        {"seed": True},
        {"shape": [63, 63]},
        {"shape": [128, 64]},
        {"shape": 64},
        {"seen": [64, 0]},
        {"seen": [128, 64]},
        {"windowed": 1},
        {"note": "added"},
        {"detector": "oracle"},
        {"detector": None},
        {"detector": {"name": "oracle"}},
        {"detector": {"name": "padim"}},
        {"detector": {"name": "cflow", "divided": True, "clamp": "tanh"}},
        {"shape": [16, 8]},
        {"shape": ["8", 8]},
        {"shape": 8},
        {"seen": [8, 0]},
        {"limits": {"peak": "high", "spread": 0.1, "pixel": 0.1, "cost": 0.1}},
        {"limits": {"unknown": 1}},
        {"limits": None},
        {"settings": {"unknown": 1}},
        {"settings": None},
        {"procedure": {"unknown": 1}},
        {"procedure": None},
        {"extractor": "resnet18"},
        {"tuned_on": None},
    ],
    ids=str,
)
def test_forged_facts_are_refused(model: Model, tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(model, tmp_path / "model")
    head = json.loads((tmp_path / "model/model.json").read_text())
    whole = {
        name: head[name] | value if isinstance(value, dict) and isinstance(head.get(name), dict) else value
        for name, value in change.items()
    }
    _edit(tmp_path / "model", whole)
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "model")
    assert len(str(caught.value)) <= 300 + len(str(tmp_path))


def test_what_is_missing_of_the_facts_is_not_made_up(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    head = json.loads((tmp_path / "model/model.json").read_text())
    for name in ("settings", "procedure", "limits"):
        _edit(tmp_path / "model", head | {name: dict(list(head[name].items())[1:])})
        with pytest.raises(InputError, match=rf"damaged model \({name}\.\w+: field required\)"):
            load_model(tmp_path / "model")


def test_a_model_that_would_not_be_read_is_not_written(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"settings.rate is '-1.0': input should be greater than 0"):
        save_model(replace(model, settings=model.settings.replace(rate=-1.0)), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def _forged(array: np.ndarray) -> dict[str, np.ndarray]:
    """The array in other shapes and types; an array of one number has nothing that could be cut."""
    forged = {"rank": array[None], "dtype": array.astype(np.int32 if array.dtype != np.int32 else np.float32)}
    if array.ndim:
        forged |= {"longer": np.concatenate([array, array[:1]]), "none": array[:0]}
    return forged


@pytest.mark.parametrize("name", ["patchcore", "padim", "cflow"])
def test_arrays_that_no_detector_of_such_maps_has_are_refused(model: Model, name: str) -> None:
    rng = np.random.default_rng(0)
    sides = [(SIZE // stride, SIZE // stride, c) for stride, c in zip((4, 8, 16), (24, 40, 112), strict=True)]
    maps = tuple(rng.standard_normal((4, *side)).astype(np.float32) for side in sides)
    params = flow.init(jax.random.key(0), FlowSpec(24, blocks=2, permutation="hard"))
    detector = {
        "padim": lambda: PaDiM.fit(maps, channels=8, rank=2),
        "patchcore": lambda: PatchCore.fit(maps),
        "cflow": lambda: CFlow((Decoder(jnp.zeros(24), jnp.ones(24), params, jnp.float32(-1.5)),)),
    }[name]()
    facts, arrays = detector.state()[1], flat(jax.tree.map(np.asarray, detector.state()[0]))
    known = json.loads(
        json.dumps(_facts(model) | {"detector": {"name": name, **facts}}, default=lambda value: value.item())
    )
    other = {"normals": model.normals.pictures, "held_out": model.held_out, "mixture": vars(model.energy.mixture),
             "scales": vars(model.scales)}  # fmt: skip
    checked = read_facts(ModelFacts, known, kind="model", where="", hint="")
    whole = jax.tree.map(np.asarray, {"detector": nested(arrays), **other})
    assert _fields(whole, checked)["detector"].name == name
    for path in flat(whole):
        for kind, leaf in _forged(flat(whole)[path]).items():
            if (path, kind) in FREE or (name, path, kind) in FREE:
                continue
            with pytest.raises((ValueError, TypeError, IndexError, KeyError, AttributeError)):
                print(path, kind, _fields(nested(flat(whole) | {path: leaf}), checked))


# What may be of any length: pictures, and the couplings of a flow where all its arrays say the same.
FREE = {("normals", "longer"), ("normals", "none"), ("held_out", "longer"), ("held_out", "none")}


def _facts(model: Model) -> dict[str, Any]:
    return {
        "format": "f2pad_jax model",
        "version": VERSION,
        "extractor": {"name": model.extractor.name, "sha256": model.extractor.digest, "precision": "parity"},
        "shape": [SIZE, SIZE],
        "seen": [SIZE, SIZE],
        "windowed": False,
        "limits": vars(model.limits),
        "settings": vars(model.settings),
        "procedure": vars(model.procedure),
        "tuned_on": "default",
        "seed": 0,
    }

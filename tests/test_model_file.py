from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from f2pad_jax.checkpoint import ARRAYS, SUMS, _digests, load_arrays, save_arrays
from f2pad_jax.errors import InputError
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.objective import Scales
from f2pad_jax.pipeline import Model, Settings
from f2pad_jax.priors import PixelMixture
from f2pad_jax.weights import load_extractor

SIZE = 8


def _tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "detector": {"bank": rng.random((40, 12), np.float32), "scalar": np.float32(3)},
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
    return Model(
        detector="patchcore",
        extractor=load_extractor("efficientnet_lite0"),
        size=SIZE,
        params={"bank": jnp.asarray(tree["detector"]["bank"]), "norm": jnp.zeros(40)},
        normals=tree["pictures"],
        held_out=tree["none"],
        mixture=PixelMixture(jnp.zeros((2, 3)), jnp.ones((2, 3, 3))),
        scales=Scales(jnp.float32(0.1), jnp.float32(0.2), jnp.float32(0.3)),
        threshold=0.1,
        region_threshold=0.05,
        settings=Settings(),
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
    with pytest.raises(InputError, match=r"note\.txt is not as it was written"):
        load_arrays(folder, kind="model", version=1)


def test_the_table_must_fit_the_arrays(saved: Path, tmp_path: Path) -> None:
    table = json.loads((saved / "model.json").read_text())["arrays"]
    bank = table["detector/bank"]
    changes: dict[str, Any] = {
        "dtype": bank | {"dtype": "int32"},
        "object": bank | {"dtype": "object"},
        "shape": bank | {"shape": [40, 13]},
        "negative": bank | {"shape": [-1, 12]},
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
    for name in ("detector", "size", "threshold", "region_threshold", "settings", "tuned_on", "seed"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.extractor.digest == model.extractor.digest
    np.testing.assert_array_equal(loaded.params["bank"], model.params["bank"])
    np.testing.assert_array_equal(loaded.normals, model.normals)
    assert loaded.held_out.shape == (0, SIZE, SIZE, 3)
    np.testing.assert_array_equal(loaded.mixture.precision, model.mixture.precision)
    assert [float(scale) for scale in loaded.scales] == [float(scale) for scale in model.scales]


def test_other_weights_are_refused(model: Model, tmp_path: Path) -> None:
    save_model(replace(model, extractor=replace(model.extractor, digest="0" * 64)), tmp_path / "model")
    with pytest.raises(InputError, match="was fitted with other weights of efficientnet_lite0"):
        load_model(tmp_path / "model")


def test_the_precision_returns_and_older_models_have_the_default(model: Model, tmp_path: Path) -> None:
    save_model(replace(model, extractor=replace(model.extractor, precision="bf16")), tmp_path / "model")
    assert load_model(tmp_path / "model").extractor.precision == "bf16"
    known = {"name": model.extractor.name, "sha256": model.extractor.digest}
    _edit(tmp_path / "model", {"extractor": known})
    assert load_model(tmp_path / "model").extractor.precision == "parity"
    _edit(tmp_path / "model", {"extractor": known | {"precision": ["bf16"]}})
    with pytest.raises(InputError, match="no precision is called"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"detector": "oracle"},
        {"size": 16},
        {"size": "8"},
        {"threshold": "high"},
        {"settings": {"unknown": 1}},
        {"settings": None},
        {"extractor": "resnet18"},
        {"tuned_on": None},
    ],
    ids=str,
)
def test_forged_facts_are_refused(model: Model, tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(model, tmp_path / "model")
    _edit(tmp_path / "model", change)
    with pytest.raises(InputError):
        load_model(tmp_path / "model")

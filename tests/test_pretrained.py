"""Models in Hugging Face's manner: what returns, what the card says, what is refused, pictures that are left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from f2pad_jax import Model, load_model, save_model, segment, tune
from f2pad_jax.cli import main
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.model_file import VERSION
from f2pad_jax.pretrained import ARRAYS, CARD, FACTS


@pytest.fixture(scope="module")
def saved(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "brick"
    tiny_model.save_pretrained(folder, metrics={"IoU": 0.93})
    return folder


def harmonic(model: Model) -> Model:
    """The model with the smooth fill, and with a threshold that its few pictures let an anomaly reach."""
    return replace(model, procedure=replace(model.procedure, start="harmonic", false_alarms=0.3))


def test_a_model_returns_as_it_was(tiny_model: Model, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CARD, FACTS, ARRAYS]
    loaded = Model.from_pretrained(saved)
    for name in ("shape", "seen", "limits", "threshold", "settings", "procedure", "tuned_on", "seed"):
        assert getattr(loaded, name) == getattr(tiny_model, name), name
    assert jax.tree.structure(loaded.energy) == jax.tree.structure(tiny_model.energy)
    jax.tree.map(np.testing.assert_array_equal, (loaded.energy, loaded.scales), (tiny_model.energy, tiny_model.scales))
    np.testing.assert_array_equal(loaded.normals.pictures, tiny_model.normals.pictures)
    np.testing.assert_array_equal(loaded.held_out, tiny_model.held_out)


def test_the_card_says_what_there_is(saved: Path) -> None:
    card = ModelCard.load(saved / CARD)
    head = card.data.to_dict()
    assert head["library_name"] == "f2pad_jax"
    assert "license" not in head
    assert {"padim", "efficientnet_lite0"} <= set(head["tags"])
    assert "**8 training pictures of 64 × 64 pixels are inside" in card.text
    assert "| IoU | 0.93 |" in card.text
    assert "| beta0 | 4 |" in card.text


def test_a_repository_of_the_hub_is_read_from_its_cache(
    tiny_model: Model, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "models--somebody--brick"
    shutil.copytree(saved, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loaded = Model.from_pretrained("somebody/brick")
    np.testing.assert_array_equal(loaded.normals.pictures, tiny_model.normals.pictures)
    assert Model.from_pretrained("somebody/brick", revision=commit).limits == tiny_model.limits
    for name in ("somebody/gravel", "no//repository"):
        with pytest.raises(InputError, match="no such folder, and cannot be fetched") as caught:
            Model.from_pretrained(name)
        assert "\n" not in str(caught.value)


def test_only_such_a_folder_is_replaced(tiny_model: Model, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="exists already and is no such model"):
            tiny_model.save_pretrained(target)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    again = Path(shutil.copytree(saved, tmp_path / "again"))
    harmonic(tiny_model).save_pretrained(again)
    assert Model.from_pretrained(again).procedure.start == "harmonic"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "thesis.txt"]


def test_what_is_damaged_is_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    facts, arrays = json.loads((saved / FACTS).read_text()), load_file(saved / ARRAYS)
    bad = {"nan": arrays | {"mixture/mean": np.full_like(arrays["mixture/mean"], np.nan)}}
    bad["missing"] = {name: leaf for name, leaf in arrays.items() if name != "normals"}
    bad["shape"] = arrays | {"normals": arrays["normals"][:, :32]}
    changes = {name: lambda f, a=a: save_file(a, f / ARRAYS) for name, a in bad.items()}
    changes |= {
        "cut": lambda f: (f / ARRAYS).write_bytes((f / ARRAYS).read_bytes()[:-9]),
        "empty": lambda f: (f / ARRAYS).write_bytes(b""),
        "list": lambda f: (f / FACTS).write_text("[]"),
        "deep": lambda f: (f / FACTS).write_text("[" * 100_000),
        "version": lambda f: (f / FACTS).write_text(json.dumps(facts | {"version": VERSION + 1})),
        "format": lambda f: (f / FACTS).write_text(json.dumps(facts | {"format": "other"})),
        "rate": lambda f: (f / FACTS).write_text(json.dumps(facts | {"settings": facts["settings"] | {"rate": -1}})),
        "gone": lambda f: (f / FACTS).unlink(),
    }
    for name, change in changes.items():
        folder = Path(shutil.copytree(saved, tmp_path / name))
        change(folder)
        with pytest.raises(InputError) as caught:
            Model.from_pretrained(folder)
        assert "\n" not in str(caught.value), name


def test_pictures_are_left_out_where_no_fill_needs_them(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the fill comes from the training pictures .start 'auto', padim"):
        tiny_model.save_pretrained(tmp_path / "refused", without_pictures=True)
    assert not list(tmp_path.iterdir())
    save_model(harmonic(tiny_model), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "bare"), "--without-pictures"]) == 0
    assert not {"normals", "held_out"} & {n for n, a in load_file(tmp_path / "bare" / ARRAYS).items() if a.size}
    assert "No training picture is inside" in (tmp_path / "bare" / CARD).read_text("utf-8")
    whole, bare = load_model(tmp_path / "model"), Model.from_pretrained(tmp_path / "bare")
    _, [(image, _, _)] = texture_category("brick", train=8, test=1, size=64)
    wanted, found = segment(whole, image), segment(bare, image)
    assert wanted.mask.any()
    np.testing.assert_array_equal(found.mask, wanted.mask)
    assert (found.verdict, found.residual) == (wanted.verdict, wanted.residual)
    with pytest.raises(InputError, match="holds no pictures to tune on"):
        tune(bare)
    save_model(bare, tmp_path / "again")
    assert len(load_model(tmp_path / "again").normals) == 0

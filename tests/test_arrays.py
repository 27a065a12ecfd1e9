from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import f2pad_jax
from f2pad_jax import estimator
from f2pad_jax.data.arrays import as_picture, as_pictures, as_stack
from f2pad_jax.data.images import write_png
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError, InputWarning, KindError
from f2pad_jax.estimator import Detector
from f2pad_jax.model import Model

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=-1)
CLEAR = np.concatenate([RGB, np.full_like(RGB[..., :1], 255)], axis=-1)


class Foreign:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.ndim = array, array.ndim

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.array


FORMS: dict[str, tuple[Any, np.ndarray]] = {
    "rgb": (RGB, RGB),
    "grey": (RGB[..., 0], GREY),
    "one channel": (RGB[..., :1], GREY),
    "rgba": (CLEAR, RGB),
    "uint16": (RGB.astype(np.uint16) * 257, RGB),
    "big endian": (RGB.astype(">u2") * np.uint16(257), RGB),
    "float64": (RGB / 255, RGB),
    "float16": ((GREY[..., 0] / 255).astype(np.float16), GREY),
    "float rgba": (CLEAR / 255, RGB),
    "foreign": (Foreign(RGB), RGB),
    "jax": (jnp.asarray(RGB), RGB),
    "jax float": (jnp.asarray(RGB, jnp.float32) / 255, RGB),
    "PIL": (Image.fromarray(RGB), RGB),
    "PIL grey": (Image.fromarray(RGB[..., 0].copy()), GREY),
    "PIL rgba": (Image.fromarray(CLEAR), RGB),
    "PIL uint16": (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), GREY),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_the_same(form: str) -> None:
    picture, wanted = FORMS[form]
    found = as_picture(picture)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)
    (one,), single = as_pictures(picture)
    assert single
    np.testing.assert_array_equal(one, wanted)


def test_names_of_files(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RGB)
    for name in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(as_picture(name), RGB)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(as_picture(picture), RGB)
    with pytest.raises(InputError, match="b.png: no such file"):
        as_picture(tmp_path / "b.png")


@pytest.mark.parity
def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(as_picture(torch.from_numpy(RGB)), RGB)
    np.testing.assert_array_equal(as_picture(torch.from_numpy(RGB) / 255), RGB)
    with pytest.raises(KindError, match=r"Tensor gives no array \(Can't call numpy\(\) on Tensor that requires grad"):
        as_picture((torch.from_numpy(RGB) / 255).requires_grad_())


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "NoneType is no picture; give"),
        (7, "int is no picture"),
        ({"a": RGB}, "dict is no picture"),
        (b"bytes", "bytes is no picture"),
        (RGB.astype(bool), r"the picture is bool \(6, 9, 3\); give"),
        (RGB.astype(np.int64), "the picture is int64"),
        (RGB.astype(object), "the picture is object"),
        (RGB[..., :2], r"the picture is uint8 \(6, 9, 2\)"),
        (RGB[:0], r"the picture is uint8 \(0, 9, 3\)"),
        (RGB.astype(np.float32), "the picture has floats from .* to 2.*; bring them into"),
        (np.full((2, 2), np.nan), "the picture has floats from nan to nan"),
        (np.zeros(3), r"the picture is float64 \(3,\); give"),
        ([[1, 2], [3, 4]], "list is no picture"),
    ],
)
def test_everything_else_is_a_type_error(picture: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        as_pictures([picture] if isinstance(picture, list) else picture)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_levels_of_white(tmp_path: Path) -> None:
    twelve = (RGB[..., 0].astype(np.uint32) * 4095 // 255).astype(np.uint16)
    np.testing.assert_allclose(as_picture(twelve, white_level=4095), GREY, atol=1)
    with pytest.warns(
        InputWarning, match="picture: has 16 bits of which the upper ones are unused; if its white is 4095"
    ):
        assert as_picture(twelve).max() < 17
    with pytest.raises(InputError, match="picture: has a level of .*, over the white level 1023"):
        as_picture(twelve, white_level=1023)
    Image.fromarray(twelve).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        as_picture(tmp_path / "a.png", white_level=4095), as_picture(twelve, white_level=4095)
    )


def test_many_pictures(tmp_path: Path) -> None:
    stack = np.stack([RGB, GREY])
    assert as_stack(stack) is stack
    for many in (stack / 255, [RGB, Image.fromarray(GREY)], (RGB, RGB[..., 0]), jnp.asarray(stack), Foreign(stack)):
        pictures, single = as_pictures(many)
        assert not single
        np.testing.assert_array_equal(pictures, stack)
        np.testing.assert_array_equal(as_stack(many), stack)
    names = [tmp_path / "colour.png", tmp_path / "grey.png"]
    for name, picture in zip(names, stack, strict=True):
        Image.fromarray(picture).save(name)
    for many in (np.array(list(map(str, names))), np.array(names, dtype=object)):  # as scikit-learn splits them
        np.testing.assert_array_equal(as_stack(many), stack)
    assert as_pictures([]) == ([], False)
    assert as_stack([]).shape == (0, 0, 0, 3)


# The estimator


@pytest.fixture
def fits(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Fits in no time, and keeps what was asked for."""
    asked: list[tuple[np.ndarray, dict[str, Any]]] = []

    def fit(images: np.ndarray, **options: Any) -> Model:
        asked.append((images, options))
        return tiny_model

    monkeypatch.setattr(estimator, "fit", fit)
    return asked


def test_the_estimator_is_one_of_scikit_learn(fits: list, tiny_model: Model) -> None:
    normals, cases = texture_category("brick", train=4, test=2, size=64)
    pictures = np.stack([normals[0], cases[0][0], normals[1], cases[1][0], normals[2], normals[3]])
    labels = np.array([1, -1, 1, -1, 1, 1])
    made = f2pad_jax.Detector("padim", tiny_model.extractor, size=64, false_alarms=0.02, seed=3)
    assert made.get_params()["false_alarms"] == 0.02
    copy: Any = clone(made)
    assert copy.set_params(seed=4).seed == 4
    with pytest.raises(NotFittedError):
        made.predict(pictures)
    values = cross_val_score(made, pictures, labels, scoring="roc_auc", cv=KFold(2))
    assert values.shape == (2,)
    assert values.min() >= 0.5
    piped = cross_val_score(
        make_pipeline(FunctionTransformer(), made), pictures, labels, scoring="roc_auc", cv=KFold(2)
    )
    np.testing.assert_array_equal(piped, values)
    assert [len(images) for images, _ in fits] == [2, 2] * 2  # defective pictures teach nothing
    assert fits[0][1]["procedure"].false_alarms == 0.02
    assert (fits[0][1]["detector"], fits[0][1]["seed"], fits[0][1]["seen"]) == ("padim", 3, (64, 64))
    assert made.fit(list(normals)) is made
    scores = made.score_samples([normals[0], Image.fromarray(cases[0][0])])
    assert scores.shape == (2,)
    np.testing.assert_allclose(made.decision_function(normals), made.score_samples(normals) + tiny_model.threshold)
    np.testing.assert_array_equal(made.predict(normals), np.where(made.decision_function(normals) < 0, -1, 1))
    assert made.score_samples([]).shape == (0,)


def test_the_estimator_refuses_other_labels(fits: list, tiny_model: Model) -> None:
    made = Detector("padim", tiny_model.extractor, size=64)
    for labels in ([0, 1], [1], [[1], [1]]):
        with pytest.raises(InputError, match="the labels are not one for each picture, 1 or -1"):
            made.fit([RGB, RGB], labels)
    with pytest.raises(InputError, match="there are no normal pictures"):
        made.fit([RGB, RGB], [-1, -1])
    with pytest.raises(TypeError, match="int is no picture"):
        made.fit([1, 2, 3])

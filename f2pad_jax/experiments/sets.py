"""The pictures that the experiments work on, made once and kept in the results' folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import load_images, load_tests, new_folder, open_category, read_test
from f2pad_jax.data.synthesize import synthesize_category, write_category
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.errors import InputError

SIZE = 224
TEXTURE_TRAIN = 64
TEXTURE_IMAGES, PART_IMAGES = 8, 54  # test pictures a category; the paper has 54
EMBEDDED, CUT_PASTE, REAL = "textures", "mvtec-cutpaste", "mvtec"
LITE, NETWORKS = "efficientnet_lite0", {"padim": "resnet18", "patchcore": "resnet18"}
STRUCTURAL = ("capsule",)  # categories that the paper gives structural anomalies as well


class Category(NamedTuple):
    """Pictures of one category.

    Attributes:
      name: of the category.
      train: normal pictures, uint8 (N, S, S, 3).
      images: test pictures, uint8 (K, S, S, 3).
      masks: the truth, bool (K, S, S).
      names: of the test pictures, such as "color/003".
    """

    name: str
    train: np.ndarray
    images: np.ndarray
    masks: np.ndarray
    names: list[str]


def find_categories(data: Path | None) -> list[str]:
    """The names of the categories there are, sorted: folders of `data` with a `train/good`, or the textures.

    Raises:
      InputError: there is no such folder, or no category in it.
    """
    if data is None:
        return sorted(TEXTURES)
    if not data.is_dir():
        raise InputError("no such folder", where=data, hint="name the folder that holds MVTec AD's categories")
    names = sorted(path.name for path in data.iterdir() if (path / "train" / "good").is_dir())
    if not names:
        raise InputError("holds no category", where=data, hint="name the folder that holds capsule, metal_nut, …")
    return names


def extractor_name(detector: str, dataset: str) -> str:
    """The network of a detector: the paper's where there are parts and weights for it, else EfficientNet-Lite0.

    For CFLOW-AD the paper has EfficientNet-B6.
    """
    return LITE if dataset == EMBEDDED else NETWORKS.get(detector, LITE)


def load_category(name: str, folder: Path, *, dataset: str, data: Path | None, images: int, seed: int) -> Category:
    """One category, made in `folder` first where it is not there yet. The same seed gives the same bytes.

    Textures are crops of photographs with pasted colours. Cut-paste sets are the normal pictures of MVTec AD with
    colours pasted through the masks of its own defects (Eq. 16); the pictures they are pasted on leave the training
    set. MVTec AD itself keeps its own training and test pictures; these are resized.

    Args:
      name: one of `find_categories`.
      folder: that holds a folder for each category.
      dataset: `EMBEDDED`, `CUT_PASTE` or `REAL`.
      data: MVTec AD; None for the textures.
      images: test pictures; of MVTec AD at most so many, spread evenly over all kinds of defects.
      seed: of all random choices.

    Raises:
      InputError: the category cannot be made or read.
    """
    target = folder / name
    if not target.is_dir():
        if data is None:
            _make_texture(name, target, images=images, seed=seed)
        elif dataset == REAL:
            _resize_category(data / name, target, images=images)
        else:
            synthesize_category(
                data / name,
                target,
                masks=data / name / "ground_truth",
                count=images,
                structural=name in STRUCTURAL,
                seed=seed,
                size=SIZE,
            )
    return read_category(target)


def read_category(folder: Path) -> Category:
    """A category that was made before.

    Raises:
      InputError: one of its pictures cannot be read.
    """
    category = open_category(folder)
    train, unread = load_images(category.train, SIZE)
    images, masks, cases, unread_tests = load_tests(category.test, SIZE)
    for _, error in unread + unread_tests:
        raise error
    return Category(folder.name, train, images, masks, [case.id for case in cases])


def _make_texture(name: str, target: Path, *, images: int, seed: int) -> None:
    train, cases = texture_category(name, train=TEXTURE_TRAIN, test=images, size=SIZE, seed=seed)
    with new_folder(target) as folder:
        write_category(folder, train, (("color", f"{k:03d}", x, mask) for k, (x, mask, _) in enumerate(cases)))


def _resize_category(source: Path, target: Path, *, images: int) -> None:
    category = open_category(source)
    chosen = np.unique(np.linspace(0, len(category.test) - 1, min(images, len(category.test))).round().astype(int))
    cases = [category.test[index] for index in chosen]
    with new_folder(target) as folder:
        tests = ((case.defect, case.path.stem, *read_test(case, SIZE)) for case in cases)
        write_category(folder, (read_image(path, SIZE) for path in category.train), tests)

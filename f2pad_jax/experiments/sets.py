"""The pictures that the experiments work on, made once and kept in the results' folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from f2pad_jax.data.anomalies import folder_of
from f2pad_jax.data.categories import TestImage
from f2pad_jax.data.folders import new_folder
from f2pad_jax.data.images import read_image
from f2pad_jax.data.layouts import open_category
from f2pad_jax.data.loading import load_images, load_tests, read_test
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


def load_category(
    name: str,
    folder: Path,
    *,
    dataset: str,
    data: Path | None,
    images: int,
    seed: int,
    kinds: Sequence[str] = ("colour",),
) -> Category:
    """One category, made in `folder` first where it is not there yet. The same seed gives the same bytes.

    Textures are crops of photographs with pasted colours. Cut-paste sets are the normal pictures of MVTec AD with
    colours pasted through the masks of its own defects (Eq. 16); the pictures they are pasted on leave the training
    set. MVTec AD itself keeps its own training and test pictures; these are resized.

    Args:
      name: one of `find_categories`.
      folder: that holds a folder for each category.
      dataset: `EMBEDDED`, `CUT_PASTE` or `REAL`.
      data: MVTec AD; None for the textures.
      images: test pictures; of MVTec AD's own at most so many of the defective ones, spread evenly over the pictures of
        each kind, and as many good ones.
      seed: of all random choices.
      kinds: of the anomalies that are made, names of `anomalies.KINDS`, in turn.

    Raises:
      InputError: the category cannot be made or read.
    """
    target = folder / name
    if not target.is_dir():
        if data is None:
            _make_texture(name, target, images=images, seed=seed, kinds=kinds)
        elif dataset == REAL:
            _resize_category(data / name, target, images=images)
        else:
            synthesize_category(
                data / name,
                target,
                masks=data / name / "ground_truth",
                count=images,
                kinds=kinds,
                structural=name in STRUCTURAL and "structural" not in kinds,
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


def _make_texture(name: str, target: Path, *, images: int, seed: int, kinds: Sequence[str]) -> None:
    train, cases = texture_category(name, train=TEXTURE_TRAIN, test=images, size=SIZE, seed=seed, kinds=kinds)
    folders = [folder_of(kinds[index % len(kinds)]) for index in range(images)]
    with new_folder(target) as folder:
        write_category(folder, train, ((folders[k], f"{k:03d}", x, mask) for k, (x, mask, _) in enumerate(cases)))


def _resize_category(source: Path, target: Path, *, images: int) -> None:
    category = open_category(source)
    good = [case for case in category.test if case.good]
    defects = [case for case in category.test if not case.good]
    cases = [*stratified(defects, images), *stratified(good, images)]
    uses = Counter((case.defect, case.path.stem) for case in cases)

    def name(case: TestImage) -> str:
        return case.path.stem if uses[case.defect, case.path.stem] == 1 else case.id.removeprefix(f"{case.defect}/")

    with new_folder(target) as folder:
        tests = ((case.defect, name(case), *read_test(case, SIZE)) for case in cases)
        write_category(folder, (read_image(path, SIZE) for path in category.train), tests)


def stratified(cases: Sequence[TestImage], most: int) -> list[TestImage]:
    """At most so many, of each kind its share to within one picture, spread evenly over its pictures."""
    if len(cases) <= most:
        return list(cases)
    kinds: dict[str, list[TestImage]] = {}
    for case in cases:
        kinds.setdefault(case.defect, []).append(case)
    shares = np.array([len(members) * most / len(cases) for members in kinds.values()])
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: most - counts.sum()]] += 1  # the largest remainders
    taken = (np.linspace(0, len(m) - 1, n).round().astype(int) for m, n in zip(kinds.values(), counts, strict=True))
    return [members[k] for members, places in zip(kinds.values(), taken, strict=True) for k in places]

"""Data sets with exact masks, made from normal pictures: the paper's cut-paste generator, Eq. (16), and other kinds.

Hand-drawn masks of real defects are too loose to measure outlines with, so the paper (arXiv 2407.06519,
Section IV-A) makes its test pictures: x = (1 − m) ⊙ n + m ⊙ c, with a normal picture n, the mask m of a real
defect, resized at random, and one random colour c. `data.anomalies` has more kinds than that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from f2pad_jax.data.anomalies import KINDS, check_kinds, folder_of
from f2pad_jax.data.changes import half_swap
from f2pad_jax.data.folders import find_images, list_images, new_folder
from f2pad_jax.data.images import read_image, read_mask, write_png
from f2pad_jax.data.layouts import find_category, open_category
from f2pad_jax.data.paints import cut_paste as cut_paste  # callers know it by this module
from f2pad_jax.errors import InputError


def synthesize_category(
    normals: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    count: int = 54,
    kinds: Sequence[str] = ("colour",),
    structural: bool = False,
    seed: int = 0,
    size: int | None = None,
    layout: str | None = None,
    white_level: int | None = None,
) -> None:
    """Writes a category in MVTec AD's layout, its test pictures made by `anomalies.KINDS` (and `half_swap`).

    The normal pictures that test pictures are made from leave the training set, and donors of half-swaps come
    from among them: 219 pictures of Capsule become 165 for training and 54 for testing, as in the paper.
    `manifest.json` tells which picture became which. The same arguments give the same files.

    Args:
      normals: a folder of normal pictures, or a category, whose training pictures are taken.
      out: the new category; must not exist, or be empty.
      masks: a folder of defect masks, searched with all folders below it; without it shapes are generated.
      count: how many test pictures.
      kinds: names of `anomalies.KINDS`, which the test pictures take in turn. Each kind has a folder of its name,
        but "colour" has `test/color`. A picture gets the same shape whichever paint it is given.
      structural: whether every second test picture gets a half-swap (`test/structural`) in place of these.
      seed: of all random choices.
      size: side of the square that pictures are resized to first; None keeps their own size.
      layout: of the category, a name of `layouts.LAYOUTS`; by default all are tried.
      white_level: as for `read_image`.

    Raises:
      InputError: a folder or picture is missing or cannot be used, too few pictures are there, there is no such
        kind or nothing of it can be seen on a picture, or `out` holds something.
    """
    kinds = check_kinds(kinds)
    if structural and "structural" in kinds:
        raise InputError("structural anomalies are asked for twice", hint="leave out one of them")
    root = Path(normals)
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="name a folder of normal pictures")
    category = open_category(root, need_test=False, layout=layout) if layout else find_category(root)
    paths = list(category.train) if category is not None else list_images([root])
    least = len(kinds) * (2 if structural else 1)
    if not least <= count < len(paths):
        raise InputError(
            f"{count} test pictures cannot be made from {len(paths)} normal ones",
            where=root,
            hint=f"ask for {least} to {len(paths) - 1}",
        )
    shapes = None if masks is None else _read_masks(Path(masks))
    chosen = np.sort(np.random.default_rng(seed).choice(len(paths), count, replace=False))
    held = [paths[index] for index in chosen]
    kept = [path for index, path in enumerate(paths) if index not in chosen]
    records: list[dict[str, Any]] = []

    def read(path: Path) -> np.ndarray:
        return read_image(path, size, white_level=white_level)

    def tests() -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        for index, path in enumerate(held):
            rng = np.random.default_rng([seed, index])
            image = read(path)
            record = {"source": path.name}
            if structural and index % 2:
                donor = held[(index + int(rng.integers(1, count))) % count]
                defect, record["donor"] = "structural", donor.name
                x, mask = half_swap(image, read(donor), rng, masks=shapes)
            else:
                kind = kinds[(index // 2 if structural else index) % len(kinds)]
                defect = folder_of(kind)
                x, mask = _made(kind, image, rng, shapes, path)
            records.append({"image": f"{defect}/{index:03d}", **record})
            yield defect, f"{index:03d}", x, mask

    with new_folder(out) as folder:
        write_category(folder, (read(path) for path in kept), tests())
        write_manifest(
            folder,
            generator="cut-paste, arXiv 2407.06519 Eq. (16)",
            kinds=kinds,
            seed=seed,
            size=size,
            masks="generated" if masks is None else "given",
            train=[path.name for path in kept],
            test=records,
        )


def write_category(
    folder: Path, train: Iterable[np.ndarray], tests: Iterable[tuple[str, str, np.ndarray, np.ndarray]]
) -> None:
    """Writes MVTec AD's layout: the normal pictures, and (defect, stem, picture, mask) of each test one.

    Test pictures whose defect is "good" have no mask there. A stem may name folders in between, such as "monday/001".
    """
    good = folder / "train" / "good"
    good.mkdir(parents=True)
    for index, image in enumerate(train):
        write_png(good / f"{index:03d}.png", image)
    for defect, stem, image, mask in tests:
        picture, truth = folder / "test" / defect / f"{stem}.png", folder / "ground_truth" / defect / f"{stem}_mask.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, image)
        if defect != "good":
            truth.parent.mkdir(parents=True, exist_ok=True)
            write_png(truth, mask)


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes `manifest.json`: how the category was made."""
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _made(
    kind: str, image: np.ndarray, rng: np.random.Generator, masks: Sequence[np.ndarray] | None, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """One anomaly; where none can be made, the error names the picture and the kind."""
    try:
        return KINDS[kind](image, rng, masks=masks)
    except InputError as error:
        raise InputError(f"{kind}: {error.what}", where=path, hint=error.hint) from error


def _read_masks(folder: Path) -> list[np.ndarray]:
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, hint="name a folder of defect masks")
    masks = [mask for mask in map(read_mask, find_images(folder)) if mask.any()]
    if not masks:
        raise InputError("holds no mask with a defect", where=folder, hint="name a folder of defect masks")
    return masks

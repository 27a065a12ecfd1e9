"""The data set `textures`: real photographs of surfaces in scikit-image's wheel, with anomalies of `data.anomalies`.

Nothing is downloaded. Training crops come from the left of each picture and test crops from the right, so
that no pixel of a test picture is ever seen in training.
"""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Sequence

import numpy as np
import skimage.data

from f2pad_jax.data.anomalies import KINDS, check_kinds, folder_of
from f2pad_jax.data.folders import new_folder
from f2pad_jax.data.paints import cut_paste
from f2pad_jax.data.synthesize import write_category, write_manifest
from f2pad_jax.errors import InputError

TEXTURES = ("brick", "grass", "gravel", "ihc")

_TEST_WIDTH = 224  # of 512 columns; grows with the crop up to half

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def texture_category(
    name: str,
    *,
    train: int = 64,
    test: int = 8,
    size: int = 224,
    seed: int = 0,
    kinds: Sequence[str] = ("colour",),
) -> tuple[np.ndarray, list[Case]]:
    """Training crops and test cases of one texture, at the photograph's own resolution.

    Neither depends on how many of the other are asked for.

    Args:
      name: one of `TEXTURES`.
      train: how many training crops.
      test: how many test crops.
      size: side of the crops, at most 256.
      seed: of all random choices.
      kinds: names of `anomalies.KINDS`, which the tests take in turn: test k has kind k modulo their number. A test
        has the same n, and under paint the same shape, whatever its kind.

    Returns:
      uint8 (train, size, size, 3), and for each test (x, mask, n): the picture with its anomaly, uint8
      (size, size, 3), the mask, bool (size, size), and the normal picture.

    Raises:
      InputError: the name is unknown, or the size does not leave room for disjoint parts, or there is no such kind
        or nothing of it can be seen on a crop.
    """
    kinds = check_kinds(kinds)
    whole = photograph(name)
    width = whole.shape[1]
    if not 1 <= size <= width // 2:
        raise InputError(f"crops of {size} pixels do not fit", where=name, hint=f"ask for 1 to {width // 2}")
    border = width - max(size, _TEST_WIDTH)
    code = zlib.crc32(name.encode())
    normals = _crops(whole[:, :border], train, size, np.random.default_rng([seed, code, 0]))
    rng = np.random.default_rng([seed, code, 1])
    cases = []
    for index, normal in enumerate(_crops(whole[:, border:], test, size, rng)):
        start = copy.deepcopy(rng)
        cut_paste(normal, rng)  # each test starts where colours would have left off, so that kinds share shapes
        cases.append((*KINDS[kinds[index % len(kinds)]](normal, start), normal))
    return normals, cases


def make_textures(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    train: int = 64,
    test: int = 8,
    size: int = 224,
    categories: Sequence[str] = TEXTURES,
    kinds: Sequence[str] = ("colour",),
) -> None:
    """Writes the data set to `out`: each texture a category in MVTec AD's layout, and a `manifest.json`.

    Raises:
      InputError: as for `texture_category`, or there are fewer tests than kinds, or `out` holds something.
    """
    kinds = check_kinds(kinds)
    if 0 < test < len(kinds):
        raise InputError(f"{len(kinds)} kinds do not fit in {test} test pictures", hint=f"ask for {len(kinds)}")
    with new_folder(out) as folder:
        for name in categories:
            normals, cases = texture_category(name, train=train, test=test, size=size, seed=seed, kinds=kinds)
            folders = [folder_of(kinds[index % len(kinds)]) for index in range(test)]
            tests = ((folders[k], f"{k:03d}", x, mask) for k, (x, mask, _) in enumerate(cases))
            write_category(folder / name, normals, tests)
        write_manifest(
            folder,
            generator="photographs of scikit-image, cut-paste of arXiv 2407.06519 Eq. (16)",
            kinds=kinds,
            seed=seed,
            size=size,
            train=train,
            test=test,
            categories=[*categories],
        )


def photograph(name: str) -> np.ndarray:
    """The whole photograph, uint8 (512, 512, 3)."""
    if name not in TEXTURES:
        raise InputError("no such texture", where=name, hint=f"choose from {', '.join(TEXTURES)}")
    picture = {
        "brick": skimage.data.brick,
        "grass": skimage.data.grass,
        "gravel": skimage.data.gravel,
        "ihc": skimage.data.immunohistochemistry,
    }[name]()
    return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture


def _crops(part: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Square crops, (count, size, size, 3), spread evenly down the part and at random across it."""
    height, width = part.shape[:2]
    tops = ((np.arange(count) + rng.random(count)) / max(count, 1) * (height - size + 1)).astype(int)
    lefts = rng.integers(0, width - size + 1, count)
    windows = np.lib.stride_tricks.sliding_window_view(part, (size, size), axis=(0, 1))
    return np.ascontiguousarray(np.moveaxis(windows[tops, lefts], 1, -1))

"""Score maps of other detectors: read, calibrated by those of normal pictures, and refined to exact masks.

The map decides where and how strongly, the features of the model decide what is normal.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from f2pad_jax.calibration import Units, units_of
from f2pad_jax.data.arrays import as_pictures
from f2pad_jax.data.decoding import MAX_PIXELS, opened
from f2pad_jax.errors import InputError
from f2pad_jax.interest import check_roi
from f2pad_jax.model import Model
from f2pad_jax.preparing import locate
from f2pad_jax.reducing import Shape
from f2pad_jax.segmentation import Segmentation, in_groups, segment_regions
from f2pad_jax.sights import foreign_scores, look, with_map

SUFFIXES = (".npy", ".npz", ".tif", ".tiff", ".png")
FEWEST = 3  # maps of normal pictures
HINT = "calibrate the model with maps of normal pictures: f2pad fit … --maps FOLDER, or f2pad_jax.calibrate"


def read_map(path: str | os.PathLike[str]) -> np.ndarray:
    """A score map from a file, in the units that it has there.

    Args:
      path: `.npy`, `.npz` with one array, or a TIFF or PNG of one channel: float, or 8 or 16 bits.

    Returns:
      (H, W) float32.

    Raises:
      InputError: the file is missing, damaged, too large, a picture in colours, or holds no map.
    """
    path = Path(path)
    if path.suffix.casefold() in (".npy", ".npz"):
        return check_map(_read_arrays(path), where=path)
    with opened(path) as decoded:
        picture = decoded.picture
        if picture.mode != "F" and not picture.mode.startswith(("L", "I")):
            hint = "save the scores themselves, in one channel"
            raise InputError(f"is a picture in colours ({picture.mode})", where=path, hint=hint)
        return check_map(np.asarray(picture), where=path)


def _read_arrays(path: Path) -> Any:
    """The array of a `.npy` file, or the only one of a `.npz`."""
    try:
        if path.suffix.casefold() == ".npz":
            with zipfile.ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > 8 * MAX_PIXELS:
                    raise InputError(f"has more than {MAX_PIXELS:,} values", where=path)
            with np.load(path, allow_pickle=False) as arrays:
                if len(arrays.files) != 1:
                    names = ", ".join(arrays.files) or "none"
                    raise InputError(f"holds the arrays {names}", where=path, hint="save one map in a file")
                return arrays[arrays.files[0]]
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, hint="check the name") from error
    except Exception as error:  # NumPy and zipfile raise errors of many kinds where bytes are damaged
        raise InputError(f"cannot be read ({error})", where=path, hint="save it again") from error


def check_map(values: object, *, where: object = None) -> np.ndarray:
    """An array that is checked to be a score map: (H, W) float32, axes of one element aside.

    Raises:
      InputError: of another rank or kind, without pixels, of too many, or not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.size == 0 or array.size > MAX_PIXELS:
        raise InputError(f"the map is {array.dtype} {array.shape}", where=where, hint="give numbers, (H, W)")
    plain = array.reshape([side for side in array.shape if side > 1]) if array.ndim > 2 else array
    if plain.ndim != 2:
        raise InputError(f"the map is {array.dtype} {array.shape}", where=where, hint="give numbers, (H, W)")
    plain = plain.astype(np.float32)
    if not np.isfinite(plain).all():
        raise InputError("the map holds values that are not finite", where=where, hint="save finite scores")
    return plain


def list_maps(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The score maps of a folder by their stems.

    Raises:
      InputError: no such folder, no map in it, or two of one stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, hint="name a folder of score maps")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.casefold() not in SUFFIXES or not path.is_file():
            continue
        if path.stem in found:
            raise InputError(f"two maps have one name ({found[path.stem].name}, {path.name})", where=folder)
        found[path.stem] = path
    if not found:
        raise InputError("holds no score maps", where=folder, hint=f"save them as {', '.join(SUFFIXES)}")
    return found


def map_of(maps: Mapping[str, Path], picture: Path) -> Path:
    """The map of a picture, which has its stem.

    Raises:
      InputError: there is none.
    """
    if picture.stem not in maps:
        raise InputError("there is no score map of its name", where=picture, hint="save one with the picture's stem")
    return maps[picture.stem]


def check_stems(pictures: Sequence[Path]) -> None:
    """Makes sure that no two pictures would have one map.

    Raises:
      InputError: two share a stem.
    """
    stem, uses = Counter(path.stem for path in pictures).most_common(1)[0]
    if uses > 1:
        hint = "segment one folder at a time"
        raise InputError(f"{uses} pictures are called {stem}, and score maps are found by this name", hint=hint)


def calibrate(model: Model, normal_maps: Sequence[np.ndarray]) -> Model:
    """A model that knows the units of another detector's score maps.

    Args:
      model: as fitted or tuned.
      normal_maps: score maps of at least three normal pictures that the other detector was not trained on; numbers of
        any range, (H, W) of any size, each of a whole picture.

    Returns:
      The model with `units`, for `refine`.

    Raises:
      InputError: too few maps, no such arrays, or maps that tell nothing, such as masks.
    """
    check_whole(model)
    return replace(model, units=find_units(normal_maps, model.seen, None if model.inside is None else model.inside[0]))


def find_units(normal_maps: Sequence[np.ndarray], seen: Shape, inside: np.ndarray | None = None) -> Units:
    """The units of another detector's score maps, before there is a model.

    Args:
      normal_maps: as for `calibrate`.
      seen: height and width of what the model's extractor will see.
      inside: the region of interest in it, of that shape, bool.

    Raises:
      InputError: as for `calibrate`.
    """
    if len(normal_maps) < FEWEST:
        raise InputError(f"{len(normal_maps)} maps of normal pictures are too few", hint=f"give at least {FEWEST}")
    checked = [check_map(values) for values in normal_maps]
    if all(len(np.unique(values)) <= 2 for values in checked):
        raise InputError("the score maps of normal pictures hold one value or two", hint="give scores, not masks")
    inspected = slice(None) if inside is None else inside
    return units_of([foreign_scores(values, seen)[inspected] for values in checked])


def check_whole(model: Model) -> None:
    """Makes sure that a model works on whole pictures.

    Raises:
      InputError: it works in windows, whose scores other detectors do not give.
    """
    if model.windowed:
        raise InputError("the model works in windows, and score maps are of whole pictures", hint="fit it without")


def check_units(model: Model) -> Units:
    """The units of another detector's maps that a model was calibrated with.

    Raises:
      InputError: there are none, or the model works in windows.
    """
    check_whole(model)
    if model.units is None:
        raise InputError("the units of the score maps are not known", hint=HINT)
    return model.units


def refine(
    model: Model,
    image: Any,
    score_map: Any,
    *,
    roi: np.ndarray | None = None,
    smallest_defect: int = 0,
) -> Any:
    """Finds the exact mask of what another detector's score map shows.

    Algorithm 1 of arXiv 2407.06519 with the map in place of the model's own scores: the map says where to look and how
    much stands out there, and l_n of the model says what is normal.

    Args:
      model: of `calibrate`, with maps of the same detector.
      image: a picture, or a list or stack of them, as `segment` takes them.
      score_map: numbers, of any size, of the whole picture; of a list or stack, one each.
      roi: region of interest, as for `segment`.
      smallest_defect: as for `segment`.

    Returns:
      A `Segmentation`, or a list of them; `score_map`, `refined_map` and `threshold` are in the units of the map.

    Raises:
      InputError: the model is not calibrated or works in windows, no such arrays, or not as many maps as pictures.
    """
    units = check_units(model)
    pictures, single = as_pictures(image, white_level=model.white_level)
    checked = [check_map(values) for values in ([score_map] if single else score_map)]
    if len(pictures) != len(checked):
        raise InputError(f"there are {len(checked)} score maps of {len(pictures)} pictures", hint="give one each")
    if roi is not None:
        model = replace(model, roi=check_roi(roi))
    if (threshold := model.procedure.threshold) is not None:  # in the units of the maps
        model = replace(model, procedure=replace(model.procedure, threshold=threshold - units.zero))

    def solve(alike: np.ndarray, which: slice) -> list[Segmentation]:
        pairs = zip(look(model, alike), checked[which], strict=True)
        sights = [with_map(model, sight, values) for sight, values in pairs]
        regions, starts = zip(*(locate(model, sight) for sight in sights), strict=True)
        return segment_regions(model, alike, sights, regions, starts=starts)

    found = in_groups(model, pictures, solve, smallest_defect=smallest_defect)
    results = [_shifted(each, units.zero) for each in found]
    return results[0] if single else results


def _shifted(result: Segmentation, zero: float) -> Segmentation:
    """A result whose scores count from 0, in the units of the maps."""
    scores = {name: getattr(result, name) + np.float32(zero) for name in ("score_map", "refined_map")}
    return replace(result, **scores, threshold=result.threshold + zero)

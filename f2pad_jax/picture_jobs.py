"""What is done with picture files that are in memory together: read, solve, write, and say what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from f2pad_jax import report
from f2pad_jax.data.decoding import shape_of, split_page
from f2pad_jax.data.images import read_image, write_png, write_tiff
from f2pad_jax.errors import InputError
from f2pad_jax.grouping import Budget, groups
from f2pad_jax.maps import map_of, read_map, refine
from f2pad_jax.model import Model
from f2pad_jax.output import write_bytes
from f2pad_jax.segmentation import Segmentation, segment


class Job(NamedTuple):
    """What all pictures share.

    Attributes:
      model: as fitted or tuned.
      out: an existing folder for the results.
      made_by: names the model and the options; goes into each record's `key`, with the bytes of the picture.
      maps: another detector's score maps by the stems of their pictures, in place of the model's own scores.
      options: further arguments of `segment`, or of `refine` where there are maps.
      pixel_size: side of a pixel in micrometres, for the measures of defects.
      limit: of the process's memory, by which fewer pictures are in memory together; the results are the same. One that
        does not fit has failed.
    """

    model: Model
    out: Path
    made_by: str = ""
    maps: Mapping[str, Path] | None = None
    options: Mapping[str, Any] = {}
    pixel_size: float | None = None
    limit: Budget | None = None


class Picture(NamedTuple):
    """A picture file, and the stem of its results' names."""

    path: Path
    stem: str


Facts = dict[str, Any]  # of a picture: the keys of its record, or status "failed" and the error
Finish = Callable[[int, Facts], None]  # takes the index of a picture that is done, and its facts


class Found(NamedTuple):
    """What was found in a picture, before it is written.

    Attributes:
      place: of the picture in its group.
      key: of the bytes that were there before they were read.
      what: the picture, uint8 (H, W, 3), and its result, or what is wrong with it.
    """

    place: int
    key: str
    what: tuple[np.ndarray, Segmentation] | InputError


def segment_here(job: Job, pictures: Sequence[Picture], finish: Finish) -> None:
    """Segments pictures in this process, group by group; a second thread writes one while the next is solved."""

    def write(members: range, found: Sequence[Found]) -> None:
        for each in found:
            index = members[each.place]
            finish(index, write_found(job, pictures[index], each))

    # Drawing takes a few hundredths of a second a picture: the next group is solved meanwhile.
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write, range(0), [])
        for members in groups_of(job, pictures):
            found = segment_group(job, [pictures[index] for index in members])
            writing.result()  # no more than two groups are in memory
            writing = writer.submit(write, members, found)
        writing.result()


def groups_of(job: Job, pictures: Sequence[Picture]) -> Iterator[range]:
    """Indices of the pictures that are in memory together, group by group."""
    own = job.model.shape
    shapes = [own if job.limit is None else shape_of(picture.path) or own for picture in pictures]
    return groups(job.model, shapes, job.limit)


def segment_group(job: Job, group: Sequence[Picture]) -> list[Found]:
    """Reads pictures and segments them together; one that fails takes none of the others with it."""
    keys = [key_of(job, picture.path) for picture in group]  # of one that changes meanwhile, `--resume` shall know
    found = _segment_paths(job, [picture.path for picture in group])
    return [Found(place, keys[place], what) for place, what in found]


def write_found(job: Job, picture: Picture, found: Found) -> Facts:
    """Writes the files of a picture.

    Returns:
      Its facts, or those of a failure.
    """
    what = found.what
    if not isinstance(what, InputError):
        try:
            return {"key": found.key, **_write_result(job, picture, *what)}
        except Exception as error:
            what = _told(error, picture.path)
    return {"key": found.key, "status": "failed", "error": str(what)}


def key_of(job: Job, path: Path) -> str:
    """What a result is a function of, in 16 digits: model, options, picture and map; empty where one cannot be read."""
    maps = job.maps
    own = [] if maps is None else [maps[path.stem]] if path.stem in maps else [Path()]
    digests = [_digest(file) for file in (path, *own)]
    return hashlib.sha256(" ".join([job.made_by, *digests]).encode()).hexdigest()[:16] if all(digests) else ""


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        source, page = split_page(path)
        if not source.is_file():  # a pipe would be waited for
            return ""
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
    return digest if page == 1 else f"{digest} {page}"


def panel_row(label: str, image: np.ndarray, result: Segmentation, truth: np.ndarray | None = None) -> report.Row:
    """What `report.draw` needs of a result."""
    return report.Row(
        label,
        image,
        result.score_map,
        result.threshold,
        result.initial_mask,
        result.mask,
        result.normal,
        truth,
    )


def _segment_paths(
    job: Job, group: Sequence[Path]
) -> Iterator[tuple[int, tuple[np.ndarray, Segmentation] | InputError]]:
    """Pictures that are solved together: place in the group, and what was found or is wrong."""
    images: dict[int, np.ndarray] = {}
    score_maps: list[np.ndarray] = []
    for index, path in enumerate(group):
        try:
            if job.limit is not None:
                job.limit.check(shape_of(path) or job.model.shape, where=path)
            image = read_image(path, white_level=job.model.white_level)
            if job.maps is not None:
                score_maps.append(read_map(map_of(job.maps, path)))
            images[index] = image
        except Exception as error:
            yield index, _told(error, path)
    pictures = list(images.values())
    try:
        if job.maps is None:
            results = segment(job.model, pictures, **job.options) if images else []
        else:
            results = refine(job.model, pictures, score_maps, **job.options)
    except Exception as error:
        if len(group) == 1:
            yield 0, _told(error, group[0])
            return
        # One of them is to blame, or all together were too much: each has its own chance.
        for index in images:
            for _, what in _segment_paths(job, [group[index]]):
                yield index, what
        return
    for (index, image), result in zip(images.items(), results, strict=True):
        yield index, (image, result)


def _told(error: Exception, path: Path) -> InputError:
    """An error as one line about a picture, foreseen or not."""
    if isinstance(error, InputError):
        return error
    return InputError(f"failed ({type(error).__name__}: {error})", where=path)


def _write_result(job: Job, picture: Picture, image: np.ndarray, result: Segmentation) -> Facts:
    out, (path, stem) = job.out, picture
    files = {kind: f"{stem}_{kind}.png" for kind in ("mask", "normal", "panel")}
    write_png(out / files["mask"], result.mask)
    write_png(out / files["normal"], result.normal)
    for kind, values in (("score", result.score_map), ("refined", result.refined_map)):
        files[kind] = f"{stem}_{kind}.tiff"
        write_tiff(out / files[kind], values)
    write_bytes(out / files["panel"], report.png(report.draw([panel_row(path.stem, image, result)])))
    return {
        "status": result.status,
        **files,
        "size": [*result.mask.shape],
        "worked_at": [*job.model.shape],
        "white_level": job.model.white_level,
        "area": round(float(result.mask.mean()), 6),
        "backbone_area": round(float(result.initial_mask.mean()), 6),
        "max_score": float(result.score_map.max()),
        "threshold": float(result.threshold),
        "residual": round(float(result.residual), 4),
        "verdict": result.verdict,
        "defects": [defect.record(job.pixel_size) for defect in result.defects],
        "iterations": int(result.iterations),
        "seconds": round(float(result.seconds), 3),
    }

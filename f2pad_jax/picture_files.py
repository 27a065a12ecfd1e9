"""Picture files through to files of results."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from f2pad_jax import report
from f2pad_jax.data.decoding import shape_of, split_page
from f2pad_jax.data.folders import RECORDS
from f2pad_jax.data.images import read_image, write_png, write_tiff
from f2pad_jax.defects import coco
from f2pad_jax.errors import InputError
from f2pad_jax.grouping import Budget, budget, groups
from f2pad_jax.maps import map_of, read_map, refine
from f2pad_jax.model import Model
from f2pad_jax.output import append_line, json_line, write_bytes
from f2pad_jax.segmentation import Segmentation, segment

COCO = "coco.json"
FILES = ("mask", "normal", "panel", "score", "refined")  # keys of a record that name files
SPOILED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of a line that was cut off or changed
LONGEST = 220  # bytes of a stem; file systems take names of 255


def segment_files(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    made_by: str = "",
    maps: Mapping[str, Path] | None = None,
    options: Mapping[str, Any] | None = None,
    pixel_size: float | None = None,
    memory: float | None = None,
    resume: bool = False,
    on_failure: Callable[[InputError], None],
) -> list[dict[str, Any]]:
    """Segments picture files into an existing folder.

    While a group is solved, a second thread writes the one before: `<stem>_mask.png`, `<stem>_normal.png`,
    `<stem>_panel.png` and, in float32, `<stem>_score.tiff` and `<stem>_refined.tiff` of each picture, and a line of
    `results.jsonl` as each is done. At the end the lines are sorted, and `coco.json` has all defects as a COCO set.
    Pictures that share a stem are told apart by the names of their folders. Whatever goes wrong with a picture loses
    none of the others.

    Args:
      model: as fitted or tuned.
      paths: the picture files.
      out: the folder.
      made_by: names the model and the options; goes into each record's `key`, with the bytes of the picture.
      maps: another detector's score maps by the stems of their pictures, in place of the model's own scores.
      options: further arguments of `segment`, or of `refine` where there are maps.
      pixel_size: side of a pixel in micrometres, for the measures of defects.
      memory: most host memory of the process in GiB, by which fewer pictures are in memory together; the results are
        the same. One that does not fit has failed.
      resume: whether pictures are passed over that are done already: by their record, its `key` and the files it names.
      on_failure: called with what is wrong with a picture, as soon as it is known.

    Returns:
      The lines of `results.jsonl`, one per picture in the order given.

    Raises:
      InputError: the folder holds some of the pictures, or cannot be written.
    """
    if any(split_page(path)[0].parent.resolve() == out.resolve() for path in paths):
        raise InputError("holds pictures that are to be segmented", where=out, hint="name another folder")
    lines, stems = out / RECORDS, output_stems(paths)
    earlier = _whole_records(out) if resume else {}
    records: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    write_bytes(lines, "".join(map(json_line, earlier.values())).encode())
    limit = None if memory is None else budget(model, memory)
    shapes = [model.shape if limit is None else shape_of(path) or model.shape for path in paths]
    job = _Job(model, out, maps, options or {}, pixel_size, limit)

    def finish(places: Sequence[int], found: Sequence[tuple[int, Found]]) -> None:
        for index, each in found:
            place = places[index]
            facts = each if isinstance(each, InputError) else _written(job, paths[place], stems[place], *each)
            if isinstance(facts, InputError):
                on_failure(facts)
                facts = {"status": "failed", "error": str(facts)}
            records[place] |= facts
            append_line(lines, records[place])
            bar.update()

    # Drawing takes a few hundredths of a second a picture: the next group is solved meanwhile.
    with tqdm(total=len(paths), desc="segment", unit="image", disable=None) as bar, ThreadPoolExecutor(1) as writer:
        writing = writer.submit(finish, [], [])
        for members in groups(model, shapes, limit):
            todo = []
            for place in members:
                key, kept = _key(paths[place], made_by, maps), earlier.get(str(paths[place]), {})
                records[place]["key"] = key
                if key and (kept.get("key"), kept.get("mask")) == (key, f"{stems[place]}_mask.png"):
                    records[place] = kept
                    bar.update()
                else:
                    todo.append(place)
            found = list(_segment_group(job, [paths[place] for place in todo]))
            writing.result()  # no more than two groups are in memory
            writing = writer.submit(finish, todo, found)
        writing.result()
    write_bytes(lines, "".join(map(json_line, records)).encode())
    write_bytes(out / COCO, json_line(coco(records)).encode())
    return records


def _key(path: Path, made_by: str, maps: Mapping[str, Path] | None) -> str:
    """What a result is a function of, in 16 digits: model, options, picture and map; empty where one cannot be read."""
    own = [] if maps is None else [maps[path.stem]] if path.stem in maps else [Path()]
    digests = [_digest(file) for file in (path, *own)]
    return hashlib.sha256(" ".join([made_by, *digests]).encode()).hexdigest()[:16] if all(digests) else ""


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


def _whole_records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of an earlier run whose files are all there, by the name of their picture; the last one counts."""
    try:
        texts = (out / RECORDS).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    whole = {}
    for text in texts:
        with suppress(*SPOILED):
            record = json.loads(text)
            if isinstance(record, dict) and record.get("status", "failed") != "failed" and _has_files(record, out):
                coco([record])
                whole[str(record.get("image"))] = record
    return whole


def _has_files(record: dict[str, Any], out: Path) -> bool:
    names = [record.get(kind) for kind in FILES]
    return all(isinstance(name, str) and (out / name).is_file() for name in names)


def output_stems(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each picture: its stem, and more of its path where several share that."""
    # Some file systems take "A" and "a" for one name.
    uses = Counter(path.stem.casefold() for path in paths)
    taken = {stem for stem, count in uses.items() if count == 1}
    stems: list[str] = []
    for path in paths:
        stem = path.stem
        if uses[stem.casefold()] > 1:
            longer = f"{path.absolute().parent.name}_{stem}"
            full = f"{longer}_{path.suffix.lstrip('.')}"
            numbered = (f"{full}_{number}" for number in range(2, len(paths) + 2))
            stem = next(name for name in (longer, full, *numbered) if name.casefold() not in taken)
            taken.add(stem.casefold())
        stems.append(_short(stem, path))
    return stems


def _short(stem: str, path: Path) -> str:
    """A stem with which names of files are not longer than file systems allow, told apart by a digest of the path."""
    raw = os.fsencode(stem)
    if len(raw) <= LONGEST:
        return stem
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:8]
    return f"{raw[: LONGEST - 9].decode('utf-8', 'ignore')}_{digest}"


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


class _Job(NamedTuple):
    """What all pictures share; see `segment_files`."""

    model: Model
    out: Path
    maps: Mapping[str, Path] | None
    options: Mapping[str, Any]
    pixel_size: float | None
    limit: Budget | None


Found = tuple[np.ndarray, Segmentation] | InputError  # a picture and what was found in it, or what is wrong with it


def _segment_group(job: _Job, group: Sequence[Path]) -> Iterator[tuple[int, Found]]:
    """Pictures that are solved together: index in the group, and what was found."""
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
            for _, found in _segment_group(job, [group[index]]):
                yield index, found
        return
    for (index, image), result in zip(images.items(), results, strict=True):
        yield index, (image, result)


def _written(job: _Job, path: Path, stem: str, image: np.ndarray, result: Segmentation) -> dict[str, Any] | InputError:
    """The facts of a picture whose files are written, or what went wrong."""
    try:
        return _write_result(job, path, image, result, stem)
    except Exception as error:
        return _told(error, path)


def _told(error: Exception, path: Path) -> InputError:
    """An error as one line about a picture, foreseen or not."""
    if isinstance(error, InputError):
        return error
    return InputError(f"failed ({type(error).__name__}: {error})", where=path)


def _write_result(job: _Job, path: Path, image: np.ndarray, result: Segmentation, stem: str) -> dict[str, Any]:
    out = job.out
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

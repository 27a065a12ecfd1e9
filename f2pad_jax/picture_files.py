"""Picture files through to files of results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from f2pad_jax.data.decoding import split_page
from f2pad_jax.data.folders import RECORDS
from f2pad_jax.defects import coco
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.output import append_line, json_line, remove_files, write_bytes
from f2pad_jax.picture_jobs import Facts, Finish, Job, Picture, key_of, segment_here

COCO = "coco.json"
FILES = ("mask", "normal", "panel", "score", "refined")  # keys of a record that name files
SPOILED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of a line that was cut off or changed
LONGEST = 220  # bytes of a stem; file systems take names of 255


def segment_files(
    job: Job,
    paths: Sequence[Path],
    *,
    resume: bool = False,
    work: Callable[[Job, Sequence[Picture], Finish], None] = segment_here,
    on_failure: Callable[[str], None],
) -> list[Facts]:
    """Segments picture files into the folder of a job.

    Each picture gets `<stem>_mask.png`, `<stem>_normal.png`, `<stem>_panel.png` and, in float32, `<stem>_score.tiff`
    and `<stem>_refined.tiff`, and a line of `results.jsonl` as it is done. At the end the lines are sorted, and
    `coco.json` has all defects as a COCO set. Pictures that share a stem are told apart by the names of their folders.
    Whatever goes wrong with a picture loses none of the others. Files that the records of an earlier run name are
    removed, but for those of pictures that are passed over.

    Args:
      job: what all pictures share.
      paths: the picture files.
      resume: whether pictures are passed over that are done already: by their record, its `key` and the files it names.
      work: segments pictures, in any order, and tells when each is done: in this process, or elsewhere.
      on_failure: called with what is wrong with a picture, as soon as it is known.

    Returns:
      The lines of `results.jsonl`, one per picture in the order given.

    Raises:
      InputError: the folder holds some of the pictures, or cannot be written.

    Warns:
      InputWarning: there are earlier records that cannot be read.
    """
    out = job.out
    if any(split_page(path)[0].parent.resolve() == out.resolve() for path in paths):
        raise InputError("holds pictures that are to be segmented", where=out, hint="name another folder")
    lines, pictures = out / RECORDS, list(map(Picture, paths, output_stems(paths)))
    before, spoiled = _earlier_records(out)
    if spoiled and resume:
        what = f"holds lines that cannot be read ({spoiled}); their pictures are segmented again"
        warnings.warn(InputWarning(what, where=lines), stacklevel=2)
    earlier = {str(record.get("image")): record for record in before if resume and _has_files(record, out)}
    write_bytes(lines, "".join(map(json_line, earlier.values())).encode())
    _remove_files(out, before, earlier.values())
    records = {index: record for index, each in enumerate(pictures) if (record := _done(job, each, earlier))}
    todo = [index for index in range(len(pictures)) if index not in records]

    def finish(index: int, facts: Facts) -> None:
        if facts["status"] == "failed":
            on_failure(facts["error"])
        record = records[todo[index]] = {"image": str(paths[todo[index]]), **facts}
        append_line(lines, record)
        bar.update()

    with tqdm(total=len(paths), initial=len(records), desc="segment", unit="image", disable=None) as bar:
        work(job, [pictures[index] for index in todo], finish)
    ordered = [records[index] for index in range(len(paths))]
    write_bytes(lines, "".join(map(json_line, ordered)).encode())
    write_bytes(out / COCO, json_line(coco(ordered)).encode())
    _remove_files(out, before, ordered)
    return ordered


def _done(job: Job, picture: Picture, earlier: dict[str, Facts]) -> Facts | None:
    """The record of a picture that an earlier run has done with the same model, options and bytes."""
    record = earlier.get(str(picture.path), {})
    same = record.get("mask") == f"{picture.stem}_mask.png" and record.get("key")
    return record if same and same == key_of(job, picture.path) else None


def _earlier_records(out: Path) -> tuple[list[Facts], int]:
    """The records of an earlier run, of a picture the last one last, and how many lines cannot be read."""
    lines, records, spoiled = out / RECORDS, [], 0
    for text in lines.read_bytes().splitlines() if lines.is_file() else ():
        try:
            record = json.loads(text)
            if record.get("status", "failed") != "failed":
                coco([record])
                records.append(record)
        except SPOILED:
            spoiled += 1
    return records, spoiled


def _remove_files(out: Path, before: Iterable[Facts], kept: Iterable[Facts]) -> None:
    """Removes the files of earlier records that none of the kept ones names."""
    # Some file systems take "A" and "a" for one name.
    named = {name.casefold() for record in kept for name in _files_of(record)}
    old = (name for record in before for name in _files_of(record))
    remove_files(out / name for name in old if name.casefold() not in named)


def _files_of(record: Facts) -> Iterator[str]:
    """Names of a record's files, if they are such as are given to results: a record may name anything."""
    for kind in FILES:
        name = record.get(kind)
        if isinstance(name, str) and re.fullmatch(rf"[^/\\]+_{kind}\.(png|tiff)", name):
            yield name


def _has_files(record: Facts, out: Path) -> bool:
    names = [record.get(kind) for kind in FILES]
    return all(isinstance(name, str) and os.path.isfile(out / name) for name in names)


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
        stems.append(stem if len(os.fsencode(stem)) <= LONGEST else _short(stem, str(path.absolute())))
    return stems


def flat_stems(names: Sequence[str]) -> list[str]:
    """A stem of a file for each of these names, which differ and may hold slashes."""
    stems = [name.replace("/", "_") for name in names]
    uses = Counter(stem.casefold() for stem in stems)
    return [
        stem if uses[stem.casefold()] == 1 and len(os.fsencode(stem)) <= LONGEST else _short(stem, name)
        for stem, name in zip(stems, names, strict=True)
    ]


def _short(stem: str, name: str) -> str:
    """A stem with which names of files are not longer than file systems allow, told apart by a digest of the name."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{os.fsencode(stem)[: LONGEST - 9].decode('utf-8', 'ignore')}_{digest}"

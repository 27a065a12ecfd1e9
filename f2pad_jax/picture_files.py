"""Picture files through to files of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from f2pad_jax import report
from f2pad_jax.data.images import read_image, write_png, write_tiff
from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.output import write_bytes
from f2pad_jax.segmentation import GROUP, Segmentation, segment


def segment_files(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    *,
    grow: bool = False,
    on_failure: Callable[[InputError], None],
) -> list[dict[str, Any]]:
    """Segments picture files into an existing folder.

    Writes `<stem>_mask.png`, `<stem>_normal.png`, `<stem>_panel.png` and, in float32, `<stem>_score.tiff` and
    `<stem>_refined.tiff` for each, and `results.jsonl`.
    Pictures that share a stem are told apart by the names of their folders. A picture that cannot be used
    loses none of the others.

    Args:
      model: as fitted or tuned.
      paths: the picture files.
      out: the folder.
      grow: whether regions grow where n scores high at their border.
      on_failure: called with what is wrong with a picture, as soon as it is known.

    Returns:
      The lines of `results.jsonl`, one per picture in the order given.

    Raises:
      InputError: the folder holds some of the pictures, or cannot be written.
    """
    if any(path.parent.resolve() == out.resolve() for path in paths):
        raise InputError("holds pictures that are to be segmented", where=out, hint="name another folder")
    records: list[dict[str, Any]] = []
    stems = output_stems(paths)
    try:
        with tqdm(total=len(paths), desc="segment", unit="image", disable=None) as bar:
            for first in range(0, len(paths), GROUP):
                group = slice(first, first + GROUP)
                records += _segment_group(model, paths[group], out, stems[group], grow=grow, on_failure=on_failure)
                bar.update(len(paths[group]))
    finally:  # what was done before an interruption is on record as well
        write_bytes(out / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    return records


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
        stems.append(stem)
    return stems


def panel_row(
    model: Model, label: str, image: np.ndarray, result: Segmentation, truth: np.ndarray | None = None
) -> report.Row:
    """What `report.draw` needs of a result."""
    return report.Row(
        label,
        image,
        result.score_map,
        model.threshold,
        result.initial_mask,
        result.mask,
        result.normal,
        truth,
    )


def _segment_group(
    model: Model,
    paths: Sequence[Path],
    out: Path,
    stems: Sequence[str],
    *,
    grow: bool,
    on_failure: Callable[[InputError], None],
) -> list[dict[str, Any]]:
    """Pictures that are solved together, and their records in the order given."""
    records: list[dict[str, Any]] = [{"image": str(path)} for path in paths]

    def fail(place: int, error: InputError) -> None:
        on_failure(error)
        records[place] |= {"status": "failed", "error": str(error)}

    images: dict[int, np.ndarray] = {}
    for place, path in enumerate(paths):
        try:
            images[place] = read_image(path)
        except InputError as error:
            fail(place, error)
    if images:
        results = segment(model, list(images.values()), grow=grow)
        for (place, image), result in zip(images.items(), results, strict=True):
            try:
                records[place] |= _write_result(model, paths[place], image, result, out, stems[place])
            except InputError as error:
                fail(place, error)
    return records


def _write_result(
    model: Model, path: Path, image: np.ndarray, result: Segmentation, out: Path, stem: str
) -> dict[str, Any]:
    files = {kind: f"{stem}_{kind}.png" for kind in ("mask", "normal", "panel")}
    write_png(out / files["mask"], result.mask)
    write_png(out / files["normal"], result.normal)
    for kind, values in (("score", result.score_map), ("refined", result.refined_map)):
        files[kind] = f"{stem}_{kind}.tiff"
        write_tiff(out / files[kind], values)
    write_bytes(out / files["panel"], report.png(report.draw([panel_row(model, path.stem, image, result)])))
    return {
        "status": result.status,
        **files,
        "area": round(float(result.mask.mean()), 6),
        "backbone_area": round(float(result.initial_mask.mean()), 6),
        "max_score": float(result.score_map.max()),
        "residual": round(float(result.residual), 4),
        "verdict": result.verdict,
        "iterations": int(result.iterations),
        "seconds": round(float(result.seconds), 3),
    }

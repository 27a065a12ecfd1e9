"""Commands about pictures: synthesize, segment, report."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from f2pad_jax import __version__, doubts
from f2pad_jax.checkpoint import check_outside, seal
from f2pad_jax.commands.telling import DONE, UNUSABLE, complain, open_model, results_folder, warn
from f2pad_jax.configuration import write_settings
from f2pad_jax.data.folders import check_there, list_images
from f2pad_jax.errors import InputError
from f2pad_jax.grouping import budget
from f2pad_jax.interest import brought, digest_of, read_roi
from f2pad_jax.maps import check_stems, check_units, list_maps
from f2pad_jax.output import owned, remove_files
from f2pad_jax.picture_files import segment_files
from f2pad_jax.picture_jobs import Job, segment_here
from f2pad_jax.ray_work import PARQUET, segment_on_ray, write_parquet


def run_synthesize(arguments: argparse.Namespace) -> int:
    """Makes a data set with exact masks."""
    from f2pad_jax.data.synthesize import synthesize_category
    from f2pad_jax.data.textures import make_textures

    check_outside(arguments.out.parent)
    kinds = tuple(dict.fromkeys(arguments.kind or ["colour"]))
    if arguments.normals == Path("textures") and not arguments.normals.exists():
        for name in ("masks", "structural", "layout", "white_level"):
            if getattr(arguments, name):
                raise InputError(f"textures take no --{name.replace('_', '-')}", hint="leave it out")
        make_textures(
            arguments.out,
            seed=arguments.seed,
            test=arguments.count or max(8, len(kinds)),
            size=arguments.size or 224,
            kinds=kinds,
        )
    else:
        synthesize_category(
            arguments.normals,
            arguments.out,
            masks=arguments.masks,
            count=arguments.count or 54,
            kinds=kinds,
            structural=arguments.structural,
            seed=arguments.seed,
            size=arguments.size,
            layout=arguments.layout,
            white_level=arguments.white_level,
        )
    return DONE


def run_segment(arguments: argparse.Namespace) -> int:
    """Segments pictures and folders of pictures."""
    if arguments.workers is not None and not arguments.ray:
        raise InputError("--workers goes with --ray", hint="add --ray, or leave it out")
    if arguments.maps is not None and arguments.grow:
        raise InputError("--grow does not go with --maps", hint="no map tells how the recovered picture would score")
    paths = list_images(arguments.pictures)
    check_there(paths)
    roi = None if arguments.roi is None else read_roi(arguments.roi)
    maps = None if arguments.maps is None else list_maps(arguments.maps)
    if maps is not None:
        check_stems(paths)
    check_outside(arguments.out)
    model = open_model(arguments)
    if arguments.threshold is not None:
        model = replace(model, procedure=replace(model.procedure, threshold=arguments.threshold))
    if roi is not None:
        model = replace(model, roi=roi)
        if not model.windowed:
            brought(roi, model.shape)  # whose error is the same for all pictures
    options = {"smallest_defect": arguments.smallest_defect}
    if maps is None:
        options["grow"] = arguments.grow
    else:
        check_units(model)
    limit = None if arguments.memory is None else budget(model, arguments.memory)
    if limit is not None:
        limit.check(model.shape)
    out = results_folder(arguments.out)
    told = [seal(arguments.model), model.threshold, digest_of(model.roi), options, arguments.pixel_size]
    made_by = " ".join([__version__, *map(repr, told)])
    work = partial(segment_on_ray, workers=arguments.workers) if arguments.ray else segment_here
    job = Job(model, out, made_by, maps, options, arguments.pixel_size, limit)
    with owned(out):
        records = segment_files(job, paths, resume=arguments.resume, work=work, on_failure=complain)
        if arguments.ray:
            write_parquet(out / PARQUET, records)
        else:
            remove_files([out / PARQUET])  # of an earlier run
        write_settings(out, arguments)  # of a run that was refused nothing is left
    warn(doubts.of_records(records))
    return UNUSABLE if any(record["status"] == "failed" for record in records) else DONE


def run_report(arguments: argparse.Namespace) -> int:
    """Writes one HTML file about a folder of results."""
    from f2pad_jax.gallery import write_report

    out = arguments.out or arguments.results / "report.html"
    check_outside(out.parent)
    print(f"{out}: {write_report(arguments.results, out)} pictures")
    return DONE

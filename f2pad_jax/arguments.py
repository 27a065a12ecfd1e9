"""The commands and options of `f2pad`, without anything that runs them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from f2pad_jax import __version__
from f2pad_jax.options import (
    SIDE,
    at_least,
    finite,
    layout,
    maps,
    memory,
    out,
    positive,
    roi,
    seed,
    share,
    weights,
    white_level,
)

UNUSABLE = 2  # status where input cannot be used


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, and whose options are written out: `--conf` is not `--config`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"f2pad: error: {message}; see {self.prog} --help\n")


def _demo(to: argparse.ArgumentParser) -> None:
    to.add_argument("--out", type=Path, default=Path("f2pad-demo"), metavar="DIR", help="results (f2pad-demo)")
    to.add_argument(
        "--detector", action="append", metavar="NAME", help="padim, patchcore or cflow, may be repeated (patchcore)"
    )
    to.add_argument("--images", type=at_least(1), default=2, metavar="N", help="test pictures of each kind (2)")
    seed(to)


def _synthesize(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "normals",
        metavar="NORMALS",
        type=Path,
        help='folder of normal pictures, a category, or the word "textures"',
    )
    out(to, "DATASET", "new folder for it")
    to.add_argument("--masks", type=Path, metavar="DIR", help="defect masks to use; without, shapes are drawn")
    to.add_argument("--count", type=at_least(1), metavar="N", help="test pictures (54; textures: 8 each)")
    to.add_argument(
        "--kind",
        action="append",
        metavar="NAME",
        help="of anomaly, may be repeated: test pictures take the kinds in turn; colour, grey, own, translucent, "
        "structural, texture, warp, blur, brightness, scratch or missing (colour, as in the paper)",
    )
    to.add_argument(
        "--structural",
        action="store_true",
        help="give every second test picture a piece of another picture's other half",
    )
    to.add_argument("--size", type=at_least(1, SIDE), metavar="N", help="resize pictures to N × N first")
    layout(to)
    white_level(to)
    seed(to)


def _fit(to: argparse.ArgumentParser) -> None:
    to.add_argument("dataset", metavar="DATASET", type=Path, help="category folder; train/good is used")
    to.add_argument("--detector", metavar="NAME", help="padim, patchcore or cflow; needed without --from")
    to.add_argument("--extractor", metavar="NAME", help="see weights list; needed without --from")
    to.add_argument(
        "--from",
        type=Path,
        metavar="FILE",
        help="checkpoint of a PaDiM or PatchCore that anomalib 2 has trained, which brings its extractor",
    )
    weights(to)
    out(to, "MODEL", "folder for the model")
    to.add_argument("--shots", type=at_least(1), metavar="N", help="use N training pictures, drawn at random")
    to.add_argument(
        "--size",
        type=at_least(32, SIDE),
        metavar="N",
        help="the extractor sees pictures of about N × N pixels, in their own aspect (224); with --from of exactly as "
        "many, where the checkpoint does not tell (256)",
    )
    to.add_argument(
        "--work-size",
        type=at_least(32, SIDE),
        default=1024,
        metavar="N",
        help="masks are made at the pictures' own size, or where they have more, at N × N pixels (1024)",
    )
    to.add_argument(
        "--windows",
        type=at_least(32, SIDE),
        metavar="N",
        help="segment pictures in overlapping windows of N × N pixels, for defects that are small beside them",
    )
    to.add_argument(
        "--precision",
        default="parity",
        metavar="NAME",
        help="of the extractor: parity (float32), fast (TF32 on a GPU) or bf16 (parity)",
    )
    to.add_argument(
        "--false-alarms",
        type=share,
        default=0.01,
        metavar="P",
        help="share of normal pictures that may be taken for defective, which sets the threshold (0.01)",
    )
    roi(to, "thresholds are those inside")
    maps(to, "of normal pictures that another detector was not trained on, to refine its maps with segment --maps")
    to.add_argument("--paper", action="store_true", help="the paper's choices where the defaults are others; slower")
    to.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the detector, may be repeated: padim channels, rank; patchcore ratio, limit; cflow used, "
        "blocks, flow (a file of trained flows), checkpoint (a folder for unfinished training), epochs, rate",
    )
    to.add_argument(
        "--inpainter",
        metavar="NAME_OR_FOLDER",
        help="start the solve from a masked autoencoder: a folder of train-mae, or imported weights such as "
        "mae_vit_base (licence CC-BY-NC-4.0)",
    )
    memory(to, "a fit that would take more is refused")
    layout(to)
    white_level(to)
    seed(to)


def _train_mae(to: argparse.ArgumentParser) -> None:
    to.add_argument("dataset", metavar="DATASET", type=Path, help="category folder; train/good is used")
    out(to, "FOLDER", "folder for it; a run that is cut off leaves FOLDER.unfinished and goes on from there")
    to.add_argument(
        "--epochs",
        type=at_least(1),
        metavar="N",
        help="passes over the pictures (as many as make 900 steps of 8, about 8 minutes of one core)",
    )
    to.add_argument(
        "--size",
        type=at_least(32, SIDE),
        default=224,
        metavar="N",
        help="pictures of N × N pixels, a multiple of 16 (224)",
    )
    layout(to)
    white_level(to)
    seed(to)


def _tune(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    to.add_argument("dataset", metavar="DATASET", type=Path, help="the category it was fitted to")
    out(to, "MODEL", "folder for the tuned model")
    to.add_argument("--oracle", action="store_true", help="choose on the test set as the paper does; results say so")
    weights(to)
    layout(to)
    seed(to)


def _segment(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    to.add_argument("pictures", metavar="IMAGE_OR_FOLDER", type=Path, nargs="+", help="pictures, or folders")
    out(to, "DIR", "masks, recovered pictures, panels, results.jsonl and coco.json")
    to.add_argument(
        "--threshold", type=finite, metavar="T", help="score from which a picture is defective (the model's own)"
    )
    maps(to, "of another detector, named as the pictures are, in place of the model's own scores")
    roi(to, "in place of the model's own")
    to.add_argument(
        "--grow", action="store_true", help="let regions grow where the recovered picture still scores high; slower"
    )
    to.add_argument(
        "--smallest-defect",
        type=at_least(0, SIDE**2),
        default=0,
        metavar="PIXELS",
        help="leave out defects of fewer pixels (0)",
    )
    to.add_argument(
        "--pixel-size",
        type=positive,
        metavar="UM",
        help="side of a pixel in micrometres, to measure defects in these as well",
    )
    to.add_argument("--resume", action="store_true", help="pass over pictures that an earlier run into DIR has done")
    to.add_argument(
        "--ray",
        action="store_true",
        help="share the pictures among the machines of a Ray cluster, which see the same files; also results.parquet",
    )
    to.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="with --ray: processes that share the cores (one for each accelerator, or without any for each machine)",
    )
    memory(to, "with less, fewer pictures are solved together")
    weights(to)


def _report(to: argparse.ArgumentParser) -> None:
    to.add_argument("results", metavar="RESULTS", type=Path, help="folder that segment has written")
    to.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (RESULTS/report.html)")


def _evaluate(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    to.add_argument("dataset", metavar="DATASET", type=Path, help="category folder with test pictures")
    out(to, "DIR", "metrics.json, overview.png and panels")
    to.add_argument("--oracle", action="store_true", help="first tune on these very test pictures, as the paper does")
    memory(to, "with less, fewer pictures are solved together")
    weights(to)
    layout(to)


def _export(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    out(to, "FILE", "the file, whose ending says the form: .stablehlo or .onnx; without an ending, a folder")
    to.add_argument(
        "--without-pictures", action="store_true", help="leave the training pictures out, where no fill needs them"
    )
    weights(to)


def _experiment(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "name",
        metavar="NAME",
        help="of the paper: table1 … table4, fig1, fig6 … fig11; beyond it: tuning, thresholds, sensitivity, choices, "
        "unstated, growth, kinds, real; or merge, to join the shares FOLDER, or results, for a results.md about the "
        "finished FOLDERs",
    )
    to.add_argument("parts", metavar="FOLDER", type=Path, nargs="*", help="merge, results: of earlier runs")
    to.add_argument("--data", type=Path, metavar="MVTEC_ROOT", help="folder of MVTec AD (embedded textures)")
    weights(to)
    out(to, "DIR", "NAME.json, NAME.md, NAME.png and results.md; a run that is cut off goes on from here")
    to.add_argument("--images", type=at_least(1), metavar="N", help="test pictures a category (54; textures: 8)")
    to.add_argument(
        "--extractor", metavar="NAME", help="the network of all detectors (the paper's, or efficientnet_lite0)"
    )
    to.add_argument("--detector", action="append", metavar="NAME", help="only this, may be repeated")
    to.add_argument("--category", action="append", metavar="NAME", help="only this, may be repeated")
    to.add_argument(
        "--jobs", type=at_least(1), default=1, metavar="N", help="processes that share the work and the cores (1)"
    )
    to.add_argument("--shard-index", type=at_least(0), default=0, metavar="I", help="do share I, from 0 (0)")
    to.add_argument("--shard-count", type=at_least(1), default=1, metavar="N", help="of N shares (1)")
    tuning = to.add_mutually_exclusive_group()
    tuning.add_argument(
        "--oracle",
        action="store_true",
        help="choose settings on the test set as the paper does, not on synthetic anomalies; results say so",
    )
    tuning.add_argument("--untuned", action="store_true", help="keep the default settings, for a quick look")
    tuning.add_argument(
        "--paper", action="store_true", help="the paper's settings, and its threshold, the best on the test set; slower"
    )
    seed(to)


def _store(to: argparse.ArgumentParser) -> None:
    actions = to.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="what is known, and what is here")
    fetch = actions.add_parser("fetch", help="bring a published file from the network and import it")
    fetch.add_argument("name", metavar="NAME", help="such as resnet18")
    add = actions.add_parser("import", help="convert a weight file and keep it")
    add.add_argument("name", metavar="NAME", help="such as resnet18")
    add.add_argument("file", metavar="FILE", type=Path, help=".pth, .safetensors or .npz")
    add.add_argument("--sha256", metavar="DIGEST", help="refuse a file with another SHA-256 digest")
    actions.add_parser("verify", help="read all weights that are here and check them")


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "demo": (_demo, "fit, segment and measure embedded pictures of brick and gravel"),
    "synthesize": (_synthesize, "make a data set with exact masks from normal pictures"),
    "fit": (_fit, "fit a detector to normal pictures"),
    "train-mae": (_train_mae, "train a small masked autoencoder on normal pictures, for fit --inpainter"),
    "tune": (_tune, "choose a model's settings on synthetic anomalies"),
    "segment": (_segment, "outline the anomalies of pictures"),
    "report": (_report, "write one HTML file about a folder of results, to look through them"),
    "evaluate": (_evaluate, "measure a model on test pictures"),
    "export": (_export, "write a model in a form that other programs read"),
    "experiment": (_experiment, "make a table or figure of the paper's case study, or join what was made"),
    "weights": (_store, "show, fetch, import or check pretrained weights"),
}


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = _Parser(
        prog="f2pad", description="Pixel-accurate anomaly segmentation: F2PAD on PaDiM, PatchCore and CFLOW-AD."
    )
    top.add_argument("--version", action="version", version=f"f2pad {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=name)
        command.add_argument(
            "--config",
            metavar="FILE",
            help="TOML file with options, such as the settings.toml of a result; those given here count instead",
        )
        add_options(command)
    return top

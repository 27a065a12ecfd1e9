"""The command line: `f2pad COMMAND …`."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from f2pad_jax import __version__
from f2pad_jax.configuration import parse
from f2pad_jax.console import prepare_console, told_once
from f2pad_jax.errors import InputError
from f2pad_jax.startup import prepare_jax

UNUSABLE, INTERRUPTED, UNREAD = 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"f2pad: error: {message}; see {self.prog} --help\n")


def _at_least(least: int, most: float = math.inf):
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            side = f"less than {least}" if value < least else f"more than {most}"
            raise argparse.ArgumentTypeError(f"{value} is {side}")
        return value

    number.__name__ = "whole number"  # argparse names it where the text is no number
    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not finite")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = _Parser(
        prog="f2pad", description="Pixel-accurate anomaly segmentation: F2PAD on PaDiM, PatchCore and CFLOW-AD."
    )
    top.add_argument("--version", action="version", version=f"f2pad {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=name)
        made.add_argument(
            "--config",
            metavar="FILE",
            help="TOML file with options, such as the settings.toml of a result; those given here count instead",
        )
        return made

    def out(to: argparse.ArgumentParser, metavar: str, text: str) -> None:
        to.add_argument("--out", type=Path, metavar=metavar, required=True, help=text)

    def seed(to: argparse.ArgumentParser) -> None:
        to.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of all random choices (0)")

    def weights(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--weights",
            type=Path,
            metavar="FILE",
            help="the extractor's weight file, where it is not imported",
        )

    def roi(to: argparse.ArgumentParser, text: str) -> None:
        to.add_argument("--roi", type=Path, metavar="MASK", help=f"picture that is white where to inspect; {text}")

    def maps(to: argparse.ArgumentParser, text: str) -> None:
        to.add_argument("--maps", type=Path, metavar="FOLDER", help=f"score maps {text}; .npy, .npz, TIFF or PNG")

    def layout(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--layout",
            metavar="NAME",
            help="of the category's folder: mvtec, mvtec2, btad, visa, realiad, kolektor or dagm (as it looks)",
        )

    def memory(to: argparse.ArgumentParser, text: str) -> None:
        to.add_argument("--memory", type=_positive, metavar="GIB", help=f"most memory of this machine to take; {text}")

    def white_level(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--white-level",
            type=_at_least(1, 65535),
            metavar="N",
            help="level of white of grey pictures with more than 8 bits, such as 4095 of 12 (65535)",
        )

    demo = command("demo", "fit, segment and measure embedded pictures of brick and gravel")
    demo.add_argument("--out", type=Path, default=Path("f2pad-demo"), metavar="DIR", help="results (f2pad-demo)")
    demo.add_argument(
        "--detector", action="append", metavar="NAME", help="padim, patchcore or cflow, may be repeated (patchcore)"
    )
    demo.add_argument("--images", type=_at_least(1), default=2, metavar="N", help="test pictures of each kind (2)")
    seed(demo)

    synthesize = command("synthesize", "make a data set with exact masks from normal pictures")
    synthesize.add_argument(
        "normals",
        metavar="NORMALS",
        type=Path,
        help='folder of normal pictures, a category, or the word "textures"',
    )
    out(synthesize, "DATASET", "new folder for it")
    synthesize.add_argument("--masks", type=Path, metavar="DIR", help="defect masks to use; without, shapes are drawn")
    synthesize.add_argument("--count", type=_at_least(1), metavar="N", help="test pictures (54; textures: 8 each)")
    synthesize.add_argument(
        "--kind",
        action="append",
        metavar="NAME",
        help="of anomaly, may be repeated: test pictures take the kinds in turn; colour, grey, own, translucent, "
        "structural, texture, warp, blur, brightness, scratch or missing (colour, as in the paper)",
    )
    synthesize.add_argument(
        "--structural",
        action="store_true",
        help="give every second test picture a piece of another picture's other half",
    )
    synthesize.add_argument("--size", type=_at_least(1), metavar="N", help="resize pictures to N × N first")
    layout(synthesize)
    white_level(synthesize)
    seed(synthesize)

    fit = command("fit", "fit a detector to normal pictures")
    fit.add_argument("dataset", metavar="DATASET", type=Path, help="category folder; train/good is used")
    fit.add_argument("--detector", metavar="NAME", help="padim, patchcore or cflow; needed without --from")
    fit.add_argument("--extractor", metavar="NAME", help="see weights list; needed without --from")
    fit.add_argument(
        "--from",
        type=Path,
        metavar="FILE",
        help="checkpoint of a PaDiM or PatchCore that anomalib 2 has trained, which brings its extractor",
    )
    weights(fit)
    out(fit, "MODEL", "folder for the model")
    fit.add_argument("--shots", type=_at_least(1), metavar="N", help="use N training pictures, drawn at random")
    fit.add_argument(
        "--size",
        type=_at_least(32),
        metavar="N",
        help="the extractor sees pictures of about N × N pixels, in their own aspect (224); with --from of exactly as "
        "many, where the checkpoint does not tell (256)",
    )
    fit.add_argument(
        "--work-size",
        type=_at_least(32),
        default=1024,
        metavar="N",
        help="masks are made at the pictures' own size, or where they have more, at N × N pixels (1024)",
    )
    fit.add_argument(
        "--windows",
        type=_at_least(32),
        metavar="N",
        help="segment pictures in overlapping windows of N × N pixels, for defects that are small beside them",
    )
    fit.add_argument(
        "--precision",
        default="parity",
        metavar="NAME",
        help="of the extractor: parity (float32), fast (TF32 on a GPU) or bf16 (parity)",
    )
    fit.add_argument(
        "--false-alarms",
        type=_share,
        default=0.01,
        metavar="P",
        help="share of normal pictures that may be taken for defective, which sets the threshold (0.01)",
    )
    roi(fit, "thresholds are those inside")
    maps(fit, "of normal pictures that another detector was not trained on, to refine its maps with segment --maps")
    fit.add_argument("--paper", action="store_true", help="the paper's choices where the defaults are others; slower")
    fit.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the detector, may be repeated: padim channels, rank; patchcore ratio, limit; cflow used, "
        "blocks, flow (a file of trained flows), checkpoint (a folder for unfinished training), epochs, rate",
    )
    fit.add_argument(
        "--inpainter",
        metavar="NAME_OR_FOLDER",
        help="start the solve from a masked autoencoder: a folder of train-mae, or imported weights such as "
        "mae_vit_base (licence CC-BY-NC-4.0)",
    )
    memory(fit, "a fit that would take more is refused")
    layout(fit)
    white_level(fit)
    seed(fit)

    train_mae = command("train-mae", "train a small masked autoencoder on normal pictures, for fit --inpainter")
    train_mae.add_argument("dataset", metavar="DATASET", type=Path, help="category folder; train/good is used")
    out(train_mae, "FOLDER", "folder for it; a run that is cut off leaves FOLDER.unfinished and goes on from there")
    train_mae.add_argument(
        "--epochs",
        type=_at_least(1),
        metavar="N",
        help="passes over the pictures (as many as make 900 steps of 8, about 8 minutes of one core)",
    )
    train_mae.add_argument(
        "--size", type=_at_least(32), default=224, metavar="N", help="pictures of N × N pixels, a multiple of 16 (224)"
    )
    layout(train_mae)
    white_level(train_mae)
    seed(train_mae)

    tune = command("tune", "choose a model's settings on synthetic anomalies")
    tune.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    tune.add_argument("dataset", metavar="DATASET", type=Path, help="the category it was fitted to")
    out(tune, "MODEL", "folder for the tuned model")
    tune.add_argument("--oracle", action="store_true", help="choose on the test set as the paper does; results say so")
    weights(tune)
    layout(tune)
    seed(tune)

    segment = command("segment", "outline the anomalies of pictures")
    segment.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    segment.add_argument("pictures", metavar="IMAGE_OR_FOLDER", type=Path, nargs="+", help="pictures, or folders")
    out(segment, "DIR", "masks, recovered pictures, panels, results.jsonl and coco.json")
    segment.add_argument(
        "--threshold", type=_finite, metavar="T", help="score from which a picture is defective (the model's own)"
    )
    maps(segment, "of another detector, named as the pictures are, in place of the model's own scores")
    roi(segment, "in place of the model's own")
    segment.add_argument(
        "--grow", action="store_true", help="let regions grow where the recovered picture still scores high; slower"
    )
    segment.add_argument(
        "--smallest-defect",
        type=_at_least(0),
        default=0,
        metavar="PIXELS",
        help="leave out defects of fewer pixels (0)",
    )
    segment.add_argument(
        "--pixel-size",
        type=_positive,
        metavar="UM",
        help="side of a pixel in micrometres, to measure defects in these as well",
    )
    segment.add_argument(
        "--resume", action="store_true", help="pass over pictures that an earlier run into DIR has done"
    )
    memory(segment, "with less, fewer pictures are solved together")
    weights(segment)

    page = command("report", "write one HTML file about a folder of results, to look through them")
    page.add_argument("results", metavar="RESULTS", type=Path, help="folder that segment has written")
    page.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (RESULTS/report.html)")

    evaluate = command("evaluate", "measure a model on test pictures")
    evaluate.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    evaluate.add_argument("dataset", metavar="DATASET", type=Path, help="category folder with test pictures")
    out(evaluate, "DIR", "metrics.json, overview.png and panels")
    evaluate.add_argument(
        "--oracle", action="store_true", help="first tune on these very test pictures, as the paper does"
    )
    memory(evaluate, "with less, fewer pictures are solved together")
    weights(evaluate)
    layout(evaluate)

    export = command("export", "write a model in a form that other programs read")
    export.add_argument("model", metavar="MODEL", type=Path, help="folder of a fitted model")
    out(export, "FILE", "the file, whose ending says the form: .stablehlo or .onnx; without an ending, a folder")
    export.add_argument(
        "--without-pictures", action="store_true", help="leave the training pictures out, where no fill needs them"
    )
    weights(export)

    experiment = command("experiment", "make a table or figure of the paper's case study, or join what was made")
    experiment.add_argument(
        "name",
        metavar="NAME",
        help="of the paper: table1 … table4, fig1, fig6 … fig11; beyond it: tuning, thresholds, sensitivity, growth, "
        "real; or merge, to join the shares FOLDER, or results, for a results.md about the finished FOLDERs",
    )
    experiment.add_argument("parts", metavar="FOLDER", type=Path, nargs="*", help="merge, results: of earlier runs")
    experiment.add_argument("--data", type=Path, metavar="MVTEC_ROOT", help="folder of MVTec AD (embedded textures)")
    weights(experiment)
    out(experiment, "DIR", "NAME.json, NAME.md, NAME.png and results.md; a run that is cut off goes on from here")
    experiment.add_argument(
        "--images", type=_at_least(1), metavar="N", help="test pictures a category (54; textures: 8)"
    )
    experiment.add_argument(
        "--extractor", metavar="NAME", help="the network of all detectors (the paper's, or efficientnet_lite0)"
    )
    experiment.add_argument("--detector", action="append", metavar="NAME", help="only this, may be repeated")
    experiment.add_argument("--category", action="append", metavar="NAME", help="only this, may be repeated")
    experiment.add_argument(
        "--jobs", type=_at_least(1), default=1, metavar="N", help="processes that share the work and the cores (1)"
    )
    experiment.add_argument("--shard-index", type=_at_least(0), default=0, metavar="I", help="do share I, from 0 (0)")
    experiment.add_argument("--shard-count", type=_at_least(1), default=1, metavar="N", help="of N shares (1)")
    tuning = experiment.add_mutually_exclusive_group()
    tuning.add_argument(
        "--oracle",
        action="store_true",
        help="choose settings on the test set as the paper does, not on synthetic anomalies; results say so",
    )
    tuning.add_argument("--untuned", action="store_true", help="keep the default settings, for a quick look")
    seed(experiment)

    store = command("weights", "show, fetch, import or check pretrained weights")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="what is known, and what is here")
    fetch = actions.add_parser("fetch", help="bring a published file from the network and import it")
    fetch.add_argument("name", metavar="NAME", help="such as resnet18")
    add = actions.add_parser("import", help="convert a weight file and keep it")
    add.add_argument("name", metavar="NAME", help="such as resnet18")
    add.add_argument("file", metavar="FILE", type=Path, help=".pth, .safetensors or .npz")
    add.add_argument("--sha256", metavar="DIGEST", help="refuse a file with another SHA-256 digest")
    actions.add_parser("verify", help="read all weights that are here and check them")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; None takes the process's own.

    Returns:
      0 on success, 2 where input was unusable (one line on stderr), 130 after an interruption, 141 where nobody reads
      what is printed.
    """
    prepare_console()
    warnings.filterwarnings("ignore", module=r"PIL\b")  # what is wrong with a picture is our line to say
    warnings.filterwarnings("ignore", ".*persistent compilation cache")  # no cache is slower and as right
    try:
        arguments = parse(parser(), sys.argv[1:] if argv is None else argv)
        prepare_jax()
        from f2pad_jax import commands  # brings jax, which --help and mistyped options need not wait for

        with told_once():
            status = commands.COMMANDS[arguments.run](arguments)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"f2pad: error: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return UNREAD
    except OSError as error:  # a disk that is full, a folder that was taken away
        what = f"the system refused ({error.strerror or error})"
        print(f"f2pad: error: {InputError(what, where=error.filename)}", file=sys.stderr)
        return UNUSABLE
    except MemoryError:
        print("f2pad: error: there is not enough memory", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("f2pad: interrupted", file=sys.stderr)
        return INTERRUPTED

"""Types of options, and options that several commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

COUNT, SIDE = 10**6, 2**15  # largest number of things, and of pixels of a side
SEED = 2**32 - 2  # largest that scikit-learn takes, less the one that tuning adds
LARGE = 2**20  # largest size of memory in GiB, and of a pixel in micrometres


def at_least(least: int, most: int = COUNT):
    """A type of option: a whole number within limits."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            side = f"less than {least}" if value < least else f"more than {most}"
            raise argparse.ArgumentTypeError(f"{value} is {side}")
        return value

    number.__name__ = "whole number"  # argparse names it where the text is no number
    return number


def share(text: str) -> float:
    """A type of option: a number between 0 and 1, neither included."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def finite(text: str) -> float:
    """A type of option: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not finite")
    return value


def positive(text: str) -> float:
    """A type of option: a number above 0, and not so large that sums with it are not finite."""
    value = finite(text)
    if not 0 < value <= LARGE:
        raise argparse.ArgumentTypeError(f"{value} is {f'more than {LARGE}' if value > 0 else 'not positive'}")
    return value


def out(to: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """`--out`, where results go; required."""
    to.add_argument("--out", type=Path, metavar=metavar, required=True, help=text)


def seed(to: argparse.ArgumentParser) -> None:
    """`--seed`."""
    to.add_argument("--seed", type=at_least(0, SEED), default=0, metavar="N", help="of all random choices (0)")


def weights(to: argparse.ArgumentParser) -> None:
    """`--weights`, of the extractor."""
    to.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the extractor's weight file, where it is not imported",
    )


def roi(to: argparse.ArgumentParser, text: str) -> None:
    """`--roi`; the text says what it does to the command."""
    to.add_argument("--roi", type=Path, metavar="MASK", help=f"picture that is white where to inspect; {text}")


def maps(to: argparse.ArgumentParser, text: str) -> None:
    """`--maps`; the text says whose maps."""
    to.add_argument("--maps", type=Path, metavar="FOLDER", help=f"score maps {text}; .npy, .npz, TIFF or PNG")


def layout(to: argparse.ArgumentParser) -> None:
    """`--layout`."""
    to.add_argument(
        "--layout",
        metavar="NAME",
        help="of the category's folder: mvtec, mvtec2, btad, visa, realiad, kolektor or dagm (as it looks)",
    )


def memory(to: argparse.ArgumentParser, text: str) -> None:
    """`--memory`; the text says what a lack of it does."""
    to.add_argument("--memory", type=positive, metavar="GIB", help=f"most memory of this machine to take; {text}")


def white_level(to: argparse.ArgumentParser) -> None:
    """`--white-level`."""
    to.add_argument(
        "--white-level",
        type=at_least(1, 65535),
        metavar="N",
        help="level of white of grey pictures with more than 8 bits, such as 4095 of 12 (65535)",
    )

"""Picture files through to pixels: pages, orientation, bits and transparency, whatever cameras and editors write."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from f2pad_jax.errors import InputError, InputWarning

MAX_PIXELS = 89_478_485  # Pillow's own line for a suspected decompression bomb: a quarter of a GiB as RGB
WHITE = 65535  # of 16 bits
USUAL_WHITES = (255, 1023, 4095, 16383)  # of cameras with 8, 10, 12 and 14 bits
BAND = 256  # rows
TIFFS = frozenset({".tif", ".tiff"})

_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_BITS, _MEANING, _KIND = 258, 262, 254  # tags of a TIFF: bits of a sample, its photometric meaning, what a page is
_REDUCED, _FOR_TRANSPARENCY = 1, 4  # kinds of pages that are no pictures of their own
_WARNINGS = threading.Lock()  # catch_warnings acts on the whole process, and pictures are read in threads


logging.getLogger("PIL").addHandler(logging.NullHandler())  # decoders log what InputError says already


class Decoded(NamedTuple):
    """A picture as it lies in a file, upright.

    Attributes:
      picture: its pixels.
      white: the level of white where there are more than eight bits and the file says how many, else 65535.
      inverted: whether its 16-bit grey counts from white, which Pillow leaves as it is.
      narrowed: whether it has 16-bit colours, of which Pillow reads the upper eight bits.
    """

    picture: Image.Image
    white: int
    inverted: bool
    narrowed: bool


def split_page(path: Path) -> tuple[Path, int]:
    """The file of a picture and the page in it, from 1: `stack.tif/stack_2.tif` is the second of `stack.tif`."""
    file = path.parent
    if file.suffix.lower() in TIFFS and path.suffix == file.suffix and file.is_file():
        stem, _, page = path.stem.rpartition("_")
        if stem == file.stem and page.isdecimal():
            return file, int(page)
    return path, 1


def pages_of(path: Path) -> list[Path]:
    """The pages of a TIFF that are pictures, each by a path as `split_page` reads it; of any other file, the file."""
    if path.suffix.lower() not in TIFFS:
        return [path]
    try:
        with _WARNINGS, warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            own = [page for page in range(getattr(picture, "n_frames", 1)) if _is_page(picture, page)]
    except Exception:  # reading it tells what is wrong with it
        return [path]
    return [path / f"{path.stem}_{page + 1}{path.suffix}" for page in own] if len(own) > 1 else [path]


def _is_page(picture: Image.Image, page: int) -> bool:
    picture.seek(page)
    return not (_tag(picture, _KIND) or 0) & (_REDUCED | _FOR_TRANSPARENCY)


def _tag(picture: Image.Image, number: int) -> int | None:
    """A tag of a TIFF, the first of its values; None where it has none, or is of another kind."""
    value = getattr(picture, "tag_v2", {}).get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None


def shape_of(path: Path) -> tuple[int, int] | None:
    """Height and width as the header of a picture says, before it is turned; None where it cannot be read."""
    try:
        file, page = split_page(path)
        with _WARNINGS, warnings.catch_warnings(action="ignore"), Image.open(file) as picture:
            if page > 1:
                picture.seek(page - 1)
            return picture.height, picture.width
    except Exception:  # reading it tells what is wrong with it
        return None


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Decoded]:
    """The decoded, upright picture; every fault of file or decoder becomes an InputError."""
    path = Path(path)
    file, page = split_page(path)
    if not os.path.exists(file):  # unlike Path's, False as well where the name cannot be one
        raise InputError("no such file", where=path, hint="check the name")
    if not file.is_file():
        raise InputError("is not a file", where=path, hint="name a picture")
    try:
        if file.stat().st_size == 0:
            raise InputError("the file is empty", where=path, hint="copy it again")
        with file.open("rb") as source:  # of a name Pillow maps the file, and then forgets the orientation of a TIFF
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(source)
            with picture:
                if page > 1:
                    picture.seek(page - 1)
                yield decode(picture)
    except InputError:
        raise
    except InputWarning:  # where warnings are errors
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"has more than {MAX_PIXELS:,} pixels", where=path, hint="scale it down or cut it into tiles"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError("is no picture that can be read", where=path, hint="save it as PNG") from error
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise InputError(f"cannot be decoded ({error})", where=path, hint="copy or save it again") from error


def decode(picture: Image.Image) -> Decoded:
    """A picture that Pillow has opened or made, upright."""
    facts = _facts(picture)
    with _silent() if picture.format == "TIFF" else nullcontext():
        picture.load()
    return Decoded(ImageOps.exif_transpose(picture), *facts)


def _facts(picture: Image.Image) -> tuple[int, bool, bool]:
    """What `Decoded` says besides the pixels, from the header."""
    bits, deep = _tag(picture, _BITS), picture.mode.startswith("I")
    white = 2**bits - 1 if deep and bits is not None and 8 < bits < 16 else WHITE
    raw = str([tile[3] for tile in getattr(picture, "tile", ())])
    return white, deep and _tag(picture, _MEANING) == 0, not deep and any(f";16{order}" in raw for order in "BLN")


@contextmanager
def _silent() -> Iterator[None]:
    """Standard error closed for a while: libtiff writes there by itself."""
    with _WARNINGS, open(os.devnull, "wb") as nowhere:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def to_rgb(decoded: Decoded, path: str | os.PathLike[str], *, white_level: int | None = None) -> np.ndarray:
    """The picture as uint8 (H, W, 3), converted band by band: the steps between take more memory than it does.

    Args:
      decoded: of `opened`.
      path: the file, for errors.
      white_level: the level of white of pictures with more than eight bits, in (0, 65535]; None for the file's own.

    Raises:
      InputError: its pixels have no defined range, or more than the white level says.
    """
    white = _white_of(decoded, path, white_level)
    array, visible = _flatten(decoded, white)
    if not visible:
        _tell_transparent(path)
        array, _ = _flatten(decoded._replace(picture=_without_alpha(decoded.picture)), white)
    if decoded.narrowed and 0 < array.max() <= USUAL_WHITES[-1] // 256:
        _tell_unused(path, "save it with 8 bits, its white at 255")
    return array


def _flatten(decoded: Decoded, white: int | None) -> tuple[np.ndarray, bool]:
    """RGB over white, and whether anything of it is seen."""
    picture = decoded.picture
    array, visible = np.empty((picture.height, picture.width, 3), np.uint8), False
    for top in range(0, picture.height, BAND):
        bottom = min(top + BAND, picture.height)
        band = picture.crop((0, top, picture.width, bottom))
        if white is not None:
            levels = np.asarray(band).astype(np.float64) / white * 255
            band = Image.fromarray(np.rint(255 - levels if decoded.inverted else levels).astype(np.uint8))
        if _has_alpha(band):
            band = band.convert("RGBA")
            visible |= band.getchannel("A").getextrema() != (0, 0)
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        else:
            visible = True
        array[top:bottom] = np.asarray(band.convert("RGB"))
    return array, visible


def _has_alpha(picture: Image.Image) -> bool:
    return "transparency" in picture.info or picture.mode in _TRANSPARENT


def _without_alpha(picture: Image.Image) -> Image.Image:
    opaque = picture.convert("RGBA").convert("RGB")
    opaque.info.pop("transparency", None)
    return opaque


def _tell_transparent(path: str | os.PathLike[str]) -> None:
    what, hint = "is transparent everywhere, which is ignored", "save it without transparency"
    warnings.warn(InputWarning(what, where=path, hint=hint), stacklevel=3)


def _white_of(decoded: Decoded, path: str | os.PathLike[str], white_level: int | None) -> int | None:
    """The level of white of integer grey with more than eight bits; None of pictures that have no more."""
    picture = decoded.picture
    if picture.mode == "F":
        raise InputError("has floating-point pixels", where=path, hint="save it with 8 or 16 bits")
    if decoded.narrowed and white_level is not None:
        what = "has 16-bit colours, of which 8 bits are read: a white level does not help"
        raise InputError(what, where=path, hint="save it in grey, or with 8 bits")
    if not picture.mode.startswith("I"):
        return None
    own = None if decoded.white == WHITE and not decoded.inverted else decoded.white
    return check_white(np.asarray(picture), path, white_level, own=own)


def check_white(
    levels: np.ndarray, path: str | os.PathLike[str], white_level: int | None, *, own: int | None = None
) -> int:
    """The level of white of grey with more than eight bits.

    Args:
      levels: of the picture, whole numbers.
      path: the file, for errors.
      white_level: as for `to_rgb`.
      own: what the file says, where it does.

    Raises:
      InputError: there are levels below 0, over 65535 or over the white level.
    """
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > WHITE:
        raise InputError("has 32-bit integer pixels", where=path, hint="save it with 8 or 16 bits")
    if white_level is None:
        white = next((white for white in USUAL_WHITES if highest <= white), None)
        if own is None and highest and white is not None:
            _tell_unused(path, f"if its white is {white}, give that as the white level (--white-level {white})")
        return own or WHITE
    if highest > white_level:
        raise InputError(
            f"has a level of {highest}, over the white level {white_level}", where=path, hint="give the camera's own"
        )
    return white_level


def _tell_unused(path: str | os.PathLike[str], hint: str) -> None:
    warnings.warn(InputWarning("has 16 bits of which the upper ones are unused", where=path, hint=hint), stacklevel=3)


def to_levels(decoded: Decoded, path: str | os.PathLike[str]) -> tuple[np.ndarray, bool]:
    """The picture as one level of each pixel, the highest of its colours, 0 where it is transparent.

    Returns:
      Numbers (H, W), and whether levels are labels: colours of a palette that are not all grey.
    """
    picture = decoded.picture
    coloured = picture.mode == "P" and _coloured(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        array = np.asarray(picture)
        return (decoded.white - array if decoded.inverted else array), False
    if _has_alpha(picture):
        array = np.asarray(picture.convert("RGBA"))
        if array[..., 3].any():
            return np.where(array[..., 3] == 0, 0, array[..., :3].max(axis=-1)), coloured
        _tell_transparent(path)
        return array[..., :3].max(axis=-1), coloured
    array = np.asarray(picture.convert("RGB") if picture.mode == "P" or len(picture.getbands()) > 1 else picture)
    return (array if array.ndim == 2 else array.max(axis=-1)), coloured


def _coloured(picture: Image.Image) -> bool:
    """Whether a palette picture has pixels of colours that are not grey."""
    colours = np.asarray(picture.convert("RGB"))
    return bool((colours != colours[..., :1]).any())

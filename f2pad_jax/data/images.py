"""Pictures and masks: reading whatever cameras and editors write, resizing, writing, normalising."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from f2pad_jax.errors import InputError
from f2pad_jax.output import write_bytes

MAX_PIXELS = 89_478_485  # Pillow's own line for a suspected decompression bomb: a quarter of a GiB as RGB

BAND = 256  # rows

Size = int | tuple[int, int]  # side of a square, or height and width, pixels

_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_WARNINGS = threading.Lock()  # catch_warnings acts on the whole process, and pictures are read in threads


logging.getLogger("PIL").addHandler(logging.NullHandler())  # decoders log what InputError says already


def read_image(path: str | os.PathLike[str], size: Size | None = None) -> np.ndarray:
    """A picture as eight-bit RGB, turned upright as its EXIF orientation says.

    Grey is repeated over the channels; 16-bit grey is divided by 257, so that the full range maps to the full
    range; palettes, CMYK and one-bit pictures are converted; transparency is laid over white. Of an animation
    the first frame counts.

    Args:
      path: the file.
      size: if given, the height and width that the picture is resized to directly, whatever its aspect, or the side
        of a square, as in the paper (arXiv 2407.06519, Section IV-A); the filter is Lanczos, antialiased.

    Returns:
      uint8, (H, W, 3).

    Raises:
      InputError: the file is missing, empty, no picture, truncated, too large, or of a kind without a defined
        range (32-bit and floating-point pixels).
    """
    with _opened(path) as picture:
        array = _to_rgb(picture, path)
    return array if size is None else resize_image(array, sides_of(size))


def read_mask(path: str | os.PathLike[str], size: Size | None = None) -> np.ndarray:
    """A mask picture: True where any colour is not zero and not fully transparent.

    A palette picture counts by its indices, so that label 0 is the background whatever its colour.

    Args:
      path: the file.
      size: if given, the height and width that the mask is resized to by nearest neighbour, or the side of a square.

    Returns:
      bool, (H, W).

    Raises:
      InputError: as for `read_image`.
    """
    with _opened(path) as picture:
        if picture.mode in _TRANSPARENT:
            array = np.asarray(picture.convert("RGBA"))
            mask = np.asarray(array[..., :3].any(axis=-1) & (array[..., 3] != 0))
        elif len(picture.getbands()) > 1:
            mask = np.asarray(np.asarray(picture.convert("RGB")).any(axis=-1))
        else:
            mask = np.asarray(picture, bool)
    return mask if size is None else resize_mask(mask, sides_of(size))


def sides_of(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def resize_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A uint8 RGB picture (H, W, 3) at another (height, width), by the antialiased Lanczos filter."""
    if image.shape[:2] == tuple(shape):
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) at another (height, width): each pixel takes the value at its own centre."""
    if mask.shape == tuple(shape):
        return mask
    # whole numbers, so that centres on the border of two pixels do not depend on rounding
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def resize_map(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map (H, W) at another (height, width), bilinearly: float32."""
    if values.shape == tuple(shape):
        return values
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes a lossless PNG under a temporary name and renames it: a half-written file is never seen.

    Args:
      path: where to; the folder must exist.
      array: uint8 (H, W) or (H, W, 3), or a bool mask (H, W), which is written as 0 and 255.

    Raises:
      InputError: the file cannot be written.
    """
    array = np.asarray(array)
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def write_tiff(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Writes a map (H, W) as a float32 TIFF, under a temporary name that is renamed.

    Raises:
      InputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(buffer, format="TIFF")
    write_bytes(path, buffer.getvalue())


def check_images(images: object, *, rank: int) -> np.ndarray:
    """An array that is checked to be one picture or a stack of them.

    Args:
      images: uint8 RGB.
      rank: 3 for one picture (H, W, 3), 4 for a stack (N, H, W, 3).

    Raises:
      InputError: of another type, rank or number of channels, or without pixels.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != rank or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        what, wanted = ("the picture is", "(H, W, 3)") if rank == 3 else ("the pictures are", "(N, H, W, 3)")
        raise InputError(f"{what} {array.dtype} {array.shape}", hint=f"give uint8 RGB, {wanted}")
    return array


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The decoded, upright picture; every fault of file or decoder becomes an InputError."""
    path = Path(path)
    if not os.path.exists(path):  # unlike Path's, False as well where the name cannot be one
        raise InputError("no such file", where=path, hint="check the name")
    if not path.is_file():
        raise InputError("is not a file", where=path, hint="name a picture")
    try:
        if path.stat().st_size == 0:
            raise InputError("the file is empty", where=path, hint="copy it again")
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
        with picture:
            with _silent() if picture.format == "TIFF" else nullcontext():
                picture.load()
            yield ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"has more than {MAX_PIXELS:,} pixels", where=path, hint="scale it down or cut it into tiles"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError("is no picture that can be read", where=path, hint="save it as PNG") from error
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise InputError(f"cannot be decoded ({error})", where=path, hint="copy or save it again") from error


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


def _to_rgb(picture: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """The picture as uint8 (H, W, 3), converted band by band: the steps between take more memory than it does."""
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, BAND):
        bottom = min(top + BAND, picture.height)
        array[top:bottom] = np.asarray(_band_to_rgb(picture.crop((0, top, picture.width, bottom)), path))
    return array


def _band_to_rgb(picture: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    if picture.mode.startswith("I"):
        array = np.asarray(picture).astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise InputError("has 32-bit integer pixels", where=path, hint="save it with 8 or 16 bits")
        picture = Image.fromarray(np.rint(array / 257).astype(np.uint8))
    if picture.mode == "F":
        raise InputError("has floating-point pixels", where=path, hint="save it with 8 or 16 bits")
    if "transparency" in picture.info or picture.mode in _TRANSPARENT:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")

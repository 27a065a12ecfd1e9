"""Pictures and masks: reading, resizing, writing."""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image

from f2pad_jax.data.decoding import opened, to_levels, to_rgb
from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.output import write_bytes

LABELS = 32  # highest number of a label in a mask; a mask with higher levels is black and white
MIDDLE = 0.5  # share of a mask's pixels that are neither black nor white from which on it is none

Size = int | tuple[int, int]  # side of a square, or height and width, pixels


def read_image(path: str | os.PathLike[str], size: Size | None = None, *, white_level: int | None = None) -> np.ndarray:
    """A picture as eight-bit RGB, turned upright as its EXIF orientation says.

    Grey is repeated over the channels; 16-bit grey is divided so that the full range maps to the full range; grey
    that counts from white is turned round; palettes, CMYK and one-bit pictures are converted; transparency is laid
    over white. Of an animation or of several pages the first counts, and a page of `folders.list_images` is read.

    Args:
      path: the file.
      size: if given, the height and width that the picture is resized to directly, whatever its aspect, or the side
        of a square, as in the paper (arXiv 2407.06519, Section IV-A); the filter is Lanczos, antialiased.
      white_level: the level of white of grey with more than eight bits, such as 4095 of a camera with 12; None takes
        what the file says, else 65535. Pictures with eight bits do not ask for it.

    Returns:
      uint8, (H, W, 3).

    Raises:
      InputError: the file is missing, empty, no picture, truncated, too large, of a kind without a defined range
        (32-bit and floating-point pixels), or brighter than the white level.

    Warns:
      InputWarning: it is transparent everywhere, or seems not to use its range.
    """
    with opened(path) as decoded:
        array = to_rgb(decoded, path, white_level=white_level)
    return array if size is None else resize_image(array, sides_of(size))


def read_mask(path: str | os.PathLike[str], size: Size | None = None) -> np.ndarray:
    """A mask picture: True where it is white, or has a label.

    Two levels, of which the lower is black, are a mask as they are, whatever the higher. So are the colours of a
    palette, and numbers up to 32: all but black or 0 is True. Other masks, such as those that JPEG or a smooth brush
    has made, are cut at the middle between their lowest and highest level.

    Args:
      path: the file.
      size: if given, the height and width that the mask is resized to by nearest neighbour, or the side of a square.

    Returns:
      bool, (H, W).

    Raises:
      InputError: as for `read_image`, or half of the pixels are neither black nor white.

    Warns:
      InputWarning: it was cut at the middle, or is transparent everywhere.
    """
    with opened(path) as decoded:
        levels, labelled = to_levels(decoded, path)
    mask = np.asarray(levels != 0) if labelled else _two_valued(levels, path)
    return mask if size is None else resize_mask(mask, sides_of(size))


def _two_valued(levels: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    found = np.unique(levels)
    if not np.isfinite(found).all():
        raise InputError("is a mask with numbers that are not finite", where=path, hint="save it as PNG")
    lowest, highest = float(found[0]), float(found[-1])
    numbers = 0 <= lowest <= highest <= LABELS and np.array_equal(found, np.rint(found))
    if len(found) == 1 or (len(found) == 2 and lowest == 0) or numbers:
        return np.asarray(levels != 0)
    place = (levels.astype(np.float32) - lowest) / (highest - lowest)
    if np.mean((place > 0.25) & (place < 0.75)) > MIDDLE:
        raise InputError("is no mask: its pixels are neither black nor white", where=path, hint="name a mask")
    warnings.warn(
        InputWarning("has more levels than black and white; cut at the middle", where=path, hint="save masks as PNG"),
        stacklevel=3,
    )
    return place > 0.5


def sides_of(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def resize_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A uint8 RGB picture (H, W, 3) at another (height, width), by the antialiased Lanczos filter."""
    if image.shape[:2] == tuple(shape):
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.LANCZOS))


def resize_mask(mask: Any, shape: tuple[int, int]) -> Any:
    """A mask (H, W), of NumPy or JAX, at another (height, width): each pixel takes the value at its own centre."""
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

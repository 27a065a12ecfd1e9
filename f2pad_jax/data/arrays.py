"""Pictures as Python programs have them: arrays of any library, PIL images and names of files, as eight-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from f2pad_jax.data.decoding import check_white, decode, to_rgb
from f2pad_jax.data.images import read_image
from f2pad_jax.errors import KindError

WANTED = "give (H, W) or (H, W, C) with C of 1, 3 or 4, of uint8, uint16 or floats in [0, 1]; or a PIL image or a path"


def as_picture(picture: object, *, white_level: int | None = None) -> np.ndarray:
    """A picture in any usual form as eight-bit RGB; such an array itself is given back as it is.

    Args:
      picture: an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or floats in [0, 1], of NumPy or of
        any library with `__array__`, such as jax and torch; a PIL image; or the name of a file. Transparency is laid
        over white.
      white_level: the level of white of grey files and of arrays with more than eight bits; None takes 65535, or what a
        file says.

    Returns:
      uint8, (H, W, 3).

    Raises:
      KindError: anything else.
      InputError: a file that cannot be read, or a picture that is brighter than the white level.
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(picture, white_level=white_level)
    if isinstance(picture, Image.Image):
        return to_rgb(decode(picture), _name(picture), white_level=white_level)
    array = _as_array(picture)
    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if channels not in (1, 3, 4) or not array.size:
        raise KindError(f"the picture is {array.dtype} {array.shape}", hint=WANTED)
    array = _as_bytes(array.reshape(*array.shape[:2], channels), white_level)
    if channels == 4:
        return to_rgb(decode(Image.fromarray(array)), "picture")
    return np.repeat(array, 3, axis=-1) if channels == 1 else array


def as_pictures(images: object, *, white_level: int | None = None) -> tuple[list[np.ndarray], bool]:
    """One picture or many as eight-bit RGB, and whether it is one.

    Args:
      images: a picture as `as_picture` takes it, an array (N, H, W, C), or an iterable of pictures of any sizes, such
        as an array (N,) of names.
      white_level: as for `as_picture`.

    Raises:
      KindError: neither.
      InputError: as for `as_picture`.
    """
    if getattr(images, "ndim", None) == 4:
        return [as_picture(image, white_level=white_level) for image in _as_array(images)], False
    names = isinstance(images, np.ndarray) and images.dtype.kind in "OU"
    pixels = hasattr(images, "__array__") and not names
    if pixels or isinstance(images, str | os.PathLike | Image.Image):
        return [as_picture(images, white_level=white_level)], True
    if isinstance(images, Iterable) and not isinstance(images, bytes | Mapping):
        return [as_picture(image, white_level=white_level) for image in images], False
    raise KindError(f"{type(images).__name__} is no picture", hint=WANTED)


def as_stack(images: object, *, white_level: int | None = None) -> np.ndarray:
    """Many pictures of one size as uint8 (N, H, W, 3), as `as_pictures` takes them.

    Raises:
      KindError: they are one picture, or none.
      InputError: their sizes differ, or as for `as_picture`.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3:
        return images
    pictures, single = as_pictures(images, white_level=white_level)
    if single or len({picture.shape for picture in pictures}) > 1:
        what = "one picture" if single else "pictures of several sizes"
        raise KindError(f"needs many pictures of one size, not {what}", hint="give a list, or uint8 RGB (N, H, W, 3)")
    return np.stack(pictures) if pictures else np.zeros((0, 0, 0, 3), np.uint8)


def _as_array(picture: Any) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        return picture
    if not hasattr(picture, "__array__"):
        raise KindError(f"{type(picture).__name__} is no picture", hint=WANTED)
    try:
        return np.asarray(picture)
    except Exception as error:  # whatever a foreign library says about what it cannot do
        raise KindError(f"{type(picture).__name__} gives no array ({error})", hint=WANTED) from error


def _as_bytes(array: np.ndarray, white_level: int | None) -> np.ndarray:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if (kind, size) == ("u", 1):
        return array
    if (kind, size) == ("u", 2):
        return np.rint(array / check_white(array, "picture", white_level) * 255).astype(np.uint8)
    if kind != "f":
        raise KindError(f"the picture is {array.dtype} {array.shape}", hint=WANTED)
    lowest, highest = float(array.min()), float(array.max())
    if not (lowest >= 0 and highest <= 1):
        raise KindError(f"the picture has floats from {lowest:g} to {highest:g}", hint="bring them into [0, 1]")
    return np.rint(array * 255).astype(np.uint8)


def _name(picture: Image.Image) -> str:
    return str(getattr(picture, "filename", "") or "picture")

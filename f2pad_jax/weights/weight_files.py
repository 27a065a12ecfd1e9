"""Weight files of every accepted format, told apart by content, as named arrays and a digest."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.weights.torch_file import read_torch

MAX_BYTES = 2 * 2**30
MAX_RATIO, SPARE = 8, 2**26  # by which weights can be compressed at most, and bytes that are no matter
State = dict[str, np.ndarray]
Content = TypeVar("Content")

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1"} | {
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1"
}  # fmt: skip


def _read_npz(data: bytes) -> State:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives members without its own header as bytes
            raise ValueError(f"{name} is no array")
    return arrays


def _read_safetensors(data: bytes) -> State:
    from safetensors import deserialize  # its NumPy reader knows no bfloat16

    return {name: _numbers(name, **facts).reshape(facts["shape"]) for name, facts in deserialize(data)}


def _numbers(name: str, *, dtype: str, data: bytes, **_: object) -> np.ndarray:
    """The numbers of a tensor; bfloat16, which is float32 with the lower half of its bits cut off, as float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in _DTYPES:
        raise ValueError(f"{name} holds numbers of type {dtype}")
    return np.frombuffer(data, _DTYPES[dtype])


def _parse(data: bytes) -> State:
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
        if sum(info.file_size for info in infos) > min(MAX_BYTES, MAX_RATIO * len(data) + SPARE):
            raise ValueError("unpacks to more than weights do")
        return _read_npz(data) if all(info.filename.endswith(".npy") for info in infos) else read_torch(data)
    # safetensors: the length of a JSON header in 8 bytes, then the header itself.
    return _read_safetensors(data) if data[8:9] == b"{" else read_torch(data)


def check_readable(path: Path) -> None:
    """Makes sure that a weight file is there, before anything is read.

    Raises:
      InputError: no such file, or too large.
    """
    try:
        path.open("rb").close()
        if path.stat().st_size > MAX_BYTES:
            raise InputError("larger than 2 GiB", where=path, hint="give the weights of one network")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot be read ({error.strerror})", where=path, hint="give a weight file")


def read_weights(path: Path) -> tuple[State, str]:
    """Arrays by name, and the SHA-256 of the file: torch zip or legacy, safetensors, or NumPy's .npz.

    Args:
      path: the file; its suffix does not matter.

    Raises:
      InputError: no such file, too large, damaged, or holding anything but arrays.
    """
    return read_file(path, _parse, hint="give a .pth, .safetensors or .npz of tensors")


def read_file(path: Path, parse: Callable[[bytes], Content], *, hint: str) -> tuple[Content, str]:
    """What `parse` makes of a file's bytes, and the SHA-256 of these.

    Args:
      path: the file.
      parse: whatever it raises, the file cannot be used.
      hint: what to give instead.

    Raises:
      InputError: no such file, too large, or `parse` has refused it.
    """
    check_readable(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        content = parse(data)
    # Readers of damaged files raise all sorts of errors; each means that the file cannot be used.
    except Exception as error:
        raise InputError(f"not a usable weight file ({error})", where=path, hint=hint) from error
    return content, hashlib.sha256(data).hexdigest()

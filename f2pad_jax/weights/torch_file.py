"""Reads the tensors of a torch file, zip or legacy format, without torch and without running its pickles.

A torch file is a pickle and raw storages. `unpickling` makes descriptions of tensors of the one; here they are cut from
the other, inside checked bounds.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from f2pad_jax.weights.unpickling import Inert, Storage, Tensor, unpickle

MAX_TENSORS = 10_000
MAX_ELEMENTS = 2**30
SPARE = 2**24  # elements that tensors may have beyond twice those of their storages: views share storages

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def _tensors(root: Any) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(root, Mapping) and isinstance(root.get(wrapper), Mapping):
            root = root[wrapper]
    if isinstance(root, Mapping) and isinstance(root.get("decoder_state_dict"), list):
        # CFLOW-AD's checkpoints: a state dict per decoder, beside that of the encoder, which they do not train.
        root = {
            f"decoders.{k}.{name}": v for k, one in enumerate(root["decoder_state_dict"]) for name, v in one.items()
        }
    if not isinstance(root, Mapping) or len(root) > MAX_TENSORS:
        raise pickle.UnpicklingError("not a mapping from names to tensors")
    # anomalib puts names of classes, plain strings, among the tensors
    tensors = {key: value for key, value in root.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if root and not tensors:
        first = next(iter(root))
        raise pickle.UnpicklingError(f"not a tensor: {first if isinstance(first, str) else type(first).__name__!r}")
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    stored = sum({tensor.storage.key: tensor.storage.count for tensor in tensors.values()}.values())
    if elements > min(MAX_ELEMENTS, 2 * stored + SPARE):
        raise pickle.UnpicklingError("the tensors are too large")
    return tensors


def _arrays(tensors: Mapping[str, Tensor], raw: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    """Every tensor, from the bytes of the storage of a key, which is read once."""
    flats: dict[Storage, np.ndarray] = {}
    for tensor in tensors.values():
        if tensor.storage not in flats:
            flats[tensor.storage] = tensor.storage.numbers(raw(tensor.storage.key))
    return {name: _array(tensor, flats[tensor.storage]) for name, tensor in tensors.items()}


def _array(tensor: Tensor, flat: np.ndarray) -> np.ndarray:
    if 0 in tensor.shape:
        return np.empty(tensor.shape, flat.dtype)
    strides = tuple(step * flat.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)


def _read_zip(data: bytes, *, foreign: bool = False) -> tuple[dict[str, np.ndarray], Any]:
    """The tensors of an archive, and the object that holds them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        # torch never compresses, so a compressed member is a bomb or a mistake.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise pickle.UnpicklingError("refused: compressed members")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("a zip archive, but not a torch file")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("refused: big-endian storages")
        content, _ = unpickle(io.BytesIO(archive.read(pickles[0])), foreign=foreign)
        return _arrays(_tensors(content), lambda key: archive.read(f"{root}data/{key}")), content


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(data)
    if unpickle(stream)[0] != _LEGACY_MAGIC or unpickle(stream)[0] != _LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("a pickle, but not a torch file")
    if not unpickle(stream)[0].get("little_endian"):
        raise pickle.UnpicklingError("refused: big-endian storages")
    root, storages = unpickle(stream)
    tensors, raw, view = _tensors(root), {}, memoryview(data)
    for key in unpickle(stream)[0]:
        start = stream.tell() + 8
        count = int.from_bytes(stream.read(8), "little")
        if key not in storages:
            raise pickle.UnpicklingError(f"a storage of which nothing is said: {key!r}")
        stream.seek(start + count * storages[key].kind.itemsize)
        raw[key] = view[start : stream.tell()]
    return _arrays(tensors, raw.__getitem__)


def read_torch(data: bytes) -> dict[str, np.ndarray]:
    """Every tensor of a torch file's state dict, by name.

    Args:
      data: the whole file. A zip archive or the legacy run of pickles; a mapping from names to tensors, or
        one that holds such a mapping as "state_dict" or "model". Plain values beside them are left out.

    Returns:
      Read-only arrays in C order of the stored type; bfloat16 becomes float32.

    Raises:
      ValueError: the file is damaged, is no torch file, holds no tensor, or asks for anything but tensors and plain
        values.
    """
    try:
        return _read_zip(data)[0] if data[:2] == b"PK" else _read_legacy(data)
    # A damaged pickle or archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def read_checkpoint(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a Lightning checkpoint's state dict, and its other entries.

    Args:
      data: the whole file, a zip archive.

    Returns:
      Arrays as of `read_torch`, and what lies beside the state dict: plain values, with a stand-in for everything that
      is an object of some class. Nothing that the file names is imported or called.

    Raises:
      ValueError: as for `read_torch`, or it is no checkpoint of Lightning's.
    """
    try:
        arrays, content = _read_zip(data, foreign=True)
        if type(content) is not dict or not isinstance(content.pop("pytorch-lightning_version", None), str):
            raise ValueError("no checkpoint of Lightning's")
        if any(isinstance(value, Inert) for value in content.pop("state_dict", {}).values()):
            raise ValueError("refused: its state dict holds other things than tensors")
        return arrays, content
    except Exception as error:  # as above
        raise ValueError(str(error) or type(error).__name__) from error

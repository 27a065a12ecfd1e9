"""Reads the tensors of a torch file, zip or legacy format, without torch and without running its pickles.

A torch file is a pickle, and a pickle is a program. The unpickler here can build plain values and descriptions of
tensors and nothing else; tensors are cut from the raw storages afterwards, inside checked bounds.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

MAX_TENSORS = 10_000
MAX_PICKLE = 16 * 2**20
MAX_ELEMENTS = 2**30

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


# The descriptions are tuples, for a pickle can change the fields of nearly any other object after they were checked.


class _StorageType(NamedTuple):
    """Stands for a `torch.<X>Storage` class; unlike it, it cannot be called."""

    name: str

    @property
    def itemsize(self) -> int:
        return 2 if _DTYPES[self.name] == "bf16" else np.dtype(_DTYPES[self.name]).itemsize


class _Storage(NamedTuple):
    kind: _StorageType
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise pickle.UnpicklingError("malformed tensor")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("malformed tensor shape")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    # NumPy's as_strided would read past the end without a word; an expanded view could fill the memory.
    if size and (last >= storage.count or size > storage.count):
        raise pickle.UnpicklingError("tensor reaches outside its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): _StorageType(name) for name in _DTYPES}


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}  # all that the pickle speaks of, by key

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module_name}.{global_name}") from None

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), str(), int(count), *rest) if count >= 0:
                if rest in ([], [None]):  # of which part of another storage it is a view: nobody writes that now
                    self.storages[key] = _Storage(kind, key, count)
                    return self.storages[key]
        raise pickle.UnpicklingError("refused: a storage of an unknown form")


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """One object from the stream, which then stands just behind it, and the storages that it speaks of."""
    start = stream.tell()
    for opcode, argument, position in pickletools.genops(stream):
        # A memo index is a table size: a huge one is a way to fill the memory with five bytes.
        if (position or 0) - start > MAX_PICKLE or ("PUT" in opcode.name and int(argument or 0) > MAX_PICKLE):
            raise pickle.UnpicklingError("refused: the pickle is too large")
    end = stream.tell()
    stream.seek(start)
    unpickler = _TensorUnpickler(io.BytesIO(stream.read(end - start)))
    value = unpickler.load()
    stream.seek(end)
    return value, unpickler.storages


def _tensors(root: Any) -> dict[str, _Tensor]:
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
    tensors = {key: value for key, value in root.items() if isinstance(key, str) and isinstance(value, _Tensor)}
    if root and not tensors:
        raise pickle.UnpicklingError(f"not a tensor: {next(iter(root))!r}")
    if sum(math.prod(tensor.shape) for tensor in tensors.values()) > MAX_ELEMENTS:
        raise pickle.UnpicklingError("the tensors are too large")
    return tensors


def _array(tensor: _Tensor, raw: bytes | memoryview) -> np.ndarray:
    storage = tensor.storage
    if len(raw) != storage.count * storage.kind.itemsize:
        raise pickle.UnpicklingError(f"storage {storage.key} is truncated or of another size than it says")
    if _DTYPES[storage.kind.name] == "bf16":  # float32 with the lower half of its bits cut off
        flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(raw, _DTYPES[storage.kind.name])
    if 0 in tensor.shape:
        return np.empty(tensor.shape, flat.dtype)
    strides = tuple(step * flat.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)


def _read_zip(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
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
        for key, tensor in _tensors(_unpickle(io.BytesIO(archive.read(pickles[0])))[0]).items():
            yield key, _array(tensor, archive.read(f"{root}data/{tensor.storage.key}"))


def _read_legacy(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    stream = io.BytesIO(data)
    if _unpickle(stream)[0] != _LEGACY_MAGIC or _unpickle(stream)[0] != _LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("a pickle, but not a torch file")
    if not _unpickle(stream)[0].get("little_endian"):
        raise pickle.UnpicklingError("refused: big-endian storages")
    root, storages = _unpickle(stream)
    tensors, raw, view = _tensors(root), {}, memoryview(data)
    for key in _unpickle(stream)[0]:
        start = stream.tell() + 8
        count = int.from_bytes(stream.read(8), "little")
        if key not in storages:
            raise pickle.UnpicklingError(f"a storage of which nothing is said: {key!r}")
        stream.seek(start + count * storages[key].kind.itemsize)
        raw[key] = view[start : stream.tell()]
    for key, tensor in tensors.items():
        yield key, _array(tensor, raw[tensor.storage.key])


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
        return dict(_read_zip(data) if data[:2] == b"PK" else _read_legacy(data))
    # A damaged pickle or archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error

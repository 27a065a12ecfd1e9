"""Reads the tensors of a torch file, zip or legacy format, without torch and without running its pickles.

A torch file is a pickle, and a pickle is a program. The unpickler here can build plain values and descriptions of
tensors and nothing else; tensors are cut from the raw storages afterwards, inside checked bounds. A checkpoint of
Lightning's also names classes of its own: `read_checkpoint` puts one thing that does nothing in the place of them all.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

MAX_TENSORS = 10_000
MAX_PICKLE = 16 * 2**20
MAX_OPCODES = 250_000  # more than a checkpoint of a large network has with the state of its optimiser
MAX_WEIGHT = 4096  # members of a tuple, with those of its members
NUMBER, MEMO = 128, 20  # bits of a number, and of an index of the memo
MAX_ELEMENTS = 2**30
SPARE = 2**24  # elements that tensors may have beyond twice those of their storages: views share storages

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


# What picklers write; others are for code, for buffers elsewhere, or for undoing what was built.
_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
        "EMPTY_SET",
        "ADDITEMS",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
        "PERSID",
        "BINPERSID",
    ]
)


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
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise pickle.UnpicklingError("malformed tensor")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
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
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): _StorageType(name) for name in _DTYPES}


class _Inert:
    """Stands for whatever else a checkpoint names: it takes all that a pickle does to a class or an object."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _Inert:
        return _INERT

    def __call__(self, *_: Any) -> _Inert:
        return self

    @staticmethod
    def ignore(*_: Any) -> None:
        """Keeps nothing."""

    __setstate__ = append = extend = add = __setitem__ = ignore


_INERT = object.__new__(_Inert)
_OBJECTS = frozenset(["NEWOBJ"])  # a pickle's opcode for one; it takes classes only, and `_Inert` is the only one here


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, *, foreign: bool = False) -> None:
        super().__init__(stream)
        self.foreign = foreign  # whether other names than those of tensors stand for `_Inert`
        self.storages: dict[str, _Storage] = {}  # all that the pickle speaks of, by key
        self.copied = 0  # members of containers that were made of others
        self.allowed = _ALLOWED | {("collections", "OrderedDict"): partial(self.collect, OrderedDict)}
        self.allowed |= {(module, "set"): partial(self.collect, set) for module in ("builtins", "__builtin__")}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self.allowed[module_name, global_name]
        except KeyError:
            if self.foreign:
                return _Inert
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module_name}.{global_name}") from None

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), str(), int(count), *rest) if count >= 0:
                if rest in ([], [None]):  # of which part of another storage it is a view: nobody writes that now
                    self.storages[key] = _Storage(kind, key, count)
                    return self.storages[key]
        raise pickle.UnpicklingError("refused: a storage of an unknown form")

    def collect(self, kind: Any, members: Any = ()) -> Any:
        """An `OrderedDict` or a set; a pickle can ask for a copy of a large one again and again."""
        if not isinstance(members, list | tuple):
            raise pickle.UnpicklingError("refused: a container of an unknown form")
        self.copied += len(members)
        if self.copied > MAX_OPCODES:
            raise pickle.UnpicklingError("refused: containers are copied too often")
        return kind(members)


def _check_opcodes(stream: io.BytesIO, known: frozenset[str]) -> None:
    """Goes through a pickle without running it, and refuses one that would take long, much memory or a deep stack.

    What takes long is the hash of a tuple: it counts every member of every member, each time, and recursively. So
    each value on the stack has a weight, 1 or of a tuple that of its members and 1, which is limited, as is the sum of
    all that goes into containers.
    """
    start, total = stream.tell(), 0
    stack: list[int] = []  # weights; 0 is a mark
    memo: dict[int, int] = {}
    for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if name not in known:
            raise pickle.UnpicklingError(f"refused: the pickle has an opcode {name}")
        if count > MAX_OPCODES or (position or 0) - start > MAX_PICKLE:
            raise pickle.UnpicklingError("refused: the pickle is too large")
        if type(argument) is int and abs(argument) >> (NUMBER if "PUT" not in name else MEMO):
            raise pickle.UnpicklingError("refused: a number in the pickle is too large")  # a memo is a table
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = stack[-1]
            continue
        members = []
        if pickletools.markobject in opcode.stack_before:
            while weight := stack.pop():
                members.append(weight)
            members += [stack.pop() for _ in range(opcode.stack_before.index(pickletools.markobject))]
        else:
            members = [stack.pop() for _ in opcode.stack_before]
        weight = 0 if name == "MARK" else 1
        if "GET" in name:
            weight = memo[int(argument or 0)]
        elif "TUPLE" in name or name in ("REDUCE", "NEWOBJ", "BINPERSID", "BUILD"):
            weight += sum(members)
        else:  # the others that take something fill containers, which have no hash
            total += sum(members)
        if weight > MAX_WEIGHT or total > MAX_OPCODES:
            raise pickle.UnpicklingError("refused: the pickle nests too much")
        stack += [weight] * len(opcode.stack_after)


def _unpickle(stream: io.BytesIO, *, foreign: bool = False) -> tuple[Any, dict[str, _Storage]]:
    """One object from the stream, which then stands just behind it, and the storages that it speaks of."""
    start = stream.tell()
    _check_opcodes(stream, _OPCODES | _OBJECTS if foreign else _OPCODES)
    end = stream.tell()
    stream.seek(start)
    unpickler = _TensorUnpickler(io.BytesIO(stream.read(end - start)), foreign=foreign)
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
        first = next(iter(root))
        raise pickle.UnpicklingError(f"not a tensor: {first if isinstance(first, str) else type(first).__name__!r}")
    elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    stored = sum({tensor.storage.key: tensor.storage.count for tensor in tensors.values()}.values())
    if elements > min(MAX_ELEMENTS, 2 * stored + SPARE):
        raise pickle.UnpicklingError("the tensors are too large")
    return tensors


def _flat(storage: _Storage, raw: bytes | memoryview) -> np.ndarray:
    """The numbers of a storage."""
    if len(raw) != storage.count * storage.kind.itemsize:
        raise pickle.UnpicklingError(f"storage {storage.key} is truncated or of another size than it says")
    if _DTYPES[storage.kind.name] == "bf16":  # float32 with the lower half of its bits cut off
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, _DTYPES[storage.kind.name])


def _arrays(tensors: Mapping[str, _Tensor], raw: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    """Every tensor, from the bytes of the storage of a key, which is read once."""
    flats: dict[_Storage, np.ndarray] = {}
    for tensor in tensors.values():
        if tensor.storage not in flats:
            flats[tensor.storage] = _flat(tensor.storage, raw(tensor.storage.key))
    return {name: _array(tensor, flats[tensor.storage]) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
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
        content, _ = _unpickle(io.BytesIO(archive.read(pickles[0])), foreign=foreign)
        return _arrays(_tensors(content), lambda key: archive.read(f"{root}data/{key}")), content


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
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
        if any(isinstance(value, _Inert) for value in content.pop("state_dict", {}).values()):
            raise ValueError("refused: its state dict holds other things than tensors")
        return arrays, content
    except Exception as error:  # as above
        raise ValueError(str(error) or type(error).__name__) from error

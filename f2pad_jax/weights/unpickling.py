"""Unpickles descriptions of tensors and plain values, and nothing else: a pickle is a program, this runs none.

A pickle is first gone through without running it, for what would take long, much memory or a deep stack. Of the names
that it asks for those of tensors are known. A checkpoint of Lightning's also names classes of its own: one thing that
does nothing stands in the place of them all.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import numpy as np

MAX_PICKLE = 16 * 2**20
MAX_OPCODES = 250_000  # more than a checkpoint of a large network has with the state of its optimiser
MAX_WEIGHT = 4096  # members of a tuple, with those of its members
NUMBER, MEMO = 128, 20  # bits of a number, and of an index of the memo

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
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
    EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    PERSID BINPERSID
    """.split()  # noqa: SIM905
)


# The descriptions are tuples, for a pickle can change the fields of nearly any other object after they were checked.


class _StorageType(NamedTuple):
    """Stands for a `torch.<X>Storage` class; unlike it, it cannot be called."""

    name: str

    @property
    def itemsize(self) -> int:
        return 2 if _DTYPES[self.name] == "bf16" else np.dtype(_DTYPES[self.name]).itemsize


class Storage(NamedTuple):
    """What a pickle says of the numbers that tensors are cut from; they lie elsewhere in the file."""

    kind: _StorageType
    key: str
    count: int

    def numbers(self, raw: bytes | memoryview) -> np.ndarray:
        """The numbers, (count,), from the bytes; bfloat16 becomes float32."""
        if len(raw) != self.count * self.kind.itemsize:
            raise pickle.UnpicklingError(f"storage {self.key} is truncated or of another size than it says")
        if _DTYPES[self.kind.name] == "bf16":  # float32 with the lower half of its bits cut off
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(raw, _DTYPES[self.kind.name])


class Tensor(NamedTuple):
    """What a pickle says of a tensor: a view of a storage, inside of it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise pickle.UnpicklingError("malformed tensor")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise pickle.UnpicklingError("malformed tensor shape")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    # NumPy's as_strided would read past the end without a word; an expanded view could fill the memory.
    if size and (last >= storage.count or size > storage.count):
        raise pickle.UnpicklingError("tensor reaches outside its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): _StorageType(name) for name in _DTYPES}


class Inert:
    """Stands for whatever else a checkpoint names: it takes all that a pickle does to a class or an object."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> Inert:
        """The only one there is."""
        return _INERT

    def __call__(self, *_: Any) -> Inert:
        """Itself."""
        return self

    @staticmethod
    def ignore(*_: Any) -> None:
        """Keeps nothing."""

    __setstate__ = append = extend = add = __setitem__ = ignore


_INERT = object.__new__(Inert)
_OBJECTS = frozenset(["NEWOBJ"])  # a pickle's opcode for one; it takes classes only, and `Inert` is the only one here


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, *, foreign: bool = False) -> None:
        super().__init__(stream)
        self.foreign = foreign  # whether other names than those of tensors stand for `Inert`
        self.storages: dict[str, Storage] = {}  # all that the pickle speaks of, by key
        self.copied = 0  # members of containers that were made of others
        self.allowed = _ALLOWED | {("collections", "OrderedDict"): partial(self.collect, OrderedDict)}
        self.allowed |= {(module, "set"): partial(self.collect, set) for module in ("builtins", "__builtin__")}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self.allowed[module_name, global_name]
        except KeyError:
            if self.foreign:
                return Inert
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module_name}.{global_name}") from None

    def persistent_load(self, pid: Any, /) -> Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), str(), int(count), *rest) if count >= 0:
                if rest in ([], [None]):  # of which part of another storage it is a view: nobody writes that now
                    self.storages[key] = Storage(kind, key, count)
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


def unpickle(stream: io.BytesIO, *, foreign: bool = False) -> tuple[Any, dict[str, Storage]]:
    """One object from the stream, which then stands just behind it, and the storages that it speaks of."""
    start = stream.tell()
    _check_opcodes(stream, _OPCODES | _OBJECTS if foreign else _OPCODES)
    end = stream.tell()
    stream.seek(start)
    unpickler = _TensorUnpickler(io.BytesIO(stream.read(end - start)), foreign=foreign)
    value = unpickler.load()
    stream.seek(end)
    return value, unpickler.storages

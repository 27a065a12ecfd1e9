"""Spoils good bytes and good JSON, by a `random.Random`."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.5, 1e-300, 1e300, -1e9, float("nan"), float("inf"), float("-inf"),
    10**30, 2**31, 2**63, "", "x", "../..", "/", "\0", "nan", "0", [], [0], {}, {"a": 1}, [[[]]], "é" * 50,
]  # fmt: skip


def spoil_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """One to four edits: bits, numbers, runs that are cut, doubled, zeroed or taken from another file, the end."""
    spoiled = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if not spoiled:
            break
        start = random.randrange(len(spoiled))
        length = min(1 << random.randint(0, 8), len(spoiled) - start)
        match random.randrange(8):
            case 0:
                spoiled[start] ^= 1 << random.randrange(8)
            case 1:
                spoiled[start] = random.randrange(256)
            case 2:
                width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
                number = random.choice(INTEGERS) % (1 << 8 * width)
                spoiled[start : start + width] = number.to_bytes(width, order)
            case 3:
                del spoiled[start : start + length]
            case 4:
                spoiled[start:start] = spoiled[start : start + length] * random.randint(1, 4)
            case 5:
                spoiled[start : start + length] = bytes(length)
            case 6:
                other = random.choice(others) if others else data
                place = random.randrange(len(other))
                spoiled[start : start + length] = other[place : place + length]
            case _:
                del spoiled[start:]
    return bytes(spoiled)


def spoil_json(random: Random, value: Any) -> Any:
    """A copy in which one or two places, at any depth, hold something else, or are missing, added or renamed."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 2)):
        node = value
        while isinstance(node, dict | list) and node:
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not (isinstance(node[key], dict | list) and node[key]) or random.random() < 0.2:
                _spoil_member(random, node, key)
                break
            node = node[key]
    return value


def _spoil_member(random: Random, node: Any, key: Any) -> None:
    match random.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice(["", "x", "../x", "sha256"])] = node[key]
        case 2 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = random.choice([-node[key], node[key] * 1e6, float(node[key]), str(node[key])])
        case _:
            node[key] = copy.deepcopy(random.choice(VALUES))  # a second round may spoil it in place


def dumps(value: Any) -> str:
    """JSON with the NaN and Infinity that Python reads and writes."""
    return json.dumps(value)


def mend_png(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that decoders look further."""
    mended, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        mended += struct.pack(">I", max(len(body) - 4, 0)) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(mended)

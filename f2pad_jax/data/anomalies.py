"""Anomalies of graded difficulty, made from normal pictures: paint ever harder to see, and likenesses of defects.

Each kind is a function of a normal picture n, uint8 (H, W, 3), and a random generator. It gives the picture x, uint8
(H, W, 3), and its mask, bool (H, W), never empty. Outside the mask x equals n. Inside, some channel of x differs
from n by at least `changes.VISIBLE` grey levels of 255, but for gaps of one or two pixels between pixels that do; paint
has no such gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from f2pad_jax.data.changes import alter, bend, blur, brighten, edge_stroke, move, patches, remove, shade, texture, turn
from f2pad_jax.data.paints import Made, cut_paste, grey, own, translucent
from f2pad_jax.errors import InputError

Kind = Callable[..., Made]

KINDS: dict[str, Kind] = {
    "colour": cut_paste,
    "grey": grey,
    "own": own,
    "translucent": translucent,
    "structural": partial(alter, changes=(move, turn, bend)),
    "texture": partial(alter, changes=(texture,), draw=patches),
    "warp": partial(alter, changes=(bend,)),
    "blur": partial(alter, changes=(blur,)),
    "brightness": partial(alter, changes=(brighten,)),
    "scratch": partial(alter, changes=(shade,), draw=edge_stroke, thin=True),
    "missing": partial(alter, changes=(remove,)),
}


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Names of kinds, at least one.

    Raises:
      InputError: none is given, or there is no such kind.
    """
    names = tuple(kinds)
    for name in names or ("none",):
        if name not in KINDS:
            raise InputError("no such kind of anomaly", where=name, hint=f"choose from {', '.join(KINDS)}")
    return names


def folder_of(kind: str) -> str:
    """The name of a kind's folder in MVTec AD's layout: its own, but for "colour" the data set's name "color"."""
    return "color" if kind == "colour" else kind

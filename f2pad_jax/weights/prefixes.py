"""Names in weight files as trainers save them: with what wrapped the network in front of each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

from f2pad_jax.errors import InputWarning

PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.")  # one or several of them, in any order
SHOWN = 4  # names in a message


def unwrapped(state: Mapping[str, np.ndarray], known: Set[str], path: Path) -> Mapping[str, np.ndarray]:
    """The arrays by the network's own names, where another name wraps them; what lies beside is left out.

    Args:
      state: arrays by name.
      known: names by which the network is recognised.
      path: the file.

    Warns:
      InputWarning: there was such a name; it says which.
    """
    found = {"": 0}
    for name in state:
        wrapper = ""
        while name not in known and (prefix := next(filter(name.startswith, PREFIXES), None)):
            wrapper, name = wrapper + prefix, name.removeprefix(prefix)
        found[wrapper] = found.get(wrapper, 0) + (name in known)
    wrapper = max(found, key=lambda each: found[each])  # the first of equals: none
    if not found[wrapper] or not wrapper:
        return state
    inner = {name.removeprefix(wrapper): array for name, array in state.items() if name.startswith(wrapper)}
    beside = len(state) - len(inner)
    also = f", and {beside} names beside it are not used" if beside else ""
    warnings.warn(InputWarning(f"its names are within {wrapper!r}{also}", where=path), stacklevel=2)
    return inner


def own_names(state: Mapping[str, np.ndarray]) -> str:
    """The first names of a file, for a message about those it lacks."""
    names = sorted(state)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the file's own names are {', '.join(names[:SHOWN])}{more}" if names else "the file holds no arrays"

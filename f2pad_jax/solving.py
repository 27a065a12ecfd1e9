"""Plans to solutions: lanes over all local devices, fewer of them where their memory does not suffice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from f2pad_jax.core import Energy, Solution, solve_many
from f2pad_jax.core.pixels import denormalize
from f2pad_jax.model import Model
from f2pad_jax.preparing import Plan, build, plan_estimation
from f2pad_jax.sights import Sight

LANES = 64  # per accelerator
EXHAUSTED = "RESOURCE_EXHAUSTED"  # how XLA names a lack of memory


def find_solutions(model: Model, plans: Sequence[Plan], *, title: str | None = None) -> Iterator[tuple[int, Solution]]:
    """Step 4 of Algorithm 1: solves all plans in lanes; index and solution of each, as they finish.

    Args:
      model: whose energy all plans share.
      plans: any number; their settings may differ.
      title: of a progress bar; none without.
    """
    groups: dict[Any, list[int]] = {}
    for index, chosen in enumerate(plans):
        # Lanes of one compiled step have equal shapes and static settings.
        static = jax.tree.structure(chosen.settings)
        groups.setdefault((len(chosen.affected.positions), chosen.box[2:], chosen.shared, static), []).append(index)
    with tqdm(total=len(plans), desc=title, unit="image", leave=False, disable=None if title else True) as bar:
        for members in groups.values():
            for index, solution in solve_on_all(model.energy, lambda k: build(model, plans[k]), members):
                bar.update()
                yield index, solution


def find_normals(
    model: Model, images: np.ndarray, sights: Sequence[Sight], masks: Mapping[int, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Step 6 of Algorithm 1: n* where something is marked, as index and n*, uint8 (H, W, 3), x outside the mask.

    Args:
      model: as fitted or tuned.
      images: uint8 RGB (N, H, W, 3).
      sights: of `look`.
      masks: final, (H, W) bool, by index; empty ones are left out.
    """
    marked = [k for k, mask in masks.items() if mask.any()]
    plans = [plan_estimation(model, sights[k], masks[k]) for k in marked]
    for place, solution in find_solutions(model, plans):
        k = marked[place]
        recovered = plans[place].box.put(denormalize(np.asarray(solution.normal)), images[k])
        yield k, np.where(masks[k][..., None], recovered, images[k])


def solve_on_all(energy: Energy, case: Callable[[int], Any], indices: Sequence[int]) -> Iterator[tuple[int, Solution]]:
    """`solve_many` over all local devices; on a CPU more lanes than devices gain nothing.

    Where a device has too little memory, the lanes are halved, with a warning, and what is not done is solved again.

    Args:
      energy: what all cases share.
      case: makes the case of an index when its turn comes.
      indices: of the cases.

    Yields:
      Index and solution, as they finish.

    Raises:
      jax.errors.JaxRuntimeError: one lane a device is too much.
    """
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    if not on_cpu:  # a CPU keeps all: a program for fewer rounds otherwise, and bits would depend on the other pictures
        devices = devices[: len(indices)]
    most = len(devices) if on_cpu else LANES * len(devices)
    width = len(devices)
    while width < min(len(indices), most):
        width *= 2
    waiting = list(indices)
    while waiting:
        done: set[int] = set()
        try:
            for place, solution in solve_many(map(case, waiting), energy, width=width, devices=devices):
                done.add(waiting[place])
                yield waiting[place], solution
        except jax.errors.JaxRuntimeError as error:
            if EXHAUSTED not in str(error) or width == len(devices):
                raise
            width //= 2
            warnings.warn(f"too little memory for {2 * width} pictures at once, going on with {width}", stacklevel=2)
        waiting = [index for index in waiting if index not in done]

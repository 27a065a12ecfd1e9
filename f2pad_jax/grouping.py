"""Which pictures are in memory together: a fixed number of pixels, or what fits into a limit of host memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.errors import InputError
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor, map_shapes
from f2pad_jax.reducing import Shape

GROUP = 32  # pictures of at most `USUAL` pixels that are in memory at a time
USUAL = 2**18
GIB = 2**30
RUNTIME = int(1.25 * GIB)  # Python, JAX, and programs compiled for all sizes of regions, as measured
OWN, WORKED, STEP = 80, 160, 512  # bytes a pixel: of a picture and its result, at the model's shape, of a lane


class Budget(NamedTuple):
    """A limit of host memory, in bytes, and what is needed of it.

    Attributes:
      limit: of the process.
      shared: whatever the number of pictures.
      worked: of each picture, at the model's shape.
    """

    limit: int
    shared: int
    worked: int

    def needed(self, shape: Shape) -> int:
        """Bytes of a picture of this height and width, from its file to its results."""
        return self.worked + OWN * shape[0] * shape[1]

    def check(self, shape: Shape, *, where: object = None) -> None:
        """Makes sure that one picture fits.

        Raises:
          InputError: it does not.
        """
        whole = self.shared + self.needed(shape)
        if whole > self.limit:
            sides = f"{shape[1]} × {shape[0]}"
            raise InputError(
                f"{_gib(self.limit)} of memory are too little: one picture of {sides} takes about {_gib(whole)}",
                where=where,
                hint="raise --memory, or fit with a lower --size or --work-size",
            )


def budget(model: Model, memory: float) -> Budget:
    """What of a limit of host memory the pictures of a model take, estimated by the shapes of arrays.

    Shared by all pictures are the program (`RUNTIME`), the arrays of the model, once as they are and once for each
    device of a CPU, and on a CPU a lane for each device: what the pass back through the extractor keeps of the pass
    forward, and `STEP` bytes a pixel. Each picture has its feature maps, `WORKED` bytes for each pixel of the model's
    shape (x, n⁽⁰⁾, the fill and their like in float32), and `OWN` bytes for each of its own pixels (the picture and its
    results, twice, because a group is written while the next is solved).

    Args:
      model: as fitted or tuned.
      memory: most host memory of the process, GiB.
    """
    devices = len(jax.local_devices()) if jax.default_backend() == "cpu" else 0
    pixels, seen = model.shape[0] * model.shape[1], (1, *model.seen, 3)
    energy = _bytes(model.energy)
    lane = kept_by_gradient(model.extractor, seen) + STEP * pixels
    own = model.normals.pictures.nbytes + model.held_out.nbytes
    maps = _bytes(map_shapes(model.extractor.spec, model.seen))
    return Budget(
        limit=int(memory * GIB),
        shared=RUNTIME + energy + own + devices * (energy + lane),
        worked=maps + WORKED * pixels,
    )


def check_fit(extractor: Extractor, count: int, shape: Shape, seen: Shape, memory: float) -> None:
    """Makes sure that a detector can be fitted within a limit of host memory.

    Fitting knows no groups: all pictures, and their feature maps three times (as computed, joined, and as the detector
    works on them), are in memory together, beside `RUNTIME` and the extractor.

    Args:
      extractor: the network.
      count: training pictures.
      shape: of the pictures.
      seen: what the extractor sees of them.
      memory: most host memory of the process, GiB.

    Raises:
      InputError: it is too little.
    """
    maps = _bytes(map_shapes(extractor.spec, seen))
    each = 3 * (shape[0] * shape[1] + maps)
    whole = RUNTIME + _bytes(extractor) + kept_by_gradient(extractor, (1, *seen, 3)) + count * each
    if whole > memory * GIB:
        raise InputError(
            f"{_gib(int(memory * GIB))} of memory are too little: a fit to {count} pictures takes about {_gib(whole)}",
            hint="raise --memory, or lower --shots or --size",
        )


def groups(model: Model, shapes: Sequence[Shape], limit: Budget | None, *, kept: bool = False) -> Iterator[range]:
    """Indices of the pictures that are in memory together, group by group.

    Args:
      model: as fitted or tuned.
      shapes: height and width of each picture.
      limit: of memory; a picture that does not fit is a group by itself.
      kept: whether all pictures and results stay in memory, as in Python, or leave it with their group.

    Raises:
      InputError: of pictures that stay, one or all together do not fit.
    """
    most, first, used = group_size(model), 0, 0
    if limit is not None and kept:
        for shape in shapes:
            limit.check(shape)
        limit = limit._replace(shared=limit.shared + sum(OWN * height * width for height, width in shapes))
        if (whole := limit.shared + limit.worked) > limit.limit:
            raise InputError(
                f"{_gib(limit.limit)} of memory are too little: {len(shapes)} pictures and what is found in them take "
                f"about {_gib(whole)}",
                hint="raise --memory, or take fewer pictures at a time",
            )
    for index, shape in enumerate(shapes):
        takes = 0 if limit is None else limit.worked if kept else limit.needed(shape)
        full = limit is not None and limit.shared + used + takes > limit.limit
        if index > first and (full or index - first == most):
            yield range(first, index)
            first, used = index, 0
        used += takes
    if first < len(shapes):
        yield range(first, len(shapes))


def group_size(model: Model) -> int:
    """How many pictures are in memory at a time, where nobody has named a limit."""
    if model.windowed:
        return 1
    return max(1, min(GROUP, GROUP * USUAL // (model.shape[0] * model.shape[1])))


def kept_by_gradient(extractor: Extractor, shape: tuple[int, ...]) -> int:
    """Bytes that the reverse pass through an extractor keeps of the forward pass, of pictures (B, h, w, 3)."""
    pictures = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _bytes(jax.eval_shape(lambda x: jax.vjp(extractor, x)[1], pictures))


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"

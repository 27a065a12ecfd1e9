"""What a detector is: a pytree class, whose type decides which code runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_type_hints, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from f2pad_jax.errors import InputError

Shape = jax.ShapeDtypeStruct
Maps = tuple[jax.Array, ...]  # of one picture: (H_k, W_k, C_k), finest first
Arrays = dict[str, Any]  # nested dicts of arrays
Facts = dict[str, Any]  # plain data for JSON
Count = Annotated[int, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Convention = Literal["own", "anomalib"]  # whose details a detector follows where codes of one method differ


@dataclass(frozen=True)
class Drawing:
    """How scores on a detector's grid become a map.

    Attributes:
      enlarging: to the size of what the extractor sees, "linear" or "nearest".
      border: how the Gaussian goes on beyond it, in SciPy's words: "reflect" repeats the last pixel, "mirror" does not.
    """

    enlarging: Literal["linear", "nearest"] = "linear"
    border: Literal["reflect", "mirror"] = "reflect"


@runtime_checkable
class Detector(Protocol):
    """A fitted detector, a `flax.struct` dataclass; `detectors.DETECTORS` lists the classes.

    A class of one's own with these members works everywhere: add it to that table. One that also has a class method
    `declared(arrays, maps)` has the arrays of its model folders checked: from the arrays of `state` and the feature
    maps of a picture, (H_k, W_k, C_k) each, it gives the shapes and dtypes that the arrays must have, as
    `jax.ShapeDtypeStruct`s; a `ValueError` says what is wrong with their values. One whose scores have an
    upper bound names it by a property `bound`; its threshold then stays below. One whose maps are drawn otherwise than
    by `Drawing()` says so by a property `drawing`.

    Attributes:
      name: as on the command line.
      level: which of the grids of the feature maps the scores lie on, finest first; the coarsest where there are fewer.
      anchored: whether `localize` looks at the features of n⁽⁰⁾, not at their shapes alone.
      published: options of `fit` that the detector's own paper sets otherwise than the defaults here.
    """

    name: ClassVar[str]
    anchored: ClassVar[bool]
    published: ClassVar[Mapping[str, Any]]

    @property
    def level(self) -> int:
        """As above."""
        ...

    @classmethod
    def fit(cls, maps: tuple[np.ndarray, ...], *, seed: int = 0) -> Self:
        """Learns normal features, (N, H_k, W_k, C_k) each, finest first.

        Further keyword arguments are the options of `f2pad fit --option NAME=VALUE` and of `fitting.fit`, which keep to
        the ranges that their types name by pydantic's `Field`.
        """
        ...

    def score(self, maps: Maps) -> Float[Array, "h w"]:
        """The detector's own score map, unsmoothed."""
        ...

    def summands(self, maps: Maps) -> Float[Array, "h w"]:
        """The s_ij that l_n adds up, Eq. (4), (6) or (7)."""
        ...

    def localize(self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None) -> Any:
        """What `local_scores` needs at some positions, a pytree.

        Args:
          maps: features of n⁽⁰⁾.
          positions: (S,) int32 in row-major order on the grid of `level`.
          coarser: of each further map, none finer, the cells in which the positions lie, (S_k,) int32; all of them by
            default.
        """
        ...

    def local_scores(self, local: Any, maps: Maps) -> Float[Array, " s"]:
        """`summands` at the positions of `localize`."""
        ...

    def state(self) -> tuple[Arrays, Facts]:
        """All that is needed to make it again: arrays in nested dicts, and plain data."""
        ...

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        ...


def enlarge(values: jax.Array, shape: tuple[int, ...], how: Literal["linear", "nearest"] = "linear") -> jax.Array:
    """Values on a grid at another shape with no side shorter."""
    # Antialiasing changes nothing where nothing shrinks, but ONNX converters do not know it.
    return jax.image.resize(values, shape, how, antialias=False)


def bound_of(detector: Detector) -> float | None:
    """What no score of the detector can exceed; None where it names nothing."""
    return getattr(detector, "bound", None)


def drawing_of(detector: Detector) -> Drawing:
    """How the detector's score maps are drawn."""
    return getattr(detector, "drawing", Drawing())


def options_of(detector: type[Detector]) -> dict[str, Any]:
    """The options of a detector's `fit`: names, and types with their ranges."""
    hints = get_type_hints(detector.fit, include_extras=True)
    names = inspect.signature(detector.fit).parameters
    return {name: hints.get(name, Any) for name in names if name not in ("maps", "seed")}


def check_options(detector: type[Detector], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a detector's `fit` takes them: what is text, as on the command line, becomes what its types say.

    Raises:
      InputError: names the first that it does not take, or whose value is of another type or out of range.
    """
    known = options_of(detector)
    for name in options:
        if name not in known:
            hint = f"its options are {', '.join(known)}" if known else "it has no options"
            raise InputError(f"{detector.name} has no option {name!r}", hint=hint)
    return {name: _checked(detector, name, known[name], value) for name, value in options.items()}


def _checked(detector: type[Detector], name: str, kind: Any, value: Any) -> Any:
    wanted: Any = tuple[kind]  # pydantic takes a configuration of arbitrary types only beside what has none of its own
    try:
        return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python((value,))[0]
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        what = f"option {name} of {detector.name} is {value!r}"
        raise InputError(what, hint=reason[0].lower() + reason[1:]) from error

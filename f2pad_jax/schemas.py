"""What the JSON files of this package may hold: names, types and ranges, checked before anything is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from f2pad_jax.errors import InputError

SHOWN = 60  # characters of a wrong value that an error shows

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """A JSON object with these names and no others; numbers are finite, and nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


_Facts = TypeVar("_Facts", bound=Facts)


def facts_of(cls: type, **ranges: Any) -> type[Facts]:
    """The schema of a dataclass of plain values, none of which may be missing.

    Args:
      cls: the class.
      ranges: pydantic's `Field(…)` of fields whose type says too little.
    """
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {name: (Annotated[hint, ranges.get(name, Field())], ...) for name, hint in hints.items()}
    return create_model(f"{cls.__name__}Facts", __base__=Facts, **fields)


def read_facts(schema: type[_Facts], facts: Mapping[str, Any], *, kind: str, where: object, hint: str) -> _Facts:
    """Checks what a JSON file holds.

    Args:
      schema: what it should hold.
      facts: what it holds.
      kind: what the file belongs to, in words.
      where: its folder or name.
      hint: what the user can do about it.

    Raises:
      InputError: names the first value that is missing, unknown, of another type or out of range.
    """
    try:
        return schema.model_validate_json(json.dumps(facts, default=lambda value: value.item()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, reason = ".".join(map(str, first["loc"])) or "it", first["msg"]
        shown = "" if first["type"] == "missing" else f" is {str(first['input'])[:SHOWN]!r}"
        what = f"{place}{shown}: {reason[0].lower()}{reason[1:]}"
    except (RecursionError, TypeError, ValueError) as error:
        what = str(error)
    raise InputError(f"damaged {kind} ({what})", where=where, hint=hint)

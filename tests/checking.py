"""What checks the annotations of the core's functions while tests run; `conftest` installs it by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, but not of constructors: JAX makes pytrees of whatever it likes, stacks and axes among them."""
    return function if function.__name__ == "__init__" else beartype(function)

"""Adan as its authors wrote it (Xie et al., arXiv 2208.06677; sail-sg/Adan, `adan.py`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


class ScaleByAdanState(NamedTuple):
    """What the next Adan step needs; every tree has the structure and shapes of the parameters."""

    count: jax.Array  # () int32, steps taken
    mean: optax.Updates  # m, moving average of the gradient
    difference: optax.Updates  # v, moving average of gradient differences
    square: optax.Updates  # n, moving average of the squared look-ahead gradient
    previous: optax.Updates  # gradient of the step before


def scale_by_adan(
    b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """Rescales gradients by the Adan rule.

    With the gradient g of step t and its difference d from that of the step before, which is zero in the first step:

        m ← b1·m + (1 − b1)·g
        v ← b2·v + (1 − b2)·d
        n ← b3·n + (1 − b3)·(g + b2·d)²
        u = (m / (1 − b1ᵗ) + b2·v / (1 − b2ᵗ)) / (√(n / (1 − b3ᵗ)) + eps)

    The gradient difference enters with weight `b2`, as in the authors' code; optax 0.2.8's `scale_by_adan`
    weights it by `1 - b2` (optax pull request 1715).

    Args:
      b1: decay of the gradient average m, in [0, 1).
      b2: decay of the difference average v, in [0, 1).
      b3: decay of the square average n, in [0, 1).
      eps: added outside the root, in units of the gradient.

    Returns:
      A transformation whose update is an ascent direction of order one; scale it by minus the step size.
    """

    def init(params: optax.Params) -> ScaleByAdanState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ScaleByAdanState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None):
        del params
        count = state.count + 1
        first = state.count == 0
        step = jax.tree.map(lambda g, p: jnp.where(first, 0.0, g - p), updates, state.previous)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        difference = jax.tree.map(lambda v, d: b2 * v + (1 - b2) * d, state.difference, step)
        square = jax.tree.map(lambda n, g, d: b3 * n + (1 - b3) * jnp.square(g + b2 * d), state.square, updates, step)
        state = ScaleByAdanState(count, mean, difference, square, updates)
        direction = adan_direction(state, b1=b1, b2=b2, b3=b3, eps=eps)
        return direction, state

    return optax.GradientTransformation(init, update)


def adan_direction(
    state: ScaleByAdanState, *, b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: ArrayLike = 1e-8
) -> Any:
    """The direction of the last step, of order one: shapes of the parameters."""
    count = jnp.maximum(state.count, 1)
    correct1, correct2 = 1 - b1**count, 1 - b2**count
    return jax.tree.map(
        lambda m, v, s: (m / correct1 + b2 * v / correct2) / s,
        state.mean,
        state.difference,
        adan_denominator(state, b3=b3, eps=eps),
    )


def adan_denominator(state: ScaleByAdanState, *, b3: float = 0.99, eps: ArrayLike = 1e-8) -> Any:
    """The metric of the last step, √(n / (1 − b3ᵗ)) + ε: shapes of the parameters, units of the gradient."""
    correct = 1 - b3 ** jnp.maximum(state.count, 1)
    return jax.tree.map(lambda n: jnp.sqrt(n / correct) + eps, state.square)

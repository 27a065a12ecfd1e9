"""What makes a solve descend: the best n is remembered, and steps that raise F are taken back to it.

A proximal step lowers F only where it is short beside the curvature of l_n and where neighbours share nothing. F is
known at every n anyway, so it decides: a step that raised F is repeated from the best n at half the size. That costs
one iteration and no other evaluation of F.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from f2pad_jax.core.energy import Terms

CLIMB = 1.0  # rise of F per pixel of the region above its lowest that a step may bring, as Adan's steps do
SHRINK, REGROW = 0.5, 1.1  # of the step size after a step that was taken back, and after every other
TIE = 5e-4  # of |F|: of n whose F are so close the latest counts, which has most of the normal pixels cleared


class Descent(struct.PyTreeNode, kw_only=True):
    """The best n since sparsity set in.

    Attributes:
      normal: n, (H, W, 3).
      moments: of the optimiser, after the gradient at n.
      terms: of F(n).
      excess: F(n) above the lowest F seen, ≥ 0, ().
      drop: F at the start of the phase above F(n), ≥ 0, ().
      shrink: factor of the step size, in (0, 1], ().
      descended: whether n is of a step; before the first it is the start, ().
    """

    normal: Float[Array, "h w 3"]
    moments: Any
    terms: Terms
    excess: Float[Array, ""]
    drop: Float[Array, ""]
    shrink: Float[Array, ""]
    descended: Bool[Array, ""]


def undescended(normal: Float[Array, "h w 3"], moments: Any) -> Descent:
    """Before the first step."""
    zero = jnp.float32(0)
    return Descent(
        normal=normal,
        moments=moments,
        terms=Terms(zero, zero, zero, zero),
        excess=zero,
        drop=zero,
        shrink=jnp.float32(1),
        descended=jnp.zeros((), bool),
    )


def descend(
    descent: Descent, normal: Float[Array, "h w 3"], moments: Any, terms: Terms, *, since: Array, climb: Array | None
) -> tuple[Descent, Bool[Array, ""]]:
    """Remembers the best n of the sparse phase, and tells whether the last step is to be taken back.

    Args:
      descent: of the steps before, its `terms` at the present β.
      normal: n, (H, W, 3).
      moments: of the optimiser, after the gradient at n.
      terms: of F(n).
      since: iterations since sparsity set in, () int32; negative before.
      climb: rise of F above the lowest that is allowed, (); None where any is.

    Returns:
      The descent with n taken into account, and () bool.
    """
    value, best = total(terms), total(descent.terms)
    lowest, first = best - descent.excess, best + descent.drop
    begins, active = since == 0, since > 0
    near = active & (value <= jnp.minimum(lowest + TIE * jnp.abs(lowest), first))
    # A value that is no number has risen as well.
    rose = jnp.zeros((), bool) if climb is None else active & ~(value <= jnp.minimum(lowest + climb, first))
    lowest = jnp.where(active & (value < lowest), value, lowest)
    kept = where(begins | near, (normal, moments, terms), (descent.normal, descent.moments, descent.terms))
    best = total(kept[2])
    shrink = jnp.minimum(descent.shrink * jnp.where(rose, SHRINK, REGROW), 1.0)
    after = Descent(
        normal=kept[0],
        moments=kept[1],
        terms=kept[2],
        excess=jnp.where(active, best - lowest, 0.0),
        drop=jnp.where(active, first - best, 0.0),
        shrink=jnp.where(active, shrink, 1.0),
        descended=descent.descended | near,
    )
    return after, rose


def total(terms: Terms) -> Float[Array, ""]:
    """F, the sum of its terms."""
    return jnp.sum(jnp.stack(terms))


def where(condition: Array, chosen: Any, other: Any) -> Any:
    """`jnp.where` over the leaves of two trees."""
    return jax.tree.map(lambda first, second: jnp.where(condition, first, second), chosen, other)

"""The reduction D in front of the extractor, where n has more pixels than the extractor sees.

n may be a part of the picture, so that a small region costs little in a large picture: outside of it n is x, and D is
linear: it changes by R (n − x) Cᵀ where that part is seen, with the weights R and C of the part's rows and columns.
"""

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int


class Reduction(struct.PyTreeNode, kw_only=True):
    """D for one picture, or for a part of it.

    Attributes:
      seen: D x of the whole picture, (h, w, 3).
      rows: R, weights of the part's rows in those rows of D x that it is seen in, (p, H).
      columns: C, likewise, (q, W).
      corner: first of these rows and columns of D x, (2,) int32.
      area: pixels of n for each pixel of D n, ().
    """

    seen: Float[Array, "seen_h seen_w 3"]
    rows: Float[Array, "p h"]
    columns: Float[Array, "q w"]
    corner: Int[Array, " 2"]
    area: Float[Array, ""]


def reduce(
    normal: Float[Array, "h w 3"], image: Float[Array, "h w 3"], reduction: Reduction
) -> Float[Array, "seen_h seen_w 3"]:
    """D n, what the extractor sees.

    Args:
      normal: n, the part that is solved for, (H, W, 3).
      image: x there, (H, W, 3).
      reduction: D.
    """
    change = jnp.einsum("ij,jkc->ikc", reduction.rows, normal - image, precision="highest")
    change = jnp.einsum("lk,ikc->ilc", reduction.columns, change, precision="highest")
    corner = (*reduction.corner, 0)
    here = lax.dynamic_slice(reduction.seen, corner, change.shape)
    return lax.dynamic_update_slice(reduction.seen, here + change, corner)

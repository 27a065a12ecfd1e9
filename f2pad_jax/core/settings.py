"""The numbers of the objective and of the solver."""

from flax import struct

Number = float  # or a scalar array, where one is swept or traced


class Settings(struct.PyTreeNode, kw_only=True):
    """Numbers that the solver takes: a pytree whose numbers are traced, so that they may be swept under `vmap`.

    The booleans and `levels` are static: each combination compiles a step of its own.

    Attributes:
      alpha1: α1 of Eq. (12), weight of the pixel prior; one is "as much as a normal picture has".
      alpha2: α2 of Eq. (12), weight of the total variation, in the same unit.
      beta0: β0, weight of sparsity. An anomaly of norm t (normalised colour) survives where the gradient of the
        other terms exceeds about β0/t. `Problem.sparsity` multiplies it place by place.
      first_beta: β with which sparsity sets in where n⁽⁰⁾ is a fill. It rises to β0 by equal factors, `hold`
        iterations before the limit; where it is no less than β0, β is constant, as in the paper. From x, β is β0.
      hold: iterations at the end in which β is β0.
      rate: base step size, in normalised colour.
      rise: factor by which the step size has risen `solver.RISING` iterations after sparsity set in. A proximal step
        sets all of a to zero that is small beside the step size, so it must be small while anomalies are still
        leaving x; large ones then clear away what is left of normal pixels.
      clip: limit of the (shared) gradient, elementwise.
      damping: ε of Adan in units of the gradient: pixels whose gradients are smaller move less.
      warm_up: iterations without sparsity where n⁽⁰⁾ is x itself, in which anomalous pixels leave x.
      limit: most iterations, at least one.
      tolerance: fall of F per pixel of the region that counts as progress; where steps are not guarded, change of F
        from one iteration to the next.
      patience: iterations without progress after which to stop.
      floor: of |a| in Eq. (15), normalised colour, where step sizes are adaptive.
      levels: in how many equal parts the iterations with sparsity are divided for `Solution.left`; static.
      proximal: whether β·l_a is taken by its exact proximal map, which yields exact zeros; else it is a part of the
        gradient, as in the paper. Static.
      adaptive: whether step sizes are those of Eq. (15), else constant. Static.
      guarded: whether steps that raise F are taken back, see `core.descent`. Static.
      share_gradient: whether neighbours share their gradient, Eq. (13), as well as the ‖a‖ by which the proximal map
        decides. They share neither where the problem has no weights for it. Static.

    Examples:
      >>> Settings().replace(beta0=1.5).beta0
      1.5
    """

    alpha1: Number = 1.0
    alpha2: Number = 0.3
    beta0: Number = 4.0
    first_beta: Number = 0.3
    hold: int = 6
    rate: Number = 0.12
    rise: Number = 4.0
    clip: Number = 25.0
    damping: Number = 25.0
    warm_up: int = 20
    limit: int = 60
    tolerance: Number = 1e-4
    patience: int = 20
    floor: Number = 0.1
    levels: int = struct.field(pytree_node=False, default=10)
    proximal: bool = struct.field(pytree_node=False, default=True)
    adaptive: bool = struct.field(pytree_node=False, default=False)
    guarded: bool = struct.field(pytree_node=False, default=True)
    share_gradient: bool = struct.field(pytree_node=False, default=False)

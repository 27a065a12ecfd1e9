"""The mathematics of F2PAD: what is minimised, and how. Pytrees and pure functions on jax, optax and flax alone.

`Energy` is what all pictures of a model share, `Problem` one picture, `Settings` the numbers, `Solution` the result;
`objective`, `init`, `step`, `solve` and `solve_many` take these and nothing else. Equation numbers are those of
arXiv 2407.06519.
"""

from f2pad_jax.core import penalty as penalties
from f2pad_jax.core.energy import Energy, Problem, Scales, Terms, objective, terms
from f2pad_jax.core.lanes import solve_many
from f2pad_jax.core.penalty import Penalty
from f2pad_jax.core.priors import PixelMixture
from f2pad_jax.core.reduction import Reduction, reduce
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.sharing import Sharing, share, sharing_weights
from f2pad_jax.core.solver import Info, Solution, State, Status, advance, init, levels_of, solution, solve, step

__all__ = [
    "Energy",
    "Info",
    "Penalty",
    "PixelMixture",
    "Problem",
    "Reduction",
    "Scales",
    "Settings",
    "Sharing",
    "Solution",
    "State",
    "Status",
    "Terms",
    "advance",
    "init",
    "levels_of",
    "objective",
    "penalties",
    "reduce",
    "share",
    "sharing_weights",
    "solution",
    "solve",
    "solve_many",
    "step",
    "terms",
]

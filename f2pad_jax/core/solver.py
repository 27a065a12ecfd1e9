"""One iteration of F2PAD and the whole solve of one picture; many pictures are the caller's `vmap`, or `lanes`.

An iteration is: gradient, sharing (13), clipping, Adan, step size (15), sparsity, projection.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from f2pad_jax.core.adan import adan_denominator, adan_direction, scale_by_adan
from f2pad_jax.core.descent import CLIMB, Descent, descend, total, undescended, where
from f2pad_jax.core.energy import Energy, Problem, Terms, sparsity, terms_and_scores
from f2pad_jax.core.penalty import pixel_norm, shrink
from f2pad_jax.core.pixels import project
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.sharing import share, share_gradients

RISING = 40  # iterations, see `Settings.rise`


class Status(enum.IntEnum):
    """How a solve ended, or RUNNING where it has not; `State.status` and `Solution.status` hold the number."""

    RUNNING = 0
    CONVERGED = 1
    LIMIT = 2
    NON_FINITE = 3
    DIVERGED = 4

    @property
    def message(self) -> str:
        """In words, as in `results.jsonl`."""
        return ("running", "converged", "iteration limit", "non-finite", "diverged")[self]


class State(struct.PyTreeNode, kw_only=True):
    """What the next step needs.

    Attributes:
      normal: n, (H, W, 3), whose F is not known yet.
      moments: of the optimiser.
      descent: the best n so far.
      lasting: the last iteration, from 1, after which a pixel differed from x, (H, W) int32; zero where none did.
      left: the scores s_ij of n at the end of each level, (K, S); see `levels_of`.
      best: F when it last fell by the tolerance, or of the step before where steps are not guarded, () float32.
      stale: iterations since then, () int32.
      iterations: steps taken, () int32.
      status: one of `Status`, () int32.
    """

    normal: Float[Array, "h w 3"]
    moments: Any
    descent: Descent
    lasting: Int[Array, "h w"]
    left: Float[Array, "k s"]
    best: Float[Array, ""]
    stale: Int[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]


class Info(struct.PyTreeNode):
    """What a person wants to read about a step.

    Attributes:
      loss: F of the n before the step.
      terms: its terms.
    """

    loss: Float[Array, ""]
    terms: Terms


class Solution(struct.PyTreeNode, kw_only=True):
    """The result of a solve.

    Attributes:
      normal: n*, (H, W, 3), the best n of the sparse phase.
      status: one of `Status`, () int32; DIVERGED where no step lowered F, and n* is the n at which sparsity set in.
      lasting: the last iteration, from 1, after which a pixel differed from x, (H, W) int32: while β rises, what is
        anomalous at the β of any iteration.
      left: the scores s_ij of n at the end of each of the levels of `levels_of`, (K, S).
      iterations: () int32.
      loss: F(n*); of a solve without sparsity that of the n before the last step.
      terms: its terms.
    """

    normal: Float[Array, "*lanes h w 3"]
    status: Int[Array, "*lanes"]
    lasting: Int[Array, "*lanes h w"]
    left: Float[Array, "*lanes k s"]
    iterations: Int[Array, "*lanes"]
    loss: Float[Array, "*lanes"]
    terms: Terms

    @property
    def message(self) -> str:
        """The status of one picture in words."""
        return Status(int(self.status)).message


def optimiser(problem: Problem, settings: Settings) -> optax.GradientTransformation:
    """Gradient sharing where asked for, clipping, Adan: the direction of a step before its size."""
    shared = optax.identity()
    if settings.share_gradient and problem.sharing is not None:
        shared = share_gradients(problem.sharing)
    # Unlike that of `optax.clip`, this limit may be traced.
    clipped = optax.stateless(
        lambda updates, _: jax.tree.map(lambda g: jnp.clip(g, -settings.clip, settings.clip), updates)
    )
    return optax.chain(shared, clipped, scale_by_adan(eps=settings.damping))


def init(start: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings) -> State:
    """The state before the first step.

    Args:
      start: n⁽⁰⁾, (H, W, 3); clipped to valid pixels, and to x outside the region.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.
    """
    del energy
    start = project(start, problem.image, problem.region)
    zero, moments = jnp.int32(0), optimiser(problem, settings).init(start)
    return State(
        normal=start,
        moments=moments,
        descent=undescended(start, moments),
        lasting=jnp.zeros(problem.region.shape, jnp.int32),
        left=jnp.zeros((settings.levels, len(problem.present))),
        best=jnp.float32(jnp.inf),
        stale=zero,
        iterations=zero,
        status=jnp.int32(Status.RUNNING),
    )


def step(state: State, energy: Energy, problem: Problem, settings: Settings) -> tuple[State, Info]:
    """One iteration on one picture; batches are the caller's `vmap`.

    A loss, gradient or n that is not finite leaves n as it was and sets the status. While sparsity is there, a step
    that raised F is taken back where that is asked for, see `core.descent`; `solution` tells what a solve has come to.

    Args:
      state: of `init` or the step before.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.
    """
    since = state.iterations - _warm_up(problem.filled, settings)
    beta = sparsity_at(since, problem, settings)
    present, unit = problem.replace(sparsity=beta), settings.replace(beta0=1.0)

    def loss(normal: Array) -> tuple[Array, tuple[Terms, Array]]:
        parts, scores = terms_and_scores(normal, energy, present, unit)
        smooth = parts.feature + parts.pixel + parts.variation
        return smooth if settings.proximal else smooth + parts.sparsity, (parts, scores)

    (_, (parts, scores)), gradient = jax.value_and_grad(loss, has_aux=True)(state.normal)
    # Adan's long memory would go on pushing pixels away from x: it starts afresh when sparsity sets in.
    transform = optimiser(problem, settings)
    remembered = where(since == 0, transform.init(state.normal), state.moments)
    update: tuple[Any, Any] = transform.update(gradient, remembered)
    pixels = jnp.sum(problem.region)
    # β may have risen since: the best n so far is compared at the present one.
    best = state.descent.replace(
        terms=state.descent.terms._replace(sparsity=sparsity(state.descent.normal, energy, present, unit))
    )
    climb = CLIMB * pixels if settings.guarded else None
    descent, rose = descend(best, state.normal, update[1], parts, since=since, climb=climb)
    base, moments = where(rose, (descent.normal, descent.moments), (state.normal, update[1]))
    size = descent.shrink * _step_size(problem.image - base, since, settings)
    normal = base - size * adan_direction(moments[-1], eps=settings.damping)
    if settings.proximal:
        # One threshold per pixel, in the metric of Adan's step.
        metric = jnp.mean(adan_denominator(moments[-1], eps=settings.damping) / size, axis=-1)
        anomaly = problem.image - normal
        length = pixel_norm(anomaly)
        if problem.sharing is not None:
            # Neighbours of like colour decide together, so that a defect does not vanish in specks.
            length = share(length[..., None], problem.sharing)[..., 0]
        normal = problem.image - shrink(energy.penalty, anomaly, beta / metric, length)
    normal = project(normal, problem.image, problem.region)
    value = total(parts)
    # F changes its meaning while β rises, so progress is counted from there.
    constant = _first_beta(problem.filled, settings) >= settings.beta0
    settled = (since >= 0) & (constant | (since >= _rising(problem.filled, settings)))
    least = settings.tolerance * pixels
    improved = value < state.best - least if settings.guarded else jnp.abs(value - state.best) > least
    stale = jnp.where(settled & ~improved, state.stale + 1, 0).astype(jnp.int32)
    # Products of vectors, because XLA then writes the gradient once; a reduction would be one more of the uses that
    # compute it anew on a CPU, a tenth of a step.
    squares = jnp.vdot(gradient, gradient) + jnp.vdot(normal, normal)
    finite = jnp.isfinite(value) & jnp.isfinite(squares)
    iterations = state.iterations + 1
    status = jnp.where(iterations >= settings.limit, Status.LIMIT, Status.RUNNING)
    status = jnp.where(stale >= settings.patience, Status.CONVERGED, status)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    state = State(
        normal=jnp.where(finite, normal, state.normal),
        moments=moments,
        descent=where(finite, descent, state.descent),
        lasting=jnp.where((pixel_norm(problem.image - normal) > 0) & finite, iterations, state.lasting),
        left=_kept_scores(state.left, scores, since, problem, settings),
        best=jnp.where(settled, jnp.where(improved | (not settings.guarded), value, state.best), jnp.inf),
        stale=stale,
        iterations=iterations,
        status=status,
    )
    return state, Info(value, parts)


def _warm_up(filled: ArrayLike, settings: Settings) -> Array:
    return jnp.where(filled, 0, settings.warm_up)


def _first_beta(filled: ArrayLike, settings: Settings) -> Array:
    """β with which sparsity sets in: from x, a low one would let normal pixels follow the anomalous ones."""
    return jnp.where(filled, settings.first_beta, jnp.inf)


def _rising(filled: ArrayLike, settings: Settings) -> Array:
    """Iterations in which β rises, at least one."""
    return jnp.maximum(settings.limit - _warm_up(filled, settings) - settings.hold, 1)


def sparsity_at(since: Array | int, problem: Problem, settings: Settings) -> Float[Array, "h w"]:
    """β of every pixel, so many iterations after sparsity set in; zero before, β0 · `sparsity` in the end."""
    final = settings.beta0 * problem.sparsity
    low = jnp.minimum(_first_beta(problem.filled, settings), final)
    risen = jnp.clip(since / _rising(problem.filled, settings), 0.0, 1.0)
    beta = low * (final / jnp.where(low > 0, low, 1.0)) ** risen
    return jnp.where((since >= 0) & (low > 0), jnp.where(risen < 1, beta, final), 0.0)


def levels_of(filled: ArrayLike, settings: Settings) -> tuple[Int[Array, " k"], Float[Array, " k"]]:
    """The levels of a solve: the iteration, from 1, with which each ends, (K,), and the factor of β then, (K,).

    The factor is β over its final value where `Problem.sparsity` is one.

    Args:
      filled: whether n⁽⁰⁾ is a fill, as in `Problem`.
      settings: limit, warm-up, hold, β and the number of levels count.
    """
    warm_up = _warm_up(filled, settings)
    span = settings.limit - warm_up
    ends = warm_up + -(-(jnp.arange(settings.levels) + 1) * span // settings.levels)
    risen = jnp.clip((ends - 1 - warm_up) / _rising(filled, settings), 0.0, 1.0)
    low = jnp.minimum(_first_beta(filled, settings) / settings.beta0, 1.0)
    return ends, low ** (1 - risen)


def _kept_scores(left: Array, scores: Array, since: Array, problem: Problem, settings: Settings) -> Array:
    """`State.left` with the scores of this step's n in the level that it belongs to."""
    if not settings.levels:
        return left
    span = jnp.maximum(settings.limit - _warm_up(problem.filled, settings), 1)
    level = jnp.clip(since * settings.levels // span, 0, settings.levels - 1)
    return left.at[level].set(scores)


def _step_size(anomaly: Array, since: Array, settings: Settings) -> Array:
    """The step size of every element, so many iterations after sparsity set in.

    Adaptive, it is γ of Eq. (15), γ0/|a| with γ0 = 1 and |a| no less than its floor, as a factor of the rate.
    """
    risen = jnp.clip(since / RISING, 0.0, 1.0)
    rate = jnp.asarray(settings.rate * jnp.asarray(settings.rise, jnp.float32) ** risen, jnp.float32)
    if settings.adaptive:
        return rate / jnp.maximum(jnp.abs(anomaly), settings.floor)
    return jnp.broadcast_to(rate, anomaly.shape)


def advance(
    state: State, info: Info, energy: Energy, problem: Problem, settings: Settings, *, most: Array | int
) -> tuple[State, Info]:
    """Steps until the solve is over, but no more than `most`: the one loop round `step`.

    Args:
      state: of `init` or an earlier call.
      info: `no_info` or that of the earlier call.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.
      most: steps, traced.
    """
    until = state.iterations + most

    def unfinished(carry: tuple[State, Info]) -> Array:
        return (carry[0].status == Status.RUNNING) & (carry[0].iterations < until)

    return jax.lax.while_loop(unfinished, lambda carry: step(carry[0], energy, problem, settings), (state, info))


def no_info() -> Info:
    """What stands for the `Info` before the first step."""
    zero = jnp.float32(0)
    return Info(zero, Terms(zero, zero, zero, zero))


def solve(start: Float[Array, "h w 3"], energy: Energy, problem: Problem, settings: Settings) -> Solution:
    """Minimises F(n) from n⁽⁰⁾ until the stop rule or the iteration limit.

    A pure function: `jax.jit(solve)`, `jax.vmap` over pictures (`in_axes=(0, None, 0, None)`), over settings or both.

    Args:
      start: n⁽⁰⁾, (H, W, 3), ImageNet-normalised.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.

    Examples:
      >>> problem, start = f2pad_jax.prepare(model, image)  # doctest: +SKIP
      >>> jax.jit(solve)(start, model.energy, problem, model.settings).message  # doctest: +SKIP
      'converged'
    """
    state = init(start, energy, problem, settings)
    return solution(*advance(state, no_info(), energy, problem, settings, most=settings.limit))


def solution(state: State, info: Info) -> Solution:
    """What a solve has come to.

    Args:
      state: the last one.
      info: of the last step.
    """
    best = state.descent
    sparse = jnp.any(jnp.stack(best.terms) != 0)
    # At a limit that comes with the first sparse step, F of no other n is known: nothing has risen.
    lost = sparse & ~best.descended & (best.shrink < 1) & (state.status != Status.NON_FINITE)
    return Solution(
        normal=jnp.where(sparse, best.normal, state.normal),
        status=jnp.where(lost, Status.DIVERGED, state.status).astype(jnp.int32),
        lasting=state.lasting,
        left=state.left,
        iterations=state.iterations,
        loss=jnp.where(sparse, total(best.terms), info.loss),
        terms=where(sparse, best.terms, info.terms),
    )

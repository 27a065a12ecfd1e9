"""One iteration of F2PAD and the whole solve of one picture; many pictures are the caller's `vmap`, or `lanes`.

An iteration is: gradient, sharing (13), clipping, Adan, step size (15), sparsity, projection.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from f2pad_jax.core.adan import adan_denominator, adan_direction, scale_by_adan
from f2pad_jax.core.descent import CLIMB, Descent, descend, total, undescended, where
from f2pad_jax.core.energy import Energy, Problem, Terms, sparsity, terms
from f2pad_jax.core.penalty import pixel_norm, shrink
from f2pad_jax.core.pixels import project
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.sharing import share, share_gradients

RISING = 40  # iterations, see `Settings.rise`
FLOOR = 0.1  # of |a| in Eq. (15), normalised colour


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
      melting: the largest β of the ramp at which a pixel still differed from x, (H, W); zero where it never did.
      best: F when it last fell by the tolerance, () float32.
      stale: iterations since then, () int32.
      iterations: steps taken, () int32.
      status: one of `Status`, () int32.
    """

    normal: Float[Array, "h w 3"]
    moments: Any
    descent: Descent
    melting: Float[Array, "h w"]
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
      status: one of `Status`, () int32; DIVERGED where no step lowered F.
      melting: (H, W), the β at which a pixel last differed from x while β rose to its final value.
      iterations: () int32.
      loss: F(n*); of a solve without sparsity that of the n before the last step.
      terms: its terms.
    """

    normal: Float[Array, "*lanes h w 3"]
    status: Int[Array, "*lanes"]
    melting: Float[Array, "*lanes h w"]
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
        melting=jnp.zeros(problem.region.shape),
        best=jnp.float32(jnp.inf),
        stale=zero,
        iterations=zero,
        status=jnp.int32(Status.RUNNING),
    )


def step(state: State, energy: Energy, problem: Problem, settings: Settings) -> tuple[State, Info]:
    """One iteration on one picture; batches are the caller's `vmap`.

    A loss, gradient or n that is not finite leaves n as it was and sets the status. While sparsity is there, a step
    that raised F is taken back, see `core.descent`; `solution` tells what a solve has come to.

    Args:
      state: of `init` or the step before.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.
    """
    since = state.iterations - jnp.where(problem.filled, 0, settings.warm_up)
    beta = sparsity_at(since, problem, settings)
    present, unit = problem.replace(sparsity=beta), settings.replace(beta0=1.0)

    def loss(normal: Array) -> tuple[Array, Terms]:
        parts = terms(normal, energy, present, unit)
        smooth = parts.feature + parts.pixel + parts.variation
        return smooth if settings.proximal else smooth + parts.sparsity, parts

    (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.normal)
    # Adan's long memory would go on pushing pixels away from x: it starts afresh when sparsity sets in.
    transform = optimiser(problem, settings)
    remembered = where(since == 0, transform.init(state.normal), state.moments)
    update: tuple[Any, Any] = transform.update(gradient, remembered)
    pixels = jnp.sum(problem.region)
    # β may have risen since: the best n so far is compared at the present one.
    best = state.descent.replace(
        terms=state.descent.terms._replace(sparsity=sparsity(state.descent.normal, energy, present, unit))
    )
    descent, rose = descend(best, state.normal, update[1], parts, since=since, climb=CLIMB * pixels)
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
    settled = since >= settings.ramp
    improved = value < state.best - settings.tolerance * pixels
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
        melting=jnp.where((pixel_norm(problem.image - normal) > 0) & finite, beta, state.melting),
        best=jnp.where(settled, jnp.where(improved, value, state.best), jnp.inf),
        stale=stale,
        iterations=iterations,
        status=status,
    )
    return state, Info(value, parts)


def sparsity_at(since: Array, problem: Problem, settings: Settings) -> Float[Array, "h w"]:
    """β of every pixel, so many iterations after sparsity set in; zero before, and rising to β0 · `sparsity`."""
    final = settings.beta0 * problem.sparsity
    low = jnp.minimum(settings.first_beta, final)
    risen = jnp.clip((since + 1) / jnp.maximum(settings.ramp + 1, 1), 0.0, 1.0)
    beta = low * (final / jnp.where(low > 0, low, 1.0)) ** risen
    return jnp.where((since >= 0) & (low > 0), jnp.where(risen < 1, beta, final), 0.0)


def _step_size(anomaly: Array, since: Array, settings: Settings) -> Array:
    """The step size of every element, so many iterations after sparsity set in.

    Adaptive, it is γ of Eq. (15), γ0/|a| with γ0 = 1 and a floor of |a|, as a factor of the rate.
    """
    risen = jnp.clip(since / RISING, 0.0, 1.0)
    rate = jnp.asarray(settings.rate * jnp.asarray(settings.rise, jnp.float32) ** risen, jnp.float32)
    if settings.adaptive:
        return rate / jnp.maximum(jnp.abs(anomaly), FLOOR)
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
    """What a solve has come to, by its last state and the last step's `Info`."""
    best = state.descent
    sparse = jnp.any(jnp.stack(best.terms) != 0)
    lost = sparse & ~best.descended & (state.status != Status.NON_FINITE)
    return Solution(
        normal=jnp.where(best.descended, best.normal, state.normal),
        status=jnp.where(lost, Status.DIVERGED, state.status).astype(jnp.int32),
        melting=state.melting,
        iterations=state.iterations,
        loss=jnp.where(best.descended, total(best.terms), info.loss),
        terms=where(best.descended, best.terms, info.terms),
    )

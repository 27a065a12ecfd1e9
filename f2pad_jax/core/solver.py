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

from f2pad_jax.core.adan import adan_denominator, scale_by_adan
from f2pad_jax.core.energy import Energy, Problem, Terms, terms
from f2pad_jax.core.penalty import pixel_norm, shrink
from f2pad_jax.core.pixels import project
from f2pad_jax.core.settings import Settings
from f2pad_jax.core.sharing import share, share_gradients

RISING = 40  # iterations, see `Settings.rise`
DIVERGED = 1.0  # rise of F per pixel of the region above its lowest, with which a solve has lost its way
FLOOR = 0.1  # of |a| in Eq. (15), normalised colour


class Status(enum.IntEnum):
    """How a solve ended, or RUNNING where it has not; `State.status` and `Solution.status` hold the number."""

    RUNNING = 0
    CONVERGED = 1
    LIMIT = 2
    NON_FINITE = 3

    @property
    def message(self) -> str:
        """In words, as in `results.jsonl`."""
        return ("running", "converged", "iteration limit", "non-finite")[self]


class State(struct.PyTreeNode, kw_only=True):
    """What the next step needs.

    Attributes:
      normal: n, (H, W, 3).
      lowest: the n at which F last fell by the tolerance.
      moments: of the optimiser.
      best: lowest F since sparsity set in, () float32.
      stale: iterations since F last fell by the tolerance, () int32.
      iterations: steps taken, () int32.
      status: one of `Status`, () int32.
    """

    normal: Float[Array, "h w 3"]
    lowest: Float[Array, "h w 3"]
    moments: Any
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
      normal: n*, (H, W, 3).
      status: one of `Status`, () int32.
      iterations: () int32.
      loss: F before the last step.
      terms: its terms.
    """

    normal: Float[Array, "*lanes h w 3"]
    status: Int[Array, "*lanes"]
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
    zero = jnp.int32(0)
    return State(
        normal=start,
        lowest=start,
        moments=optimiser(problem, settings).init(start),
        best=jnp.float32(jnp.inf),
        stale=zero,
        iterations=zero,
        status=jnp.int32(Status.RUNNING),
    )


def step(state: State, energy: Energy, problem: Problem, settings: Settings) -> tuple[State, Info]:
    """One iteration on one picture; batches are the caller's `vmap`.

    A loss, gradient or n that is not finite leaves n as it was and sets the status. A solve that stops with F far
    above its lowest goes back to the n that had it.

    Args:
      state: of `init` or the step before.
      energy: what all pictures share.
      problem: this picture.
      settings: numbers of the solver.
    """
    warm_up = jnp.where(problem.filled, 0, settings.warm_up)
    active = state.iterations >= warm_up
    beta = jnp.where(active, jnp.asarray(settings.beta0, jnp.float32), 0.0)

    def loss(normal: Array) -> tuple[Array, Terms]:
        parts = terms(normal, energy, problem, settings.replace(beta0=beta))
        smooth = parts.feature + parts.pixel + parts.variation
        return smooth if settings.proximal else smooth + parts.sparsity, parts

    (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.normal)
    # Adan's long memory would go on pushing pixels away from x: it starts afresh when sparsity sets in.
    transform = optimiser(problem, settings)
    remembered = jax.tree.map(
        lambda kept, fresh: jnp.where(state.iterations == warm_up, fresh, kept),
        state.moments,
        transform.init(state.normal),
    )
    update: tuple[Any, Any] = transform.update(gradient, remembered)
    direction, moments = update
    size = _step_size(problem.image - state.normal, state.iterations - warm_up, settings)
    normal = state.normal - size * direction
    if settings.proximal:
        # One threshold per pixel, in the metric of Adan's step.
        metric = jnp.mean(adan_denominator(moments[-1], eps=settings.damping) / size, axis=-1)
        anomaly = problem.image - normal
        length = pixel_norm(anomaly)
        if problem.sharing is not None:
            # Neighbours of like colour decide together, so that a defect does not vanish in specks.
            length = share(length[..., None], problem.sharing)[..., 0]
        normal = problem.image - shrink(energy.penalty, anomaly, beta * problem.sparsity / metric, length)
    normal = project(normal, problem.image, problem.region)
    value = jnp.sum(jnp.stack(parts))
    pixels = jnp.sum(problem.region)
    # F changes its meaning when sparsity sets in, so progress is counted from there.
    improved = value < state.best - settings.tolerance * pixels
    best = jnp.where(active, jnp.where(improved, value, state.best), jnp.inf)
    stale = jnp.where(active & ~improved, state.stale + 1, 0).astype(jnp.int32)
    lowest = jnp.where(stale == 0, state.normal, state.lowest)
    # Products of vectors, because XLA then writes the gradient once; a reduction would be one more of the uses that
    # compute it anew on a CPU, a tenth of a step.
    squares = jnp.vdot(gradient, gradient) + jnp.vdot(normal, normal)
    finite = jnp.isfinite(value) & jnp.isfinite(squares)
    stopped = stale >= settings.patience
    normal = jnp.where(stopped & (value > best + DIVERGED * pixels), lowest, normal)
    iterations = state.iterations + 1
    status = jnp.where(iterations >= settings.limit, Status.LIMIT, Status.RUNNING)
    status = jnp.where(stopped, Status.CONVERGED, status)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    state = State(
        normal=jnp.where(finite, normal, state.normal),
        lowest=lowest,
        moments=moments,
        best=best,
        stale=stale,
        iterations=iterations,
        status=status,
    )
    return state, Info(value, parts)


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
    """What a state and the last step's `Info` say of a solve."""
    return Solution(
        normal=state.normal, status=state.status, iterations=state.iterations, loss=info.loss, terms=info.terms
    )

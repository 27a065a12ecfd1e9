"""One iteration of F2PAD: gradient, sharing (13), clipping, Adan, step size (15), sparsity, projection."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from f2pad_jax.detectors import Detector
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem, Terms, terms
from f2pad_jax.optim.adan import adan_denominator, scale_by_adan
from f2pad_jax.optim.sharing import share, share_gradients
from f2pad_jax.optim.steps import (
    Progress,
    adaptive_step_size,
    clip_elements,
    no_progress,
    project,
    track_progress,
)
from f2pad_jax.priors import pixel_norm, prox_log_penalty

RUNNING, CONVERGED, NON_FINITE = 0, 1, 2
RISING = 40  # iterations, see `Rates.rise`
DIVERGED = 1.0  # rise of F per pixel of the region above its lowest, with which a solve has lost its way


class Method(NamedTuple):
    """Choices that change the compiled step; static under `jit`.

    Attributes:
      sparsity: "proximal" takes the exact proximal step for β·l_a, which yields exact zeros; "gradient" adds β·l_a to
        the loss, as the paper does.
      step_size: "constant", or "adaptive" as in Eq. (15).
      share_gradient: whether neighbours share their gradient as well as ‖a‖, by which the proximal step decides; they
        share neither where the problem has no weights for it.
    """

    sparsity: Literal["proximal", "gradient"] = "proximal"
    step_size: Literal["constant", "adaptive"] = "constant"
    share_gradient: bool = False


class Rates(NamedTuple):
    """Numbers of the optimiser; traced scalars.

    Attributes:
      rate: base step size in normalised pixel units.
      clip: limit of the shared gradient, elementwise.
      damping: ε of Adan in units of the gradient: pixels whose gradients are smaller move less.
      warm_up: iterations without sparsity, in which anomalous pixels leave x.
      tolerance: fall of F per pixel of the region that counts as progress.
      patience: iterations without progress after which to stop.
      rise: factor by which the step size has risen `RISING` iterations after the warm-up. A proximal step sets all of
        a to zero that is small beside the step size, so it must be small while anomalies are still leaving x; large
        ones then clear away what is left of normal pixels.
    """

    rate: jax.Array | float
    clip: jax.Array | float
    damping: jax.Array | float
    warm_up: jax.Array | int
    tolerance: jax.Array | float
    patience: jax.Array | int
    rise: jax.Array | float = 1.0


class State(NamedTuple):
    """What the next step needs."""

    normal: jax.Array  # n, (H, W, 3)
    lowest: jax.Array  # the n at which F last fell by the tolerance, (H, W, 3)
    optimiser: optax.OptState
    progress: Progress
    count: jax.Array  # () int32, steps taken
    status: jax.Array  # () int32, one of RUNNING, CONVERGED, NON_FINITE


class Info(NamedTuple):
    """What a person wants to read about a step."""

    loss: jax.Array  # F of the n before the step
    terms: Terms


def no_info(normal: jax.Array) -> Info:
    """Zeros in place of the `Info` of a step; to ask `eval_shape` would trace the network once more."""
    zero = jnp.zeros((), normal.dtype)
    return Info(zero, Terms(*[zero] * len(Terms._fields)))


def optimiser(problem: Problem, rates: Rates, method: Method = Method()) -> optax.GradientTransformation:
    """Gradient sharing where asked for, clipping, Adan: the direction of a step before its size."""
    weights = problem.sharing if method.share_gradient else None
    shared = optax.identity() if weights is None else share_gradients(weights)
    return optax.chain(shared, clip_elements(rates.clip), scale_by_adan(eps=rates.damping))


def init(start: jax.Array, problem: Problem, rates: Rates) -> State:
    """The state before the first step.

    Args:
      start: n⁽⁰⁾, (H, W, 3).
      problem: the image and all that belongs to it.
      rates: numbers of the optimiser.
    """
    start = project(start, problem.image, problem.region)
    moments = optimiser(problem, rates).init(start)
    return State(start, start, moments, no_progress(), jnp.int32(0), jnp.int32(RUNNING))


def step(
    state: State,
    problem: Problem,
    rates: Rates,
    *,
    extractor: Extractor,
    detector: Detector,
    method: Method = Method(),
) -> tuple[State, Info]:
    """One iteration on one image; batches are the caller's `vmap`.

    A loss, gradient or n that is not finite leaves n as it was and sets the status. A solve that stops with F far above
    its lowest goes back to the n that had it.
    """
    proximal = method.sparsity == "proximal"
    active = state.count >= rates.warm_up
    beta = jnp.where(active, problem.coefficients.beta, 0.0)
    current = problem._replace(coefficients=problem.coefficients._replace(beta=beta))

    def loss(normal: jax.Array) -> tuple[jax.Array, Terms]:
        parts = terms(normal, current, extractor=extractor, detector=detector)
        smooth = parts.feature + parts.pixel + parts.variation
        return smooth if proximal else smooth + parts.sparsity, parts

    (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.normal)
    # Adan's long memory would go on pushing pixels away from x: it starts afresh when sparsity sets in.
    transform = optimiser(problem, rates, method)
    remembered = jax.tree.map(
        lambda kept, fresh: jnp.where(state.count == rates.warm_up, fresh, kept),
        state.optimiser,
        transform.init(state.normal),
    )
    update: tuple[Any, Any] = transform.update(gradient, remembered)
    direction, moments = update
    anomaly = problem.image - state.normal
    risen = jnp.clip((state.count - rates.warm_up) / RISING, 0.0, 1.0)
    rate = jnp.asarray(rates.rate * jnp.asarray(rates.rise, jnp.float32) ** risen, jnp.float32)
    size = jnp.broadcast_to(rate, anomaly.shape)
    if method.step_size == "adaptive":
        size = adaptive_step_size(anomaly, rate)
    normal = state.normal - size * direction
    if proximal:
        # One threshold per pixel, in the metric of Adan's step.
        metric = jnp.mean(adan_denominator(moments[-1], eps=rates.damping) / size, axis=-1)
        anomaly = problem.image - normal
        length = pixel_norm(anomaly)
        if problem.sharing is not None:
            # Neighbours of like colour decide together, so that a defect does not vanish in specks.
            length = share(length[..., None], problem.sharing)[..., 0]
        normal = problem.image - prox_log_penalty(anomaly, beta / metric, length)
    normal = project(normal, problem.image, problem.region)
    value = jnp.sum(jnp.stack(parts))
    pixels = jnp.sum(problem.region)
    # F changes its meaning when sparsity sets in, so progress is counted from there.
    progress = jax.tree.map(
        lambda tracked, fresh: jnp.where(active, tracked, fresh),
        track_progress(state.progress, value, rates.tolerance * pixels),
        no_progress(),
    )
    # Products of vectors, because XLA then writes the gradient once; a reduction would be one more of the uses that
    # compute it anew on a CPU, a tenth of a step.
    squares = jnp.vdot(gradient, gradient) + jnp.vdot(normal, normal)
    finite = jnp.isfinite(value) & jnp.isfinite(squares)
    lowest = jnp.where(progress.stale == 0, state.normal, state.lowest)
    stopped = progress.stale >= rates.patience
    normal = jnp.where(stopped & (value > progress.best + DIVERGED * pixels), lowest, normal)
    status = jnp.where(stopped, CONVERGED, RUNNING)
    status = jnp.where(finite, status, NON_FINITE).astype(jnp.int32)
    normal = jnp.where(finite, normal, state.normal)
    return State(normal, lowest, moments, progress, state.count + 1, status), Info(value, parts)

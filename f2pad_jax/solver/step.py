"""One iteration of F2PAD: gradient, sharing, Adan, proximal or penalised step, projection, stop rule."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from f2pad_jax.detectors import Detector
from f2pad_jax.extractor import Extractor
from f2pad_jax.objective import Regulariser, Terms, terms
from f2pad_jax.optim.adan import adan_denominator, scale_by_adan
from f2pad_jax.optim.sharing import share_gradients
from f2pad_jax.priors import pixel_norm, prox_log_penalty

MEAN = jnp.asarray([0.485, 0.456, 0.406], jnp.float32)
STD = jnp.asarray([0.229, 0.224, 0.225], jnp.float32)


class Problem(NamedTuple):
    image: jax.Array
    start: jax.Array
    region: jax.Array
    weights: jax.Array
    positions: jax.Array
    present: jax.Array
    local: dict
    regulariser: Regulariser


class Rule(NamedTuple):
    rate: jax.Array
    adaptive: jax.Array  # 0: constant; 1: paper
    floor: jax.Array
    clip: jax.Array
    beta_ramp: jax.Array
    eps: jax.Array
    free: jax.Array


class State(NamedTuple):
    normal: jax.Array
    optimiser: tuple
    loss: jax.Array
    count: jax.Array
    status: jax.Array


def init(problem, rule):
    tx = optimiser(problem.weights, rule.clip, rule.eps)
    return State(problem.start, tx.init(problem.start), jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0))


def optimiser(weights, clip, eps=1e-8):
    return optax.chain(share_gradients(weights), optax.stateless(lambda u, _: jnp.clip(u, -clip, clip)), scale_by_adan(eps=eps))


def step(extractor: Extractor, problem: Problem, rule: Rule, state: State, *, detector: Detector, penalty: str):
    cell = extractor.strides[detector.level] ** 2

    def objective(normal):
        maps = tuple(m[0] for m in extractor(normal[None]))
        scores = detector.local_scores(problem.local, maps, problem.positions) * problem.present
        parts = terms(normal, problem.image, problem.regulariser, scores=scores, cell=cell)
        smooth = parts.feature + parts.pixel + parts.variation
        return smooth + (parts.sparsity if penalty == "gradient" else 0.0), parts

    (_, parts), gradient = jax.value_and_grad(objective, has_aux=True)(state.normal)
    tx = optimiser(problem.weights, rule.clip, rule.eps)
    direction, opt = tx.update(gradient, state.optimiser)
    anomaly = problem.image - state.normal
    gamma = jnp.where(rule.adaptive > 0, 1 / jnp.maximum(jnp.abs(anomaly), rule.floor), 1.0) * rule.rate
    normal = state.normal - gamma * direction
    if penalty == "proximal":
        metric = jnp.mean(adan_denominator(opt[-1], eps=rule.eps), axis=-1)
        beta = problem.regulariser.coefficients.beta * jnp.clip((state.count + 1 - rule.free) / rule.beta_ramp, 0.0, 1.0)
        anomaly = prox_log_penalty(problem.image - normal, beta * jnp.mean(gamma, -1) / metric)
        normal = problem.image - anomaly
    normal = jnp.clip(normal, (0 - MEAN) / STD, (1 - MEAN) / STD)
    normal = jnp.where(problem.region[..., None], normal, problem.image)
    loss = sum(parts)
    return State(normal, opt, loss, state.count + 1, state.status), parts

"""This library's own algorithm in PyTorch, one picture at a time: a peer of `pytorch_loop`. Imports torch.

It takes the steps of `f2pad_jax.core.solver` with its default choices: proximal map, β that rises where n⁽⁰⁾ is a fill,
steps that are taken back where F rose. What is fixed during the solve is that of `torch_loop`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from loop_tasks import Setup, Task
from torch import Tensor
from torch_loop import Problem, log_lengths, picture, prepare, share, smooth_terms

from f2pad_jax.core import Settings
from f2pad_jax.core.descent import CLIMB, REGROW, SHRINK, TIE
from f2pad_jax.core.penalty import EPSILON
from f2pad_jax.core.pixels import MEAN, STD
from f2pad_jax.core.solver import RISING

DECAYS = 0.98, 0.92, 0.99  # of Adan


class Moments(NamedTuple):
    """What Adan remembers."""

    count: int
    mean: Tensor
    difference: Tensor
    square: Tensor
    previous: Tensor


class Best(NamedTuple):
    """The best n of the sparse phase; see `f2pad_jax.core.descent.Descent`."""

    normal: Tensor
    moments: Moments
    smooth: float = 0.0  # F(n) without sparsity
    excess: float = 0.0
    drop: float = 0.0
    shrink: float = 1.0


class Solved(NamedTuple):
    """What `f2pad_jax.outcomes.read_off` needs of a solve, as arrays."""

    normal: np.ndarray  # (H, W, 3)
    lasting: np.ndarray  # (H, W) int32
    left: np.ndarray  # (K, S), positions without padding
    iterations: int
    loss: float
    stopped: bool  # before the limit


def fresh(like: Tensor) -> Moments:
    """Before the first step."""
    zero = torch.zeros_like(like)
    return Moments(0, zero, zero, zero, zero)


def updated(moments: Moments, gradient: Tensor) -> Moments:
    """After a gradient."""
    b1, b2, b3 = DECAYS
    change = gradient - moments.previous if moments.count else torch.zeros_like(gradient)
    return Moments(
        moments.count + 1,
        b1 * moments.mean + (1 - b1) * gradient,
        b2 * moments.difference + (1 - b2) * change,
        b3 * moments.square + (1 - b3) * (gradient + b2 * change).square(),
        gradient,
    )


def metric_of(moments: Moments, damping: float) -> Tensor:
    """√(n / (1 − b3ᵗ)) + ε."""
    return (moments.square / (1 - DECAYS[2] ** moments.count)).sqrt() + damping


def direction_of(moments: Moments, metric: Tensor) -> Tensor:
    """The next step before its size."""
    b1, b2, _ = DECAYS
    mean, difference = moments.mean / (1 - b1**moments.count), moments.difference / (1 - b2**moments.count)
    return (mean + b2 * difference) / metric


def proximal(length: Tensor, weight: Tensor) -> Tensor:
    """The proximal map of the LOG penalty; see `f2pad_jax.core.penalty.LOG`."""

    def polished(root: Tensor) -> Tensor:
        for _ in range(5):
            smooth = (root.square() + EPSILON).sqrt()
            slope = (1 - weight * root / smooth**3).clamp(min=0.03)
            root = torch.minimum((root - (root - length + weight / smooth) / slope).clamp(min=0), length)
        return root

    def cost(value: Tensor) -> Tensor:
        return 0.5 * (value - length).square() + weight * ((value.square() + EPSILON).sqrt() + value).log()

    far = polished(0.5 * (length + (length.square() - 4 * weight).clamp(min=0).sqrt()))
    near = polished(torch.zeros_like(length))
    return torch.where(cost(far) < cost(near), far, near)


def descend(
    best: Best, normal: Tensor, moments: Moments, smooth: float, sparse: float, best_sparse: float, climb: float
) -> tuple[Best, bool]:
    """The best n with this one taken into account, and whether the last step is to be taken back."""
    value, before = smooth + sparse, best.smooth + best_sparse
    lowest, first = before - best.excess, before + best.drop
    near = value <= min(lowest + TIE * abs(lowest), first)
    rose = not value <= min(lowest + climb, first)
    lowest = min(lowest, value)
    if near:
        best, before = best._replace(normal=normal, moments=moments, smooth=smooth), value
    shrink = min(best.shrink * (SHRINK if rose else REGROW), 1.0)
    return best._replace(excess=before - lowest, drop=first - before, shrink=shrink), rose


def solve(problem: Problem, start: Tensor, setup: Setup, settings: Settings, *, filled: bool) -> Solved:
    """Minimises F from n⁽⁰⁾ as `f2pad_jax.solve` does; of the settings the default choices are understood."""
    image, pixels = problem.image, float(problem.region.sum())
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in (MEAN, STD))
    low_colour, high_colour = -mean / std, (1 - mean) / std

    def project(n: Tensor) -> Tensor:
        return torch.where(problem.region, torch.minimum(torch.maximum(n, low_colour), high_colour), image)

    def length_of(n: Tensor) -> Tensor:
        return torch.linalg.vector_norm(image - n, dim=1, keepdim=True)

    warm_up = 0 if filled else int(settings.warm_up)
    rising, span = max(settings.limit - warm_up - settings.hold, 1), max(settings.limit - warm_up, 1)
    final = float(settings.beta0)
    first_beta = min(float(settings.first_beta), final) if filled else final
    alphas = float(settings.alpha1), float(settings.alpha2)

    normal = project(start)
    moments, progress, stale = fresh(normal), np.inf, 0
    best = Best(normal, moments)
    lasting = torch.zeros(image.shape[-2:], dtype=torch.int32, device=image.device)
    left = torch.zeros(settings.levels, len(problem.positions), device=image.device)
    iteration = 0
    for iteration in range(settings.limit):
        since = iteration - warm_up
        beta = first_beta * (final / first_beta) ** min(since / rising, 1.0) if since >= 0 else 0.0
        parts, summands = smooth_terms(normal.requires_grad_(), problem, setup, alphas)
        whole = torch.stack(parts).sum()
        (gradient,) = torch.autograd.grad(whole, normal)
        with torch.no_grad():
            normal = normal.detach()
            smooth, sparse = float(whole), beta * float(log_lengths(normal, problem))
            moments = updated(fresh(normal) if since == 0 else moments, gradient.clamp(-settings.clip, settings.clip))
            base = normal
            if since == 0:
                best = Best(normal, moments, smooth)
            elif since > 0:
                best_sparse = beta * float(log_lengths(best.normal, problem))
                best, rose = descend(best, normal, moments, smooth, sparse, best_sparse, CLIMB * pixels)
                if rose:
                    base, moments = best.normal, best.moments
            size = best.shrink * settings.rate * settings.rise ** min(max(since / RISING, 0.0), 1.0)
            metric = metric_of(moments, settings.damping)
            anomaly = image - (base - size * direction_of(moments, metric))
            length = torch.linalg.vector_norm(anomaly, dim=1, keepdim=True)
            if filled:
                length = share(length, problem.sharing)
            kept = proximal(length, beta / (metric / size).mean(1, keepdim=True))
            normal = project(image - anomaly * (kept / torch.where(length > 0, length, 1.0)))

            value = smooth + sparse
            settled = since >= 0 and (first_beta >= final or since >= rising)
            improved = value < progress - settings.tolerance * pixels
            stale = stale + 1 if settled and not improved else 0
            progress = (value if improved else progress) if settled else np.inf
            lasting[length_of(normal)[0, 0] > 0] = iteration + 1
            left[min(max(since * settings.levels // span, 0), settings.levels - 1)] = summands
        if stale >= settings.patience:
            break
    loss = best.smooth + final * float(log_lengths(best.normal.detach(), problem))
    arrays = [best.normal[0].permute(1, 2, 0), lasting, left]
    normal_, lasting_, left_ = (each.detach().cpu().numpy() for each in arrays)
    return Solved(normal_, lasting_, left_, iteration + 1, loss, stale >= settings.patience)


def segment(task: Task, setup: Setup, settings: Settings) -> Solved:
    """The whole job of one picture but for reading off its mask."""
    problem = prepare(task, setup, 1.0)
    return solve(problem, picture(task.start, problem.image.device), setup, settings, filled=task.filled)

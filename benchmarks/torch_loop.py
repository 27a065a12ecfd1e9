"""The paper's loop in eager PyTorch, one picture at a time: the peer of `pytorch_loop`. Imports torch.

Equation numbers are those of arXiv 2407.06519. Every function takes tensors of one device; pictures are
(1, 3, H, W), ImageNet-normalised. The terms are weighted as in `f2pad_jax.core.energy`; the loss that is stepped on and
watched by the stop rule is F in the paper's own units, in which l_n is the plain sum of the scores.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from loop_tasks import Setup, Task
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch_networks import NETWORKS

from f2pad_jax.core.pixels import MEAN, STD
from f2pad_jax.core.sharing import neighbourhood

RADIUS, SPACE, COLOUR = 5, 1.1, 3.0  # ks, σ0 and σ1 of (13) and (14)
OFFSETS = neighbourhood(RADIUS, SPACE)  # as this library has them, which leaves out what float32 cannot resolve
CLIP, FLOOR = 0.03, 0.1  # of the gradient; of |a| in (15), with γ0 = 1
FALLS = {"padim": 0.1, "patchcore": 0.05}  # of the loss between two iterations, below which the loop stops
LIMIT = 1200  # iterations
CANDIDATES = 50  # |M_ij|
# What the paper leaves open, as a search on synthetic anomalies found it for this loop (size 112, limit 500): PaDiM
# reached IoU 98.5 in 62 iterations, PatchCore 99.9 in 67. A rate of 0.003 with a β0 of 0.1 gave PaDiM 98.6 in 154; the
# quicker of two that are equal is the fairer peer.
ALPHAS = 1.0, 0.3  # α1 and α2, relative to normal pictures as in `f2pad_jax.Settings`
BETA0 = 0.25  # β is β0 over the share of m⁽⁰⁾ in the picture
RATE = 0.01  # base of the step size γ
THRESHOLD = 0.8  # of ‖a‖, in normalised colour, in the mask
WARM_UP = 20  # iterations without sparsity, which a start from x needs


class Problem(NamedTuple):
    """What stays fixed during the loop."""

    image: Tensor  # (1, 3, H, W)
    region: Tensor  # (H, W) bool
    sharing: Tensor  # (K, H, W), weights of (14) for the K offsets that weigh anything
    positions: Tensor  # (S,) on the detector's grid
    local: tuple[Tensor, ...]  # candidates (S, 50, D) and usual (S,), or means (S, D) and inverse covariances (S, D, D)
    score: Tensor  # typical score
    stride: int  # of the detector's grid
    beta: float  # weight of sparsity


def upload(setup: Setup, device: torch.device) -> Setup:
    """The model on a device; convolutions in torch's order, PaDiM's inverse covariances written out in full."""

    def tensor(array: np.ndarray) -> Tensor:
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array  # HWIO to OIHW
        return torch.from_numpy(np.array(turned)).to(device)

    params, statistics, mean, precision = jax.tree.map(
        tensor, (setup.params, setup.statistics, setup.mean, setup.precision)
    )
    if "basis" in statistics:  # Λ⁻¹ = (I − V diag(g) Vᵀ)/ε
        basis = statistics["basis"]
        inverse = torch.eye(basis.shape[2], device=device) - (basis.mT * statistics["gain"][:, None]) @ basis
        statistics = {**statistics, "precision": inverse / statistics["floor"][..., None]}
    return setup._replace(params=params, statistics=statistics, mean=mean, precision=precision)


@cache
def network_of(name: str, compiled: bool) -> Any:  # noqa: FBT001
    """An extractor, eager or compiled once for all pictures."""
    return torch.compile(NETWORKS[name]) if compiled else NETWORKS[name]


def features(image: Tensor, setup: Setup) -> tuple[Tensor, int]:
    """The detector's embedded features, (P, D) row-major, and the stride of their grid."""
    maps = network_of(setup.network, setup.compiled)(setup.params, image, setup.spec)
    if setup.detector == "padim":
        size = next(m.shape[-2:] for m in maps if m[0, 0].numel() == len(setup.statistics["mean"]))
        reduced = [functional.avg_pool2d(m, max(m.shape[-1] // size[-1], 1)) for m in maps]
        grid = torch.cat([functional.interpolate(m, size, mode="nearest") for m in reduced], dim=1)
        grid = mixed(grid, setup.statistics["mixing"])
    else:
        used = [functional.avg_pool2d(functional.pad(m, (1, 1, 1, 1), "replicate"), 3, 1) for m in maps[1:]]
        size = used[0].shape[-2:]
        grown = used[:1] + [functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in used[1:]]
        grid = torch.cat(grown, dim=1)
        metric = setup.statistics["metric"]
        grid = grid * metric[:, None, None] if metric.ndim == 1 else mixed(grid, metric)
    return grid[0].flatten(1).T, image.shape[-1] // size[-1]


def mixed(grid: Tensor, matrix: Tensor) -> Tensor:
    """Channels (1, C, H, W) mixed by a matrix (C, D), or those that are named (D,)."""
    return grid[:, matrix.long()] if matrix.ndim == 1 else torch.einsum("bchw,cd->bdhw", grid, matrix)


def scores(embedded: Tensor, local: tuple[Tensor, ...]) -> Tensor:
    """The summands of l_n at some positions, (4) or (7): (S,)."""
    if local[1].ndim == 1:
        return (embedded[:, None] - local[0]).square().sum(-1).min(1).values / local[1]
    delta = embedded - local[0]
    return ((delta[:, None] @ local[1])[:, 0] * delta).sum(-1)


def sharing_weights(image: Tensor) -> Tensor:
    """(14): (K, H, W) for `OFFSETS`."""
    _, _, height, width = image.shape
    pads = (RADIUS,) * 4
    padded, inside = functional.pad(image, pads), functional.pad(torch.ones_like(image[0, 0]), pads)
    weights = []
    for i, j in OFFSETS:
        here = slice(RADIUS + i, RADIUS + i + height), slice(RADIUS + j, RADIUS + j + width)
        space = (i**2 + j**2) / SPACE
        colour = (padded[0][:, *here] - image[0]).square().sum(0) / COLOUR
        weights.append(torch.exp(-space - colour) * inside[here])
    stacked = torch.stack(weights)
    return stacked / stacked.sum(0)


def share(gradient: Tensor, weights: Tensor) -> Tensor:
    """(13), by shifted adds."""
    _, height, width = weights.shape
    padded, total = functional.pad(gradient, (RADIUS,) * 4), torch.zeros_like(gradient)
    for k, (i, j) in enumerate(OFFSETS):
        total.addcmul_(weights[k], padded[..., RADIUS + i : RADIUS + i + height, RADIUS + j : RADIUS + j + width])
    return total


def picture(array: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) to (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None].to(device)


@torch.no_grad()
def prepare(task: Task, setup: Setup, beta: float) -> Problem:
    """The weights of (14), the positions that the region affects, and their statistics."""
    device, statistics = setup.mean.device, setup.statistics
    image, region = picture(task.image, device), torch.from_numpy(task.region).to(device)
    own, stride = features(image, setup)
    cells = functional.max_pool2d(region[None].float(), stride)
    positions = functional.max_pool2d(cells, 3, 1, 1).flatten().nonzero()[:, 0]
    if setup.detector == "padim":
        summands = scores(own, (statistics["mean"], statistics["precision"]))
        local = (statistics["mean"][positions], statistics["precision"][positions])
    else:
        bank = statistics["bank"]
        summands = torch.cdist(own, bank).square().min(1).values / statistics["usual"]
        filled = features(picture(task.fill, device), setup)[0][positions]
        nearest = torch.cdist(filled, bank).topk(min(CANDIDATES, len(bank)), largest=False).indices
        local = (bank[nearest], statistics["usual"][positions])
    typical = summands.quantile(0.5).clamp(min=setup.scales[0])
    return Problem(image, region, sharing_weights(image), positions, local, typical, stride, beta)


def smooth_terms(
    normal: Tensor, problem: Problem, setup: Setup, alphas: tuple[float, float]
) -> tuple[list[Tensor], Tensor]:
    """Feature, pixel and variation of F(n), (12), and the summands of l_n, (S,); sums are of float64."""
    grid, stride = features(normal, setup)
    summands = scores(grid[problem.positions], problem.local)
    feature = summands.double().sum() * stride**2 / problem.score
    delta = normal[0].flatten(1).T - setup.mean[:, None]  # (Q, H·W, 3)
    pixel = ((delta @ setup.precision) * delta).sum(-1).min(0).values.double().sum()
    variation = normal.diff(dim=2).abs().double().sum() + normal.diff(dim=3).abs().double().sum()
    _, typical_pixel, typical_variation = setup.scales
    return [feature, alphas[0] * pixel / typical_pixel, alphas[1] * variation / typical_variation], summands


def log_lengths(normal: Tensor, problem: Problem) -> Tensor:
    """l_a of (8), a sum of float64."""
    norm = torch.linalg.vector_norm(problem.image - normal, dim=1)
    return torch.log(torch.sqrt(norm.square() + 1e-4) + norm).double().sum()


def terms(normal: Tensor, problem: Problem, setup: Setup, alphas: tuple[float, float]) -> list[Tensor]:
    """Feature, pixel, variation and sparsity, which add up to F(n), (12)."""
    return [*smooth_terms(normal, problem, setup, alphas)[0], problem.beta * log_lengths(normal, problem)]


class Adan:
    """Adan of its authors (sail-sg/Adan) with their β = (0.98, 0.92, 0.99)."""

    def __init__(self, like: Tensor) -> None:
        self.count, self.previous = 0, None
        self.mean, self.difference, self.square = (torch.zeros_like(like) for _ in range(3))

    def direction(self, gradient: Tensor) -> Tensor:
        """The next step before its size."""
        self.count += 1
        change = torch.zeros_like(gradient) if self.previous is None else gradient - self.previous
        self.previous = gradient
        self.mean.mul_(0.98).add_(gradient, alpha=0.02)
        self.difference.mul_(0.92).add_(change, alpha=0.08)
        ahead = gradient + 0.92 * change
        self.square.mul_(0.99).addcmul_(ahead, ahead, value=0.01)
        correct = [1 - b**self.count for b in (0.98, 0.92, 0.99)]
        numerator = self.mean / correct[0] + 0.92 * self.difference / correct[1]
        return numerator / (self.square.sqrt() / math.sqrt(correct[2]) + 1e-8)


def descend(problem: Problem, start: Tensor, setup: Setup, limit: int) -> tuple[Tensor, int, float]:
    """Algorithm 1's loop: n, iterations, and the last F in the paper's units."""
    mean, std = (torch.tensor(v, device=start.device)[:, None, None] for v in (MEAN, STD))
    image, value = problem.image, math.nan
    unit = problem.score / problem.stride**2  # turns the weighted terms into the paper's units
    normal, adan, before = torch.where(problem.region, start, image), Adan(start), math.inf
    for count in range(1, limit + 1):
        active = count > WARM_UP
        normal.requires_grad_()
        parts = terms(normal, problem if active else problem._replace(beta=0.0), setup, ALPHAS)
        loss = unit * torch.stack(parts).sum()
        (gradient,) = torch.autograd.grad(loss, normal)
        with torch.no_grad():
            shared = share(gradient, problem.sharing).clamp_(-CLIP, CLIP)
            size = RATE / (image - normal).abs().clamp_(min=FLOOR)
            moved = normal - size * adan.direction(shared)
            valid = torch.minimum(torch.maximum(moved, -mean / std), (1 - mean) / std)
            normal = torch.where(problem.region, valid, image)
        value = float(loss.detach())
        if before - value < FALLS[setup.detector]:
            return normal, count, value
        before = value if active else math.inf
    return normal, limit, value


def segment(task: Task, setup: Setup, limit: int) -> tuple[np.ndarray, int, float]:
    """The whole job of one picture: its mask, opened by 3 × 3, iterations, and the last F."""
    problem = prepare(task, setup, BETA0 / max(task.share, 1e-3))
    normal, count, value = descend(problem, picture(task.start, problem.image.device), setup, limit)
    norms = torch.linalg.vector_norm(problem.image - normal, dim=1)[0].cpu().numpy()
    return ndimage.binary_opening(norms > THRESHOLD, np.ones((3, 3), bool)), count, value

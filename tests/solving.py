"""Small problems for tests of the solver, on a tiny network."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from f2pad_jax.core import Energy, Problem, Scales, Settings, sharing_weights, solve
from f2pad_jax.core.priors import pixel_mixture_distances, total_variation
from f2pad_jax.detectors import detector_class
from f2pad_jax.fitting import fit_pixel_mixture
from f2pad_jax.networks.extractor import Extractor

SIDE = 16
# β is constant, because the first is no less than the last.
SETTINGS = Settings(
    beta0=3.0,
    first_beta=1e9,
    rate=0.1,
    rise=1.0,
    clip=5.0,
    damping=5.0,
    warm_up=10,
    limit=60,
    tolerance=1e-3,
    patience=5,
)
# Two programs of the same mathematics add up in another order, and fuse products and sums or not, as the compiler finds
# it best for the processor. n then differs by a rounding (2e-7) in every iteration, and F's curvature lets that grow;
# a grey level is 0.017.
ROUNDING = 1e-4
QUICK = {"cflow": {"epochs": 2}, "padim": {"plain": True}, "patchcore": {"plain": True}}  # options of quick fits
METHODS = [{"proximal": proximal, "adaptive": adaptive} for proximal in (True, False) for adaptive in (False, True)]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
run = jax.jit(solve)


class TinySpec(NamedTuple):
    channels: tuple[int, ...] = (6, 8)
    strides: tuple[int, ...] = (2, 4)


def tiny(params: dict[str, jax.Array], images: jax.Array, *, spec: TinySpec) -> tuple[jax.Array, ...]:
    """Two layers of disjoint 2 × 2 patches with a smooth non-linearity."""

    def patches(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height // 2, width // 2, 4 * channels)

    first = jnp.tanh(patches(images) @ params["first"])
    return first, jnp.tanh(patches(first) @ params["second"])


@cache
def tiny_extractor() -> Extractor:
    rng = np.random.default_rng(0)
    params = {
        "first": jnp.asarray(rng.standard_normal((12, 6)) / 6, jnp.float32),
        "second": jnp.asarray(rng.standard_normal((24, 8)) / 4, jnp.float32),
    }
    return Extractor(params, "tiny", tiny, TinySpec(), "")


def pictures(count: int, seed: int) -> np.ndarray:
    """Stripes of random phase with a little noise, normalised."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:SIDE, 0:SIDE]
    phase = rng.uniform(0, 2 * np.pi, count)[:, None, None]
    stripes = 0.5 + 0.15 * np.sin(row * 0.7 + column * 0.2 + phase)
    colours = stripes[..., None] * np.array([1, 0.9, 0.8]) + 0.01 * rng.standard_normal((count, SIDE, SIDE, 3))
    return ((colours - MEAN) / STD).astype(np.float32)


ANOMALY = np.zeros((SIDE, SIDE), bool)
ANOMALY[6:10, 5:10] = True
REGION = np.zeros((SIDE, SIDE), bool)
REGION[3:13, 3:13] = True


class Case(NamedTuple):
    energy: Energy
    problem: Problem
    start: jax.Array
    truth: np.ndarray


@cache
def make_energy(name: str) -> Energy:
    training = pictures(24, seed=1)
    maps = tuple(np.asarray(m) for m in tiny_extractor()(jnp.asarray(training)))
    detector = detector_class(name).fit(maps, seed=0, **QUICK.get(name, {}))
    return Energy(extractor=tiny_extractor(), detector=detector, mixture=fit_pixel_mixture(training, components=4))


@jax.jit  # operation by operation, all of it would be compiled for every case
def make_problem(energy: Energy, image: jax.Array, truth: jax.Array) -> Problem:
    extractor, detector = energy.extractor, energy.detector
    grid = SIDE // extractor.strides[detector.level]
    positions = jnp.arange(grid * grid, dtype=jnp.int32)
    own = tuple(m[0] for m in extractor(truth[None]))
    return Problem(
        image=image,
        region=jnp.asarray(REGION),
        sparsity=jnp.ones((SIDE, SIDE)),
        local=detector.localize(own, positions),
        present=jnp.ones(grid * grid),
        scales=Scales(
            score=jnp.mean(detector.summands(own)),
            pixel=jnp.mean(pixel_mixture_distances(truth, energy.mixture)),
            variation=total_variation(truth) / SIDE**2,
        ),
        filled=jnp.bool_(False),  # noqa: FBT003
        sharing=sharing_weights(image, radius=2),
    )


@cache
def make_case(name: str, colour: tuple[float, ...] = (0.9, 0.1, 0.2), index: int = 0) -> Case:
    energy, truth = make_energy(name), pictures(4, seed=2)[index]
    image = jnp.asarray(np.where(ANOMALY[..., None], ((np.array(colour) - MEAN) / STD).astype(np.float32), truth))
    return Case(energy, make_problem(energy, image, jnp.asarray(truth)), image, truth)

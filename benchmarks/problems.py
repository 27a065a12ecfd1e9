"""Realistic problems for the solver: models of brick, and pictures with a region of 12 % of their pixels."""

from __future__ import annotations

import os
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
from options import Options

import f2pad_jax
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.fills import harmonic_fill
from f2pad_jax.fitting import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem
from f2pad_jax.preparing import prepare
from f2pad_jax.solver import Rates
from f2pad_jax.weights.registry import NETWORKS

TRAINING = 64
COVERED = 0.12  # share of the pixels in the region


def use_all_cores() -> None:
    """Makes every core of a CPU a device of its own, for lanes on all of them, unless JAX has started already."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())


def extractor_for(name: str, options: Options) -> tuple[Extractor, str]:
    """The extractor and where its weights come from; random ones cost the same time as real ones."""
    try:
        return f2pad_jax.load_extractor(name, weights=options.weights if name == "resnet18" else None), "real"
    except InputError:
        if options.weights is not None:
            raise
    network, rng = NETWORKS[name], np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = float(np.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(0, fan_in**-0.5 if len(leaf.shape) == 4 else 0, leaf.shape), leaf.dtype)

    params = jax.tree.map(draw, network.shapes(network.spec))
    return Extractor(params, name, network.apply, network.spec, "random"), "random"


def crops(category: str, *, train: int, test: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal pictures and test pictures of a texture, uint8 (N, size, size, 3); larger than its own, enlarged."""
    factor = -(-size // 256)
    normals, cases = texture_category(category, train=train, test=test, size=size // factor)
    pictures = np.stack([case[0] for case in cases]) if cases else normals[:0]
    normals, pictures = (x.repeat(factor, axis=1).repeat(factor, axis=2) for x in (normals, pictures))
    return normals, pictures


def model_of(
    detector: str, extractor: Extractor, options: Options, *, category: str = "brick", training: int | None = None
) -> Model:
    """A detector fitted to crops of a texture; flows stay untrained, which costs a step the same time."""
    normals, _ = crops(category, train=training or TRAINING, test=0, size=options.size)
    own = {"epochs": 0} if detector == "cflow" else {}
    return f2pad_jax.fit(normals, detector=detector, extractor=extractor, seed=0, options=own)


def batch_of(model: Model, *, batch: int, full: bool) -> tuple[np.ndarray, Problem]:
    """Starts n⁽⁰⁾ and problems of a batch of test pictures, stacked.

    Args:
      model: as fitted.
      batch: how many pictures.
      full: whether the region is the whole picture, so that all positions of the grid count.
    """
    size = model.size
    _, pictures = crops("brick", train=0, test=batch, size=size)
    radius = size * (COVERED / np.pi) ** 0.5
    rows, columns = np.mgrid[:size, :size]
    starts, problems = [], []
    for index, picture in enumerate(pictures):
        centre = np.random.default_rng(index).uniform(radius, size - radius, 2)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        region = np.ones_like(disc) if full else disc
        image = normalize(picture)
        filled = harmonic_fill(image, disc)
        starts.append(filled)
        problems.append(prepare(model, image, region, filled, beta=model.settings.beta0))
    return np.stack(starts), jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


def endless_rates(model: Model) -> Rates:
    """The model's own rates, with a stop rule that never ends a measurement."""
    s = model.settings
    return Rates(s.rate, s.clip, s.clip, 0, s.tolerance, 1_000_000, s.rise)

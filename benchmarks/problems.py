"""What a benchmark may be asked for, and realistic problems: models of textures, regions of 12 % of the pixels."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import f2pad_jax
from f2pad_jax import Model, Problem, Settings
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import detector_class, options_of
from f2pad_jax.errors import InputError
from f2pad_jax.fills import harmonic_fill
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.preparing import Start, build, plan
from f2pad_jax.sights import look
from f2pad_jax.weights.registry import NETWORKS

EXTRACTORS = ("efficientnet_lite0", "resnet18")
DETECTORS = ("padim", "patchcore", "cflow")
TRAINING = 64
COVERED = 0.12  # share of the pixels in the region
ENDLESS = 1_000_000  # iterations


class Options(NamedTuple):
    """Choices of the command line, the same for all benchmarks.

    Attributes:
      size: side of the pictures in pixels.
      repeats: measurements of each case.
      only: words that the label of a case must all hold.
      weights: a weight file for ResNet-18; without one the imported weights, else random ones.
      images: pictures of each case, where these are not a batch.
      limit: most iterations of a solve, for a quick look.
      data: folder of MVTec AD.
    """

    size: int = 224
    repeats: int = 10
    only: tuple[str, ...] = ()
    weights: Path | None = None
    images: int = 8
    limit: int | None = None
    data: Path | None = None

    def wanted(self, *labels: object) -> bool:
        """Whether the case of these labels is asked for."""
        return set(self.only) <= {str(label) for label in labels}


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
    """A detector fitted to crops of a texture; what is trained stays untrained, which costs a step the same time."""
    normals, _ = crops(category, train=training or TRAINING, test=0, size=options.size)
    own = {"epochs": 0} if "epochs" in options_of(detector_class(detector)) else {}
    return f2pad_jax.fit(normals, detector=detector, extractor=extractor, seed=0, options=own)


def batch_of(model: Model, *, batch: int, full: bool) -> tuple[jax.Array, Problem]:
    """Starts n⁽⁰⁾, which are smooth fills, and problems of a batch of test pictures, stacked.

    Args:
      model: as fitted.
      batch: how many pictures.
      full: whether the region is the whole picture, so that all positions of the grid count.
    """
    size = model.shape[0]
    _, pictures = crops("brick", train=0, test=batch, size=size)
    radius = size * (COVERED / np.pi) ** 0.5
    rows, columns = np.mgrid[:size, :size]
    lanes = []
    for index, sight in enumerate(look(model, pictures)):
        centre = np.random.default_rng(index).uniform(radius, size - radius, 2)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        fill = harmonic_fill(sight.image, disc)
        region = np.ones_like(disc) if full else disc
        start, problem, _ = build(model, plan(model, sight, region, Start(fill, fill, filled=True)))
        lanes.append((start, problem))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)


def endless(model: Model, limit: int = ENDLESS) -> Settings:
    """The model's own numbers, with a stop rule that does not end a measurement before so many iterations."""
    return model.settings.replace(patience=ENDLESS, limit=limit)

"""The extractors over the same networks in eager PyTorch, which runs in a process of its own.

Two thread pools in one process disturb each other. A ratio below one means that JAX is faster.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_networks
from options import EXTRACTORS, Options
from problems import extractor_for
from timing import call_once, interleaved, prepared, summary
from worker import worker

from f2pad_jax.errors import InputError
from f2pad_jax.networks.extractor import Extractor

AGREEMENT = 1e-3  # relative difference up to which both networks count as the same
KINDS = ("forward", "value_and_grad")
BATCHES = (1, 4)


def _loss(images: jax.Array, extractor: Extractor) -> jax.Array:
    return sum((jnp.sum(jnp.square(m)) for m in extractor(images)), start=jnp.float32(0))


@jax.jit
def forward(extractor: Extractor, images: jax.Array) -> jax.Array:
    """A scalar that needs every feature."""
    return _loss(images, extractor)


@jax.jit
def value_and_grad(extractor: Extractor, images: jax.Array) -> jax.Array:
    """A scalar that needs the whole gradient in the images."""
    return jnp.sum(jnp.square(jax.grad(_loss)(images, extractor)))


def _ask(pipe: Connection, message: Any) -> float:
    pipe.send(message)
    return pipe.recv()


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for.

    Raises:
      InputError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed", hint="pip install 'f2pad-jax[parity]'")
    for name in EXTRACTORS:
        wanted = [pair for pair in product(KINDS, BATCHES) if options.wanted(name, *pair)]
        if not wanted:
            continue
        extractor, weights = extractor_for(name, options)
        params = jax.tree.map(np.asarray, extractor.params)
        with worker(torch_networks.serve, extractor.name, params, extractor.spec) as pipe:
            for kind, batch in wanted:
                shape = (batch, options.size, options.size, 3)
                images = np.random.default_rng(0).standard_normal(shape, np.float32)
                function = {"forward": forward, "value_and_grad": value_and_grad}[kind]
                ours = prepared(function, extractor, jnp.asarray(images))
                theirs = _ask(pipe, (kind, images))
                if not np.isclose(float(ours.run()), theirs, rtol=AGREEMENT):
                    raise RuntimeError(f"{name}: {kind} is {float(ours.run())} in JAX and {theirs} in torch")
                times, _ = interleaved(
                    {"jax": partial(call_once, ours.run), "torch": partial(_ask, pipe, 1)},
                    repeats=options.repeats,
                )
                pipe.send(0)
                labels = {
                    "extractor": name,
                    "weights": weights,
                    "kind": kind,
                    "batch": batch,
                    "size": options.size,
                    "precision": extractor.precision,
                }
                figures = summary(times["jax"], times["torch"])
                yield {**labels, **figures, "compile_s": ours.compile_s, "flops": ours.flops, "bytes": ours.bytes}

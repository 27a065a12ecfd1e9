"""The extractors over the same networks in eager PyTorch, which runs in a process of its own.

Two thread pools in one process disturb each other. A ratio below one means that JAX is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_networks
from problems import EXTRACTORS, Options, extractor_for
from step_ratio import bare_loss
from timing import call_once, interleaved, prepared, summary
from worker import need_torch, worker

from f2pad_jax.networks.extractor import Extractor

AGREEMENT = 1e-3  # relative difference up to which both networks count as the same
BATCHES = (1, 4)


@jax.jit
def forward(extractor: Extractor, images: jax.Array) -> jax.Array:
    """A scalar that needs every feature."""
    return bare_loss(images, extractor)


@jax.jit
def value_and_grad(extractor: Extractor, images: jax.Array) -> jax.Array:
    """A scalar that needs the whole gradient in the images."""
    return jnp.sum(jnp.square(jax.grad(bare_loss)(images, extractor)))


KINDS = {"forward": forward, "value_and_grad": value_and_grad}


def _ask(pipe: Connection, message: Any) -> float:
    pipe.send(message)
    return pipe.recv()


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for.

    Raises:
      InputError: torch is not installed.
    """
    need_torch()
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
                ours = prepared(KINDS[kind], extractor, jnp.asarray(images))
                theirs = _ask(pipe, (kind, images))
                if not np.isclose(float(ours.run()), theirs, rtol=AGREEMENT):
                    raise RuntimeError(f"{name}: {kind} is {float(ours.run())} in JAX and {theirs} in torch")
                timers = {"jax": partial(call_once, ours.run), "torch": partial(_ask, pipe, 1)}
                times, _ = interleaved(timers, repeats=options.repeats)
                pipe.send(0)
                labels = {"extractor": name, "weights": weights, "kind": kind, "batch": batch, "size": options.size}
                figures = {"compile_s": ours.compile_s, "flops": ours.flops, "bytes": ours.bytes}
                yield {**labels, "precision": extractor.precision, **summary(times["jax"], times["torch"]), **figures}

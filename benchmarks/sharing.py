"""Ways to share gradients, in time and error, on gradients of F at n⁽⁰⁾ of PatchCore problems.

`error` is relative to ours: the norm of the difference over the norm of ours, over the region. Preparation, done once
for an image, is not timed. On a CPU the Pallas kernel is interpreted, so it is left out there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from options import Options
from problems import batch_of, extractor_for, model_of
from sharing_variants import APPROXIMATE, EXACT, KERNEL, OURS
from timing import Seconds, call_once, interleaved, prepared, summary

from f2pad_jax.detectors import get_detector
from f2pad_jax.fitting import Model
from f2pad_jax.objective import objective

EXTRACTOR, DETECTOR = "efficientnet_lite0", "patchcore"
BATCHES = (1, 8)


def gradients(model: Model, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, gradients of F and regions: (B, H, W, 3) twice, and (B, H, W) bool."""
    starts, problems = batch_of(model, batch=batch, full=False)
    slope = jax.grad(partial(objective, extractor=model.extractor, detector=get_detector(model.detector)))
    return problems.image, jax.jit(jax.vmap(slope))(starts, problems), problems.region


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """Every combination that is asked for."""
    variants = {
        name: variant
        for name, variant in (EXACT | APPROXIMATE).items()
        if name != KERNEL or jax.default_backend() != "cpu"
    }
    wanted = {b: [name for name in variants if options.wanted(EXTRACTOR, name, b)] for b in BATCHES}
    if not any(wanted.values()):
        return
    extractor, weights = extractor_for(EXTRACTOR, options)
    model = model_of(DETECTOR, extractor, options)
    for batch, names in wanted.items():
        if not names:
            continue
        images, slopes, regions = gradients(model, batch)
        calls = {}
        for name in dict.fromkeys([OURS, *names]):
            made = jax.jit(jax.vmap(variants[name].prepare))(images)
            calls[name] = prepared(jax.jit(jax.vmap(variants[name].apply)), slopes, made)
        timers: dict[str, Callable[[], Seconds]] = {name: partial(call_once, call.run) for name, call in calls.items()}
        times, _ = interleaved(timers, repeats=options.repeats)
        reference = calls[OURS].run() * regions[..., None]
        for name in names:
            difference = calls[name].run() * regions[..., None] - reference
            yield {
                "extractor": EXTRACTOR,
                "weights": weights,
                "variant": name,
                "kind": "exact" if name in EXACT else "approximate",
                "batch": batch,
                "size": options.size,
                **summary(times[name], times[OURS]),
                "error": float(jnp.linalg.norm(difference) / jnp.linalg.norm(reference)),
                "compile_s": calls[name].compile_s,
                "flops": calls[name].flops,
                "bytes": calls[name].bytes,
            }

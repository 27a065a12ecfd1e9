"""Solves one picture with five weights of sparsity at once: `jax.vmap` over β0, compiled once."""

import jax
import jax.numpy as jnp

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou

normals, [(image, truth, _)] = texture_category("grass", test=1, size=64)
model = f2.fit(normals, detector="padim", extractor=f2.load_extractor("efficientnet_lite0"))
problem, start = f2.prepare(model, image)


def solve(beta0):
    return f2.solve(start, model.energy, problem, model.settings.replace(beta0=beta0))


weights = jnp.array([0.1, 0.3, 1.0, 3.0, 10.0])
solutions = jax.jit(jax.vmap(solve))(weights)  # every array of a solution has a leading axis of five

masks = jnp.any(solutions.normal != problem.image, axis=-1)  # {a ≠ 0}
for beta0, mask, loss in zip(weights, masks, solutions.loss, strict=True):
    print(f"β0 = {beta0:5.2f}: {int(mask.sum()):4d} anomalous pixels, F = {loss:9.0f}, IoU = {iou(mask, truth):.2f}")

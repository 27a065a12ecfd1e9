"""A loop of `step` with a stopping rule of one's own: stop when five iterations have left the mask as it was."""

import jax
import jax.numpy as jnp

import f2pad_jax as f2
from f2pad_jax.core import solution
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou

normals, [(image, truth, _)] = texture_category("grass", test=1, size=64)
model = f2.fit(normals, detector="padim", extractor=f2.load_extractor("efficientnet_lite0"))
problem, start = f2.prepare(model, image)
settings = model.settings.replace(first_beta=model.settings.beta0, limit=200)  # β is constant

step = jax.jit(f2.step)
state = f2.init(start, model.energy, problem, settings)
mask, unchanged = jnp.zeros_like(problem.region), 0
while unchanged < 5 and state.status == f2.Status.RUNNING:
    state, info = step(state, model.energy, problem, settings)
    before, mask = mask, jnp.any(state.normal != problem.image, axis=-1)
    decided = state.iterations > settings.warm_up  # before, sparsity is off and every pixel of the region may move
    unchanged = unchanged + 1 if decided and (mask == before).all() else 0
    if state.iterations % 10 == 0:
        print(f"{state.iterations:3d}: F = {info.loss:9.0f}, {int(mask.sum())} anomalous pixels")

best = solution(state, info).normal  # the n of the lowest F
mask = jnp.any(best != problem.image, axis=-1)
print(f"stopped after {state.iterations} iterations, IoU = {iou(mask, truth):.2f}")

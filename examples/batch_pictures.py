"""Solves several pictures in one call: `jax.vmap` over stacked problems, with one energy for all of them."""

import jax
import jax.numpy as jnp

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou

normals, cases = texture_category("brick", test=4, size=64)
# Neighbours share nothing: then all problems have the same parts, and they differ in few shapes only.
model = f2.fit(
    normals,
    detector="padim",
    extractor=f2.load_extractor("efficientnet_lite0"),
    procedure=f2.Procedure(start="image", sharing=False),
)
solve_batch = jax.jit(jax.vmap(f2.solve, in_axes=(0, None, 0, None)))

groups = {}
for image, truth, _ in cases:
    problem, start = f2.prepare(model, image)
    # Problems stack where their regions reach equally many (padded) positions of the feature map.
    groups.setdefault(problem.present.shape, []).append((start, problem, truth))

for (positions,), members in groups.items():
    starts, problems, truths = zip(*members, strict=True)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    solutions = solve_batch(jnp.stack(starts), model.energy, stack, model.settings)
    masks = jnp.any(solutions.normal != stack.image, axis=-1)
    quality = ", ".join(f"{iou(mask, truth):.2f}" for mask, truth in zip(masks, truths, strict=True))
    print(f"{len(members)} pictures of {positions} positions: IoU = {quality}")

"""A penalty of one's own on the anomaly, the log-sum φ(t) = log(1 + t/σ), beside the LOG penalty of the paper."""

import jax
import jax.numpy as jnp

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou

SIGMA = 0.02  # normalised colour


def value(length):
    return jnp.log1p(length / SIGMA)


def prox(length, weight):
    """The s ≥ 0 that minimises ½(s − t)² + weight · φ(s): zero, or the larger root of the derivative."""
    discriminant = jnp.square(length + SIGMA) - 4 * weight
    root = jnp.maximum(length - SIGMA + jnp.sqrt(jnp.maximum(discriminant, 0.0)), 0.0) / 2
    cost = jnp.square(root - length) / 2 + weight * value(root)
    return jnp.where(cost < jnp.square(length) / 2, root, 0.0)


normals, [(image, truth, _)] = texture_category("grass", test=1, size=64)
model = f2.fit(normals, detector="padim", extractor=f2.load_extractor("efficientnet_lite0"))
problem, start = f2.prepare(model, image)

for name, penalty in {"LOG": f2.penalties.LOG, "log-sum": f2.Penalty(value=value, prox=prox)}.items():
    energy = model.energy.replace(penalty=penalty)
    solution = jax.jit(f2.solve)(start, energy, problem, model.settings)
    mask = jnp.any(solution.normal != problem.image, axis=-1)
    print(f"{name}: {int(mask.sum())} anomalous pixels, IoU = {iou(mask, truth):.2f}, {solution.message}")

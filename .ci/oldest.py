"""A model's whole life, with whatever packages are installed."""

import sys

import jax

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category

normals, [(image, truth, _)] = texture_category("grass", test=1, size=96)
model = f2.fit(normals, detector="padim", extractor=f2.load_extractor("efficientnet_lite0"))
found = f2.segment(model, image).mask
share = float((found & truth).sum() / (found | truth).sum())
print(f"jax {jax.__version__}: IoU {share:.2f}")
sys.exit(share < 0.9)

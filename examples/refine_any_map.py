"""Refines the score maps of another detector, which here knows colours only and has coarse maps in its own units."""

from scipy import ndimage
from sklearn.mixture import GaussianMixture

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou

normals, cases = texture_category("grass", test=2, size=64)

# Another detector, trained on other pictures than those that calibrate it; the maps may as well come from files.
colours = GaussianMixture(4, reg_covar=1e-3, random_state=0).fit(normals[:32].reshape(-1, 3)[::16] / 255)


def other_map(image):
    unlikely = -colours.score_samples(image.reshape(-1, 3) / 255).reshape(image.shape[:2])
    return ndimage.gaussian_filter(unlikely, 4)[::2, ::2]  # any size, any units


model = f2.fit(normals, detector="padim", extractor=f2.load_extractor("efficientnet_lite0"))
model = f2.calibrate(model, [other_map(image) for image in normals[32:]])  # what is usual in the units of these maps

for image, truth, _ in cases:
    result = f2.refine(model, image, other_map(image))
    print(f"its own mask: IoU = {iou(result.initial_mask, truth):.2f}, refined: {iou(result.mask, truth):.2f}")

"""F2PAD from the maps of another detector beside F2PAD from its own scores; run by hand.

    python tests/foreign_maps.py    # prints the mean IoU of each

The other detector is PatchCore by scikit-learn, in units of its own; then its maps with noise of their own standard
deviation, cut into 50 levels, as votes of the trees of a random forest are.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors

import f2pad_jax as f2
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import texture_category
from f2pad_jax.metrics import iou
from f2pad_jax.networks.extractor import Extractor

FITTED, OTHER, HELD, TESTS, LEVELS = 48, 32, 16, 4, 50  # pictures; and levels of the votes


def features(extractor: Extractor, image: np.ndarray) -> np.ndarray:
    """Two feature maps, locally averaged, on the finer grid: (h, w, C)."""
    maps = [np.asarray(one)[0] for one in extractor(jnp.asarray(normalize(image))[None])[1:3]]
    fine, coarse = (np.asarray(ndimage.uniform_filter1d(ndimage.uniform_filter1d(one, 3, 0), 3, 1)) for one in maps)
    factors = [*np.divide(fine.shape[:2], coarse.shape[:2]), 1]
    grown = np.asarray(ndimage.zoom(coarse, factors, order=1))
    return np.concatenate([fine, grown], axis=-1)


def main() -> None:
    """Measures both textures."""
    extractor, rng = f2.load_extractor("efficientnet_lite0"), np.random.default_rng(0)
    found: dict[str, list[float]] = {"its own": [], "the other's": [], "noisy votes": []}
    for name in ("brick", "gravel"):
        normals, cases = texture_category(name, train=FITTED + OTHER + HELD, test=TESTS, size=224)
        every = np.concatenate([features(extractor, each) for each in normals[FITTED : FITTED + OTHER]])
        bank = NearestNeighbors(n_neighbors=1).fit(every.reshape(-1, every.shape[-1])[::5])

        def distances(image: np.ndarray, bank: NearestNeighbors = bank) -> np.ndarray:
            grid = features(extractor, image)
            return bank.kneighbors(grid.reshape(-1, grid.shape[-1]))[0].reshape(grid.shape[:2])

        usual, given = [distances(each) for each in normals[-HELD:]], [distances(image) for image, _, _ in cases]
        low, high = np.min(usual), np.max(given)

        def votes(maps: list[np.ndarray], low: float = low, high: float = high) -> list[np.ndarray]:
            noisy = [values + rng.normal(0, values.std(), values.shape) for values in maps]
            return [np.rint(LEVELS * (values - low) / (high - low)) for values in noisy]

        model, images = f2.fit(normals[:FITTED], detector="patchcore", extractor=extractor), [case[0] for case in cases]
        ways = {"its own": f2.segment(model, images)}
        for way, (normal, maps) in {"the other's": (usual, given), "noisy votes": (votes(usual), votes(given))}.items():
            ways[way] = f2.refine(f2.calibrate(model, normal), images, maps)
        for way, results in ways.items():
            values = [100 * iou(result.mask, truth) for result, (_, truth, _) in zip(results, cases, strict=True)]
            print(f"{name}, from {way} maps: {' '.join(f'{value:.1f}' for value in values)}", flush=True)
            found[way] += values
    print("mean:", ", ".join(f"{way} {np.mean(values):.1f}" for way, values in found.items()))


if __name__ == "__main__":
    main()

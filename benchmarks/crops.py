"""What crops around the region would cost and lose: the table behind solving on whole pictures.

python benchmarks/crops.py --out benchmarks/results/crops [--images N] [--margin N …]

Each connected piece of a picture's region gets a square crop with a margin; crops that overlap are joined, and sides
are rounded up to one of few sizes, so that few shapes are compiled. The network then sees the crop alone. Near its
border features are wrong, by what the cut takes away; `corrected` adds the difference that the cut makes to the
features of x, so that only what n changes is affected. Errors are of ∂l_n/∂n within the region, relative to its norm
on the whole picture.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from options import Options
from problems import model_of
from scipy import ndimage

import f2pad_jax
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.detectors import get_detector
from f2pad_jax.experiments.tables import markdown
from f2pad_jax.fills import harmonic_fill
from f2pad_jax.fitting import score_maps
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import FeatureLoss
from f2pad_jax.output import write_bytes, write_json
from f2pad_jax.pipeline import find_region
from f2pad_jax.preparing import prepare

SIDES = (64, 96, 128, 160, 192, 224)
Box = tuple[int, int, int]  # top, left, side


def crops_of(region: np.ndarray, margin: int, align: int) -> list[Box]:
    """Square crops that hold all pieces of a region with a margin: none overlaps a piece of another."""
    size = region.shape[0]
    pieces: Any = ndimage.label(region)
    boxes = [(s[0].start, s[1].start, s[0].stop, s[1].stop) for s in ndimage.find_objects(pieces[0])]
    while True:
        squares = [_square(box, margin, align, size) for box in boxes]
        pair = next(
            (
                (i, j)
                for i, one in enumerate(squares)
                for j, other in enumerate(squares)
                if i < j and _area(_union(boxes[i], boxes[j]), margin, align, size) <= one[2] ** 2 + other[2] ** 2
            ),
            None,
        )
        if pair is None:
            return squares
        boxes = [box for k, box in enumerate(boxes) if k not in pair] + [_union(boxes[pair[0]], boxes[pair[1]])]


def _union(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, int, int]:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _area(box: tuple[int, ...], margin: int, align: int, size: int) -> int:
    return _square(box, margin, align, size)[2] ** 2


def _square(box: tuple[int, ...], margin: int, align: int, size: int) -> Box:
    """The smallest of the sides that holds a box and its margin, at a multiple of `align`, inside the picture."""
    needed = [max(edge - margin, 0) // align * align for edge in box[:2]]
    ends = [min(edge + margin, size) for edge in box[2:]]
    long = max(end - start for start, end in zip(needed, ends, strict=True))
    side = next(s for s in (*SIDES, size) if s >= min(long, size))
    return min(needed[0], size - side), min(needed[1], size - side), side


@partial(jax.jit, static_argnames=("detector", "side", "corrected"))
def _cut_gradient(extractor, detector, normal, image, full, feature, top, left, side, corrected):
    """∂l_n/∂n on a crop, (side, side, 3)."""

    def cut(picture):
        return jax.lax.dynamic_slice(picture, (top, left, 0), (side, side, 3))

    def maps_of(crop):
        return tuple(m[0] for m in extractor(crop[None]))

    def same(level, m):
        stride = extractor.strides[level]
        return jax.lax.dynamic_slice(
            m, (top // stride, left // stride, 0), (side // stride, side // stride, m.shape[-1])
        )

    own = maps_of(cut(image))
    shift = tuple(
        same(k, f) - m if corrected else jnp.zeros_like(m) for k, (f, m) in enumerate(zip(full, own, strict=True))
    )

    def loss(crop):
        maps = tuple(m + s for m, s in zip(maps_of(crop), shift, strict=True))
        return jnp.sum(detector.local_scores(feature.local, maps, feature.positions) * feature.present)

    return jax.grad(loss)(cut(normal))


def errors(model: f2pad_jax.Model, image: np.ndarray, region: np.ndarray, margin: int) -> dict[str, float]:
    """Area of the crops relative to the picture, and the errors of the gradient, plain and corrected."""
    detector, extractor = get_detector(model.detector), model.extractor
    stride, size = extractor.strides[detector.level], image.shape[0]
    normal = harmonic_fill(image, region)
    feature = prepare(model, image, region, normal, beta=0.0).feature
    full = tuple(m[0] for m in extractor(jnp.asarray(image[None])))

    def whole(n: jax.Array) -> jax.Array:
        maps = tuple(m[0] for m in extractor(n[None]))
        return jnp.sum(detector.local_scores(feature.local, maps, feature.positions) * feature.present)

    exact = np.asarray(jax.jit(jax.grad(whole))(normal)) * region[..., None]
    boxes = crops_of(region, margin, extractor.strides[-1])
    found = {kind: np.zeros_like(exact) for kind in ("plain", "corrected")}
    taken = np.zeros_like(region)
    rows, columns = np.divmod(np.asarray(feature.positions), size // stride)
    for top, left, side in sorted(boxes, key=lambda box: -box[2]):
        within = (rows * stride >= top) & (rows * stride < top + side)
        within &= (columns * stride >= left) & (columns * stride < left + side)
        place = (rows - top // stride).clip(0, side // stride - 1) * (side // stride)
        place += (columns - left // stride).clip(0, side // stride - 1)
        local = FeatureLoss(jnp.asarray(place, jnp.int32), feature.present * within, feature.local)
        here = np.s_[top : top + side, left : left + side]
        fresh = (region[here] & ~taken[here])[..., None]
        for kind, total in found.items():
            arguments = (extractor, detector, normal, image, full, local, top, left)
            total[here] += np.asarray(_cut_gradient(*arguments, side=side, corrected=kind == "corrected")) * fresh
        taken[here] = True
    record = {kind: float(np.linalg.norm(total - exact) / np.linalg.norm(exact)) for kind, total in found.items()}
    return {"area": sum(side**2 for *_, side in boxes) / size**2, "crops": len(boxes)} | record


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="test pictures a category")
    parser.add_argument("--margin", type=int, nargs="+", default=[8, 16, 32], help="pixels around a piece")
    parser.add_argument("--out", type=Path, required=True, help="name of the results without suffix")
    arguments = parser.parse_args()
    extractor: Extractor = f2pad_jax.load_extractor("efficientnet_lite0")
    found: list[dict] = []
    for detector in ("padim", "patchcore"):
        for category in TEXTURES:
            model = model_of(detector, extractor, Options(), category=category)
            _, cases = texture_category(category, train=0, test=arguments.images)
            images = np.stack([case[0] for case in cases])
            for picture, scores in zip(images, score_maps(model, images), strict=True):
                region = find_region(model, scores)
                for margin in arguments.margin if region.any() else ():
                    record = errors(model, normalize(picture), region, margin)
                    found.append({"detector": detector, "category": category, "margin": margin} | record)
                    print(found[-1], flush=True)
    rows = []
    for detector in ("padim", "patchcore"):
        for margin in arguments.margin:
            group = [one for one in found if (one["detector"], one["margin"]) == (detector, margin)]
            mean = {key: float(np.mean([one[key] for one in group])) for key in ("crops", "area", "plain", "corrected")}
            rows.append([detector, str(margin), f"{mean['crops']:.1f}", f"{mean['area']:.2f}"])
            rows[-1] += [f"{mean['plain']:.3f}", f"{mean['corrected']:.3f}"]
    head = ["detector", "margin, px", "crops a picture", "their area over the picture's"]
    head += ["error of the gradient", "corrected"]
    command = f"python benchmarks/crops.py --images {arguments.images}"
    write_json(arguments.out.with_suffix(".json"), {"command": command, "cases": found})
    write_bytes(arguments.out.with_suffix(".md"), f"`{command}`\n\n{markdown(head, rows)}".encode())


if __name__ == "__main__":
    main()

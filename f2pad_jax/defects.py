"""Defects as records: what each connected piece of a mask measures, in pixels or micrometres, and as COCO has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import ConvexHull
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.measure import label, regionprops

DIGITS = 4  # after the point, in records
CATEGORY = 1  # COCO's number of the one kind there is


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A connected piece of a mask; pixels that touch at a corner are connected.

    Places are x to the right and y down, in pixels from the picture's upper left corner, so that the centre of the
    first pixel is (0.5, 0.5).

    Attributes:
      area: pixels.
      box: left, top, width and height of the upright box, pixels.
      centroid: x and y of the centre of mass.
      length: longer side of the smallest box of any direction, pixels; at least 1.
      width: its shorter side, pixels.
      orientation: of the longer side, degrees in [0, 180): 0 lies, and it turns counterclockwise.
      max_score: highest score of the detector in the piece.
      mean_anomaly: mean ‖a‖, colours in [0, 1]; up to √3.
      colour_difference: mean CIEDE2000 between the picture and the recovered normal one; 1 is just visible.
      rle: the piece as COCO has it: "size" (height and width of the picture) and "counts" (lengths of runs outside and
        inside by turns, column by column).
    """

    area: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    length: float
    width: float
    orientation: float
    max_score: float
    mean_anomaly: float
    colour_difference: float
    rle: dict[str, list[int]]

    def record(self, pixel_size: float | None = None) -> dict[str, Any]:
        """Plain data for JSON, rounded.

        Args:
          pixel_size: side of a pixel in micrometres; with it `micrometres` holds the measures once more, the area in
            square micrometres.
        """
        record = {name: _rounded(value) for name, value in asdict(self).items()}
        if pixel_size is not None:
            factors = dict.fromkeys(("box", "centroid", "length", "width"), pixel_size) | {"area": pixel_size**2}
            record["micrometres"] = {
                name: _rounded(np.multiply(getattr(self, name), factor).tolist()) for name, factor in factors.items()
            }
        return record


def find_defects(mask: np.ndarray, score_map: np.ndarray, anomaly: np.ndarray, image: np.ndarray) -> list[Defect]:
    """The pieces of a mask from the top of the picture to its bottom.

    Args:
      mask: (H, W) bool.
      score_map: of the detector, (H, W).
      anomaly: a = x − n, (H, W, 3) in [-1, 1].
      image: x, (H, W, 3) uint8.
    """
    found = []
    for piece in regionprops(np.asarray(label(mask, connectivity=2))):
        rows, columns = piece.coords.T
        top, left, bottom, right = piece.bbox
        own = anomaly[rows, columns].astype(np.float64)
        colours = image[rows, columns] / 255
        normal = np.clip(colours - own, 0, 1)
        turned = smallest_box(piece.image)
        found.append(
            Defect(
                area=len(rows),
                box=(left, top, right - left, bottom - top),
                centroid=(float(columns.mean()) + 0.5, float(rows.mean()) + 0.5),
                length=turned.length,
                width=turned.width,
                orientation=turned.orientation,
                max_score=float(score_map[rows, columns].max()),
                mean_anomaly=float(np.linalg.norm(own, axis=-1).mean()),
                colour_difference=float(deltaE_ciede2000(rgb2lab(colours), rgb2lab(normal)).mean()),
                rle=run_lengths(rows, columns, (mask.shape[0], mask.shape[1])),
            )
        )
    return found


class Turned(NamedTuple):
    """Sides of a box in pixels, and the direction of the longer one in degrees, in [0, 180)."""

    length: float
    width: float
    orientation: float


def smallest_box(piece: np.ndarray) -> Turned:
    """The box of any direction that holds all pixels of a piece, to their corners, and has the smallest area.

    One of its sides lies on a side of the convex hull.

    Args:
      piece: (h, w) bool, not empty.
    """
    rows = np.flatnonzero(piece.any(axis=1))
    first, last = piece[rows].argmax(axis=1), piece.shape[1] - piece[rows, ::-1].argmax(axis=1)
    # Of each row only the outer corners can be on the hull.
    corners = np.concatenate([np.stack([x, y], axis=1) for x in (first, last) for y in (rows, rows + 1)])
    hull = corners[ConvexHull(corners).vertices].astype(np.float64)
    sides = np.roll(hull, -1, axis=0) - hull
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    extents = np.stack([np.ptp(hull @ axis.T, axis=0) for axis in (along, across)], axis=1)
    best = int(extents.prod(axis=1).argmin())
    longer = int(extents[best].argmax())
    x, y = (along, across)[longer][best]
    angle = float(np.degrees(np.arctan2(-y, x)))
    return Turned(float(extents[best].max()), float(extents[best].min()), round(angle, DIGITS) % 180)


def run_lengths(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> dict[str, list[int]]:
    """COCO's run-length code of some pixels, not compressed.

    Args:
      rows: of the pixels, (N,), N ≥ 1.
      columns: of the pixels, (N,).
      shape: height and width of the picture.
    """
    places = np.sort(columns.astype(np.int64) * shape[0] + rows)
    breaks = np.flatnonzero(np.diff(places) != 1)
    firsts, lasts = places[np.append(0, breaks + 1)], places[np.append(breaks, -1)] + 1
    ends = np.stack([firsts, lasts], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], ends, [shape[0] * shape[1]]]))
    return {"size": list(shape), "counts": (counts if counts[-1] else counts[:-1]).tolist()}


def coco(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A COCO data set of the lines of `results.jsonl`; pictures that failed are left out.

    Annotations hold what the records of defects hold, under COCO's names where it has one.
    """
    images, annotations = [], []
    for record in records:
        if record["status"] == "failed":
            continue
        height, width = record["size"]
        images.append({"id": len(images) + 1, "file_name": record["image"], "height": height, "width": width})
        for defect in record["defects"]:
            own = {name: value for name, value in defect.items() if name not in ("box", "rle", "max_score")}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": CATEGORY,
                    "bbox": defect["box"],
                    "segmentation": defect["rle"],
                    "iscrowd": 0,
                    "score": defect["max_score"],
                    **own,
                }
            )
    categories = [{"id": CATEGORY, "name": "defect"}]
    return {
        "info": {"description": "f2pad_jax"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple | list):
        return [_rounded(each) for each in value]
    return value if isinstance(value, int) else round(float(value), DIGITS)

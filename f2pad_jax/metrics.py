"""How well masks and score maps agree with the truth: fractions in [0, 1], which reports multiply by 100."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import find_boundaries
from sklearn.metrics import precision_recall_curve, roc_auc_score

from f2pad_jax.errors import InputError


def iou(pred: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two bool masks (H, W), arXiv 2407.06519 Eq. (17); 1 where both are empty.

    The paper averages it over images.
    """
    pred, truth = _pair(pred, truth)
    union = int((pred | truth).sum())
    return int((pred & truth).sum()) / union if union else 1.0


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient, Eq. (17), with the conventions of `iou`."""
    pred, truth = _pair(pred, truth)
    total = int(pred.sum()) + int(truth.sum())
    return 2 * int((pred & truth).sum()) / total if total else 1.0


def pooled_iou(preds: np.ndarray, truths: np.ndarray) -> float:
    """`iou` over all pixels of all images together, bool (N, H, W): large anomalies weigh more."""
    return iou(preds, truths)


def boundary_f1(pred: np.ndarray, truth: np.ndarray, tolerance: float = 2) -> float:
    """F1 of the outlines of two masks (H, W).

    Precision is the share of the predicted outline that lies within `tolerance` pixels (Euclidean) of the
    true one, recall the share of the true outline within it of the predicted one. The outline is the mask's
    outermost pixels; what lies beyond the frame counts as outside. 1 where both masks are empty, 0 where one
    is.
    """
    pred, truth = _pair(pred, truth)
    if not (pred.any() and truth.any()):
        return float(pred.any() == truth.any())
    found, wanted = _outline(pred), _outline(truth)
    precision = float((_distances(found, wanted) <= tolerance).mean())
    recall = float((_distances(wanted, found) <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def hausdorff95(pred: np.ndarray, truth: np.ndarray) -> float:
    """The 95 % Hausdorff distance of the outlines of two masks (H, W), in pixels.

    The greater of two 95th percentiles: of the distances from the predicted outline to the true one, and back.
    Outlines are those of `boundary_f1`. 0 where both masks are empty, the picture's diagonal where one is.
    """
    pred, truth = _pair(pred, truth)
    if not (pred.any() and truth.any()):
        return 0.0 if pred.any() == truth.any() else float(np.hypot(*pred.shape))
    found, wanted = _outline(pred), _outline(truth)
    return float(max(np.percentile(_distances(*pair), 95) for pair in ((found, wanted), (wanted, found))))


def pixel_auroc(scores: np.ndarray, masks: np.ndarray) -> float:
    """Area under the ROC curve over all pixels of all images, (N, H, W).

    Raises:
      InputError: the masks hold no defect pixel, or nothing else.
    """
    scores, masks = _scored(scores, masks)
    return float(roc_auc_score(masks.ravel(), scores.ravel()))


def f1max(scores: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """The best F1 over all thresholds on all pixels of all images, (N, H, W), and the threshold giving it.

    The rule of PaDiM's reference implementation: F1 counts scores of the threshold and above, while the mask
    made from it is `score > threshold`, one pixel less where no two scores are equal. It is an oracle: it
    knows the truth of the images that it is used on.

    Returns:
      The F1 and the threshold in units of the scores.

    Raises:
      InputError: as for `pixel_auroc`.
    """
    scores, masks = _scored(scores, masks)
    precision, recall, thresholds = precision_recall_curve(masks.ravel(), scores.ravel())
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    best = int(f1[:-1].argmax())  # the last point of the curve has no threshold
    return float(f1[best]), float(thresholds[best])


def best_iou(scores: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """The best mean IoU of {score > threshold} over pictures that have a defect, and the threshold giving it.

    Of 200 thresholds, quantiles of the upper half of these pictures' scores. It is an oracle, as `f1max` is.

    Args:
      scores: (N, H, W).
      masks: (N, H, W) bool, some not empty.

    Returns:
      The mean IoU in [0, 1], and the threshold in units of the scores.

    Raises:
      InputError: no mask has a pixel.
    """
    scores, masks = np.asarray(scores), np.asarray(masks, bool)
    defective = masks.any(axis=(1, 2))
    if not defective.any():
        raise InputError("no picture has a defect", hint="give at least one with its mask")
    scores, masks = scores[defective], masks[defective]
    levels = np.quantile(scores, np.linspace(0.5, 1, 200, endpoint=False))
    means = [np.mean([iou(one > level, mask) for one, mask in zip(scores, masks, strict=True)]) for level in levels]
    best = int(np.argmax(means))
    return float(means[best]), float(levels[best])


def image_auroc(scores: np.ndarray, defective: np.ndarray) -> float:
    """Area under the ROC curve of pictures, by one score each: (N,) and bool (N,), both kinds among them."""
    return float(roc_auc_score(defective, scores))


def image_f1max(scores: np.ndarray, defective: np.ndarray) -> float:
    """The best F1 over all thresholds of one score a picture, (N,) and bool (N,)."""
    precision, recall, _ = precision_recall_curve(defective, scores)
    total = precision + recall
    return float((2 * precision * recall / np.where(total > 0, total, 1)).max())


def aupro(scores: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    At each threshold the overlap is the share of a defect that is found, averaged over all defects (connected
    regions, diagonals included) of all images, and the rate is the share of all normal pixels above it. The
    sweep is exact: every distinct score is a threshold, and the curve is interpolated linearly at the limit.

    Args:
      scores: (N, H, W).
      masks: bool (N, H, W).
      fpr_limit: in (0, 1].

    Raises:
      InputError: as for `pixel_auroc`.
    """
    scores, masks = _scored(scores, masks)
    regions = _regions(masks)
    sizes = np.bincount(regions.ravel())
    order = np.argsort(scores, axis=None, kind="stable")[::-1]
    descending, labels = scores.ravel()[order], regions.ravel()[order]
    weights = 1 / ((len(sizes) - 1) * sizes)
    weights[0] = 0  # label 0 is what is normal
    overlap = np.cumsum(weights[labels])
    rate = np.cumsum(labels == 0) / sizes[0]
    last = np.append(descending[1:] != descending[:-1], True)  # equal scores pass a threshold together
    overlap, rate = np.append(0.0, overlap[last]), np.append(0.0, rate[last])
    inside = rate <= fpr_limit
    at_limit = np.interp(fpr_limit, rate, overlap)
    area = np.trapezoid(np.append(overlap[inside], at_limit), np.append(rate[inside], fpr_limit))
    return float(area / fpr_limit)


MASK_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "iou": iou,
    "dice": dice,
    "boundary_f1": boundary_f1,
}
"""Of a mask and the truth, bool (H, W) both; `metrics.json` has the mean over pictures with a defect."""

POOLED_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"pooled_iou": pooled_iou, "seg_f1": dice}
"""Of all masks and all truths, bool (N, H, W) both."""

IMAGE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "image_auroc": image_auroc,
    "image_f1max": image_f1max,
}
"""Of the pictures' highest scores (N,) and whether they show a defect, bool (N,), both kinds among them."""

MAP_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pixel_auroc": pixel_auroc,
    "aupro": aupro,
    "aupro_5": lambda scores, masks: aupro(scores, masks, 0.05),
    "f1max": lambda scores, masks: f1max(scores, masks)[0],
}
"""Of all score maps (N, H, W) and all truths; a metric of one's own is a function and a line in one of these tables."""


def _outline(mask: np.ndarray) -> np.ndarray:
    return np.asarray(find_boundaries(np.pad(mask, 1), mode="inner"))


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """From every pixel of `one` to the nearest of `other`."""
    return np.asarray(ndimage.distance_transform_edt(~other))[one]


def _regions(masks: np.ndarray) -> np.ndarray:
    """Numbers the connected regions of all masks, (N, H, W); 0 is outside."""
    spaced = np.stack([masks, np.zeros_like(masks)], axis=1).reshape(-1, *masks.shape[1:])
    return np.asarray(label(spaced, connectivity=3))[::2]  # the empty ones between kept the images apart


def _pair(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, truth = np.asarray(pred, bool), np.asarray(truth, bool)
    if pred.shape != truth.shape:
        raise ValueError(f"masks of shapes {pred.shape} and {truth.shape} cannot be compared")
    return pred, truth


def _scored(scores: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, masks = np.asarray(scores), np.asarray(masks, bool)
    if scores.shape != masks.shape or scores.ndim != 3:
        raise ValueError(f"score maps {scores.shape} and masks {masks.shape} must both be (N, H, W)")
    if not masks.any() or masks.all():
        raise InputError("the masks hold one kind of pixel only", hint="test on defects and normal pixels both")
    return scores, masks

"""What makes numbers not to be trusted, each as a line for the terminal and for `metrics.json`; nothing is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from f2pad_jax.segmentation import Segmentation

FEW = 4  # pictures of a kind, from which on their scores are compared


def of_training(images: np.ndarray) -> list[str]:
    """Doubts about normal pictures, uint8 (N, S, S, 3): copies teach nothing, and hide how far normal pictures vary."""
    different = len({hashlib.sha256(image.tobytes()).digest() for image in images})
    if different == len(images):
        return []
    return [f"of {len(images)} training pictures only {different} differ; thresholds will be too low"]


def of_records(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Doubts about the lines of `results.jsonl`."""
    done = [record for record in records if record["status"] != "failed"]
    return _of_solves([record["status"] for record in done], np.array([record["max_score"] for record in done]))


def of_results(results: Sequence[Segmentation], defective: np.ndarray | None = None) -> list[str]:
    """Doubts about results, with whether the pictures show a defect, bool (N,), where it is known."""
    peaks = np.array([result.score_map.max() for result in results])
    doubts = _of_solves([result.status for result in results], peaks)
    if defective is not None:
        good = peaks[~defective]
        if min(len(good), defective.sum()) >= FEW and np.median(good) >= np.median(peaks[defective]):
            doubts.append("normal pictures score as high as defective ones")
    return doubts


def _of_solves(statuses: Sequence[str], peaks: np.ndarray) -> list[str]:
    doubts = []
    if failed := statuses.count("non-finite"):
        doubts.append(f"the solve of {failed} of {len(statuses)} pictures ended in numbers that are not finite")
    if len(peaks) > 2 and np.ptp(peaks) == 0:
        doubts.append(f"the detector gives all {len(peaks)} pictures the same score")
    return doubts

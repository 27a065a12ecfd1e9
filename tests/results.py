"""Results as a solve would give them, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from f2pad_jax.segmentation import Segmentation


def a_result(image: np.ndarray, mask: np.ndarray, **others: Any) -> Segmentation:
    """A result with this mask; where nothing else is said, the detector's is the same, and n is the picture."""
    scores = others.get("score_map", mask.astype(np.float32))
    facts: dict[str, Any] = {
        "normal": image,
        "anomaly": np.zeros(image.shape, np.float32),
        "initial_mask": mask,
        "score_map": scores,
        "threshold": 0.5,
        "refined_map": scores,
        "residual": 0.5,
        "iterations": 1,
        "status": "converged",
        "seconds": 0.0,
    }
    return Segmentation(mask=mask, **facts | others)

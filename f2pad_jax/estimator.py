"""The whole as an estimator in scikit-learn's manner."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from f2pad_jax.data.arrays import as_pictures
from f2pad_jax.data.images import resize_image
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import fit
from f2pad_jax.grouping import group_size
from f2pad_jax.model import Model
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.procedure import Procedure
from f2pad_jax.reducing import seen_shape, work_shape
from f2pad_jax.segmentation import Segmentation, segment
from f2pad_jax.sights import score_maps
from f2pad_jax.weights import load_extractor

NORMAL, DEFECTIVE = 1, -1  # as scikit-learn names inliers and outliers


class Detector(OutlierMixin, BaseEstimator):
    """Tells normal from defective pictures, and outlines the defects: an outlier detector for scikit-learn's tools.

    Pictures are whatever `data.arrays.as_pictures` takes: arrays, PIL images or names of files, of any sizes. All are
    brought to the size of the first one that it is fitted to.

    Args:
      detector: "padim", "patchcore" or "cflow".
      extractor: a name, or what `load_extractor` gives.
      weights: the extractor's weight file, where it is not imported.
      size: the extractor sees about `size` × `size` pixels.
      work_size: masks are made at the pictures' own size, or where they have more, at `work_size` × `work_size`.
      false_alarms: share of normal pictures that may be taken for defective, in (0, 1).
      white_level: the level of white of pictures with more than eight bits.
      options: of the detector, as for `fit`.
      seed: of all random choices.

    Attributes:
      model_: the fitted `Model`.

    Examples:
      >>> from sklearn.model_selection import cross_val_score  # doctest: +SKIP
      >>> cross_val_score(Detector("padim"), pictures, labels, scoring="roc_auc", cv=3)  # doctest: +SKIP
    """

    model_: Model

    def __init__(
        self,
        detector: str = "patchcore",
        extractor: str | Extractor = "efficientnet_lite0",
        *,
        weights: str | os.PathLike[str] | None = None,
        size: int = 224,
        work_size: int = 1024,
        false_alarms: float = 0.01,
        white_level: int | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.detector = detector
        self.extractor = extractor
        self.weights = weights
        self.size = size
        self.work_size = work_size
        self.false_alarms = false_alarms
        self.white_level = white_level
        self.options = options
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Detector:  # noqa: N803
        """Fits to normal pictures.

        Args:
          X: N pictures.
          y: N labels, 1 of normal and -1 of defective pictures, which are left out; None where all are normal.

        Raises:
          InputError: as for `f2pad_jax.fit`, or other labels.
        """
        pictures, _ = as_pictures(X, white_level=self.white_level)
        if y is not None:
            labels = np.asarray(y)
            if labels.shape != (len(pictures),) or not np.isin(labels, (NORMAL, DEFECTIVE)).all():
                raise InputError("the labels are not one for each picture, 1 or -1", hint="give 1 for normal ones")
            pictures = [picture for picture, label in zip(pictures, labels, strict=True) if label == NORMAL]
        if not pictures:
            raise InputError("there are no normal pictures", hint="give some, with label 1")
        extractor = self.extractor
        if isinstance(extractor, str):
            extractor = load_extractor(extractor, weights=None if self.weights is None else Path(self.weights))
        own = pictures[0].shape[0], pictures[0].shape[1]
        seen = seen_shape(own, self.size, extractor)
        shape = work_shape(own, self.work_size, seen)
        self.model_ = fit(
            np.stack([resize_image(picture, shape) for picture in pictures]),
            detector=self.detector,
            extractor=extractor,
            seen=seen,
            seed=self.seed,
            procedure=Procedure(false_alarms=self.false_alarms),
            options=self.options,
            white_level=self.white_level,
        )
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """How normal N pictures are: the negative of their highest smoothed score, (N,) float32."""
        check_is_fitted(self)
        pictures, _ = as_pictures(X, white_level=self.white_level)
        count, highest = group_size(self.model_), []
        for first in range(0, len(pictures), count):
            alike = [resize_image(picture, self.model_.shape) for picture in pictures[first : first + count]]
            highest.append(score_maps(self.model_, np.stack(alike)).max(axis=(1, 2)))
        return -np.concatenate(highest) if highest else np.zeros(0, np.float32)

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """`score_samples` from the threshold on, (N,) float32: negative for defective pictures."""
        return self.score_samples(X) + np.float32(self.model_.threshold)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """1 for normal and -1 for defective pictures, (N,) int."""
        return np.where(self.decision_function(X) < 0, DEFECTIVE, NORMAL)

    def segment(self, X: Any) -> list[Segmentation]:  # noqa: N803
        """The outlines of the defects of N pictures, as `f2pad_jax.segment` finds them."""
        check_is_fitted(self)
        return segment(self.model_, as_pictures(X, white_level=self.white_level)[0])

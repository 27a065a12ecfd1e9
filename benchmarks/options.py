"""What a benchmark may be asked for, the same for all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EXTRACTORS = ("efficientnet_lite0", "resnet18")
DETECTORS = ("padim", "patchcore", "cflow")


class Options(NamedTuple):
    """Choices of the command line.

    Attributes:
      size: side of the pictures in pixels.
      repeats: measurements of each case.
      only: words that the label of a case must all hold.
      weights: a weight file for ResNet-18; without one the imported weights, else random ones.
      images: pictures of each case, where these are not a batch.
      limit: most iterations of a solve, for a quick look.
    """

    size: int = 224
    repeats: int = 10
    only: tuple[str, ...] = ()
    weights: Path | None = None
    images: int = 8
    limit: int | None = None

    def wanted(self, *labels: object) -> bool:
        """Whether the case of these labels is asked for."""
        return set(self.only) <= {str(label) for label in labels}

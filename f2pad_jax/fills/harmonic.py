"""Smooth fill: the harmonic function that continues the picture into a region."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve


def harmonic_fill(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Solves Δn = 0 inside the region with the image as boundary values (SciPy's sparse solver).

    At the picture's border the normal derivative is zero. Where the region is the whole picture there is
    nothing to continue, and the image's mean is used.

    Args:
      image: (H, W, C) float32.
      region: (H, W) bool, the pixels to replace.

    Returns:
      (H, W, C) float32, equal to the image outside the region.
    """
    filled = image.copy()
    if not region.any():
        return filled
    if region.all():
        filled[:] = image.mean(axis=(0, 1))
        return filled
    height, width = region.shape
    number = np.full(region.shape, -1)
    number[region] = np.arange(region.sum())
    rows, columns = np.nonzero(region)
    unknowns = len(rows)
    degree = np.zeros(unknowns)
    known = np.zeros((unknowns, image.shape[-1]))
    entries = []
    for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        i, j = rows + di, columns + dj
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        degree += inside
        here, i, j = np.nonzero(inside)[0], i[inside], j[inside]
        unknown = region[i, j]
        entries.append((here[unknown], number[i[unknown], j[unknown]]))
        np.add.at(known, here[~unknown], image[i[~unknown], j[~unknown]])
    here = np.concatenate([e[0] for e in entries])
    there = np.concatenate([e[1] for e in entries])
    laplacian = sp.diags(degree) - sp.coo_matrix((np.ones(len(here)), (here, there)), shape=(unknowns, unknowns))
    filled[region] = spsolve(sp.csc_matrix(laplacian), known).reshape(unknowns, -1)
    return filled

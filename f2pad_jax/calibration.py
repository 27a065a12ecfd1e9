"""What normal pictures tell: thresholds for a rate of false alarms, and how much sparsity a picture can pay for.

No anomaly is looked at. The highest score of each normal picture that the detector has not seen is its peak; peaks are
taken as log-normal, by their median and median absolute deviation, so that no single picture decides. Scores that have
a bound are first put on a scale without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import median_abs_deviation, norm
from skimage.measure import label

from f2pad_jax.errors import InputError

PIXELS = 0.005  # share of normal pixels that the region's lower limit lets through
SPREAD, WEIGHT = 0.25, 4  # spread of log peaks before any is seen, and the number of pictures that it counts for
GAIN, POWER = 0.2, 2.0  # β that a piece can pay for: GAIN · (its peak / that of a usual normal picture)^POWER
POOR = 0.25  # error of a fill, in normalised colour, above which β is larger in proportion
UNEXPLAINED = 0.25  # share of a piece's own peak that may be left in n


Maps = np.ndarray | Sequence[np.ndarray]  # one for each picture


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What smoothed maps of unseen normal pictures reach.

    Attributes:
      peak: median of the pictures' highest scores.
      spread: standard deviation of the logarithms of these, or of their `odds` where scores have a bound.
      pixel: score that a share of `PIXELS` of all their pixels exceeds.
      cost: median of the pictures' highest s_ij.
      bound: what no score can exceed; None without.
    """

    peak: float
    spread: float
    pixel: float
    cost: float
    bound: float | None = None

    def threshold(self, false_alarms: float) -> float:
        """The score that the peaks of a share of normal pictures exceed, `false_alarms` in (0, 1)."""
        odds = odds_of(self.peak, self.bound) * np.exp(norm.isf(false_alarms) * self.spread)
        return float(odds if self.bound is None else odds / (1 + odds / self.bound))


def odds_of(scores: Any, bound: float | None) -> Any:
    """Scores in [0, bound) on a scale without one, s / (1 − s / bound): near a bound small differences mean much."""
    return scores if bound is None else scores / (1 - np.minimum(scores / bound, 1 - 1e-6))


def limits_of(scores: Maps, costs: Maps, *, bound: float | None = None) -> Limits:
    """The limits by normal pictures that the detector has not seen.

    Args:
      scores: smoothed score maps of N ≥ 1 pictures, of any shape, such as (S, S).
      costs: smoothed maps of the summands s_ij of l_n, one a picture.
      bound: as `Limits` has it.
    """
    peaks = np.maximum([values.max() for values in scores], 1e-12)
    own = float(median_abs_deviation(np.log(odds_of(peaks, bound)))) / float(norm.ppf(0.75))
    # The deviation of few pictures says little: it is averaged with what is usual.
    spread = np.sqrt((len(peaks) * own**2 + WEIGHT * SPREAD**2) / (len(peaks) + WEIGHT))
    return Limits(
        peak=float(np.median(peaks)),
        spread=float(spread),
        pixel=float(np.quantile(np.concatenate([values.ravel() for values in scores]), 1 - PIXELS)),
        cost=float(np.median([values.max() for values in costs])),
        bound=bound,
    )


@dataclass(frozen=True, kw_only=True)
class Units:
    """What another detector's smoothed maps of normal pictures reach, in its own units.

    Attributes:
      zero: median of all their pixels, from which scores count.
      peak: as `Limits` has it, of scores minus `zero`.
      spread: as `Limits` has it, of scores minus `zero`.
      pixel: as `Limits` has it, of scores minus `zero`.
    """

    zero: float
    peak: float
    spread: float
    pixel: float

    def limits(self, cost: float) -> Limits:
        """The limits of maps minus `zero`, beside a model's own cost."""
        return Limits(peak=self.peak, spread=self.spread, pixel=self.pixel, cost=cost)


def units_of(maps: Maps) -> Units:
    """The units of another detector's maps, by those of normal pictures that it was not trained on.

    Args:
      maps: smoothed score maps, of any shape.

    Raises:
      InputError: they hold hardly anything but one value, as masks of normal pictures do.
    """
    zero = float(np.median(np.concatenate([values.ravel() for values in maps])))
    above = [values - zero for values in maps]
    if not np.median([values.max() for values in above]) > 0:
        raise InputError("the score maps of normal pictures hold one value", hint="give scores, not masks")
    limits = limits_of(above, above)
    return Units(zero=zero, peak=limits.peak, spread=limits.spread, pixel=limits.pixel)


class Levels(NamedTuple):
    """The level of a rising solve that is right for each piece of the region.

    Attributes:
      level: index of the level, (S, S) int; −1 outside the region.
      residual: the most that is left in n at these levels, over what may be left; up to 1 n is explained.
    """

    level: np.ndarray
    residual: float


def choose_levels(
    region: np.ndarray,
    costs: np.ndarray,
    left: np.ndarray,
    betas: np.ndarray,
    limits: Limits,
    *,
    error: float = np.inf,
    gain: float = GAIN,
) -> Levels:
    """For each connected piece of the region the largest β that it can pay for and whose n is normal.

    The pull of l_n on a pixel grows with the excess of its s_ij, so what stands out by a factor r can pay for a β that
    grows with r^POWER: a faint scratch for little, a pasted colour for much, which leaves nothing else marked. Normal
    pixels differ from a fill that is a poor copy as well, so β is larger in proportion to the fill's error. Of the
    levels up to that, the highest is taken whose n has lost its anomaly: the s_ij left there are those of a usual
    normal picture, or no more than a share of `UNEXPLAINED` of what they were. This is the discrepancy principle of
    inverse problems, piece by piece; no truth and no number of the part enters.

    Args:
      region: (S, S) bool.
      costs: smoothed s_ij of x, (S, S).
      left: of n at the end of each level, (K, S, S).
      betas: β at the end of each level, rising, (K,).
      limits: of normal pictures.
      error: of the fill, as `fills.Match` has it; infinite where it is unknown.
      gain: what a piece can pay for that stands out no more than a usual normal picture.
    """
    pieces = np.asarray(label(region, connectivity=2))
    peaks = piece_maxima(costs, pieces)[1:]
    lasts = np.stack([piece_maxima(values, pieces)[1:] for values in left])
    ratios = lasts / np.maximum(limits.cost, UNEXPLAINED * peaks)  # (K, pieces)
    affordable = np.clip(poorness(error) * gain * (peaks / limits.cost) ** POWER, betas[0], betas[-1])
    chosen = np.full(len(peaks) + 1, -1)
    residual = 0.0
    for k in range(len(peaks)):
        errors = np.abs(np.log(betas / affordable[k]))
        top = len(betas) - 1 - int(errors[::-1].argmin())  # the last of equals
        explained = np.flatnonzero(ratios[: top + 1, k] <= 1)
        chosen[k + 1] = explained[-1] if len(explained) else ratios[: top + 1, k].argmin()
        residual = max(residual, float(ratios[chosen[k + 1], k]))
    return Levels(chosen[pieces], residual)


def poorness(error: float) -> float:
    """The factor of β for a fill of this error, at least 1; 1 where the error is not finite, which means unknown."""
    return max(error / POOR, 1.0) if np.isfinite(error) else 1.0


def residual_of(region: np.ndarray, before: np.ndarray, after: np.ndarray, threshold: float) -> float:
    """The most that still stands out in n, over what may: up to 1 n is explained.

    In each connected piece of the region that is the highest score, over the threshold of normal pictures or a share of
    `UNEXPLAINED` of what it was, whichever is more.

    Args:
      region: (S, S) bool.
      before: smoothed scores of x, (S, S).
      after: of n, (S, S).
      threshold: of the scores.
    """
    pieces = np.asarray(label(region, connectivity=2))
    peaks, lasts = (piece_maxima(scores, pieces)[1:] for scores in (before, after))
    return float(np.max(lasts / np.maximum(threshold, UNEXPLAINED * peaks), initial=0.0))


def piece_maxima(values: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """The highest value in each numbered piece, and outside of all of them first: (1 + the largest number,) float.

    Args:
      values: (S, S).
      pieces: numbers of pieces, zero outside, (S, S) int.
    """
    highest = np.full(int(pieces.max()) + 1, -np.inf)
    np.maximum.at(highest, pieces.ravel(), values.ravel())
    return highest

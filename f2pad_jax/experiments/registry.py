"""The experiments there are: the paper's tables and figures, and studies that it lacks; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from f2pad_jax.detectors.cflow import FEW_SHOTS
from f2pad_jax.experiments import defects, figures, studies, tables
from f2pad_jax.experiments.cases import Case
from f2pad_jax.experiments.variants import (
    ABLATIONS,
    AT_BEST,
    CHOICES,
    CURVES,
    FILL,
    FULL,
    GROWTH,
    SENSITIVITY,
    THRESHOLDS,
    TUNINGS,
    UNCOMPOSED,
    UNSTATED,
)


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
      name: what it is called on the command line.
      section: its title.
      variants: the ways to segment that it compares, see `variants`; without the first there is nothing to show.
        A detector that lacks the option of a variant goes without it.
      shots: training pictures; None takes all.
      table: makes Markdown of the experiment's name and its complete units.
      figure: draws complete units; their parts are in the results folder.
      printed: whether the paper has it.
      real: whether the test pictures are MVTec AD's own defects, whose results go to a folder of their own.
      kinds: names of `anomalies.KINDS` that made test pictures take in turn; others than colours go to a folder of
        their own as well.
    """

    name: str
    section: str
    variants: tuple[str, ...] = (FULL,)
    shots: int | None = None
    table: Callable[[str, Sequence[Case]], str] | None = None
    figure: Callable[[Sequence[Case], Path], Figure | Image.Image] | None = None
    printed: bool = True
    real: bool = False
    kinds: tuple[str, ...] = ("colour",)


def _study(name: str, section: str, variants: tuple[str, ...], **pictures: Any) -> Experiment:
    """An experiment that the paper lacks; its module has its table, and its figure where there is one."""
    home = defects if hasattr(defects, name) else studies
    table, figure = getattr(home, name), getattr(home, f"{name}_figure", None)
    return Experiment(name, section, variants, table=table, figure=figure, printed=False, **pictures)


GRADED = ("colour", "grey", "own", "translucent", "structural", "texture", "blur", "brightness", "scratch")
_ABLATED = (FULL, FILL, "no-pixel-prior", "no-sparsity")
_ALL = (
    Experiment("table1", "Table I", table=tables.comparison),
    Experiment("table2", "Table II", shots=FEW_SHOTS, table=tables.comparison),
    Experiment("table3", "Table III", (FULL, *ABLATIONS), table=tables.ablation),
    Experiment("table4", "Table IV", table=tables.cost),
    Experiment("fig1", "Figure 1", figure=figures.example),
    Experiment("fig6", "Figure 6", figure=figures.results),
    Experiment("fig7", "Figure 7", table=tables.sizes, figure=figures.size_boxes),
    Experiment("fig8", "Figure 8", _ABLATED, figure=figures.ablations),
    Experiment("fig9", "Figure 9", (FULL, "no-pixel-prior"), figure=figures.enlarged),
    Experiment("fig10", "Figure 10", (CURVES,), table=tables.falls, figure=figures.loss_curves),
    Experiment("fig11", "Figure 11", table=figures.failure_table, figure=figures.failures),
    _study("thresholds", "Rules for the threshold", (FULL, *THRESHOLDS)),
    _study("sensitivity", "Sensitivity to settings and seeds", (FULL, *SENSITIVITY)),
    _study("choices", "What each choice is worth", (FULL, *CHOICES)),
    _study("unstated", "What the paper does not state", (FULL, *UNSTATED)),
    _study("growth", "Regions that grow", (FULL, GROWTH)),
    _study("tuning", "What tuning is worth", TUNINGS),
    _study("kinds", "Kinds of anomaly", (FULL, FILL, UNCOMPOSED), kinds=GRADED),
    _study("real", "MVTec AD's own defects", (FULL, AT_BEST), real=True),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}

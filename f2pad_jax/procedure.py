"""The choices of Algorithm 1 around the solve, and the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from pydantic import Field

from f2pad_jax.core import Settings
from f2pad_jax.errors import InputError
from f2pad_jax.schemas import facts_of, read_facts


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """The choices of Algorithm 1 around the solve; `Settings` has those of the solve.

    Attributes:
      components: Gaussians of the pixel mixture; used when fitting.
      false_alarms: share of normal pictures that may be taken for defective, in (0, 1); it sets the threshold.
      threshold: of the smoothed scores, in place of the one that `false_alarms` sets.
      region: "pieces", all of what scores above nearly all normal pixels in pieces that reach the threshold, or
        "threshold", what lies above the threshold, as in the paper.
      sparsity: how β is chosen: "levels" (where n⁽⁰⁾ is a fill, for each piece of the region the largest that it can
        pay for and that leaves n normal; else β0), "constant" (β0), or "area" (β0 / Σm⁽⁰⁾, the paper's).
      dilation: pixels that the extractor sees by which the region is enlarged.
      largest: share of the picture that the region covers at most, before it is enlarged; the paper's anomalies
        reach 0.13.
      start: n⁽⁰⁾: "image" (x itself), the name of one of `fills.FILLS`, or "auto": the matching fill where it is
        trusted, else x.
      trusted: error of the matching fill in the region's surroundings up to which it is trusted, normalised colour.
      sharing: whether neighbours share the ‖a‖ by which the proximal map decides, in solves that start from a fill.
      smallest: norm of a, in normalised colour, up to which it counts as zero; 0 with exact zeros.
      cleaning: of the mask, "whole" (removes dots, closes enclosed holes, and keeps the pieces where the detector
        peaks) or "opening" (3 × 3, the paper's).
      composing: whether n is composed of segments of x and of its fill where a solve from x leaves n unexplained.
      refine: iterations of the re-estimation of n on the final mask.
    """

    components: Annotated[int, Field(ge=1, le=1024)] = 8
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    threshold: float | None = None
    region: Literal["pieces", "threshold"] = "pieces"
    sparsity: Literal["levels", "constant", "area"] = "levels"
    dilation: Annotated[int, Field(ge=0, le=4096)] = 4
    largest: Annotated[float, Field(gt=0, le=1)] = 0.25
    start: Literal["auto", "image", "matching", "harmonic", "autoencoder"] = "auto"
    trusted: Annotated[float, Field(ge=0)] = 0.7
    sharing: bool = True
    smallest: Annotated[float, Field(ge=0)] = 0.0
    cleaning: Literal["whole", "opening"] = "whole"
    composing: bool = True
    refine: Annotated[int, Field(ge=0, le=10**6)] = 20


ProcedureFacts = facts_of(Procedure)


def check_procedure(procedure: Procedure) -> None:
    """Makes sure that every choice is one of those there are, and every number in its range.

    Raises:
      InputError: names the first that is not.
    """
    for name, hint in get_type_hints(Procedure).items():
        choices, value = get_args(hint), getattr(procedure, name)
        if get_origin(hint) is Literal and value not in choices:
            raise InputError(f"{name} is {value!r}", where="procedure", hint=f"choose one of {', '.join(choices)}")
    if not 0 < procedure.false_alarms < 1:
        raise InputError(f"a rate of false alarms of {procedure.false_alarms} makes no sense", hint="give 0.01 for 1 %")
    read_facts(ProcedureFacts, asdict(procedure), kind="procedure", where="procedure", hint="see Procedure")


def paper_settings() -> tuple[Settings, Procedure]:
    """The choices of arXiv 2407.06519, and for what it does not state some that were found by trial.

    Sparsity is part of the gradient, so the mask hangs on a threshold of ‖a‖; β is β0 over the size of m⁽⁰⁾; step
    sizes are those of Eq. (15); neighbours share their gradient; the mask is opened by 3 × 3. The solve starts without
    warm-up from the matching fill, which of those that there are is nearest to the paper's masked autoencoder. It ends
    with the first iteration that changes F too little, or after 1200. The paper says "decreases less than 0.1"; but
    Adan's first step may raise F.

    Not stated there: α1, β0, the number of Gaussians, the base of the step size, the floor of |a|, the ‖a‖ that counts
    as zero, the dilation, and whether terms are sums or means. Here terms are in units of normal pictures, so that one
    α1 and one β0 serve all; the limit of the gradient (0.03) and α2 (1e-4) are read as those of means, and the change
    of F that is too little was found by trial. What each is worth: `f2pad experiment unstated --paper`.

    Its threshold is the test set's (`tuning.at_best_f1`); without one it is that of normal pictures.
    """
    settings = Settings(
        alpha2=0.03,
        beta0=7500.0,
        first_beta=7500.0,
        rate=0.03,
        rise=1.0,
        clip=25.0,
        damping=1e-5,
        warm_up=0,
        limit=1200,
        tolerance=0.0015,
        patience=1,
        proximal=False,
        adaptive=True,
        guarded=False,
        share_gradient=True,
    )
    procedure = Procedure(
        region="threshold",
        sparsity="area",
        start="matching",
        dilation=8,
        smallest=0.8,
        cleaning="opening",
        composing=False,
    )
    return settings, procedure

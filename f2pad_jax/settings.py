"""Hyper-parameters of F2PAD, with defaults that serve every category, extractor and detector."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args, get_type_hints

from f2pad_jax.errors import InputError


class Settings(NamedTuple):
    """Hyper-parameters as plain numbers; `docs/decisions.md` tells how each default was found.

    Attributes:
      alpha1: α1, weight of the pixel prior relative to normal pictures.
      alpha2: α2, weight of the total variation relative to normal pictures.
      beta0: β0, weight of sparsity; an anomaly of norm t (normalised colour) survives where its gradient
        exceeds about β0/t.
      components: Gaussians of the pixel mixture; used when fitting.
      rate: base step size in normalised pixel units.
      rise: factor by which the step size has risen 40 iterations after sparsity set in, see `solver.step`.
      clip: limit of the shared gradient and ε of Adan; 25 is the median on normal pictures, whatever the
        detector and extractor.
      warm_up: iterations without sparsity at the start.
      limit: most iterations.
      tolerance: fall of F per free pixel that counts as progress.
      patience: iterations without progress after which to stop.
      refine: iterations of the re-estimation of n on the final mask.
      dilation: pixels by which the region is enlarged.
      largest: share of the picture that the region covers at most, before it is enlarged; the paper's anomalies
        reach 0.13.
      sharing: what neighbours share with the weights of Eq. (14): "norm" (‖a‖, by which the proximal step decides, in
        solves that start from a fill), "all" (that and the gradient, in every solve) or "none".
      start: n⁽⁰⁾: "image" (x itself), "matching", "harmonic" or "autoencoder" (fills of the region; the last
        needs an inpainter), or "auto": the matching fill where it is trusted, else x.
      trusted: error of the matching fill in the region's surroundings up to which it is trusted, normalised colour.
      smallest: norm of a, in normalised colour, up to which it counts as zero; 0 with exact zeros.
      cleaning: of the mask, "dots" (removes connected pieces of at most 8 pixels, keeps thin scratches) or
        "opening" (3 × 3, the paper's).
      sparsity: "proximal" or "gradient".
      step_size: "constant" or "adaptive" (Eq. 15).
    """

    alpha1: float = 1.0
    alpha2: float = 0.3
    beta0: float = 3.0
    components: int = 8
    rate: float = 0.12
    rise: float = 4.0
    clip: float = 25.0
    warm_up: int = 20
    limit: int = 60
    tolerance: float = 1e-4
    patience: int = 20
    refine: int = 20
    dilation: int = 4
    largest: float = 0.25
    sharing: Literal["norm", "all", "none"] = "norm"
    start: Literal["auto", "image", "matching", "harmonic", "autoencoder"] = "auto"
    trusted: float = 0.7
    smallest: float = 0.0
    cleaning: Literal["dots", "opening"] = "dots"
    sparsity: Literal["proximal", "gradient"] = "proximal"
    step_size: Literal["constant", "adaptive"] = "constant"

    @classmethod
    def paper(cls) -> Settings:
        """The choices of arXiv 2407.06519 where they differ from the defaults, as far as settings express them.

        Sparsity is part of the gradient, so the mask hangs on a threshold of ‖a‖; step sizes are those of Eq. (15); the
        mask is opened by 3 × 3; the solve starts from a smooth fill (the paper's masked autoencoder needs an inpainter)
        without warm-up, and takes 1200 iterations at most. α1, β0, the number of Gaussians and the base of the step
        size are not given there, and no threshold either.

        Not the paper's even so: the paper stops at the first iteration that brings too little, but Adan's first step
        may raise F, so ten are waited for; β is β0 instead of β0 over the size of m⁽⁰⁾; the region comes from the
        second, lower threshold; the terms are scaled by normal pictures, so α2, the clipping of the gradient and the
        tolerance are in other units; Adan is damped by as much as the gradient is clipped; both thresholds are chosen
        on synthetic anomalies; n is re-estimated from the matching fill.
        """
        return cls(
            rate=0.003,
            rise=1.0,
            warm_up=0,
            limit=1200,
            tolerance=2e-5,
            patience=10,
            start="harmonic",
            smallest=0.45,
            cleaning="opening",
            sharing="all",
            sparsity="gradient",
            step_size="adaptive",
        )


def check_settings(settings: Settings) -> None:
    """Makes sure that every choice is one of those there are.

    Raises:
      InputError: names the first setting that is not.
    """
    for name, hint in get_type_hints(Settings).items():
        choices, value = get_args(hint), getattr(settings, name)
        if choices and value not in choices:
            raise InputError(f"{name} is {value!r}", where="settings", hint=f"choose one of {', '.join(choices)}")

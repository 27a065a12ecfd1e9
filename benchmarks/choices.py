"""Fewer and cheaper iterations: what each choice of the solver does to F, the mask, the iterations and the time.

python benchmarks/choices.py --out benchmarks/results/choices [--images N] [--only WORD …] [--category C …]

EfficientNet-Lite0 on the embedded textures. A row changes the default settings as `TRIALS` says, and is averaged over
all pictures of all categories and detectors. ΔF is F of its result minus F of the default's, per free pixel, both as
the default's problem defines F: below zero is better. Rows that minimise another F have none. Seconds are those of
the solve alone, compiled before; a coarse solve counts in them, and each of its iterations as a quarter. Writes
OUT.json and OUT.md after every row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from options import Options
from problems import extractor_for

import f2pad_jax
from f2pad_jax.core.pixels import normalize
from f2pad_jax.data.textures import TEXTURES, texture_category
from f2pad_jax.detectors import Detector, get_detector
from f2pad_jax.fitting import Model, score_maps
from f2pad_jax.metrics import iou
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.objective import Problem, objective
from f2pad_jax.output import make_folder, write_bytes, write_json
from f2pad_jax.pipeline import Start, begin, clean, find_region, lane, masking, method_of
from f2pad_jax.settings import Settings
from f2pad_jax.solver import Lane, Method, State, init, step
from f2pad_jax.solver.step import RUNNING

DETECTORS = ("padim", "patchcore")
VISIBLE = 0.45  # norm of a that counts where steps give no exact zeros: half the least contrast of cut-paste
PENALISED: dict[str, Any] = {"sparsity": "gradient", "smallest": VISIBLE}
# Factors of the rate at a share of the iteration limit.
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda share: 0.1 + 0.45 * (1 + jnp.cos(jnp.pi * share)),
    "linear": lambda share: 1 - 0.9 * share,
}


class Trial(NamedTuple):
    """One row.

    Attributes:
      changes: of the settings.
      schedule: of the rate.
      coarse: warm-up of the solve that follows one at half the size; None without.
      comparable: whether it minimises the same F as the default.
    """

    changes: dict[str, Any] = {}
    schedule: str = "constant"
    coarse: int | None = None
    comparable: bool = True


TRIALS: dict[str, Trial] = {
    "default": Trial(),
    "penalty as a gradient, ‖a‖ > 0.45": Trial(PENALISED),
    "adaptive step size, Eq. (15)": Trial({"step_size": "adaptive", "rate": 0.03}),
    "no warm-up": Trial({"warm_up": 0}),
    "warm-up of 10": Trial({"warm_up": 10}),
    "warm-up of 40": Trial({"warm_up": 40}),
    "patience 5": Trial({"patience": 5}),
    "patience 10": Trial({"patience": 10}),
    "patience 40": Trial({"patience": 40}),
    "tolerance × 10": Trial({"tolerance": 1e-3}),
    "tolerance × 10, patience 10": Trial({"tolerance": 1e-3, "patience": 10}),
    "half the rate": Trial({"rate": 0.06}),
    "twice the rate": Trial({"rate": 0.24}),
    "constant rate": Trial({"rise": 1.0}),
    "constant rate, limit 120": Trial({"rise": 1.0, "limit": 120}),
    "rate rises eightfold": Trial({"rise": 8.0}),
    "limit 30": Trial({"limit": 30}),
    "limit 120": Trial({"limit": 120}),
    "cosine schedule to a tenth": Trial({"rise": 1.0}, schedule="cosine"),
    "cosine schedule, twice the rate": Trial({"rise": 1.0, "rate": 0.24}, schedule="cosine"),
    "large steps": Trial({"rise": 1.0, "rate": 0.3, "clip": 7.0, "warm_up": 10}),
    "linear schedule to a tenth": Trial({"rise": 1.0}, schedule="linear"),
    "coarse to fine": Trial(coarse=0),
    "coarse to fine, warm-up of 10": Trial(coarse=10),
    "start from x": Trial({"start": "image"}),
    "start from the harmonic fill": Trial({"start": "harmonic"}),
    "start from the matching fill": Trial({"start": "matching"}),
    "neighbours share ‖a‖ and the gradient": Trial({"sharing": "all"}),
    "neighbours share nothing": Trial({"sharing": "none"}),
    "3 × 3 opening": Trial({"cleaning": "opening"}),
    "β0 = 1.5": Trial({"beta0": 1.5}, comparable=False),
    "β0 = 6": Trial({"beta0": 6.0}, comparable=False),
    "no pixel prior": Trial({"alpha1": 0.0}, comparable=False),
    "no total variation": Trial({"alpha2": 0.0}, comparable=False),
    "no sparsity, ‖a‖ > 0.45": Trial({"beta0": 0.0, "smallest": VISIBLE}, comparable=False),
    "paper's settings": Trial(Settings.paper()._asdict()),
}


class Case(NamedTuple):
    """A picture with what no row changes."""

    image: np.ndarray  # uint8 (S, S, 3)
    truth: np.ndarray  # (S, S) bool
    region: np.ndarray  # (S, S) bool
    problem: Problem  # by default: whose F is compared


@partial(jax.jit, static_argnames=("detector", "method", "schedule"))
def descend(
    extractor: Extractor, lane: Lane, *, detector: Detector, method: Method, schedule: str
) -> tuple[jax.Array, jax.Array]:
    """`solve` with a rate that follows a schedule: n (H, W, 3) and the iterations."""

    def advance(state: State) -> State:
        factor = SCHEDULES[schedule](state.count / lane.limit)
        rates = lane.rates._replace(rate=lane.rates.rate * factor)
        return step(state, lane.problem, rates, extractor=extractor, detector=detector, method=method)[0]

    def unfinished(state: State) -> jax.Array:
        return (state.status == RUNNING) & (state.count < lane.limit)

    state = jax.lax.while_loop(unfinished, advance, init(jnp.asarray(lane.start), lane.problem, lane.rates))
    return state.normal, state.count


value = jax.jit(objective, static_argnames="detector")


def solved(model: Model, one: Lane, schedule: str) -> tuple[np.ndarray, int, float]:
    """n, iterations and seconds of a lane."""
    run = partial(
        descend,
        model.extractor,
        detector=get_detector(model.detector),
        method=method_of(model.settings),
        schedule=schedule,
    )
    one = jax.tree.map(jnp.asarray, one)
    run(one._replace(limit=jnp.asarray(1)))  # compiles
    began = time.perf_counter()
    normal, count = jax.block_until_ready(run(one))
    return np.asarray(normal), int(count), time.perf_counter() - began


@cache
def material(category: str, detector: str, images: int) -> tuple[Model, list[Case]]:
    """A model and the test pictures in which it finds a region."""
    extractor, _ = extractor_for("efficientnet_lite0", Options())
    train, pictures = texture_category(category, test=images)
    model = f2pad_jax.fit(train, detector=detector, extractor=extractor)
    found = []
    maps = score_maps(model, np.stack([picture[0] for picture in pictures]))
    for (image, truth, _), scores in zip(pictures, maps, strict=True):
        region = find_region(model, scores)
        if region.any():
            found.append(Case(image, truth, region, lane(masking(model, normalize(image), region)).problem))
    return model, found


def _halved(pictures: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels of uint8 (N, S, S, 3)."""
    count, side = pictures.shape[:2]
    blocks = pictures.reshape(count, side // 2, 2, side // 2, 2, 3)
    return np.round(blocks.mean((2, 4))).astype(np.uint8)


@cache
def coarse_model(category: str, detector: str) -> Model:
    """The model at half the size."""
    extractor, _ = extractor_for("efficientnet_lite0", Options())
    return f2pad_jax.fit(_halved(texture_category(category, test=0)[0]), detector=detector, extractor=extractor)


def coarse_anomaly(model: Model, case: Case) -> tuple[np.ndarray, int, float]:
    """The anomaly x − n of the picture at half the size, each pixel repeated; iterations and seconds."""
    image = normalize(_halved(case.image[None])[0])
    side = len(image)
    region = np.asarray(case.region.reshape(side, 2, side, 2).any((1, 3)))
    normal, count, seconds = solved(model, lane(masking(model, image, region)), "constant")
    return np.repeat(np.repeat(image - normal, 2, axis=0), 2, axis=1), count, seconds


def tried(name: str, category: str, detector: str, images: int) -> Iterator[dict[str, Any]]:
    """One row's figures of every picture of a category."""
    trial = TRIALS[name]
    default, cases = material(category, detector, images)
    model = replace(default, settings=default.settings._replace(**trial.changes))
    for index, case in enumerate(cases):
        x = normalize(case.image)
        start = begin(model, x, case.region)
        extra, more = 0.0, 0.0
        if trial.coarse is not None:
            anomaly, count, more = coarse_anomaly(coarse_model(category, detector), case)
            start, extra = Start(x - anomaly, start.anchor, trial.coarse, start.filled), count / 4
        normal, iterations, seconds = solved(model, lane(masking(model, x, case.region, start)), trial.schedule)
        changed = np.linalg.norm(x - normal, axis=-1) > model.settings.smallest
        objective_value = value(normal, case.problem, extractor=model.extractor, detector=get_detector(model.detector))
        yield {
            "category": category,
            "detector": detector,
            "image": index,
            "free": int(case.region.sum()),
            "F": float(objective_value),
            "iou": round(100 * iou(clean(changed, kind=model.settings.cleaning), case.truth), 2),
            "iterations": iterations + extra,
            "seconds": seconds + more,
        }


def line(name: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """The row of the table."""
    ours, default = rows[name], rows["default"]
    fall = np.mean([(a["F"] - b["F"]) / a["free"] for a, b in zip(ours, default, strict=True)])
    cells = [f"{fall:+.3f}" if TRIALS[name].comparable else ""]
    for detector in DETECTORS:
        found = [one["iou"] for one in ours if one["detector"] == detector]
        cells.append(f"{np.mean(found):.1f}" if found else "")
    cells.append(f"{np.mean([one['iou'] for one in ours]):.1f}")
    cells.append(f"{np.mean([one['iterations'] for one in ours]):.0f}")
    cells.append(f"{np.mean([one['seconds'] for one in ours]):.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="test pictures a category")
    parser.add_argument("--only", nargs="+", default=("",), metavar="WORD", help="rows whose name has one of these")
    parser.add_argument("--category", choices=TEXTURES, nargs="+", default=TEXTURES, help="only these")
    parser.add_argument("--detector", choices=DETECTORS, nargs="+", default=DETECTORS, help="only these")
    parser.add_argument("--out", type=Path, required=True, help="name of the results without suffix")
    asked = parser.parse_args(arguments)
    names = ["default"] + [name for name in TRIALS if name != "default" and any(word in name for word in asked.only)]
    make_folder(asked.out.parent)
    command = f"python benchmarks/choices.py --images {asked.images}"
    for option, given, every in (
        ("only", asked.only, ("",)),
        ("category", asked.category, TEXTURES),
        ("detector", asked.detector, DETECTORS),
    ):
        command += f" --{option} {' '.join(given)}" if tuple(given) != tuple(every) else ""
    head = "| choice | ΔF | " + " | ".join(f"IoU {name}" for name in DETECTORS) + " | IoU | iterations | seconds |"
    lines = [f"`{command}`", "", head, "|---|" + "---|" * (head.count("|") - 2)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        pairs = product(asked.category, asked.detector)
        rows[name] = [one for pair in pairs for one in tried(name, *pair, asked.images)]
        lines.append(line(name, rows))
        print(lines[-1], flush=True)
        facts = {"command": command, "device": jax.devices()[0].device_kind, "jax": jax.__version__}
        write_json(asked.out.with_suffix(".json"), {**facts, "rows": rows})
        write_bytes(asked.out.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()

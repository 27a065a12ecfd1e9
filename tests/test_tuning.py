"""The choice of a start and the search for settings, with the solve replaced by something known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from f2pad_jax import tuning
from f2pad_jax.core import Settings
from f2pad_jax.errors import InputError
from f2pad_jax.fills import FILLS, Match
from f2pad_jax.metrics import f1max
from f2pad_jax.model import Model
from f2pad_jax.outcomes import Outcome
from f2pad_jax.preparing import Plan, begin
from f2pad_jax.procedure import Procedure, check_procedure, paper_settings
from f2pad_jax.sights import score_maps

IMAGE, FILLED = np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)
REGION = np.ones((8, 8), bool)


@pytest.mark.parametrize(
    ("start", "error", "from_fill"),
    [
        ("auto", 0.2, True),
        ("auto", 0.9, False),
        ("auto", np.inf, False),
        ("image", 0.2, False),
        ("matching", 0.9, True),
        ("harmonic", np.inf, True),
    ],
)
def test_the_start_is_the_fill_where_it_is_trusted(
    start: Any, error: float, *, from_fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []
    procedure = Procedure(start=start, trusted=0.5)
    model: Any = SimpleNamespace(procedure=procedure, inspected=lambda region: region)

    def named(kind: str) -> Any:
        def fill(image: np.ndarray, region: np.ndarray, material: Any, doubtful: Any) -> Match:
            assert (image is IMAGE, region is REGION, material is model, doubtful is None) == (True,) * 4
            kinds.append(kind)
            return Match(FILLED, error)

        return fill

    for kind in FILLS:
        monkeypatch.setitem(FILLS, kind, named(kind))
    begun = begin(model, IMAGE, REGION)
    assert begun.normal is (FILLED if from_fill else IMAGE)
    assert begun.fill is FILLED
    assert begun.filled == from_fill
    assert kinds == ["harmonic" if start == "harmonic" else "matching"]


@pytest.mark.parametrize("name", ["start", "cleaning", "region", "sparsity"])
def test_a_mistyped_choice_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"procedure: {name} is 'proximall'; choose one of"):
        check_procedure(replace(Procedure(), **{name: "proximall"}))
    check_procedure(Procedure())


def test_numbers_are_chosen_together_with_the_best_so_far(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in solve is right for β0 = 6 alone, then for α1 = 0.5 with it, then for 16 Gaussians as well."""
    seen = []

    def find_outcomes(model: Model, plans: Sequence[Plan], *, title: str) -> Iterator[tuple[int, Outcome]]:
        for index, chosen in reversed(list(enumerate(plans))):  # lanes finish in any order
            s, components = chosen.settings, model.procedure.components
            assert s == model.settings
            assert len(model.energy.mixture.mean) <= components
            seen.append((s.beta0, s.alpha1, components))
            right = int(s.beta0 == 6.0) + int(s.beta0 == 6.0 and s.alpha1 == 0.5) + int(components == 16)
            found = truth.copy()
            found[: 3 - right] = False
            yield index, Outcome(found, 0.0, 1, "converged")

    truth = np.ones(tiny_model.shape, bool)
    truth[-1] = False
    monkeypatch.setattr(tuning, "find_outcomes", find_outcomes)
    images = np.stack([tiny_model.held_out[0]] * 2)
    model = replace(tiny_model, procedure=replace(tiny_model.procedure, threshold=-1.0))
    tuned = tuning.tune(model, oracle=(images, np.stack([truth] * 2)))
    assert tuned.settings == Settings(alpha1=0.5, beta0=6.0)
    assert tuned.procedure == replace(model.procedure, components=16)
    assert tuned.tuned_on == "oracle"
    assert 8 < len(tuned.energy.mixture.mean) <= 16
    assert model.settings == Settings()
    given = Settings().beta0
    assert {one for one in seen if one[0] != 6.0} == {(beta0, 1.0, 8) for beta0 in (2.0, 3.0, given)}
    assert [seen.count((beta0, 1.0, 8)) for beta0 in (2.0, 3.0, given)] == [1, 1, 2]  # the first two do not lead


def test_with_the_papers_settings_the_threshold_is_the_test_sets(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def find_outcomes(model: Model, plans: Sequence[Plan], *, title: str) -> Iterator[tuple[int, Outcome]]:
        seen.append(model)
        yield from ((k, Outcome(chosen.region, 0.0, 1, "converged")) for k, chosen in enumerate(plans))

    monkeypatch.setattr(tuning, "find_outcomes", find_outcomes)
    settings, procedure = paper_settings()
    model = replace(tiny_model, settings=settings, procedure=procedure)
    maps = score_maps(model, images := model.held_out)
    masks = maps > np.quantile(maps, 0.9)
    tuned = tuning.tune(model, oracle=(images, masks))
    best = f1max(maps, masks)[1]
    assert best != pytest.approx(model.threshold)
    assert (tuned.procedure, tuned.tuned_on) == (replace(procedure, threshold=best), "oracle")
    assert {each.procedure.threshold for each in seen} == {best}
    assert {each.settings.beta0 / settings.beta0 for each in seen} == {0.5, 0.75, 1.0, 1.5}


def test_ties_keep_what_was_given(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.zeros(tiny_model.shape, bool)
    nothing = Outcome(empty, 0.0, 0, "converged")
    monkeypatch.setattr(tuning, "find_outcomes", lambda model, plans, title: ((k, nothing) for k in range(len(plans))))
    tuned = tuning.tune(tiny_model)
    assert (tuned.settings, tuned.procedure) == (tiny_model.settings, tiny_model.procedure)
    assert tuned.tuned_on == "synthetic-validation"


@pytest.mark.parametrize("kind", ["synthetic", "test"])
def test_pictures_that_tell_nothing_tune_nothing(tiny_model: Model, kind: str) -> None:
    high = replace(tiny_model, procedure=replace(tiny_model.procedure, threshold=1e9))
    oracle = (tiny_model.held_out, np.ones(tiny_model.held_out.shape[:3], bool)) if kind == "test" else None
    with pytest.warns(UserWarning, match=f"no {kind} picture with a defect reaches the threshold: nothing was tuned"):
        assert tuning.tune(high, oracle=oracle) is high


def test_a_setting_wins_only_by_more_than_the_scatter() -> None:
    base = np.array([0.90, 0.95, 0.99, 0.97])
    assert tuning.better(base + 0.01, base)
    assert not tuning.better(base + 0.004, base)  # not worth it
    assert not tuning.better(base + np.array([0.09, -0.02, -0.01, -0.01]), base)  # one picture alone
    assert not tuning.better(base + np.array([0.05, 0.03, -0.01, 0.01]), base)  # less than twice its standard error
    assert not tuning.better(base[:1] + 0.05, base[:1])
    assert not tuning.better(base[:0], base[:0])

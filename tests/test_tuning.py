"""The choice of a start and the search for settings, with the solve replaced by something known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from f2pad_jax import pipeline, tuning
from f2pad_jax.errors import InputError
from f2pad_jax.fills import Match
from f2pad_jax.settings import Settings, check_settings

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

    def fill(*_: Any, kind: str) -> Match:
        kinds.append(kind)
        return Match(FILLED, error)

    monkeypatch.setattr(pipeline, "fill", fill)
    settings = Settings(start=start, trusted=0.5, warm_up=7)
    begun = pipeline.begin(SimpleNamespace(settings=settings), IMAGE, REGION)  # pyright: ignore[reportArgumentType]
    assert begun.normal is (FILLED if from_fill else IMAGE)
    assert begun.anchor is FILLED
    assert (begun.filled, begun.warm_up) == ((True, 0) if from_fill else (False, 7))
    assert kinds == ["harmonic" if start == "harmonic" else "matching"]


@pytest.mark.parametrize("name", ["start", "cleaning", "sharing", "sparsity", "step_size"])
def test_a_mistyped_choice_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"settings: {name} is 'proximall'; choose one of"):
        check_settings(Settings()._replace(**{name: "proximall"}))
    check_settings(Settings())


def test_numbers_are_chosen_together_with_the_best_so_far(
    tiny_model: pipeline.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in solve is right for β0 = 4.5 alone, then for α1 = 0.5 with it, then for 16 Gaussians as well."""
    seen = []

    def find_masks(jobs: Sequence[pipeline.Job], *, title: str) -> Iterator[tuple[int, np.ndarray, None]]:
        for index, job in reversed(list(enumerate(jobs))):  # lanes finish in any order
            s = job.model.settings
            assert job.beta == s.beta0
            seen.append((s.beta0, s.alpha1, s.components))
            right = int(s.beta0 == 4.5) + int(s.beta0 == 4.5 and s.alpha1 == 0.5) + int(s.components == 16)
            found = truth.copy()
            found[: 3 - right] = False
            yield index, found, None

    truth = np.ones((tiny_model.size, tiny_model.size), bool)
    truth[-1] = False
    monkeypatch.setattr(tuning, "find_masks", find_masks)
    images = np.stack([tiny_model.held_out[0]] * 2)
    model = tiny_model.__class__(**{**tiny_model.__dict__, "region_threshold": -1.0})
    tuned = tuning.tune(model, oracle=(images, np.stack([truth] * 2)))
    assert tuned.settings[:4] == (0.5, model.settings.alpha2, 4.5, 16)
    assert tuned.tuned_on == "oracle"
    assert len(tuned.mixture.mean) <= 16
    assert model.settings == Settings()
    assert {one for one in seen if one[0] != 4.5} == {(beta0, 1.0, 8) for beta0 in (2.0, 2.5, 3.0)}
    assert [seen.count((beta0, 1.0, 8)) for beta0 in (2.0, 2.5, 3.0)] == [1, 1, 2]  # the first two do not lead


def test_ties_keep_what_was_given(tiny_model: pipeline.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.zeros((tiny_model.size,) * 2, bool)
    monkeypatch.setattr(tuning, "find_masks", lambda jobs, title: ((index, empty, None) for index in range(len(jobs))))
    tuned = tuning.tune(tiny_model)
    assert tuned.settings == tiny_model.settings
    assert tuned.tuned_on == "synthetic-validation"


def test_a_setting_wins_only_by_more_than_the_scatter() -> None:
    base = np.array([0.90, 0.95, 0.99, 0.97])
    assert tuning.better(base + 0.01, base)
    assert not tuning.better(base + 0.004, base)  # not worth it
    assert not tuning.better(base + np.array([0.09, -0.02, -0.01, -0.01]), base)  # one picture alone
    assert not tuning.better(base + np.array([0.05, 0.03, -0.01, 0.01]), base)  # less than twice its standard error
    assert not tuning.better(base[:1] + 0.05, base[:1])
    assert not tuning.better(base[:0], base[:0])

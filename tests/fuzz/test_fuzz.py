"""A small part of `tests/fuzz/run.py`, the same inputs each time; Hypothesis shrinks one that is read wrongly."""

from __future__ import annotations

from random import Random

import pytest
from fuzz.cases import CASES, clean_up, model_arrays, model_facts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from f2pad_jax.model_file import ModelFacts, _fields
from f2pad_jax.schemas import read_facts

COUNT = 2000
SLOW: list[HealthCheck] = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
CHECKED = settings(derandomize=True, deadline=None, database=None, max_examples=40, suppress_health_check=SLOW)


@pytest.fixture(scope="module", autouse=True)
def _clean():
    yield
    clean_up()


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore")  # of decoders
def test_spoiled_inputs_are_refused_or_read_as_what_they_are(kind: str) -> None:
    case, share = CASES[kind]
    outcomes = [case(Random(f"{kind} {number}")) for number in range(COUNT * share // 100)]
    assert "refused" in outcomes


def test_what_the_fuzzers_spoil_is_good() -> None:
    facts = read_facts(ModelFacts, model_facts(), kind="model", where="model", hint="")
    assert _fields(model_arrays(), facts)["shape"] == facts.shape


@pytest.mark.parametrize("kind", ["model.json", "torch file", "array of a model"])
@CHECKED
@given(random=st.randoms(use_true_random=False))
def test_hypothesis_finds_no_input_that_is_read_wrongly(kind: str, random: Random) -> None:
    CASES[kind][0](random)

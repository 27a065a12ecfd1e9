"""Plans in lanes: where a device has too little memory, fewer lanes come to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from solving import SETTINGS, make_case, make_energy

from f2pad_jax import solving
from f2pad_jax.core import Solution, solve_many
from f2pad_jax.core.lanes import Case

COLOURS = [(0.9, 0.1, 0.2), (0.1, 0.2, 0.9), (0.2, 0.8, 0.3)]


def case(index: int) -> Case:
    made = make_case("padim", COLOURS[index], index)
    return made.start, made.problem, SETTINGS.replace(limit=12)


class Small:
    """An accelerator on which no more than `most` lanes fit, which shows when a first picture is done."""

    def __init__(self, most: int, message: str = "RESOURCE_EXHAUSTED: Out of memory allocating 42 bytes.") -> None:
        self.most, self.message, self.widths = most, message, list[int]()

    def solve_many(self, cases: Any, energy: Any, *, width: int, **_: Any) -> Iterator[tuple[int, Solution]]:
        self.widths.append(width)
        for done, solution in enumerate(solve_many(cases, energy, width=width)):
            yield solution
            if width > self.most and done == 0:
                raise jax.errors.JaxRuntimeError(self.message)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving.jax, "local_devices", lambda: [SimpleNamespace(platform="other")])


@pytest.mark.usefixtures("accelerator")
def test_lanes_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    energy, small = make_energy("padim"), Small(most=1)
    monkeypatch.setattr(solving, "solve_many", small.solve_many)
    with pytest.warns(UserWarning, match="too little memory for"):
        found = dict(solving.solve_on_all(energy, case, range(3)))
    assert small.widths == [4, 2, 1]
    alone = dict(solve_many(map(case, range(3)), energy, width=1))
    assert sorted(found) == sorted(alone)
    for index, solution in alone.items():
        np.testing.assert_array_equal(found[index].normal, solution.normal)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(("most", "message"), [(0, "RESOURCE_EXHAUSTED: Out of memory"), (2, "INTERNAL: a fault")])
@pytest.mark.filterwarnings("ignore:too little memory")
def test_what_fewer_lanes_do_not_mend_is_raised(monkeypatch: pytest.MonkeyPatch, most: int, message: str) -> None:
    monkeypatch.setattr(solving, "solve_many", Small(most, message).solve_many)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message.split(":")[0]):
        dict(solving.solve_on_all(make_energy("padim"), case, range(3)))


@pytest.mark.parametrize(("platform", "used"), [("cpu", 3), ("other", 1)])
def test_a_cpu_keeps_its_devices_however_few_the_cases(
    monkeypatch: pytest.MonkeyPatch, platform: str, used: int
) -> None:
    """Programs for other numbers of devices round otherwise: a picture's bits would depend on those beside it."""
    asked: list[tuple[int, int]] = []

    def many(cases: Any, energy: Any, *, width: int, devices: Any) -> Iterator[tuple[int, None]]:
        asked.append((width, len(devices)))
        yield from ((place, None) for place, _ in enumerate(cases))

    monkeypatch.setattr(solving.jax, "local_devices", lambda: [SimpleNamespace(platform=platform)] * 3)
    monkeypatch.setattr(solving, "solve_many", many)
    for count in (1, 7):
        found: list[tuple[int, Any]] = list(
            solving.solve_on_all(make_energy("padim"), lambda index: index, range(count))
        )
        assert [index for index, _ in found] == list(range(count))
    assert asked[0] == (used, used)
    assert asked[1] == ((3, 3) if platform == "cpu" else (12, 3))

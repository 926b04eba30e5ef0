"""Medians and ratios of rounds, and what makes two answers different."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.latency import Measured
from loadtests.peers.comparison import TOLERANCE, Run, differences, rows
from loadtests.peers.job import Level

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0, 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
RESULT = {
    "id": "1", "score": 4, "score_probabilities": [0.1, 0.9],
    "dishes": [{"name": "pizza", "probability": 0.5}],
    "tip": {"id": "water"}, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


def a_run(server: str, rate: float, turn: int = 0, level: Level = "full", clients: int = 32) -> Run:
    measured = Measured(clients, round(rate * 10), rate, 10.0, 20.0, 30.0, 40.0, 0.2, {})
    return Run(server, level, turn, measured, 1000 / rate, {})


@given(JSON)
def test_an_answer_is_the_same_as_itself(answer: Any) -> None:
    text = json.dumps(answer).encode()
    assert differences(text, text) == []


@given(st.floats(0, 1), st.floats(0, 1))
def test_probabilities_differ_beyond_the_tolerance(one: float, other: float) -> None:
    found = differences(json.dumps({"p": one}).encode(), json.dumps({"p": other}).encode())
    assert bool(found) == (abs(one - other) > TOLERANCE)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"score": 3}, ".score"),
        ({"score": None}, ".score"),
        ({"score_probabilities": [0.1, 0.898]}, ".score_probabilities[1]"),
        ({"score_probabilities": [0.1]}, ".score_probabilities"),
        ({"dishes": [{"name": "salad", "probability": 0.5}]}, ".dishes[0].name"),
        ({"more": 1}, ": "),
    ],
)
def test_each_part_of_a_result_counts(change: dict[str, Any], where: str) -> None:
    (found,) = differences(json.dumps(RESULT).encode(), json.dumps(RESULT | change).encode())
    assert found.startswith(where)


def test_what_a_result_has_of_its_own_does_not_count() -> None:
    other = RESULT | {"id": "2", "tip": {"id": "fruit"}, "created_at": "2026-01-02T00:00:00Z"}
    assert differences(json.dumps(RESULT).encode(), json.dumps(other).encode()) == []


def test_a_row_is_the_median_of_its_rounds_beside_the_best_peer() -> None:
    rates = {"fooddx": (90, 120, 100), "mosec": (200, 80, 80), "ray": (20, 20, 20)}
    runs = [a_run(name, rate, turn) for name, found in rates.items() for turn, rate in enumerate(found)]
    found = {row.server: row for row in rows(runs, "fooddx")}
    assert list(found) == ["fooddx", "mosec", "ray"]
    assert [(row.images_per_s, row.least, row.most) for row in found.values()] == [
        (100, 90, 120), (80, 80, 200), (20, 20, 20),
    ]  # fmt: skip
    assert [row.to_best_peer for row in found.values()] == [1.25, 1.0, 0.25]


def test_loads_are_not_mixed_and_nobody_is_compared_to_no_peer() -> None:
    runs = [a_run("fooddx", 50, clients=1), a_run("ray", 10, level="compute"), a_run("fooddx", 70)]
    found = {(row.level, row.clients): row.to_best_peer for row in rows(runs, "fooddx")}
    assert found == {("full", 1): None, ("compute", 32): 1.0, ("full", 32): None}

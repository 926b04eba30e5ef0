"""The shapes of the load test, as laws over every size, rate and duration."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loadtests.shapes import BASE, DURATION_S, SPIKE, Plan, Shape

users = st.integers(1, 500)
rates = st.floats(0.05, 200)
durations = st.floats(1, 2000)
times = st.floats(0, 5000)
plans = st.builds(Plan, st.sampled_from(Shape), users, rates, durations)


def course(plan: Plan) -> list[int]:
    """As Locust asks: every second."""
    asked = [plan.users_at(second) for second in range(math.ceil(plan.duration_s) + 3)]
    return [count for count in asked if count is not None]


@given(plans, times)
def test_there_is_always_somebody_and_never_more_than_the_most(plan: Plan, seconds: float) -> None:
    count = plan.users_at(seconds)
    assert count is None or 1 <= count <= plan.users


@given(plans, times)
def test_it_is_over_when_its_time_is_and_not_before(plan: Plan, seconds: float) -> None:
    assert (plan.users_at(seconds) is None) == (seconds >= plan.duration_s)


@given(plans)
def test_no_more_come_or_go_in_a_second_than_it_says(plan: Plan) -> None:
    steps = [abs(after - before) for before, after in pairwise([0, *course(plan)])]
    assert max(steps) <= plan.change
    if plan.shape != Shape.RAMP:
        assert plan.change <= max(plan.rate, plan.users / plan.duration_s) + 2


@given(st.sampled_from([Shape.STEADY, Shape.RAMP, Shape.SOAK]), users, rates, durations)
def test_all_but_a_spike_only_rise(shape: Shape, most: int, rate: float, duration_s: float) -> None:
    counts = course(Plan(shape, most, rate, duration_s))
    assert counts == sorted(counts)


@given(users, rates, durations)
def test_a_ramp_has_all_at_its_end_and_half_of_them_half_way(
    most: int, rate: float, duration_s: float
) -> None:
    plan = Plan(Shape.RAMP, most, rate, duration_s)
    assert course(plan)[-1] == most
    half_way = plan.users_at(duration_s / 2)
    assert half_way == pytest.approx(most / 2, abs=1 + most / duration_s)


@given(users, rates, durations)
def test_all_have_come_after_as_long_as_the_rate_says(most: int, rate: float, duration_s: float) -> None:
    assume(most / rate < duration_s)
    assert Plan(Shape.STEADY, most, rate, duration_s).users_at(most / rate) == most


@given(users, rates, durations)
def test_a_soak_is_a_steady_load(most: int, rate: float, duration_s: float) -> None:
    soak, steady = (course(Plan(shape, most, rate, duration_s)) for shape in (Shape.SOAK, Shape.STEADY))
    assert soak == steady
    assert DURATION_S[Shape.SOAK] >= 10 * DURATION_S[Shape.STEADY]


@given(users, rates, durations)
def test_a_spike_has_few_before_and_after_and_all_between_where_there_is_time(
    most: int, rate: float, duration_s: float
) -> None:
    plan, base = Plan(Shape.SPIKE, most, rate, duration_s), math.ceil(most * BASE)
    begin, end = (share * duration_s for share in SPIKE)
    assume(most / rate + 1 < end - begin)
    for seconds, expected in ((begin - 0.01, base), (end - 0.01, most), (duration_s - 0.01, base)):
        assert plan.users_at(seconds) == expected


@pytest.mark.parametrize(
    ("most", "rate", "duration_s"), [(0, 1, 1), (1, 0, 1), (1, math.inf, 1), (1, math.nan, 1), (1, 1, 0.5)]
)
@pytest.mark.parametrize("shape", Shape)
def test_what_is_no_load_is_refused(shape: Shape, most: int, rate: float, duration_s: float) -> None:
    with pytest.raises(ValueError, match=f"^{shape} needs"):
        Plan(shape, most, rate, duration_s)

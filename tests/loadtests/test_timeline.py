"""What happened when, from totals: nothing is counted twice or left out."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loadtests.timeline import SHORTEST_S, SLICES, Slice, Totals, drift, percentile, slice_count, slices

milliseconds = st.lists(st.integers(1, 10_000), max_size=50)
NOTHING = Totals(0, 0, 0, 0, 0, Counter())


def later(before: Totals, times: list[int]) -> Totals:
    """Ten seconds on, with as many photos, one failure and two rejections more."""
    return Totals(
        before.seconds + 10,
        7,
        before.photos + len(times),
        before.failed + 1,
        before.rejected + 2,
        before.times + Counter(times),
    )


@given(st.lists(milliseconds, max_size=12))
def test_a_slice_has_what_came_in_it_and_nothing_else(parts: list[list[int]]) -> None:
    found = slices(list(accumulate(parts, later, initial=NOTHING)))
    assert [part.photos_per_s for part in found] == [len(times) / 10 for times in parts]
    assert [part.p50_ms for part in found] == [percentile(Counter(times), 0.5) for times in parts]
    assert {(part.users, part.failed, part.rejected) for part in found} <= {(7, 1, 2)}
    assert [(part.begin_s, part.end_s) for part in found] == [
        (10 * n, 10 * n + 10) for n in range(len(parts))
    ]


def test_a_slice_without_time_is_none() -> None:
    assert slices([NOTHING, NOTHING]) == slices([NOTHING]) == []


@given(st.lists(st.integers(0, 1000), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_nearest_rank(values: list[int], share: float) -> None:
    expected = np.percentile(values, share * 100, method="inverted_cdf")
    assert percentile(Counter(values), share) == expected


def test_the_percentile_of_nothing_is_zero() -> None:
    assert percentile({}, 0.95) == 0


@given(st.floats(1, 10_000))
def test_slices_are_few_and_long_enough(duration_s: float) -> None:
    count = slice_count(duration_s)
    assert 1 <= count <= SLICES
    assert count == 1 or duration_s / count >= SHORTEST_S
    assert count == SLICES or duration_s / (count + 1) < SHORTEST_S


def test_drift_leaves_out_the_time_in_which_users_come() -> None:
    p95s = (900, 100, 500, 150)
    found = [Slice(0, 1, 1, 1.0, 1, p95, 1, 0, 0) for p95 in p95s]
    assert drift(found) == 1.5
    assert drift(found[:2]) is None

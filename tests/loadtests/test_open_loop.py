"""The open loop: when photos are to be sent, and from when their time counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from loadtests import open_loop
from loadtests.sending import Sample, repeated
from tests.loadtests.serving import scoring


@given(rate=st.floats(5, 500), seconds=st.floats(2, 30), seed=st.integers(0, 2**32 - 1))
def test_arrivals_are_poisson_and_the_same_for_a_seed(rate: float, seconds: float, seed: int) -> None:
    moments = open_loop.arrivals(rate, seconds, seed)
    assert np.array_equal(moments, open_loop.arrivals(rate, seconds, seed))
    assert (np.diff(moments) >= 0).all()
    assert not len(moments) or (moments[0] >= 0 and moments[-1] < seconds)
    expected = rate * seconds
    assert abs(len(moments) - expected) < 7 * expected**0.5  # the count's standard deviation is its root


def test_gaps_are_exponential() -> None:
    gaps = np.diff(open_loop.arrivals(100, 1000, seed=1))
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.02)
    assert np.mean(gaps > 0.01) == pytest.approx(np.exp(-1), rel=0.02)


def test_a_latency_runs_from_the_intended_moment() -> None:
    """Photos that were due long ago: whoever sends late has made them wait."""

    async def score(_: web.Request) -> web.Response:
        return web.json_response({})

    with scoring(score) as target:
        sample = open_loop.run(target, repeated(b"photo"), np.array([-100.0, -50.0, 0.0]))
    late = np.sort(sample.latencies_s)
    assert (late >= [0, 50, 100]).all()
    assert (np.sort(sample.lags_s) >= [0, 50, 100]).all()
    assert (late < np.array([0, 50, 100]) + 40).all()


def test_nobody_sends_again_what_was_refused() -> None:
    asked = 0

    async def refuse(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"code": "overloaded"}, status=429, headers={"Retry-After": "0"})

    with scoring(refuse) as target:
        sample = open_loop.run(target, repeated(b"photo"), np.zeros(20))
    assert (asked, sample.images, sample.rejects) == (20, 0, {True: 20})


def test_goodput_is_what_came_within_a_second_and_errors_are_no_rejects() -> None:
    sample = Sample(
        np.array([0.1, 0.2, 1.0, 1.5]), Counter({"429 overloaded": 3, "504 deadline_exceeded": 2}),
        Counter({True: 2, False: 1}), np.full(9, 0.001), wall_s=4.0, cpu_s=0.004,
    )  # fmt: skip
    row = open_loop.summarise(0.8, 4.5, 2.0, sample)
    assert (row.arrivals, row.answered, row.goodput) == (9, 4, 1.5)
    assert (row.rejected, row.rejected_mute, row.errors) == (2, 1, {"504 deadline_exceeded": 2})
    assert (row.max_ms, row.lag_p99_ms, row.client_cpu_ms_per_image) == pytest.approx((1500, 1, 1))


def test_nothing_answered_is_no_division_by_zero() -> None:
    assert open_loop.summarise(0.5, 1.0, 1.0, Sample()).goodput == 0

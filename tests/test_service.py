"""Admission: who gets a place, and who is told at once that there is none."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from app.errors import Overloaded
from app.service import Admission
from tests.conftest import RecordingMeter


@pytest.fixture
def admission() -> Admission:
    return Admission(3, RecordingMeter())


def test_as_many_as_there_are_places_are_in_work(admission: Admission) -> None:
    with ExitStack() as places:
        for _ in range(3):
            places.enter_context(admission.admitted())
        with pytest.raises(Overloaded) as refused, admission.admitted():
            pass
        assert refused.value.retry_after_s == 1
        with pytest.raises(Overloaded), admission.receiving():
            pass
    with admission.receiving(), admission.admitted():
        assert admission.in_flight == 1


def test_twice_as_many_arrive_and_take_no_place(admission: Admission) -> None:
    with ExitStack() as arriving:
        for _ in range(6):
            arriving.enter_context(admission.receiving())
        with pytest.raises(Overloaded), admission.receiving():
            pass
        with admission.admitted():
            assert (admission.arriving, admission.in_flight) == (6, 1)
    with admission.receiving():
        assert admission.arriving == 1


@pytest.mark.parametrize("way", ["receiving", "admitted"])
def test_a_failure_gives_the_place_back(admission: Admission, way: str) -> None:
    with pytest.raises(ZeroDivisionError), getattr(admission, way)():
        raise ZeroDivisionError
    assert (admission.arriving, admission.in_flight) == (0, 0)


def test_the_gauge_follows(admission: Admission) -> None:
    with admission.admitted(), admission.admitted():
        pass
    meter = admission._meter
    assert isinstance(meter, RecordingMeter)
    assert [value for name, value, _ in meter.records if name == "fooddx_in_flight"] == [1, 2, 1, 0]

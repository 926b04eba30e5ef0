"""The soak: what counts as growth, and what as noise."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import soak
from loadtests.soak import Reading

SECONDS = 600.0


def readings(memory: Callable[[float], float], name: str = "Scorer", pid: int = 1) -> list[Reading]:
    moments = np.arange(5.0, SECONDS, 5.0)
    return [Reading(float(t), pid, name, memory(t) + 50, memory(t) + 20, memory(t)) for t in moments]


def verdict(memory: Callable[[float], float]) -> bool:
    (growth,) = soak.growths(readings(memory), SECONDS)
    return growth.grows(5.0)


def test_a_leak_grows_and_noise_does_not() -> None:
    noise = dict(zip(np.arange(5.0, SECONDS, 5.0), np.random.default_rng(0).normal(0, 10, 200), strict=False))
    assert verdict(lambda t: 200 + t / 60 * 2)
    assert verdict(lambda t: 200 + t / 60 * 6 + noise[t])
    assert not verdict(lambda t: 200 + noise[t])
    assert not verdict(lambda t: 200 + t / 60 * 0.5)  # 2.5 MB in five minutes: caches fill
    assert not verdict(lambda t: 200 + min(t, 120.0))  # grew while it warmed up
    assert not verdict(lambda t: 200 - t / 60 * 2)


def test_growth_is_told_in_megabytes_per_minute() -> None:
    (growth,) = soak.growths(readings(lambda t: 100 + t / 60 * 3), SECONDS)
    assert (growth.slope, growth.error) == (pytest.approx(3), pytest.approx(0, abs=1e-6))
    assert growth.rise == pytest.approx(3 * (595 - 300) / 60)
    assert (growth.start, growth.middle, growth.end) == pytest.approx((100.25, 115, 129.75))
    assert growth.rss == pytest.approx(179.75)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(-100, 100)), min_size=4, max_size=30))
def test_the_line_is_the_least_squares_one(points: list[tuple[float, float]]) -> None:
    x, y = (np.array(part) for part in zip(*points, strict=True))
    if np.ptp(x) < 0.1:
        return
    slope, error = soak.line(x.tolist(), y.tolist())
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6, abs=1e-6)
    assert error >= 0


def test_who_ended_is_named_and_not_measured() -> None:
    stays, goes = readings(lambda _: 1.0, "Ingress", 1), readings(lambda _: 1.0, "Scorer", 2)[:50]
    idle = readings(lambda _: 1.0, "ray::IDLE", 3)[:50]
    late = readings(lambda _: 1.0, "Scorer", 4)[50:]
    found = sorted(stays + goes + idle + late)
    assert soak.ended(found) == ["Scorer"]
    assert {growth.pid for growth in soak.growths(found, SECONDS)} == {1, 4}


def test_readings_are_written_as_they_are(tmp_path: Path) -> None:
    found = readings(lambda t: t)[:3]
    soak.write_csv(found, tmp_path / "memory.csv")
    with (tmp_path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["uss"]) for row in rows] == [reading.uss for reading in found]

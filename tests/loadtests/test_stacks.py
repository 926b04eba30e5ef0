"""Sampled stacks: how they are read, weighed and added up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import stacks
from loadtests.stacks import LOOP, OTHER, UNSEEN, Frame

RAW = """
thread (11): MainThread;<module> (app/main.py:3);score (app/pipeline.py:7);dumps (json/__init__.py:2) 30
thread (11): MainThread;<module> (app/main.py:3);score (app/pipeline.py:9);score (app/pipeline.py:9) 10
thread (12): decode_0;Thread._bootstrap (threading.py:9);Thread.run (threading.py:8) 5
process 9: python;what is this 4
"""


def test_a_raw_file_is_read_thread_by_thread() -> None:
    threads = stacks.parse(RAW.splitlines())
    assert {thread: sum(found.values()) for thread, found in threads.items()} == {11: 40, 12: 5}
    shares = {share.name: share for share in stacks.by_part(threads[11])}
    assert shares["json, pydantic"].self_share == 0.75
    assert (shares["ours: app/pipeline"].self_share, shares["ours: app/pipeline"].total_share) == (0.25, 1)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("/home/me/fooddx/app/engines/openvino.py", "ours: app/engines/openvino"),
        ("app/pipeline.py", "ours: app/pipeline"),
        ("openvino/_ov_api.py", "PIL, OpenVINO, numpy"),
        ("/x/site-packages/ray/serve/_private/replica.py", "ray.serve"),
        ("ray/util/metrics.py", "metrics"),
        ("ray/_private/worker.py", "ray core"),
        ("redis/asyncio/connection.py", "redis-py"),
        ("threading.py", "threads"),
        ("array.py", OTHER),
        ("<string>", OTHER),
    ],
)
def test_a_file_is_of_one_part(file: str, part: str) -> None:
    assert Frame("f", file).part == part


def test_what_runs_in_c_on_an_event_loop_has_a_part() -> None:
    (loop,) = (s for s in stacks.by_part({(Frame("Thread.run", "threading.py"),): 1}) if s.self_share)
    assert loop.name == LOOP


@given(
    samples=st.dictionaries(st.integers(1, 5), st.integers(1, 100)),
    times=st.dictionaries(st.integers(1, 8), st.floats(0.001, 100), min_size=1),
)
def test_weighed_stacks_add_up_to_the_cpu_time(samples: dict[int, int], times: dict[int, float]) -> None:
    threads: dict[int, stacks.Stacks] = {
        thread: {(Frame("f", "app/a.py"),): count, (Frame("g", "app/b.py"),): 1}
        for thread, count in samples.items()
    }
    weighed = stacks.weigh(threads, {(thread, "name"): time for thread, time in times.items()})
    assert sum(weighed.values()) == pytest.approx(sum(times.values()))
    unseen = sum(time for thread, time in times.items() if thread not in samples)
    found = sum(weight for stack, weight in weighed.items() if stack[-1].part == UNSEEN)
    assert found == pytest.approx(unseen)

"""What is sent, by whom, and how what became of it adds up."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from loadtests import latency, sending
from loadtests.photos import Photo
from loadtests.processes import NICENESS
from loadtests.sending import Outcome, Sample, Senders, Tally
from tests.loadtests.serving import scoring

PHOTO = Photo("tiny", b"<", b">")

samples = st.builds(
    Sample,
    latencies_s=st.lists(st.floats(0, 10), max_size=5).map(np.array),
    errors=st.dictionaries(st.sampled_from(["503", "504"]), st.integers(1, 9)).map(Counter),
    rejects=st.dictionaries(st.booleans(), st.integers(1, 9)).map(Counter),
    lags_s=st.lists(st.floats(0, 1), max_size=5).map(np.array),
    wall_s=st.floats(0.1, 10),
    cpu_s=st.floats(0, 10),
)


@given(st.lists(samples, min_size=1, max_size=4))
def test_a_merged_sample_has_everything_of_each(parts: list[Sample]) -> None:
    whole = Sample.merge(parts)
    assert sorted(whole.latencies_s) == sorted(np.concatenate([part.latencies_s for part in parts]))
    assert len(whole.lags_s) == sum(len(part.lags_s) for part in parts)
    assert whole.errors.total() == sum(part.errors.total() for part in parts)
    assert whole.rejects.total() == sum(part.rejects.total() for part in parts)
    assert whole.wall_s == max(part.wall_s for part in parts)
    assert whole.cpu_s == pytest.approx(sum(part.cpu_s for part in parts))


def test_a_busy_process_wants_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    wanted = [Sample(wall_s=10.0, cpu_s=cpu_s).wanted_processes() for cpu_s in (0.0, 6.9, 7.1, 99.0)]
    assert wanted == [1, 1, 2, 4]


def test_sources_survive_pickle_and_send_what_they_promise() -> None:
    fresh, repeated, mixed = (
        pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
        for source in (sending.fresh(PHOTO), sending.repeated(b"same"), sending.mixed({PHOTO: 1.0}, 0.5))
    )
    assert len(set(itertools.islice(fresh(), 50))) == 50
    assert set(itertools.islice(repeated(), 50)) == {(b"same",)}
    assert 2 <= len(set(itertools.islice(mixed(), 200))) < 200


def test_rejects_are_told_apart_by_whether_they_name_a_time() -> None:
    tally = Tally()
    for outcome in (
        Outcome(429, "429 overloaded", "1"),
        Outcome(429, "429"),
        Outcome(503, "503"),
        Outcome(200),
    ):
        tally.count(outcome, 0.5)
    sample = tally.sample(1.0, 0.1)
    assert (sample.images, sample.errors.total(), sample.rejects) == (1, 3, {True: 1, False: 1})


def test_senders_are_as_nice_as_the_service_and_work_at_the_same_time() -> None:
    """Two loops whose server answers only once both have asked."""
    waiting: list[bytes] = []

    both = asyncio.Event()

    async def score(request: web.Request) -> web.Response:
        waiting.append(await request.read())
        if len(set(waiting)) == 2:
            both.set()
        await both.wait()
        return web.json_response({})

    with scoring(score) as target, Senders(2) as senders:
        loops = [partial(latency.run, target, sending.repeated(body), 1, 0.05) for body in (b"a", b"b")]
        sample = senders.run(loops)
        assert sample.processes == 2
        assert set(waiting) == {b"a", b"b"}
        assert senders.run([_niceness]).wall_s >= NICENESS


def _niceness() -> Sample:
    return Sample(wall_s=float(os.getpriority(os.PRIO_PROCESS, 0)))

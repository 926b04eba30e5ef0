"""The Preprocessor's shell, with a scorer's handle that answers as it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from app.deployments import preprocessor as module
from app.deployments.preprocessor import Preprocessor
from app.engines import Decode
from app.imaging.guards import ImageLimits
from app.imaging.prepare import Prepared
from app.messages import Inference, PhotoJob, PixelsJob, Rejected, Scored, Undecoded
from tests.photos import coffee_image, coffee_jpeg, encoded

PHOTO = coffee_jpeg(640, 480)
ANSWER = Inference((np.full(3, 1 / 3, np.float32),), 0.001, 0.004)


class Handle:
    """What a deployment handle is to its caller: methods whose ``remote`` gives something to await."""

    def __init__(self, answer: Any, ready: Any = True) -> None:
        self.jobs: list[PixelsJob] = []
        self.calls = 0
        self.run = SimpleNamespace(remote=lambda jobs: self._run(jobs, answer))
        self.ready = SimpleNamespace(remote=lambda: self._reply(ready))

    async def _run(self, jobs: list[PixelsJob], answer: Any) -> list[Any]:
        self.jobs.extend(jobs)
        self.calls += 1
        return [await self._reply(answer) for _ in jobs]

    async def _reply(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


MODELS = ("imagenet-lite0", "imagenet-lite1")
REGISTRY = Path("no-registry")


def preprocess(
    handle: Handle,
    data: bytes = PHOTO,
    deadline_s: float = 30.0,
    models: tuple[str, ...] = MODELS,
    decode: Decode = "cpu",
) -> Scored | Rejected:
    async def story() -> Scored | Rejected:
        preprocessor = Preprocessor(REGISTRY, ImageLimits(), handle, decode)
        (outcome,) = await preprocessor([PhotoJob(data, models, time.time() + deadline_s, "test")])
        return outcome

    return asyncio.run(story())


def full_queue() -> BackPressureError:
    return BackPressureError(num_queued_requests=64, max_queued_requests=64)


def test_pixels_go_on_and_what_is_known_comes_back() -> None:
    handle = Handle(ANSWER)
    scored = preprocess(handle)
    assert isinstance(scored, Scored)
    assert (scored.media_type, scored.width, scored.height) == ("image/jpeg", 640, 480)
    assert len(scored.pdq) == 64
    assert scored.inference is ANSWER
    (job,) = handle.jobs
    assert [pixels.shape for pixels in job.pixels] == [(224, 224, 3), (240, 240, 3)]
    assert job.models == MODELS


def test_each_photo_of_a_group_gets_its_own_outcome() -> None:
    handle = Handle(ANSWER)

    async def story() -> list[Scored | Rejected]:
        deadline = time.time() + 30
        photos = (PHOTO, PHOTO[:4000], b"no photo", coffee_jpeg(320, 400))
        jobs = [PhotoJob(data, MODELS, deadline, "test") for data in photos]
        return await Preprocessor(REGISTRY, ImageLimits(), handle)(jobs)

    first, truncated, none, last = asyncio.run(story())
    assert isinstance(first, Scored)
    assert (first.width, first.height) == (640, 480)
    assert truncated == Rejected("image_truncated", "The photo is cut short")
    assert isinstance(none, Rejected)
    assert none.code == "unsupported_media_type"
    assert isinstance(last, Scored)
    assert (last.width, last.height) == (320, 400)
    assert len(handle.jobs) == 2


def test_a_model_that_is_not_on_this_node_can_be_asked_for_again() -> None:
    handle = Handle(ANSWER)
    outcome = preprocess(handle, models=("canteen@2",))
    assert outcome == Rejected("scorer_unavailable", "The model is not here yet.")
    assert handle.jobs == []


def test_a_photo_that_cannot_be_read_is_a_value_and_never_reaches_the_scorer() -> None:
    handle = Handle(ANSWER)
    assert preprocess(handle, PHOTO[:4000]) == Rejected("image_truncated", "The photo is cut short")
    assert handle.jobs == []


def test_a_late_photo_is_dropped_before_it_is_decoded() -> None:
    handle = Handle(ANSWER)
    outcome = preprocess(handle, b"not even an image", deadline_s=-1)
    assert isinstance(outcome, Rejected)
    assert outcome.code == "deadline_exceeded"
    assert handle.jobs == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ActorDiedError(), "scorer_unavailable"),
        (full_queue(), "overloaded"),
        (Rejected("deadline_exceeded", "late"), "deadline_exceeded"),
    ],
)
def test_what_the_scorer_cannot_do_comes_back_as_a_value(failure: Any, code: str) -> None:
    outcome = preprocess(Handle(failure))
    assert isinstance(outcome, Rejected)
    assert outcome.code == code


@pytest.mark.parametrize(("ready", "expected"), [(True, True), (False, False), (ActorDiedError(), False)])
def test_it_is_ready_when_the_scorer_is(ready: Any, expected: bool) -> None:
    async def story() -> bool:
        return await Preprocessor(REGISTRY, ImageLimits(), Handle(ANSWER, ready)).ready()

    assert asyncio.run(story()) is expected


def test_slow_photos_do_not_hold_up_a_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_is_done = threading.Event()
    slow = coffee_jpeg(3000, 2250, progressive=True)

    def prepare(data: bytes, *rest: Any) -> Prepared:
        if data == slow:
            assert quick_is_done.wait(20)
        return real(data, *rest)

    real = module.prepare
    monkeypatch.setattr(module, "prepare", prepare)

    async def story() -> None:
        preprocessor = Preprocessor(REGISTRY, ImageLimits(), Handle(ANSWER))
        deadline = time.time() + 30
        waiting = [
            asyncio.create_task(preprocessor([PhotoJob(slow, MODELS, deadline, "slow")])) for _ in range(3)
        ]
        await asyncio.sleep(0)
        (quick,) = await asyncio.wait_for(preprocessor([PhotoJob(PHOTO, MODELS, deadline, "quick")]), 10)
        assert isinstance(quick, Scored)
        quick_is_done.set()
        for outcomes in await asyncio.gather(*waiting):
            assert isinstance(outcomes[0], Scored)

    asyncio.run(story())


def test_a_plain_jpeg_goes_to_a_scorer_that_decodes() -> None:
    handle = Handle(replace(ANSWER, pdq="ab" * 32))
    scored = preprocess(handle, decode="gpu")
    assert isinstance(scored, Scored)
    assert (scored.media_type, scored.width, scored.height) == ("image/jpeg", 640, 480)
    assert scored.pdq == "ab" * 32
    (job,) = handle.jobs
    assert job.pixels == ()
    assert job.encoded
    assert (job.encoded.width, job.encoded.height) == (640, 480)
    assert 0 < job.nbytes <= len(PHOTO)


@pytest.mark.parametrize(
    "data",
    [
        coffee_jpeg(640, 480, progressive=True),
        encoded(coffee_image(64, 48), "PNG"),
        coffee_jpeg(640, 480)[:-2] + bytes(64),  # without its end
    ],
    ids=["progressive", "PNG", "endless"],
)
def test_what_the_scorer_cannot_decode_goes_as_pixels(data: bytes) -> None:
    handle = Handle(ANSWER)
    scored = preprocess(handle, data, decode="gpu")
    assert isinstance(scored, Scored)
    assert len(scored.pdq) == 64
    (job,) = handle.jobs
    assert job.encoded is None
    assert len(job.pixels) == 2


def test_what_the_scorer_could_not_decode_after_all_goes_as_pixels() -> None:
    handle = Handle(ANSWER)
    answers = [Undecoded(), ANSWER]
    handle.run.remote = lambda jobs: handle._run(jobs, answers.pop(0))
    scored = preprocess(handle, decode="gpu")
    assert isinstance(scored, Scored)
    assert len(scored.pdq) == 64
    first, second = handle.jobs
    assert first.encoded
    assert second.encoded is None
    assert len(second.pixels) == 2


def test_a_photo_that_nobody_can_read_is_refused_beside_a_scorer_that_decodes_too() -> None:
    handle = Handle(Undecoded())
    outcome = preprocess(handle, PHOTO[:4000], decode="gpu")
    assert outcome == Rejected("image_truncated", "The photo is cut short")


def test_the_autoscaler_is_told_of_photos_and_not_of_calls() -> None:
    async def story() -> None:
        held = asyncio.Event()
        handle = Handle(ANSWER)
        answer = handle._run

        async def run(jobs: list[PixelsJob]) -> list[Any]:
            await held.wait()
            return await answer(jobs, ANSWER)

        handle.run.remote = run
        preprocessor = Preprocessor(REGISTRY, ImageLimits(), handle)
        photos = [PhotoJob(PHOTO, MODELS, time.time() + 30, "test")] * 5
        calls = [asyncio.create_task(preprocessor(group)) for group in (photos, photos[:2])]
        await asyncio.sleep(0)
        assert preprocessor.record_autoscaling_stats() == {"photos": 7}
        held.set()
        await asyncio.gather(*calls)
        assert preprocessor.record_autoscaling_stats() == {"photos": 0}

    asyncio.run(story())

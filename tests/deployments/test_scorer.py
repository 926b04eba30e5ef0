"""The Scorer's shell: batches, items that fail alone, and an engine that does not mend.

One process, no cluster. @serve.batch asks for its replica's context only to warn about
``max_ongoing_requests``; that context is the one thing here that is not real.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import serve

from app.deployments import scorer as module
from app.deployments.scorer import ModelHome, Scorer
from app.engines import EngineError
from app.engines.inputs import input_specs
from app.imaging.bare import bare_jpeg
from app.imaging.guards import ImageLimits, inspect
from app.imaging.prepare import prepare
from app.messages import Inference, PixelsJob, Rejected, Undecoded
from models.manifest import load_manifest
from tests.conftest import RecordingMeter
from tests.photos import coffee_jpeg

LITE0, LITE1 = ("imagenet-lite0",), ("imagenet-lite1",)


class Recorder(Scorer):
    """A Scorer that remembers its batches, and whose engine can be broken or held up."""

    def __init__(self, home: ModelHome) -> None:
        super().__init__(LITE0, home, 8)
        self.batches: list[int] = []
        self.started = threading.Event()
        self.fault: str | None = None
        self.hold_s = 0.0

    def hold(self, sets: Any) -> Any:
        self.batches.append(sum(len(jobs) for _, jobs in sets))
        self.started.set()
        time.sleep(self.hold_s)
        if self.fault:
            raise EngineError(self.fault)
        return SEE(sets)


SEE = module._see


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> Callable[..., Any]:
    """Play a story with a Scorer made inside the running loop, as a replica makes it."""
    config = SimpleNamespace(max_ongoing_requests=64)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(_deployment_config=config))

    def run(
        story: Callable[[Recorder], Coroutine[Any, Any, Any]],
        home: ModelHome = ModelHome(Path(), Path(), "cpu", 1),  # noqa: B008 - frozen
    ) -> Any:
        async def main() -> Any:
            scorer = Recorder(replace(home, registry=models_dir / "no-registry", built=models_dir))
            monkeypatch.setattr(module, "_see", scorer.hold)
            await scorer.reconfigure({"batch_size": 8, "batch_wait_ms": 0})
            return await story(scorer)

        return asyncio.run(main())

    return run


def job(
    *, deadline_s: float = 30.0, size: int = 224, value: int = 128, models: tuple[str, ...] = LITE0
) -> PixelsJob:
    pixels = np.full((size, size, 3), value, np.uint8)
    return PixelsJob((pixels,), models, time.time() + deadline_s, time.time(), "test")


async def together(scorer: Recorder, *jobs: PixelsJob) -> list[Any]:
    return await asyncio.gather(*(score_one(scorer, job) for job in jobs), return_exceptions=True)


async def score_one(scorer: Recorder, job: PixelsJob) -> Any:
    (outcome,) = await scorer.run([job])
    return outcome


def test_a_photo_gets_its_probabilities_and_its_times(play: Any) -> None:
    outcome = play(lambda scorer: score_one(scorer, job()))
    assert outcome.probabilities[0].shape == (1000,)
    assert abs(outcome.probabilities[0].sum() - 1) < 0.05
    assert outcome.queue_s >= 0
    assert outcome.score_s > 0


def test_what_comes_while_a_batch_is_in_work_makes_the_next_one(play: Any) -> None:
    async def story(scorer: Recorder) -> list[int]:
        scorer.hold_s = 1.0
        first = asyncio.create_task(score_one(scorer, job()))
        await asyncio.to_thread(scorer.started.wait, 10)
        late = []
        for value in range(12):
            late.append(asyncio.create_task(score_one(scorer, job(value=value))))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(first, *late)
        assert all(isinstance(outcome, Inference) for outcome in outcomes)
        return scorer.batches

    assert play(story) == [1, 8, 4]


def test_groups_share_batches_and_one_that_is_too_large_is_split(play: Any) -> None:
    async def story(scorer: Recorder) -> list[int]:
        groups = [[job(value=value) for value in range(size)] for size in (3, 5, 11)]
        outcomes = await asyncio.gather(*map(scorer.run, groups))
        assert [len(group) for group in outcomes] == [3, 5, 11]
        alone = await score_one(scorer, job(value=10))
        assert np.allclose(outcomes[2][10].probabilities[0], alone.probabilities[0], atol=1e-3)
        return scorer.batches

    *batches, _ = play(story)
    assert sum(batches) == 19
    assert batches[0] == 8, "two small groups make one batch"
    assert max(batches) <= 8


def test_each_item_of_a_batch_gets_its_own_answer(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        alone = [await score_one(scorer, job(value=value)) for value in (0, 90, 255)]
        scorer.batches.clear()
        batch = await together(scorer, *(job(value=value) for value in (0, 90, 255)))
        assert scorer.batches == [3]
        for one, other in zip(alone, batch, strict=True):
            assert isinstance(one, Inference)
            assert np.allclose(one.probabilities[0], other.probabilities[0], atol=1e-3)
        assert not np.allclose(batch[0].probabilities[0], batch[2].probabilities[0], atol=1e-3)

    play(story)


def test_a_bad_item_and_a_late_one_fail_alone(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        good, misfit, late, other = await together(
            scorer, job(), job(size=100), job(deadline_s=-1), job(value=7)
        )
        assert isinstance(good, Inference)
        assert isinstance(other, Inference)
        assert misfit == Rejected("internal", misfit.detail)
        assert late == Rejected("deadline_exceeded", late.detail)
        assert scorer.batches == [2], "what cannot be scored costs the engine nothing"

    play(story)


def test_an_idle_scorer_is_open_again_after_every_kind_of_batch(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        for one in (job(), job(deadline_s=-1), job(size=64)):
            await score_one(scorer, one)
        assert isinstance(await asyncio.wait_for(score_one(scorer, job()), 10), Inference)

    play(story)


def test_a_broken_engine_makes_the_replica_unhealthy(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        scorer.check_health()
        assert scorer.ready()
        scorer.fault = "the device is gone"
        outcomes = await together(scorer, job(), job())
        assert all(isinstance(outcome, EngineError) for outcome in outcomes)
        assert not scorer.ready()
        with pytest.raises(EngineError, match="the device is gone"):
            scorer.check_health()

    play(story)


def test_a_new_batch_size_counts_from_the_next_batch(play: Any) -> None:
    async def story(scorer: Recorder) -> list[int]:
        await scorer.reconfigure({"batch_size": 2, "batch_wait_ms": 0})
        await together(scorer, *(job(value=value) for value in range(5)))
        return scorer.batches

    assert play(story) == [2, 2, 1]


@pytest.mark.parametrize("config", [{"batch_sise": 2}, {"batch_size": 0}, {"batch_wait_ms": -1}])
def test_an_unusable_config_is_refused(play: Any, config: dict[str, float]) -> None:
    async def story(scorer: Recorder) -> None:
        with pytest.raises(ValueError, match=next(iter(config))):
            await scorer.reconfigure(config)

    play(story)


def test_the_gauge_of_waiting_photos_falls_back_to_none(play: Any) -> None:
    async def story(scorer: Recorder) -> list[float]:
        meter = scorer._meter = RecordingMeter()
        await together(scorer, job(), job())
        assert scorer.record_autoscaling_stats() == {"photos": 0}
        return [value for name, value, _ in meter.records if name == "fooddx_scorer_queue"]

    assert play(story) == [1, 2, 1, 0]


def test_models_are_taken_up_beside_those_in_use_and_the_ones_before_stay(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.deployments.scorer._SETS_KEPT", 2)

    async def story(scorer: Recorder) -> None:
        scorer.hold_s = 0.5
        under_way = asyncio.create_task(score_one(scorer, job()))
        await scorer.reconfigure({"models": LITE1})
        assert isinstance(await under_way, Inference), "photos that were here keep their model"
        new, old = await together(scorer, job(size=240, models=LITE1), job())
        assert isinstance(new, Inference)
        assert isinstance(old, Inference)
        await scorer.reconfigure({"models": LITE0 + LITE1})
        await scorer.reconfigure({})
        assert set(scorer._loaded) == {LITE0 + LITE1, LITE0}, "two sets at most, the oldest goes"

    play(story)


def test_a_job_that_names_models_first_has_them_loaded(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        outcomes = await together(scorer, *(job(size=240, models=LITE1) for _ in range(3)))
        assert all(isinstance(outcome, Inference) for outcome in outcomes)

    play(story)


def test_models_that_are_not_here_leave_the_others_in_use(play: Any) -> None:
    async def story(scorer: Recorder) -> None:
        await scorer.reconfigure({"models": ["canteen@2"]})
        missing, here = await together(scorer, job(models=("canteen@2",)), job())
        assert missing == Rejected("scorer_unavailable", "The model is not here yet.")
        assert isinstance(here, Inference)
        scorer.check_health()

    play(story)


def test_models_send_each_distinct_input_once() -> None:
    lite0, lite1 = load_manifest("imagenet-lite0"), load_manifest("imagenet-lite1")
    assert [spec.size for spec in input_specs([lite0, lite0])] == [224]
    assert [spec.size for spec in input_specs([lite0, lite1])] == [224, 240]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModelHome:
    """A scorer with torch and a decoder of its own, on CPU tensors; libjpeg stands in for nvJPEG."""
    from app.engines.cuda import CudaEngine
    from app.engines.nvjpeg import JpegDecoder

    monkeypatch.setattr(
        module,
        "create_engine",
        lambda _, manifest, artefacts, *__: CudaEngine(manifest, artefacts, device="cpu"),
    )
    monkeypatch.setattr(module, "create_decoder", lambda specs: JpegDecoder(specs, device="cpu"))
    return ModelHome(Path(), Path(), "cuda", 1, decode="gpu")


def encoded_job(photo: bytes) -> PixelsJob:
    bare = bare_jpeg(photo, inspect(photo, ImageLimits()))
    return PixelsJob((), LITE0, time.time() + 30, time.time(), "test", encoded=bare)


def test_a_scorer_that_decodes_answers_as_for_pixels(play: Any, gpu: ModelHome) -> None:
    photo = coffee_jpeg(640, 480)
    prepared = prepare(photo, ImageLimits(), input_specs([load_manifest(LITE0[0])]))
    pixels = replace(job(), pixels=prepared.pixels)

    async def story(scorer: Recorder) -> None:
        here, there, other = await together(
            scorer, encoded_job(photo), pixels, encoded_job(coffee_jpeg(320, 400))
        )
        assert scorer.batches == [3], "both kinds share a batch"
        assert np.abs(here.probabilities[0] - there.probabilities[0]).max() < 0.05
        assert here.pdq is not None
        assert (int(here.pdq, 16) ^ int(prepared.pdq, 16)).bit_count() <= 16
        assert there.pdq is None
        assert isinstance(other, Inference)
        assert other.pdq != here.pdq

    play(story, gpu)


def test_a_photo_that_the_decoder_cannot_read_is_asked_for_as_pixels(play: Any, gpu: ModelHome) -> None:
    broken = encoded_job(coffee_jpeg(640, 480))
    assert broken.encoded
    broken = replace(broken, encoded=replace(broken.encoded, data=b"\xff\xd8\xff\xd9"))

    async def story(scorer: Recorder) -> None:
        outcome, good, pixels = await together(scorer, broken, encoded_job(coffee_jpeg(320, 400)), job())
        assert outcome == Undecoded()
        assert isinstance(good, Inference)
        assert isinstance(pixels, Inference)
        scorer.check_health()

    play(story, gpu)


def test_a_scorer_without_a_decoder_asks_for_pixels(play: Any) -> None:
    assert play(lambda scorer: score_one(scorer, encoded_job(coffee_jpeg(320, 400)))) == Undecoded()


def test_as_many_batches_are_in_work_as_the_engine_takes(play: Any, gpu: ModelHome) -> None:
    async def story(scorer: Recorder) -> list[int]:
        both = threading.Barrier(2, timeout=10)

        def see(sets: Any) -> Any:
            both.wait()  # neither ends before the other has begun
            return scorer.hold(sets)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_see", see)
            first = asyncio.create_task(score_one(scorer, job()))
            await asyncio.sleep(0.05)
            outcomes = [*await together(scorer, job(), job()), await first]
        assert all(isinstance(outcome, Inference) for outcome in outcomes)
        return sorted(scorer.batches)

    assert play(story, gpu) == [1, 2]

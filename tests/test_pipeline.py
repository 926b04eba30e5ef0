"""One photo's way, with real stores and the real model: what is answered, and what is left when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from itertools import pairwise, product

import pytest
import redis
import redis.asyncio

from app.errors import (
    DeadlineExceeded,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    ImagesUnavailable,
    NotFound,
    ResultsUnavailable,
    ScorerUnavailable,
    TruncatedImage,
    UnsupportedMediaType,
)
from app.food.tips import excluded_tags, load_tips
from app.messages import PhotoJob
from app.schemas import Profile
from app.stores.embedded import EmbeddedStore
from app.telemetry import STAGES, Stages
from models.manifest import TABLES
from tests.rooms import Tenant, forget, keys, meal, play, wall

TIPS = {tip.id: tip for tip in load_tips(TABLES / "tips.csv")}


class Gate:
    """Holds photos at the scorer's door until it is opened, and can fail the first one."""

    def __init__(self, me: Tenant, fails: Exception | None = None) -> None:
        self.opened = asyncio.Event()
        self.reached = asyncio.Event()
        self._fails = fails
        me.scorer.before = self._wait

    async def _wait(self, _: PhotoJob) -> None:
        self.reached.set()
        await self.opened.wait()
        error, self._fails = self._fails, None
        if error:
            raise error


def failing(*errors: Exception | None) -> Callable[[PhotoJob], Awaitable[None]]:
    """A ``before`` that raises these in turn (None: lets the photo pass), then nothing more."""
    left = list(errors)

    async def before(_: PhotoJob) -> None:
        if left and (error := left.pop(0)):
            raise error

    return before


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow any more: writing a photo fails, deleting works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the product has no event for it
            await asyncio.sleep(0.001)


async def nothing_left(me: Tenant, url: str) -> None:
    assert await me.kept(url) == set()
    assert me.photos() == set()


class TestAFirstPhoto:
    def test_is_scored_stored_and_written(self, make_local, store):
        async def story(me: Tenant) -> None:
            result = await me.score(meal(), user="ann")
            photo = me.photo(meal())
            assert (result.status, result.score, result.duplicate_of) == ("scored", 4, None)
            assert result.dishes[0].name == "espresso"
            assert result.image.sha256 == photo.sha256
            assert (result.image.width, result.image.height) == (240, 160)
            assert result.image.bytes == len(meal())
            assert result.model.name == "imagenet-lite0"
            assert result.tip
            assert result.user == "ann"
            assert await me.service.records.get(me.name, result.id) == result
            assert await me.service.records.image(me.name, result.id) == (meal(), "image/jpeg")
            assert await me.kept(store.url) == {
                f"result:{result.id}", f"seen:{photo.sha256}", f"refs:{photo.sha256}", "diary:ann", "tip:ann",
            }  # fmt: skip

        play(make_local, story)

    def test_of_something_else_gets_no_score_and_no_tip(self, make_local):
        async def story(me: Tenant) -> None:
            for duplicate in (False, True):
                result = await me.score(wall(), user="ann")
                assert (result.status, result.score, result.tip) == ("not_food", None, None)
                assert result.score_mean is None
                assert result.dishes == ()
                assert bool(result.duplicate_of) is duplicate
            assert me.meter.total("fooddx_images_total", status="not_food") == 2

        play(make_local, story)

    def test_in_doubt_waits_for_a_nutritionist_and_still_gets_a_tip(self, make_local):
        async def story(me: Tenant) -> None:
            me.service.judges.serving = me.service.judges.serving.adjusted({"review": 0})
            result = await me.score(meal())
            assert (result.status, result.score) == ("needs_review", None)
            assert result.score_mean
            assert result.tip
            assert (await me.service.records.reviews(me.name, None, 9)).items == (result,)

        play(make_local, story)

    def test_is_counted_and_timed(self, make_local):
        async def story(me: Tenant) -> None:
            stages = Stages()
            await me.service.pipeline.run(me.photo(meal()), stages)
            assert set(stages.seconds) == set(STAGES) - {"auth"}
            assert all(seconds >= 0 for seconds in stages.seconds.values())
            for stage, seconds in stages.seconds.items():
                assert me.meter.total("fooddx_stage_seconds", stage=stage) == seconds
            assert me.meter.total("fooddx_request_seconds") > 0
            assert me.meter.total("fooddx_images_total", status="scored") == 1
            assert me.meter.total("fooddx_cache_hits_total") == 0

        play(make_local, story)

    def test_is_judged_by_the_judge_of_its_arrival(self, make_local):
        async def story(me: Tenant) -> None:
            gate = Gate(me)
            first = asyncio.create_task(me.score(meal()))
            await gate.reached.wait()
            me.service.judges.serving = me.service.judges.serving.adjusted({"food": 1})
            gate.opened.set()
            assert (await first).status == "scored"
            second = await me.score(meal())
            assert (second.status, second.duplicate_of) == ("not_food", None)
            assert me.scorer.calls == 2

        play(make_local, story)


class TestADuplicate:
    def test_reuses_the_probabilities_and_names_the_first(self, make_local):
        async def story(me: Tenant) -> None:
            first, second, third = [await me.score(meal()) for _ in range(3)]
            assert me.scorer.calls == 1
            assert second.duplicate_of == third.duplicate_of == first.id
            assert len({first.id, second.id, third.id}) == 3
            assert second.score_probabilities == first.score_probabilities
            assert second.image == first.image
            assert me.photos() == {first.image.sha256}
            assert me.meter.total("fooddx_cache_hits_total") == 2
            assert me.meter.total("fooddx_images_total", status="scored") == 3

        play(make_local, story)

    def test_gets_a_tip_of_its_own_for_its_own_profile(self, make_local):
        async def story(me: Tenant) -> None:
            profiles = [
                {"user": "ann", "goals": ("less-sugar",)},
                {"user": "bob", "diet": ("vegan",), "avoid": ("soy", "tree-nut")},
                *({"user": "ann"} for _ in range(6)),
            ]
            results = [await me.score(meal(), **profile) for profile in profiles]
            for profile, result in zip(profiles, results, strict=True):
                assert TIPS[result.tip.id].suggests.isdisjoint(excluded_tags(Profile(**profile)))
            assert len({result.tip.id for result in results}) > 2

        play(make_local, story)

    def test_of_another_tenant_is_none(self, make_local):
        async def story(me: Tenant) -> None:
            first = await me.score(meal())
            me.name += "other"
            assert (await me.score(meal())).duplicate_of is None
            assert me.scorer.calls == 2
            with pytest.raises(NotFound):
                await me.service.records.get(me.name, first.id)

        play(make_local, story)

    def test_whose_first_is_deleted_just_then_is_scored_again(self, make_local):
        async def story(me: Tenant) -> None:
            first = await me.score(meal())
            finish = me.service.results.finish

            async def finish_late(ticket, record):
                me.service.results.finish = finish
                await me.service.records.delete(me.name, first.id)
                return await finish(ticket, record)

            me.service.results.finish = finish_late
            second = await me.score(meal())
            assert second.duplicate_of is None
            assert me.scorer.calls == 2
            assert me.photos() == {second.image.sha256}
            assert (await me.score(meal())).duplicate_of == second.id

        play(make_local, story)


class TestTwins:
    @pytest.mark.parametrize("twins", [2, 20])
    def test_at_once_are_scored_once(self, make_local, store, twins):
        async def story(me: Tenant) -> None:
            results = await asyncio.gather(*(me.score(meal()) for _ in range(twins)))
            assert me.scorer.calls == 1
            (first,) = [result for result in results if result.duplicate_of is None]
            assert {result.duplicate_of for result in results} == {None, first.id}
            assert len({result.id for result in results}) == twins
            assert {"pending", f"claim:{first.image.sha256}"}.isdisjoint(await me.kept(store.url))

        play(make_local, story)

    def test_take_over_when_the_first_fails(self, make_local):
        async def story(me: Tenant) -> None:
            gate = Gate(me, fails=TruncatedImage())
            first = asyncio.create_task(me.score(meal()))
            await gate.reached.wait()
            twins = [asyncio.create_task(me.score(meal())) for _ in range(3)]
            await asyncio.sleep(0.02)
            assert me.scorer.calls == 1
            gate.opened.set()
            with pytest.raises(TruncatedImage):
                await first
            results = await asyncio.gather(*twins)
            assert me.scorer.calls == 2
            assert sum(result.duplicate_of is None for result in results) == 1
            assert me.photos() == {results[0].image.sha256}

        play(make_local, story)

    def test_give_up_waiting_when_their_budget_is_spent(self, make_local, store):
        async def story(me: Tenant) -> None:
            gate = Gate(me)
            first = asyncio.create_task(me.score(meal()))
            await gate.reached.wait()
            with pytest.raises(DeadlineExceeded):
                await me.score(meal(), key="twin", budget_s=0.05)
            assert "idem:twin" not in await me.kept(store.url)
            gate.opened.set()
            assert (await me.score(meal(), key="twin")).duplicate_of == (await first).id

        play(make_local, story)


class TestAnIdempotencyKey:
    def test_replays_the_same_answer(self, make_local):
        async def story(me: Tenant) -> None:
            photo = me.photo(meal(), key="k", user="ann")
            bodies = {await me.service.pipeline.run(photo, Stages()) for _ in range(3)}
            assert len(bodies) == 1
            assert me.scorer.calls == 1
            assert me.meter.total("fooddx_images_total") == 1
            diary = await me.service.results.diary(me.name, "ann", None, 9)
            assert len(diary) == 1

        play(make_local, story)

    def test_with_another_photo_or_profile_is_refused(self, make_local):
        async def story(me: Tenant) -> None:
            first = await me.score(meal(), key="k", user="ann")
            for data, user in [(meal(1), "ann"), (meal(), "bob")]:
                with pytest.raises(IdempotencyKeyReused):
                    await me.score(data, key="k", user=user)
            assert (await me.score(meal(), key="k", user="ann")).id == first.id
            assert me.photos() == {first.image.sha256}

        play(make_local, story)

    def test_in_flight_is_told_when_to_ask_again(self, make_local):
        async def story(me: Tenant) -> None:
            gate = Gate(me)
            first = asyncio.create_task(me.score(meal(), key="k"))
            await gate.reached.wait()
            with pytest.raises(IdempotencyInFlight) as refused:
                await me.score(meal(), key="k")
            assert 0 < refused.value.retry_after_s <= 1
            gate.opened.set()
            first_id = (await first).id
            assert (await me.score(meal(), key="k")).id == first_id

        play(make_local, story)

    def test_of_a_failed_request_is_free_again(self, make_local):
        async def story(me: Tenant) -> None:
            me.scorer.before = failing(TruncatedImage())
            with pytest.raises(TruncatedImage):
                await me.score(meal(), key="k")
            await me.service.pipeline.drained()
            result = await me.score(meal(1), key="k")
            assert (await me.score(meal(1), key="k")).id == result.id

        play(make_local, story)

    def test_of_a_failed_duplicate_is_free_again(self, make_local, store):
        async def story(me: Tenant) -> None:
            await me.score(meal())
            finish = me.service.results.finish

            async def no_finish(ticket, record):
                raise ResultsUnavailable

            me.service.results.finish = no_finish
            with pytest.raises(ResultsUnavailable):
                await me.score(meal(), key="k")
            me.service.results.finish = finish
            assert "idem:k" not in await me.kept(store.url)
            assert (await me.score(meal(), key="k")).duplicate_of

        play(make_local, story)

    def test_of_a_deleted_result_is_not_found(self, make_local):
        async def story(me: Tenant) -> None:
            result = await me.score(meal(), key="k")
            await me.service.records.delete(me.name, result.id)
            with pytest.raises(NotFound):
                await me.score(meal(), key="k")
            assert me.photos() == set()

        play(make_local, story)


class TestAFailure:
    def test_the_deadline_leaves_nothing_behind(self, make_local, store):
        async def story(me: Tenant) -> None:
            Gate(me)
            with pytest.raises(DeadlineExceeded) as late:
                await me.score(meal(), key="k", user="ann", budget_s=0.05)
            assert late.value.retry_after_s
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_the_scorer_learns_the_deadline_and_a_caller_cannot_extend_it(self, make_local):
        async def story(me: Tenant) -> None:
            deadlines = []

            async def before(job: PhotoJob) -> None:
                deadlines.append(job.deadline)

            me.scorer.before = before
            await me.score(meal(), budget_s=10)
            await me.score(meal(1), budget_s=100)
            await me.score(meal(2))
            short, long, default = deadlines
            assert 5 < default - short < 45
            assert 0 <= default - long < 5

        play(make_local, story, budget_ms=30_000)

    def test_a_photo_nobody_can_read_is_refused_after_one_try(self, make_local, store):
        async def story(me: Tenant) -> None:
            with pytest.raises(UnsupportedMediaType):
                await me.score(b"no photo at all", key="k")
            with pytest.raises(TruncatedImage):
                await me.score(meal()[:5000], user="ann")
            assert me.scorer.calls == 1  # what is no image at all does not get that far
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_a_lost_scorer_is_tried_once_more(self, make_local):
        async def story(me: Tenant) -> None:
            me.scorer.before = failing(ScorerUnavailable())
            assert (await me.score(meal())).status == "scored"
            assert me.scorer.calls == 2

        play(make_local, story)

    def test_a_scorer_lost_twice_is_unavailable(self, make_local, store):
        async def story(me: Tenant) -> None:
            me.scorer.before = failing(ScorerUnavailable(), ScorerUnavailable())
            with pytest.raises(ScorerUnavailable):
                await me.score(meal(), key="k")
            assert me.scorer.calls == 2
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_a_fault_of_ours_leaves_nothing_behind_either(self, make_local, store):
        async def story(me: Tenant) -> None:
            me.scorer.before = failing(RuntimeError("a bug"))
            with pytest.raises(RuntimeError):
                await me.score(meal(), key="k")
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_a_full_disk_means_no_result(self, make_local, store):
        async def story(me: Tenant) -> None:
            with full_disk():
                with pytest.raises(ImagesUnavailable):
                    await me.score(meal(), key="k", user="ann")
                await nothing_left(me, store.url)
            assert (await me.score(meal(), key="k", user="ann")).status == "scored"

        play(make_local, story)

    def test_a_disk_lost_while_scoring_means_no_result_and_the_sweep_tidies_up(
        self, make_local, store, monkeypatch, tmp_path
    ):
        monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(0))
        folder = tmp_path / "images"

        async def story(me: Tenant) -> None:
            async def lose_the_disk(_: PhotoJob) -> None:
                shutil.rmtree(folder)
                folder.write_text("a folder no more")

            me.scorer.before = lose_the_disk
            with pytest.raises(ImagesUnavailable):
                await me.score(meal(), key="k", user="ann")
            claim = f"claim:{me.photo(meal()).sha256}"
            assert await me.kept(store.url) == {claim, "pending"}
            folder.unlink()
            forget(store.url, me.name, claim)
            assert await me.service.records.sweep(me.name) == 1
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_a_claim_that_ran_out_means_no_result_and_the_sweep_tidies_up(
        self, make_local, store, monkeypatch
    ):
        monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(0))

        async def story(me: Tenant) -> None:
            async def forget_the_claim(_: PhotoJob) -> None:
                forget(store.url, me.name, f"claim:{me.photo(meal()).sha256}")

            me.scorer.before = forget_the_claim
            with pytest.raises(ScorerUnavailable):
                await me.score(meal(), user="ann")
            assert await me.kept(store.url) == {"pending"}
            assert await me.service.records.sweep(me.name) == 1
            await nothing_left(me, store.url)

        play(make_local, story)

    def test_a_result_store_that_freezes_while_scoring_is_unavailable(
        self, make_local, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(0))

        with EmbeddedStore(tmp_path / "valkey") as server:

            async def story(me: Tenant) -> None:
                async def freeze(_: PhotoJob) -> None:
                    os.kill(server.pid, signal.SIGSTOP)

                me.scorer.before = freeze
                with pytest.raises(ResultsUnavailable) as failed:
                    await me.score(meal(), key="k")
                assert failed.value.retry_after_s
                await me.service.pipeline.drained()
                os.kill(server.pid, signal.SIGCONT)
                me.scorer.before = None
                assert (await me.score(meal(1))).status == "scored"
                # What was sent to the frozen server may be done now. If not, the sweep finds the photo.
                forget(server.url, me.name, f"claim:{me.photo(meal()).sha256}", "idem:k")
                await me.service.records.sweep(me.name)
                await consistent(me, server.url)

            play(make_local, story, redis_url=server.url)


class TestAClientThatGoesAway:
    def test_while_its_photo_is_scored_leaves_nothing_behind(self, make_local, store):
        async def story(me: Tenant) -> None:
            gate = Gate(me)
            request = asyncio.create_task(me.score(meal(), key="k", user="ann"))
            await gate.reached.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await nothing_left(me, store.url)

        play(make_local, story)

    @pytest.mark.parametrize(
        ("part", "call", "left"), [("results", "begin", 0), ("images", "put", 0), ("results", "finish", 1)]
    )
    def test_while_a_write_is_on_its_way_leaves_all_or_nothing(self, make_local, store, part, call, left):
        """The write lands long after the client is gone: a store does not know of our cancellation."""

        async def story(me: Tenant) -> None:
            writer = me.service.images.shared if part == "images" else me.service.results
            write, sent, landing = getattr(writer, call), asyncio.Event(), asyncio.Event()
            writes = []

            async def land(*args):
                await landing.wait()
                return await write(*args)

            async def slow(*args):
                writes.append(asyncio.create_task(land(*args)))
                sent.set()
                return await asyncio.shield(writes[-1])

            setattr(writer, call, slow)
            stages = Stages()
            photo = me.photo(meal(), key="k", user="ann")
            request = asyncio.create_task(me.service.pipeline.run(photo, stages))
            await sent.wait()
            if call == "put":
                await until(lambda: "score" in stages.seconds)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await asyncio.sleep(0.03)
            landing.set()
            await asyncio.gather(*writes)
            await consistent(me, store.url)
            assert len(me.photos()) == left

        play(make_local, story)

    def test_at_any_moment_leaves_all_or_nothing(self, make_local, store):
        """Gone as a stage begins, and 1, 2, 4 … 256 turns of the event loop later."""

        async def story(me: Tenant) -> None:
            reached, watched = asyncio.Event(), ""
            written, cancelled = set(), Counter()

            def watch(owner: object, stage: str) -> None:
                work = getattr(owner, stage)

                async def begun(*args):
                    if stage == watched:
                        reached.set()
                    if stage == "finish":
                        written.add(args[0].sha256)
                    return await work(*args)

                setattr(owner, stage, begun)

            me.scorer.before = lambda _: asyncio.sleep(0)
            stages = {
                "begin": me.service.results,
                "put": me.service.images.shared,
                "before": me.scorer,
                "finish": me.service.results,
            }
            for stage, owner in stages.items():
                watch(owner, stage)
            moments = product(stages, (0, *(2**n for n in range(9))))
            for number, (watched, turns) in enumerate(moments):
                reached.clear()
                request = asyncio.create_task(me.score(meal(number), key=f"k{number}", user="ann"))
                await reached.wait()
                for _ in range(turns):
                    await asyncio.sleep(0)
                request.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await request
                cancelled[watched] += request.cancelled()
            assert all(cancelled[stage] for stage in stages), cancelled
            await consistent(me, store.url)
            assert me.photos() == written

        play(make_local, story)

    def test_is_tidied_up_after_before_the_service_closes(self, make_local, store):
        tenants = []

        async def story(me: Tenant) -> None:
            tenants.append(me)
            gate = Gate(me)
            request = asyncio.create_task(me.score(meal()))
            await gate.reached.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request

        play(make_local, story)
        (me,) = tenants
        assert me.photos() == keys(store.url, me.name) == set()


class TestTips:
    def test_never_come_twice_running(self, make_local):
        async def story(me: Tenant) -> None:
            for number in range(2):
                ids = [(await me.score(meal(number), user=f"u{number}")).tip.id for _ in range(12)]
                assert all(one != next_one for one, next_one in pairwise(ids))

        play(make_local, story)

    def test_never_come_twice_running_when_a_users_photos_come_at_once(self, make_local, store):
        async def story(me: Tenant) -> None:
            key = f"fooddx:{{{me.name}}}:tip:ann"
            async with redis.asyncio.Redis.from_url(store.url) as client, client.monitor() as monitor:
                results = await asyncio.gather(*(me.score(meal(n % 5), user="ann") for n in range(40)))
                last = results[-1].tip.id
                await me.service.results.forget_user(me.name, "ann")
                written = []
                async for command in monitor.listen():
                    verb, *words = command["command"].split(" ")
                    if words[:1] == [key] and verb == "SET":
                        written.append(words[1])
                    if words[:1] == [key] and verb == "DEL":
                        break
            assert Counter(written) == Counter(result.tip.id for result in results)
            assert last in written
            assert all(one != next_one for one, next_one in pairwise(written))

        play(make_local, story)


async def consistent(me: Tenant, url: str) -> None:
    """Every result has its photo, every photo a result, and nothing is claimed or in flight."""
    kept = await me.kept(url)
    results = [
        await me.service.records.get(me.name, key.removeprefix("result:"))
        for key in kept
        if key.startswith("result:")
    ]
    assert me.photos() == {result.image.sha256 for result in results}
    assert not [key for key in kept if key.startswith(("claim:", "pending"))]
    with redis.Redis.from_url(url) as client:
        for key in kept:
            if key.startswith("idem:"):
                assert client.hexists(f"fooddx:{{{me.name}}}:{key}", "id")

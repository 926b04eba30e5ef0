"""The result store: every script and every branch of it, on a real server, and what happens without one."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ResultsUnavailable
from app.stores.embedded import EmbeddedStore
from app.stores.results import Begun, Record, ResultStore, Ticket, id_floor
from tests.rooms import forget, keys, new_tenant

SHA = "5a" * 32
OTHER_SHA = "c3" * 32
GIVEN_UP = "first:given-up"
HOUR_MS = 3_600_000


class Shop:
    """One tenant's view of a result store, with everything filled in that a test does not care about."""

    def __init__(self, results: ResultStore, url: str) -> None:
        self.results = results
        self.url = url
        self.tenant = new_tenant()

    def ticket(self, who: str = "first", sha256: str = SHA, revision: str = "r1", **more: Any) -> Ticket:
        return Ticket(self.tenant, sha256, revision, who, **more)

    def keyed(self, who: str = "first", fingerprint: str = "print", **more: Any) -> Ticket:
        return self.ticket(who, idempotency_key="key", fingerprint=fingerprint, **more)

    async def begin(self, ticket: Ticket) -> Begun:
        return await self.results.begin(ticket)

    async def written(self, ticket: Ticket | None = None, **record: Any) -> str:
        """Claim, finish, and the id of the result."""
        ticket = ticket or self.ticket(uuid.uuid4().hex)
        assert (await self.begin(ticket)).kind == "claimed"
        made = a_record(**record)
        assert (await self.results.finish(ticket, made))[0] == "written"
        return made.id

    async def delete(
        self, result_id: str, who: str = "eraser", user: str | None = None, photo_gone: bool = False
    ) -> str:
        return await self.results.delete(self.tenant, result_id, SHA, who, user, photo_gone=photo_gone)

    async def review(self, result_id: str, body: bytes | None = None) -> bool:
        """Review a result, in other words each time unless they are given."""
        return await self.results.reviewed(self.tenant, result_id, body or uuid.uuid4().bytes)

    async def labels(self, limit: int = 100) -> list[str]:
        """Ids of all labels, read page by page."""
        found: list[str] = []
        after = 0
        while page := await self.results.labels(self.tenant, after, limit):
            found += [result_id for result_id, _ in page]
            after = page[-1][1]
        return found

    def kept(self) -> set[str]:
        return keys(self.url, self.tenant)


def a_record(result_id: str | None = None, reused: bool = False, **more: Any) -> Record:
    result_id = result_id or str(uuid_utils.uuid7())
    fields: dict[str, Any] = {
        "user": None,
        "needs_review": False,
        "tips": ("", ""),
        "bodies": (f"first {result_id}".encode(), f"second {result_id}".encode()),
    }
    return Record(id=result_id, analysis=None if reused else f"of {result_id}".encode(), **fields | more)


@pytest.fixture
def shop(store: EmbeddedStore) -> Callable[..., None]:
    """Run a story with a Shop; give spans in milliseconds to see things expire."""

    def run(
        story: Callable[[Shop], Awaitable[None]],
        dedupe_ms: int = HOUR_MS,
        idempotency_ms: int = HOUR_MS,
        claim_ms: int = HOUR_MS,
        url: str = store.url,
    ) -> None:
        async def with_results() -> None:
            results = ResultStore(url, dedupe_ms=dedupe_ms, idempotency_ms=idempotency_ms, claim_ms=claim_ms)
            try:
                await story(Shop(results, url))
            finally:
                await results.close()

        asyncio.run(with_results())

    return run


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.005)


class TestBegin:
    def test_an_unknown_photo_is_claimed(self, shop):
        async def story(shop: Shop) -> None:
            assert await shop.begin(shop.ticket()) == Begun("claimed")
            assert shop.kept() == {f"claim:{SHA}", "pending"}

        shop(story)

    def test_the_same_request_may_begin_twice(self, shop):
        async def story(shop: Shop) -> None:
            assert await shop.begin(shop.keyed()) == Begun("claimed")
            assert await shop.begin(shop.keyed()) == Begun("claimed")

        shop(story)

    def test_a_claimed_photo_is_busy_for_others_of_this_tenant_only(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            assert await shop.begin(shop.ticket("second")) == Begun("busy")
            assert await shop.begin(shop.ticket("second", revision="r2")) == Begun("busy")
            assert await shop.begin(shop.ticket("second", sha256=OTHER_SHA)) == Begun("claimed")
            assert await shop.begin(Ticket(new_tenant(), SHA, "r1", "second")) == Begun("claimed")

        shop(story)

    def test_a_claim_runs_out(self, shop):
        async def story(shop: Shop) -> None:
            async def claimed() -> bool:
                return (await shop.begin(shop.ticket("second"))).kind == "claimed"

            await shop.begin(shop.ticket())
            await until(claimed)

        shop(story, claim_ms=30)

    def test_a_scored_photo_is_seen_by_the_same_revision_only(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            assert await shop.begin(shop.ticket("second")) == Begun("seen", f"of {first}".encode())
            assert await shop.begin(shop.ticket("third", revision="r2")) == Begun("claimed")
            assert await shop.begin(Ticket(new_tenant(), SHA, "r1", "fourth")) == Begun("claimed")

        shop(story)

    def test_what_was_seen_is_forgotten_after_a_while(self, shop):
        async def story(shop: Shop) -> None:
            async def forgotten() -> bool:
                return f"seen:{SHA}" not in shop.kept()

            await shop.written()
            await until(forgotten)
            assert await shop.begin(shop.ticket("second")) == Begun("claimed")

        shop(story, dedupe_ms=20)

    def test_an_idempotency_key_replays_its_result(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written(shop.keyed())
            assert await shop.begin(shop.keyed("second")) == Begun("replay", first.encode())

        shop(story)

    def test_an_idempotency_key_with_another_body_is_reused(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            assert await shop.begin(shop.keyed("second", "other")) == Begun("reused")
            await shop.results.finish(shop.keyed(), a_record())
            assert await shop.begin(shop.keyed("second", "other")) == Begun("reused")

        shop(story)

    def test_an_idempotency_key_in_flight_tells_how_long_it_may_take(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            found = await shop.begin(shop.keyed("second"))
            assert found.kind == "in_flight"
            assert 0 < int(found.value) <= 5000

        shop(story, claim_ms=5000)

    def test_an_idempotency_key_is_forgotten_after_a_while(self, shop):
        async def story(shop: Shop) -> None:
            async def forgotten() -> bool:
                return (await shop.begin(shop.keyed("second", "other"))).kind == "seen"

            await shop.written(shop.keyed())
            await until(forgotten)

        shop(story, idempotency_ms=20)


class TestFinish:
    def test_writes_everything_and_lets_go_of_the_claim(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            record = a_record(user="ann", needs_review=True, tips=("greens", "water"))
            assert await shop.results.finish(shop.keyed(), record) == ("written", record.bodies[0])
            assert shop.kept() == {
                f"result:{record.id}", f"seen:{SHA}", f"refs:{SHA}",
                "idem:key", "diary:ann", "tip:ann", "reviews",
            }  # fmt: skip
            assert await shop.results.get(shop.tenant, record.id) == record.bodies[0]
            assert await shop.results.diary(shop.tenant, "ann", None, 9) == [record.id]
            assert await shop.results.reviews(shop.tenant, None, 9) == [record.id]

        shop(story)

    def test_writes_no_more_than_it_was_asked_to(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written()
            assert shop.kept() == {f"result:{result_id}", f"seen:{SHA}", f"refs:{SHA}"}

        shop(story)

    def test_sent_again_it_answers_what_was_written(self, shop):
        async def story(shop: Shop) -> None:
            record = a_record(user="ann", tips=("greens", "water"))
            await shop.begin(shop.ticket())
            for _ in range(2):
                assert await shop.results.finish(shop.ticket(), record) == ("written", record.bodies[0])
            assert await shop.results.diary(shop.tenant, "ann", None, 9) == [record.id]

        shop(story)

    def test_is_lost_when_another_has_the_claim(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            before = shop.kept()
            assert await shop.results.finish(shop.ticket("second"), a_record(user="ann")) == ("lost", b"")
            assert shop.kept() == before

        shop(story)

    def test_is_lost_when_nobody_has_the_claim(self, shop):
        async def story(shop: Shop) -> None:
            assert await shop.results.finish(shop.keyed(), a_record(user="ann")) == ("lost", b"")
            assert shop.kept() == set()

        shop(story)

    def test_a_reuse_leaves_analysis_and_claims_alone(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            await shop.begin(shop.ticket("scorer", revision="r2"))
            again = a_record(reused=True)
            outcome = await shop.results.finish(shop.ticket("second"), again)
            assert outcome == ("written", again.bodies[0])
            assert (await shop.begin(shop.ticket("third"))).value == f"of {first}".encode()
            assert (await shop.begin(shop.ticket("third", revision="r2"))).kind == "busy"
            assert await shop.delete(first) == "deleted"
            assert await shop.results.get(shop.tenant, again.id) == again.bodies[0]

        shop(story)

    def test_a_reuse_is_gone_when_the_first_was_deleted(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            await shop.delete(first)
            await shop.delete(first, photo_gone=True)
            assert await shop.results.finish(shop.keyed("second"), a_record(reused=True)) == ("gone", b"")
            assert shop.kept() == set()

        shop(story)

    def test_the_same_tip_never_comes_twice_running(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            shown = []
            for reused in (False, True, True, True):
                record = a_record(reused=reused, user="ann", tips=("greens", "water"))
                shown.append((await shop.results.finish(shop.ticket(), record))[1].split()[0])
            assert shown == [b"first", b"second", b"first", b"second"]

        shop(story)

    def test_tips_of_another_user_and_of_nobody_play_no_part(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            for number, user in enumerate(["ann", "bob", None, None]):
                record = a_record(reused=number > 0, user=user, tips=("greens", "water"))
                assert await shop.results.finish(shop.ticket(), record) == ("written", record.bodies[0])

        shop(story)

    def test_a_photo_without_a_tip_changes_no_ones_last_tip(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            for reused, tips, expected in [
                (False, ("greens", "water"), 0),
                (True, ("", ""), 0),
                (True, ("greens", "water"), 1),
            ]:
                record = a_record(reused=reused, user="ann", tips=tips)
                assert await shop.results.finish(shop.ticket(), record) == (
                    "written",
                    record.bodies[expected],
                )

        shop(story)


class TestAbandon:
    def test_an_orphan_stays_claimed_until_it_is_released(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            assert await shop.results.abandon(shop.ticket()) == GIVEN_UP
            assert await shop.begin(shop.ticket("second")) == Begun("busy")
            assert "pending" in shop.kept()
            await shop.results.release(shop.tenant, SHA, "first")
            assert "pending" in shop.kept(), "the request's own token holds nothing any more"
            await shop.results.release(shop.tenant, SHA, GIVEN_UP)
            assert shop.kept() == set()

        shop(story)

    def test_a_photo_that_others_rest_on_is_released_at_once(self, shop):
        async def story(shop: Shop) -> None:
            await shop.written()
            await shop.begin(shop.ticket(revision="r2"))
            before = shop.kept()
            assert not await shop.results.abandon(shop.ticket(revision="r2"))
            assert shop.kept() == before - {f"claim:{SHA}", "pending"}

        shop(story)

    def test_someone_elses_claim_is_left_alone(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            assert not await shop.results.abandon(shop.ticket("second"))
            assert shop.kept() == {f"claim:{SHA}", "pending"}

        shop(story)

    def test_frees_its_idempotency_key(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            await shop.results.abandon(shop.keyed())
            assert (await shop.begin(shop.keyed("second", "other"))).kind == "busy"

        shop(story)

    def test_frees_no_idempotency_key_of_another_or_of_a_result(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            await shop.results.abandon(shop.keyed("second"))
            assert (await shop.begin(shop.keyed("second"))).kind == "in_flight"
            await shop.results.finish(shop.keyed(), a_record())
            await shop.results.abandon(shop.keyed())
            assert (await shop.begin(shop.keyed("second"))).kind == "replay"

        shop(story)

    def test_sent_again_it_answers_the_same(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.keyed())
            assert await shop.results.abandon(shop.keyed()) == GIVEN_UP
            assert await shop.results.abandon(shop.keyed()) == GIVEN_UP
            await shop.results.release(shop.tenant, SHA, GIVEN_UP)
            assert not await shop.results.abandon(shop.keyed())
            assert shop.kept() == set()

        shop(story)

    def test_nothing_can_be_finished_once_it_is_given_up(self, shop):
        """A finish that was sent before and lands after, the photo's deletion under way or done."""

        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            await shop.results.abandon(shop.ticket())
            assert await shop.results.finish(shop.ticket(), a_record()) == ("lost", b"")
            await shop.results.release(shop.tenant, SHA, GIVEN_UP)
            assert await shop.results.finish(shop.ticket(), a_record()) == ("lost", b"")

        shop(story)


def test_release_lets_go_of_ones_own_claim_only(shop):
    async def story(shop: Shop) -> None:
        await shop.begin(shop.ticket())
        await shop.results.release(shop.tenant, SHA, "second")
        assert shop.kept() == {f"claim:{SHA}", "pending"}
        await shop.results.release(shop.tenant, SHA, "first")
        await shop.results.release(shop.tenant, SHA, "first")
        assert shop.kept() == set()

    shop(story)


class TestDelete:
    def test_an_unknown_result_is_missing(self, shop):
        async def story(shop: Shop) -> None:
            assert await shop.delete(str(uuid.uuid4())) == "missing"
            assert shop.kept() == set()

        shop(story)

    def test_the_last_one_stays_until_its_photo_is_gone(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written(user="ann", needs_review=True)
            assert await shop.delete(result_id, user="ann") == "photo"
            assert await shop.results.get(shop.tenant, result_id) is not None
            assert await shop.begin(shop.ticket("second")) == Begun("busy")
            assert await shop.delete(result_id, user="ann", photo_gone=True) == "deleted"
            assert shop.kept() == set()

        shop(story)

    def test_with_other_results_the_photo_is_kept_but_not_reused(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            again = a_record(reused=True)
            await shop.results.finish(shop.ticket("second"), again)
            assert await shop.delete(first) == "deleted"
            assert shop.kept() == {f"result:{again.id}", f"refs:{SHA}"}
            assert await shop.begin(shop.ticket("third")) == Begun("claimed")

        shop(story)

    def test_a_photo_in_work_is_busy(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            await shop.begin(shop.ticket("second", revision="r2"))
            assert await shop.delete(first) == "busy"
            record = a_record()
            outcome = await shop.results.finish(shop.ticket("second", revision="r2"), record)
            assert outcome == ("written", record.bodies[0])
            assert await shop.delete(first) == "deleted"
            assert await shop.delete(record.id) == "photo"
            assert await shop.delete(record.id, who="other") == "busy"

        shop(story)

    def test_nothing_can_be_reused_while_its_photo_is_deleted(self, shop):
        async def story(shop: Shop) -> None:
            first = await shop.written()
            assert (await shop.begin(shop.ticket("second"))).kind == "seen"
            assert await shop.delete(first) == "photo"
            assert await shop.results.finish(shop.ticket("second"), a_record(reused=True)) == ("gone", b"")

        shop(story)

    def test_a_deletion_that_stopped_half_way_can_be_asked_for_again(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written()
            assert await shop.delete(result_id) == "photo"
            forget(shop.url, shop.tenant, f"claim:{SHA}")
            assert not await shop.results.adopt(shop.tenant, SHA, "sweeper")
            assert await shop.delete(result_id, who="other") == "photo"
            assert await shop.delete(result_id, who="other", photo_gone=True) == "deleted"
            assert shop.kept() == set()

        shop(story)

    def test_sent_again_it_answers_the_same(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written()
            assert await shop.delete(result_id) == "photo"
            assert await shop.delete(result_id) == "photo"
            assert await shop.delete(result_id, photo_gone=True) == "deleted"
            assert await shop.delete(result_id, photo_gone=True) == "deleted"
            assert await shop.delete(result_id) == "missing"

        shop(story)

    def test_an_idempotency_key_stays_known(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written(shop.keyed())
            await shop.delete(result_id)
            await shop.delete(result_id, photo_gone=True)
            assert await shop.begin(shop.keyed("second")) == Begun("replay", result_id.encode())
            assert await shop.results.get(shop.tenant, result_id) is None

        shop(story)


class TestSweep:
    def test_a_claim_that_is_alive_is_busy(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            assert not await shop.results.adopt(shop.tenant, SHA, "sweeper")
            assert await shop.results.finish(shop.ticket(), record := a_record()) == (
                "written",
                record.bodies[0],
            )

        shop(story)

    def test_a_dead_claim_is_adopted(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            forget(shop.url, shop.tenant, f"claim:{SHA}")
            assert await shop.results.adopt(shop.tenant, SHA, "sweeper")
            assert shop.kept() == {f"claim:{SHA}", "pending"}
            await shop.results.release(shop.tenant, SHA, "sweeper")
            assert shop.kept() == set()

        shop(story)

    def test_sent_again_it_answers_the_same_and_keeps_others_out(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            forget(shop.url, shop.tenant, f"claim:{SHA}")
            for _ in range(2):
                assert await shop.results.adopt(shop.tenant, SHA, "sweeper")
            assert not await shop.results.adopt(shop.tenant, SHA, "second")
            assert await shop.begin(shop.ticket()) == Begun("busy")

        shop(story)

    def test_what_another_sweep_has_finished_is_done(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            forget(shop.url, shop.tenant, f"claim:{SHA}")
            assert await shop.results.adopt(shop.tenant, SHA, "sweeper")
            await shop.results.release(shop.tenant, SHA, "sweeper")
            assert not await shop.results.adopt(shop.tenant, SHA, "second")
            assert shop.kept() == set()

        shop(story)

    def test_a_photo_that_results_rest_on_is_kept(self, shop):
        async def story(shop: Shop) -> None:
            await shop.written()
            await shop.begin(shop.ticket("second", revision="r2"))
            forget(shop.url, shop.tenant, f"claim:{SHA}")
            assert "pending" in shop.kept()
            assert not await shop.results.adopt(shop.tenant, SHA, "sweeper")
            assert "pending" not in shop.kept()
            assert (await shop.begin(shop.ticket("third"))).kind == "seen"

        shop(story)

    def test_stale_claims_are_those_before_a_moment_as_many_as_asked(self, shop):
        async def story(shop: Shop) -> None:
            now = datetime.now(UTC)
            for sha256 in (SHA, OTHER_SHA):
                await shop.begin(shop.ticket(sha256=sha256))
            soon, long_ago = now + timedelta(minutes=1), now - timedelta(minutes=1)
            assert set(await shop.results.stale_claims(shop.tenant, soon)) == {SHA, OTHER_SHA}
            assert len(await shop.results.stale_claims(shop.tenant, soon, limit=1)) == 1
            assert await shop.results.stale_claims(shop.tenant, long_ago) == []

        shop(story)


class TestReading:
    def test_results_come_in_the_order_asked_for_without_the_missing(self, shop):
        async def story(shop: Shop) -> None:
            first, second = await shop.written(), await shop.written(shop.ticket("2", sha256=OTHER_SHA))
            found = await shop.results.get_many(shop.tenant, [second, str(uuid.uuid4()), first])
            assert found == [f"first {second}".encode(), f"first {first}".encode()]
            assert await shop.results.get_many(shop.tenant, []) == []
            assert await shop.results.get(shop.tenant, str(uuid.uuid4())) is None
            assert await shop.results.get(new_tenant(), first) is None

        shop(story)

    def test_a_diary_is_newest_first_and_a_queue_oldest_first(self, shop):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            ids = sorted(str(uuid_utils.uuid7()) for _ in range(5))
            for number, result_id in enumerate(reversed(ids)):
                record = a_record(result_id, reused=number > 0, user="ann", needs_review=True)
                await shop.results.finish(shop.ticket(), record)
            assert await shop.results.diary(shop.tenant, "ann", None, 9) == ids[::-1]
            assert await shop.results.diary(shop.tenant, "ann", ids[3], 2) == [ids[2], ids[1]]
            assert await shop.results.diary(shop.tenant, "ann", ids[0], 9) == []
            assert await shop.results.reviews(shop.tenant, None, 9) == ids
            assert await shop.results.reviews(shop.tenant, ids[1], 2) == ids[2:4]

        shop(story)

    def test_diary_between_takes_the_start_and_leaves_the_end(self, shop):
        async def story(shop: Shop) -> None:
            start = datetime(2026, 3, 1, tzinfo=UTC)
            times = [start + timedelta(milliseconds=ms) for ms in (-1, 0, 1, 999, 1000)]
            ids = [str(uuid.UUID(int=uuid.UUID(id_floor(time)).int | 7 << 76)) for time in times]
            await shop.begin(shop.ticket())
            for number, result_id in enumerate(ids):
                await shop.results.finish(shop.ticket(), a_record(result_id, reused=number > 0, user="ann"))
            end = start + timedelta(seconds=1)
            assert await shop.results.diary_between(shop.tenant, "ann", start, end) == ids[1:4]

        shop(story)

    def test_a_user_can_be_forgotten(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written(user="ann", tips=("greens", "water"))
            await shop.results.forget_entry(shop.tenant, "ann", result_id)
            await shop.results.forget_user(shop.tenant, "ann")
            assert not {"diary:ann", "tip:ann"} & shop.kept()

        shop(story)


class TestReview:
    def test_replaces_the_result_and_takes_it_from_the_queue_to_the_labels(self, shop):
        async def story(shop: Shop) -> None:
            result_id = await shop.written(needs_review=True)
            assert await shop.review(result_id, b"reviewed")
            assert await shop.results.get(shop.tenant, result_id) == b"reviewed"
            assert shop.kept() == {f"result:{result_id}", f"seen:{SHA}", f"refs:{SHA}", "labels"}
            assert await shop.labels() == [result_id]
            assert await shop.results.labels(new_tenant(), 0, 9) == []

        shop(story)

    def test_of_a_result_that_is_gone_leaves_nothing(self, shop):
        async def story(shop: Shop) -> None:
            assert not await shop.review(str(uuid.uuid4()))
            assert shop.kept() == set()

        shop(story)

    def test_the_last_review_counts_for_the_order(self, shop):
        async def story(shop: Shop) -> None:
            ids = [await shop.written(shop.ticket(str(n), sha256=f"{n:064}")) for n in range(4)]
            for number in (2, 0, 3, 1, 0):
                assert await shop.review(ids[number])
            assert await shop.labels() == [ids[n] for n in (2, 3, 1, 0)]

        shop(story)

    def test_sent_again_it_answers_the_same_and_moves_nothing(self, shop):
        async def story(shop: Shop) -> None:
            ids = [await shop.written(shop.ticket(str(n), sha256=f"{n:064}")) for n in range(2)]
            for result_id in ids:
                assert await shop.review(result_id, b"once")
            before = await shop.results.labels(shop.tenant, 0, 9)
            assert await shop.review(ids[0], b"once")
            assert await shop.results.labels(shop.tenant, 0, 9) == before

        shop(story)

    def test_pages_hold_every_label_once(self, shop):
        async def story(shop: Shop) -> None:
            ids = [await shop.written(shop.ticket(str(n), sha256=f"{n:064}")) for n in range(7)]
            for result_id in ids:
                await shop.review(result_id)
            for limit in (1, 3, 7, 9):
                assert await shop.labels(limit) == ids

        shop(story)

    def test_a_clock_that_goes_back_does_not_put_a_label_before_another(self, shop):
        async def story(shop: Shop) -> None:
            ids = [await shop.written(shop.ticket(str(n), sha256=f"{n:064}")) for n in range(3)]
            await shop.review(ids[0])
            future = 2**52
            with redis.Redis.from_url(shop.url) as client:
                client.zadd(f"fooddx:{{{shop.tenant}}}:labels", {ids[0]: future})
            for result_id in ids[1:]:
                await shop.review(result_id)
            found = await shop.results.labels(shop.tenant, 0, 9)
            assert found == [(result_id, future + n) for n, result_id in enumerate(ids)]

        shop(story)

    def test_whoever_reads_while_others_review_misses_nothing(self, shop):
        async def story(shop: Shop) -> None:
            ids = [await shop.written(shop.ticket(str(n), sha256=f"{n:064}")) for n in range(60)]
            found: list[str] = []

            async def read() -> None:
                after = 0
                while len(found) < len(ids):
                    page = await shop.results.labels(shop.tenant, after, 2)
                    found.extend(result_id for result_id, _ in page)
                    after = page[-1][1] if page else after

            async with asyncio.timeout(20):
                await asyncio.gather(read(), *map(shop.review, ids))
            assert sorted(found) == ids

        shop(story)

    @pytest.mark.parametrize("alone", [True, False])
    def test_goes_with_its_result(self, shop, alone):
        async def story(shop: Shop) -> None:
            result_id = await shop.written()
            if not alone:
                await shop.results.finish(shop.ticket("second"), a_record(reused=True))
            await shop.review(result_id)
            if alone:
                assert await shop.delete(result_id) == "photo"
                # Too late to keep it, and not so late that the result is gone.
                assert await shop.review(result_id, b"again")
                assert await shop.delete(result_id, photo_gone=True) == "deleted"
            else:
                assert await shop.delete(result_id) == "deleted"
            assert not await shop.review(result_id, b"once more")
            assert "labels" not in shop.kept()

        shop(story)


moments = st.datetimes(datetime(2020, 1, 1), datetime(2120, 1, 1), timezones=st.just(UTC))


class TestInOneRoundTrip:
    """Scripts that wait together travel together, and fail each for itself."""

    def test_many_at_once_get_their_own_answers_in_few_round_trips(self, shop, monkeypatch):
        sent: list[int] = []
        send = ResultStore._send

        async def counted(self: ResultStore, runs: Any) -> Any:
            sent.append(len(runs))
            return await send(self, runs)

        monkeypatch.setattr(ResultStore, "_send", counted)

        async def story(shop: Shop) -> None:
            tickets = [shop.ticket(f"t{place % 20}", sha256=f"{place // 2:064x}") for place in range(40)]
            begun = await asyncio.gather(*map(shop.begin, tickets))
            assert [found.kind for found in begun] == ["claimed", "busy"] * 20
            records = [a_record() for _ in range(20)]
            ends = await asyncio.gather(*map(shop.results.finish, tickets[::2], records))
            assert ends == [("written", record.bodies[0]) for record in records]

        shop(story)
        assert sum(sent) == 60
        assert len(sent) <= 6

    def test_a_server_that_forgot_the_scripts_is_told_them_again(self, shop, store):
        async def story(shop: Shop) -> None:
            await shop.begin(shop.ticket())
            with redis.Redis.from_url(store.url) as client:
                client.script_flush()
            begun = await asyncio.gather(
                *(shop.begin(shop.ticket(f"t{place}", sha256=f"{place:064x}")) for place in range(8))
            )
            assert {found.kind for found in begun} == {"claimed"}

        shop(story)

    def test_one_that_fails_takes_no_other_with_it(self, shop, store):
        async def story(shop: Shop) -> None:
            with redis.Redis.from_url(store.url) as client:
                client.set(f"fooddx:{{{shop.tenant}}}:seen:{OTHER_SHA}", "no hash")
            good, bad, other = await asyncio.gather(
                shop.begin(shop.ticket()),
                shop.begin(shop.ticket("second", sha256=OTHER_SHA)),
                shop.begin(shop.ticket("third", sha256="77" * 32)),
                return_exceptions=True,
            )
            assert good == other == Begun("claimed")
            assert isinstance(bad, ResultsUnavailable)

        shop(story)


class TestIdFloor:
    @given(moments, moments)
    def test_ids_order_as_their_moments_do(self, one: datetime, two: datetime):
        earlier, later = sorted((one, two))
        assert id_floor(earlier) <= id_floor(later)
        if later - earlier >= timedelta(milliseconds=1):
            assert id_floor(earlier) < id_floor(later)

    @given(st.integers(1_600_000_000_000, 4_000_000_000_000), st.integers(0, 2**80 - 1))
    def test_is_the_least_of_its_millisecond(self, ms: int, rest: int):
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
        one_of_it = str(uuid.UUID(int=ms << 80 | rest))
        assert id_floor(moment) <= one_of_it < id_floor(moment + timedelta(milliseconds=1))

    def test_agrees_with_the_ids_we_make(self):
        made = uuid_utils.uuid7()
        moment = datetime.fromtimestamp(made.timestamp / 1000, UTC)
        assert id_floor(moment) <= str(made) < id_floor(moment + timedelta(milliseconds=1))

    def test_our_ids_are_made_in_order(self):
        ids = [str(uuid_utils.uuid7()) for _ in range(1000)]
        assert ids == sorted(ids)


class TestWithoutAServer:
    """The client finds its way back by itself, and says in the meantime that it cannot."""

    def test_a_stopped_server_is_unavailable_and_found_again(self, shop, tmp_path):
        with EmbeddedStore(tmp_path) as server:

            async def story(shop: Shop) -> None:
                result_id = await shop.written()
                server.stop()
                for call in all_calls(shop, result_id):
                    with pytest.raises(ResultsUnavailable) as failed:
                        await call()
                    assert failed.value.retry_after_s
                server.start()
                assert await shop.results.get(shop.tenant, result_id) == f"first {result_id}".encode()
                assert (await shop.begin(shop.ticket("second"))).kind == "seen"

            shop(story, url=server.url)

    def test_a_frozen_server_is_given_up_after_the_time_out(self, shop, tmp_path):
        with EmbeddedStore(tmp_path) as server:

            async def story(shop: Shop) -> None:
                result_id = await shop.written()
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    # Far from the time-out, and still so near that a call that hangs fails the test.
                    async with asyncio.timeout(20):
                        answers = await asyncio.gather(
                            *(call() for call in all_calls(shop, result_id)), return_exceptions=True
                        )
                finally:
                    os.kill(server.pid, signal.SIGCONT)
                assert {type(answer) for answer in answers} == {ResultsUnavailable}
                assert await shop.begin(shop.ticket("new", sha256="77" * 32)) == Begun("claimed")
                await shop.results.ping()

            shop(story, url=server.url)

    def test_a_restart_between_two_calls_goes_unnoticed(self, shop, tmp_path):
        with EmbeddedStore(tmp_path) as server:

            async def story(shop: Shop) -> None:
                result_id = await shop.written()
                server.stop()
                server.start()
                assert await shop.begin(shop.ticket("second")) == Begun("seen", f"of {result_id}".encode())

            shop(story, url=server.url)


def all_calls(shop: Shop, result_id: str) -> list[Callable[[], Awaitable[object]]]:
    """Every call of the store, ready to be made."""
    results, tenant, now = shop.results, shop.tenant, datetime.now(UTC)
    return [
        results.ping,
        lambda: results.begin(shop.ticket("later", sha256=OTHER_SHA)),
        lambda: results.finish(shop.ticket("later"), a_record(reused=True)),
        lambda: results.abandon(shop.ticket("later")),
        lambda: results.release(tenant, SHA, "later"),
        lambda: results.delete(tenant, str(uuid.uuid4()), OTHER_SHA, "later", None, photo_gone=False),
        lambda: results.adopt(tenant, OTHER_SHA, "later"),
        lambda: results.get(tenant, result_id),
        lambda: results.get_many(tenant, [result_id]),
        lambda: results.diary(tenant, "ann", None, 1),
        lambda: results.diary_between(tenant, "ann", now, now),
        lambda: results.reviews(tenant, None, 1),
        lambda: results.reviewed(tenant, str(uuid.uuid4()), b"x"),
        lambda: results.labels(tenant, 0, 1),
        lambda: results.stale_claims(tenant, now),
        lambda: results.forget_entry(tenant, "ann", "x"),
        lambda: results.forget_user(tenant, "ann"),
    ]

"""What was scored, afterwards: reading, the diary and its days, reviews, labels, deletion, the sweep."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shutil
import time
import uuid
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.errors import AlreadyDecided, ImagesUnavailable, NotFound
from app.judge import TableJudge
from app.schemas import Diary, ImageFacts, Label, Labels, ModelRef, Result, ReviewIn
from app.stores.images import image_key
from app.stores.results import Record, Ticket, id_floor
from tests.rooms import Tenant, crash, forget, meal, new_tenant, play, wall

BERLIN = ZoneInfo("Europe/Berlin")


async def written(me: Tenant, moment: datetime, score: int | None, user: str = "ann") -> Result:
    """A result of another day, written as the pipeline writes it, without a photo."""
    result_id = str(uuid.UUID(int=uuid.UUID(id_floor(moment)).int | uuid.uuid4().int & (1 << 64) - 1))
    sha256 = uuid.uuid4().hex
    result = Result(
        id=result_id,
        status="needs_review" if score is None else "scored",
        score=score,
        score_mean=score,
        score_probabilities=None,
        dishes=(),
        food_probability=1,
        tip=None,
        image=ImageFacts(
            sha256=sha256, pdq="", width=1, height=1, bytes=1, media_type="image/jpeg",
            key=image_key(me.name, sha256),
        ),
        duplicate_of=None,
        model=ModelRef(name="m", version="1"),
        user=user,
        created_at=moment,
    )  # fmt: skip
    ticket = Ticket(me.name, sha256, "r", "token")
    body = result.model_dump_json().encode()
    await me.service.results.begin(ticket)
    record = Record(result_id, user, b"analysis", score is None, ("", ""), (body, body))
    assert (await me.service.results.finish(ticket, record))[0] == "written"
    return result


async def pages(me: Tenant, limit: int, zone: ZoneInfo = BERLIN, user: str = "ann") -> list[Diary]:
    """The whole diary, page by page."""
    found = [await me.service.records.diary(me.name, user, None, limit, zone)]
    while found[-1].next_cursor:
        found.append(await me.service.records.diary(me.name, user, found[-1].next_cursor, limit, zone))
    return found


class TestOneResult:
    def test_of_nobody_or_of_another_tenant_is_not_found(self, make_local):
        async def story(me: Tenant) -> None:
            records, result = me.service.records, await me.score(meal())
            for tenant, result_id in [(me.name, str(uuid.uuid4())), (new_tenant(), result.id), (me.name, "")]:
                for call in (records.get, records.image, records.delete):
                    with pytest.raises(NotFound):
                        await call(tenant, result_id)
                with pytest.raises(NotFound):
                    await records.review(tenant, result_id, ReviewIn(score=1))
            assert await records.get(me.name, result.id) == result

        play(make_local, story)

    def test_the_photo_comes_as_it_was_sent(self, make_local):
        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            data, media_type = await me.service.records.image(me.name, result.id)
            assert (hashlib.sha256(data).hexdigest(), media_type) == (result.image.sha256, "image/jpeg")

        play(make_local, story)


class TestTheDiary:
    def test_of_nobody_is_empty(self, make_local):
        async def story(me: Tenant) -> None:
            diary = await me.service.records.diary(me.name, "nobody", None, 10, BERLIN)
            assert diary == Diary(user="nobody", items=(), days=(), next_cursor=None)

        play(make_local, story)

    def test_holds_what_was_scored_newest_first_for_this_user_only(self, make_local):
        async def story(me: Tenant) -> None:
            results = [await me.score(meal(n % 2), user="ann") for n in range(4)]
            await me.score(meal(), user="bob")
            await me.score(meal())
            (diary,) = await pages(me, 10)
            assert diary.items == tuple(results[::-1])
            (day,) = diary.days
            assert (day.photos, day.scored, day.score_mean) == (4, 4, 4.0)

        play(make_local, story)

    @pytest.mark.parametrize("limit", [1, 3, 4, 6, 12, 100])
    def test_pages_hold_everything_once_and_in_order(self, make_local, limit):
        async def story(me: Tenant) -> None:
            start = datetime(2026, 5, 1, 12, tzinfo=UTC)
            results = [await written(me, start + timedelta(hours=n), 3) for n in range(12)]
            found = await pages(me, limit)
            assert [item for page in found for item in page.items] == results[::-1]
            assert len(found) == -(-12 // limit)
            assert {len(page.items) for page in found[:-1]} <= {limit}

        play(make_local, story)

    def test_a_page_survives_the_deletion_of_its_cursor(self, make_local):
        async def story(me: Tenant) -> None:
            start = datetime(2026, 5, 1, 12, tzinfo=UTC)
            results = [await written(me, start + timedelta(hours=n), 3) for n in range(4)]
            first = await me.service.records.diary(me.name, "ann", None, 2, BERLIN)
            await me.service.records.delete(me.name, first.next_cursor)
            second = await me.service.records.diary(me.name, "ann", first.next_cursor, 2, BERLIN)
            assert second.items == (results[1], results[0])

        play(make_local, story)

    def test_the_mean_of_a_day_is_over_all_of_it_not_over_the_page(self, make_local):
        async def story(me: Tenant) -> None:
            noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
            for minute, score in enumerate([1, 2, 5, None]):
                await written(me, noon + timedelta(minutes=minute), score)
            for page in await pages(me, 1):
                (day,) = page.days
                assert (day.date, day.photos, day.scored, day.score_mean) == (date(2026, 5, 1), 4, 3, 2.67)

        play(make_local, story)

    def test_a_day_without_a_score_has_no_mean(self, make_local):
        async def story(me: Tenant) -> None:
            await me.score(wall(), user="ann")
            (page,) = await pages(me, 10)
            (day,) = page.days
            assert (day.photos, day.scored, day.score_mean) == (1, 0, None)

        play(make_local, story)

    @pytest.mark.parametrize(
        ("zone", "start"),
        [
            ("UTC", datetime(2026, 3, 1, tzinfo=UTC)),
            ("Asia/Kathmandu", datetime(2026, 3, 1, tzinfo=UTC)),
            ("Europe/Berlin", datetime(2026, 3, 28, tzinfo=UTC)),  # a day of 23 hours
            ("Europe/Berlin", datetime(2026, 10, 24, tzinfo=UTC)),  # a day of 25 hours
            ("America/Havana", datetime(2026, 3, 7, tzinfo=UTC)),  # a day that begins at 1:00
            ("America/Havana", datetime(2026, 10, 31, tzinfo=UTC)),  # a day with two midnights
            ("Pacific/Apia", datetime(2011, 12, 29, tzinfo=UTC)),  # a day that never was
        ],
    )
    def test_days_are_those_of_the_users_clock(self, make_local, zone, start):
        zone = ZoneInfo(zone)

        async def story(me: Tenant) -> None:
            scores: dict[date, list[int]] = defaultdict(list)
            # Each quarter of an hour, and the millisecond before it: every midnight of every zone is met.
            moments = [start + timedelta(minutes=15 * n) for n in range(3 * 96)]
            for moment, score in zip(moments, itertools.cycle([1, 2, 3, 5, 4, 1, 5]), strict=False):
                for at in (moment, moment - timedelta(milliseconds=1)):
                    await written(me, at, score)
                    scores[at.astimezone(zone).date()].append(score)
            found = await pages(me, 150, zone)
            assert len(found) > 2
            for page in found:
                assert {day.date for day in page.days} == {
                    item.created_at.astimezone(zone).date() for item in page.items
                }
                assert [day.date for day in page.days] == sorted((d.date for d in page.days), reverse=True)
                for day in page.days:
                    expected = scores[day.date]
                    assert day.photos == day.scored == len(expected)
                    assert day.score_mean == round(sum(expected) / len(expected), 2)

        play(make_local, story)

    def test_the_moment_of_a_result_is_that_of_its_id(self, make_local, monkeypatch):
        """Else a photo at midnight would be of one day to its reader and of another to the diary."""
        tips = TableJudge.tips

        def slow_tips(*args):
            time.sleep(0.005)
            return tips(*args)

        monkeypatch.setattr(TableJudge, "tips", slow_tips)

        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            assert id_floor(result.created_at) <= result.id
            assert result.id < id_floor(result.created_at + timedelta(milliseconds=1))

        play(make_local, story)


class TestDeletion:
    def test_of_the_last_result_takes_the_photo_along(self, make_local, store):
        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            await me.service.records.delete(me.name, result.id)
            assert me.photos() == await me.kept(store.url) == set()
            with pytest.raises(NotFound):
                await me.service.records.delete(me.name, result.id)

        play(make_local, story)

    def test_keeps_a_photo_that_others_rest_on(self, make_local, store):
        async def story(me: Tenant) -> None:
            first, second, third = [await me.score(meal(), user=user) for user in ("ann", "ann", "bob")]
            await me.service.records.delete(me.name, first.id)
            for other in (second, third):
                assert (await me.service.records.image(me.name, other.id))[0] == meal()
            fourth = await me.score(meal())
            assert fourth.duplicate_of is None
            for other in (third, fourth, second):
                await me.service.records.delete(me.name, other.id)
            assert me.photos() == set()
            assert await me.kept(store.url) == {"tip:ann", "tip:bob"}

        play(make_local, story)

    def test_at_once_of_all_that_rest_on_a_photo_leaves_nothing(self, make_local, store):
        async def story(me: Tenant) -> None:
            results = [await me.score(meal()) for _ in range(8)]
            await asyncio.gather(*(me.service.records.delete(me.name, result.id) for result in results))
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)

    def test_with_the_photos_out_of_reach_deletes_nothing_and_may_be_repeated(
        self, make_local, store, tmp_path
    ):
        folder, aside = tmp_path / "images", tmp_path / "aside"

        async def story(me: Tenant) -> None:
            result = await me.score(meal(), user="ann")
            folder.rename(aside)
            folder.write_text("")
            with pytest.raises(ImagesUnavailable):
                await me.service.records.delete_user(me.name, "ann")
            folder.unlink()
            aside.rename(folder)
            assert (await me.service.records.get(me.name, result.id)).id == result.id
            forget(store.url, me.name, f"claim:{result.image.sha256}")
            await me.service.records.delete_user(me.name, "ann")
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)

    def test_of_a_photo_in_work_waits_for_it(self, make_local, store):
        async def story(me: Tenant) -> None:
            data = meal()
            first = await me.score(data)
            me.service.judges.serving = me.service.judges.serving.adjusted({"dish": 0.06})
            scoring = asyncio.Event()

            async def hold(_: object) -> None:
                scoring.set()
                await asyncio.sleep(0.2)

            me.scorer.before = hold
            again = asyncio.create_task(me.score(data))
            await scoring.wait()
            await me.service.records.delete(me.name, first.id)
            second = await again
            assert me.photos() == {second.image.sha256}
            await me.service.records.delete(me.name, second.id)
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)

    def test_goes_on_when_the_client_goes_away(self, make_local, store):
        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            deletion = asyncio.create_task(me.service.records.delete(me.name, result.id))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            deletion.cancel()
            with pytest.raises(asyncio.CancelledError):
                await deletion
            async with asyncio.timeout(20):
                # The photo goes first, then the keys. Nobody is left to tell when it is done.
                while await me.kept(store.url):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert me.photos() == set()

        play(make_local, story)

    def test_of_a_user_takes_everything_and_may_be_repeated(self, make_local, store):
        async def story(me: Tenant) -> None:
            me.service.judges.serving = me.service.judges.serving.adjusted({"review": 0})
            kept = await me.score(meal(), user="bob")
            before = await me.kept(store.url)
            for number in range(5):
                await me.score(meal(number % 3), user="ann")
            for _ in range(2):
                await me.service.records.delete_user(me.name, "ann")
                assert await me.kept(store.url) == before - {f"seen:{kept.image.sha256}"}
                assert me.photos() == {kept.image.sha256}
            assert (await me.service.records.diary(me.name, "ann", None, 9, BERLIN)).items == ()

        play(make_local, story)

    def test_of_a_user_is_not_limited_to_a_page(self, make_local, store):
        async def story(me: Tenant) -> None:
            start = datetime(2026, 5, 1, tzinfo=UTC)
            for number in range(230):
                await written(me, start + timedelta(minutes=number), 3)
            await me.service.records.delete_user(me.name, "ann")
            assert await me.kept(store.url) == set()

        play(make_local, story)

    def test_of_a_user_passes_over_an_entry_whose_result_is_gone(self, make_local, store):
        async def story(me: Tenant) -> None:
            results = [await me.score(meal(), user="ann") for _ in range(2)]
            # A diary entry alone, as a store restored from an older copy could hold.
            gone = results[0]
            for photo_gone in (False, True):
                await me.service.results.delete(
                    me.name, gone.id, gone.image.sha256, "x", "other", photo_gone=photo_gone
                )
            await me.service.images.shared.delete(gone.image.key)
            await me.service.records.delete_user(me.name, "ann")
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)


class TestReviews:
    def test_wait_oldest_first_in_pages(self, make_local):
        async def story(me: Tenant) -> None:
            start = datetime(2026, 5, 1, tzinfo=UTC)
            results = [await written(me, start + timedelta(hours=n), None) for n in range(7)]
            await written(me, start, 3)
            found, cursor = [], None
            for expected in (3, 3, 1):
                queue = await me.service.records.reviews(me.name, cursor, 3)
                found += queue.items
                cursor = queue.next_cursor
                assert len(queue.items) == expected
            assert found == results
            assert cursor is None

        play(make_local, story)

    def test_give_a_score_that_counts(self, make_local):
        async def story(me: Tenant) -> None:
            me.service.judges.serving = me.service.judges.serving.adjusted({"review": 0})
            result = await me.score(meal(), user="ann")
            given = ReviewIn(score=2, comment="half of it", reviewer="eve")
            reviewed = await me.service.records.review(me.name, result.id, given)
            assert (reviewed.status, reviewed.score) == ("scored", 2)
            assert reviewed.score_mean == result.score_mean
            assert (reviewed.review.score, reviewed.review.comment, reviewed.review.reviewer) == (
                2,
                "half of it",
                "eve",
            )
            assert result.created_at <= reviewed.review.reviewed_at
            assert await me.service.records.get(me.name, result.id) == reviewed
            assert (await me.service.records.reviews(me.name, None, 9)).items == ()
            (page,) = await pages(me, 9)
            assert [(day.photos, day.scored, day.score_mean) for day in page.days] == [(1, 1, 2.0)]

        play(make_local, story)

    def test_may_correct_a_score_and_each_other(self, make_local):
        async def story(me: Tenant) -> None:
            result = await me.score(meal(), user="ann")
            for score in (1, 5):
                await me.service.records.review(me.name, result.id, ReviewIn(score=score))
                (page,) = await pages(me, 9)
                assert page.items[0].score == page.items[0].review.score == score
                assert page.days[0].score_mean == score

        play(make_local, story)

    def test_of_what_is_no_food_are_refused(self, make_local):
        async def story(me: Tenant) -> None:
            result = await me.score(wall())
            with pytest.raises(AlreadyDecided):
                await me.service.records.review(me.name, result.id, ReviewIn(score=1))
            assert await me.service.records.get(me.name, result.id) == result

        play(make_local, story)

    def test_of_what_is_deleted_just_then_bring_nothing_back(self, make_local, store):
        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            reviewed = me.service.results.reviewed

            async def reviewed_late(*args):
                await me.service.records.delete(me.name, result.id)
                return await reviewed(*args)

            me.service.results.reviewed = reviewed_late
            with pytest.raises(NotFound):
                await me.service.records.review(me.name, result.id, ReviewIn(score=1))
            assert await me.kept(store.url) == set()

        play(make_local, story)


class TestLabels:
    def test_say_what_was_decided_and_what_the_model_said(self, make_local):
        async def story(me: Tenant) -> None:
            result = await me.score(meal(), user="ann")
            await me.score(meal(1), user="ann")
            given = ReviewIn(score=2, dish="flat white", comment="half of it", reviewer="eve")
            reviewed = await me.service.records.review(me.name, result.id, given)
            assert await me.service.records.labels(me.name, 0, 9) == Labels(
                items=(
                    Label(
                        image=result.image.key, score=2, dish="flat white", id=result.id,
                        sha256=result.image.sha256, model="imagenet-lite0@1", model_score=result.score_mean,
                        reviewer="eve", reviewed_at=reviewed.review.reviewed_at, comment="half of it",
                    ),
                ),
                next_cursor=None,
            )  # fmt: skip

        play(make_local, story)

    def test_come_in_pages_in_the_order_of_the_last_reviews(self, make_local):
        async def story(me: Tenant) -> None:
            start = datetime(2026, 5, 1, tzinfo=UTC)
            results = [await written(me, start + timedelta(hours=n), 3) for n in range(5)]
            for number in (4, 0, 2, 3, 1, 0):
                await me.service.records.review(me.name, results[number].id, ReviewIn(score=1 + number))
            found, cursor = [], "0"
            for expected in (2, 2, 1):
                page = await me.service.records.labels(me.name, int(cursor), 2)
                assert len(page.items) == expected
                found += page.items
                cursor = page.next_cursor
            assert [(label.id, label.score) for label in found] == [
                (results[n].id, 1 + n) for n in (4, 2, 3, 1, 0)
            ]
            assert cursor is None

        play(make_local, story)

    def test_of_a_user_are_deleted_with_the_user(self, make_local, store):
        async def story(me: Tenant) -> None:
            results = [await me.score(meal(n), user=user) for n, user in enumerate(("ann", "ann", "bob"))]
            for result in results:
                await me.service.records.review(me.name, result.id, ReviewIn(score=1))
            await me.service.records.delete_user(me.name, "ann")
            page = await me.service.records.labels(me.name, 0, 9)
            assert [label.id for label in page.items] == [results[2].id]
            await me.service.records.delete_user(me.name, "bob")
            assert await me.kept(store.url) == set()

        play(make_local, story)

    def test_written_while_the_photo_is_deleted_go_with_it(self, make_local, store):
        async def story(me: Tenant) -> None:
            result = await me.score(meal())
            delete = me.service.images.shared.delete

            async def reviewed_meanwhile(key):
                await me.service.records.review(me.name, result.id, ReviewIn(score=1))
                await delete(key)

            me.service.images.shared.delete = reviewed_meanwhile
            await me.service.records.delete(me.name, result.id)
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)

    def test_deleted_while_a_page_is_read_are_left_out(self, make_local):
        async def story(me: Tenant) -> None:
            results = [await me.score(meal(n)) for n in range(3)]
            for result in results:
                await me.service.records.review(me.name, result.id, ReviewIn(score=1))
            labels = me.service.results.labels

            async def and_then_deleted(*args):
                found = await labels(*args)
                await me.service.records.delete(me.name, results[0].id)
                return found

            me.service.results.labels = and_then_deleted
            page = await me.service.records.labels(me.name, 0, 2)
            assert [label.id for label in page.items] == [results[1].id]
            me.service.results.labels = labels
            page = await me.service.records.labels(me.name, int(page.next_cursor), 2)
            assert [label.id for label in page.items] == [results[2].id]

        play(make_local, story)


class TestTheSweep:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(0))

    def test_deletes_what_a_crash_left(self, make_local, store):
        async def story(me: Tenant) -> None:
            for number in range(3):
                await crash(me, store.url, meal(number))
            assert len(me.photos()) == 3
            assert await me.service.records.sweep(me.name) == 3
            assert me.photos() == await me.kept(store.url) == set()
            assert await me.service.records.sweep(me.name) == 0
            assert me.meter.total("fooddx_swept_total") == 3

        play(make_local, story)

    def test_leaves_what_is_not_old_enough(self, make_local, store, monkeypatch):
        monkeypatch.setattr("app.records.SWEEP_AGE", timedelta(minutes=1))

        async def story(me: Tenant) -> None:
            await crash(me, store.url, meal())
            assert await me.service.records.sweep(me.name) == 0
            assert len(me.photos()) == 1

        play(make_local, story)

    def test_leaves_what_is_being_scored(self, make_local):
        async def story(me: Tenant) -> None:
            async def sweep(_: object) -> None:
                assert await me.service.records.sweep(me.name) == 0

            me.scorer.before = sweep
            result = await me.score(meal())
            assert (await me.service.records.image(me.name, result.id))[0] == meal()

        play(make_local, story)

    def test_leaves_what_was_scored_before_or_after_the_crash(self, make_local, store):
        async def story(me: Tenant) -> None:
            before = await me.score(meal(0))
            await crash(me, store.url, meal(0))
            await crash(me, store.url, meal(1))
            after = await me.score(meal(1))
            assert await me.service.records.sweep(me.name) == 0
            assert me.photos() == {before.image.sha256, after.image.sha256}
            assert "pending" not in await me.kept(store.url)

        play(make_local, story)

    def test_frees_the_photo_for_the_next_one(self, make_local, store):
        async def story(me: Tenant) -> None:
            await crash(me, store.url, meal())
            await me.service.records.sweep(me.name)
            result = await me.score(meal())
            assert (await me.service.records.image(me.name, result.id))[0] == meal()

        play(make_local, story)

    def test_is_postponed_while_the_photos_are_out_of_reach(self, make_local, store, tmp_path):
        async def story(me: Tenant) -> None:
            await crash(me, store.url, meal())
            shutil.rmtree(tmp_path / "images")
            (tmp_path / "images").write_text("")
            assert await me.service.records.sweep(me.name) == 0
            assert "pending" in await me.kept(store.url)
            assert me.meter.total("fooddx_swept_total") == 0

        play(make_local, story)

    def test_of_two_services_at_once_deletes_each_photo_once(self, make_local, store):
        async def story(me: Tenant) -> None:
            for number in range(4):
                await crash(me, store.url, meal(number))
            swept = await asyncio.gather(*(me.service.records.sweep(me.name) for _ in range(3)))
            assert sum(swept) == 4
            assert me.photos() == await me.kept(store.url) == set()

        play(make_local, story)

"""Photos that lie in a bucket, or are to: scored once, moved to their place, found under the promised id."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uuid_utils

from app import records
from app.arrivals import Arrivals
from app.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    FoodDXError,
    IdempotencyKeyReused,
    ImageConflict,
    ImagesUnavailable,
    NeedsObjectStorage,
    NotFound,
    QueueUnavailable,
    ScorerUnavailable,
    TruncatedImage,
    UnsupportedMediaType,
)
from app.events import Arrival, parse
from app.messages import PhotoJob
from app.pipeline import Photo
from app.schemas import Failure, Job, Profile, Result, UploadIn
from app.stores.images import image_key
from app.stores.s3 import Bucket, S3Images, S3Limits
from app.telemetry import Stages
from app.tenants.places import upload_key
from app.tenants.tenants import Directory
from app.tenants.tenants import Tenant as TenantRecord
from tests.conftest import Local
from tests.rooms import keys, meal, new_tenant
from tests.stores.faults import PATIENT, FaultProxy, make_bucket, somebody_else, use_aws

ANA = Profile(user="ana")
UNKNOWN = "0199c3f2-a7d4-7c1f-9b1d-e0a35a2e8b11"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy) -> None:
    use_aws(monkeypatch, proxy.url)


class Shop:
    """Two tenants of a service whose store is a bucket with versions, seen from outside as well."""

    def __init__(self, local: Local, bucket: str, proxy: FaultProxy, aws: Any) -> None:
        self.local, self.service, self.scorer = local, local.service, local.scorer
        self.bucket, self.proxy, self.aws = bucket, proxy, aws
        self.me, self.other = new_tenant(), new_tenant()
        made_at = datetime.now(UTC)
        self.service.access.directory = Directory(
            TenantRecord(id=name, made_at=made_at) for name in (self.me, self.other)
        )
        self.sent: list[str] = []
        self.queue_away = False
        self.arrivals = Arrivals(
            images=self.service.images,
            results=self.service.results,
            pipeline=self.service.pipeline,
            places=self.service.places,
            max_bytes=local.settings.max_body_bytes,
            delete=self.service.records.delete,
            send=self._send,
        )

    async def _send(self, body: str) -> None:
        if self.queue_away:
            raise QueueUnavailable("The queue is away.")
        self.sent.append(body)

    async def score(
        self, key: str, profile: Profile | None = None, *, tenant: str = "", **more: Any
    ) -> Result:
        body = await self.arrivals.score(tenant or self.me, key, profile, Stages(), **more)
        return Result.model_validate_json(body)

    def photo(self, data: bytes, key: str | None = None, **profile: Any) -> Photo:
        sha256 = hashlib.sha256(data).hexdigest()
        return Photo(data, sha256, self.me, Profile(**profile), key)

    async def sync(self, data: bytes) -> Result:
        """What a photo gets that is sent along."""
        return Result.model_validate_json(await self.service.pipeline.run(self.photo(data), Stages()))

    def put(self, key: str, data: bytes) -> str:
        """Somebody else puts an object into the bucket; its etag."""
        etag: str = self.aws.put_object(Bucket=self.bucket, Key=f"pre/fix/{key}", Body=data)["ETag"]
        return etag.strip('"')

    def upload(self, data: bytes) -> str:
        """Somebody else puts a photo where one is expected; its key."""
        key = upload_key(self.me, str(uuid_utils.uuid7()))
        self.put(key, data)
        return key

    def stored(self) -> set[str]:
        """Every key there is."""
        found = self.aws.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return {entry["Key"].removeprefix("pre/fix/") for entry in found}

    def written(self, key: str) -> int:
        """How often an object was written."""
        found = self.aws.list_object_versions(Bucket=self.bucket, Prefix=f"pre/fix/{key}")
        return len(found.get("Versions", ()))

    def asked(self, method: str) -> list[str]:
        """The keys of the service's calls so far."""
        prefix = f"/{self.bucket}/pre/fix/"
        return [r.path.removeprefix(prefix) for r in self.proxy.requests if r.method == method]

    def place_of(self, data: bytes) -> str:
        return image_key(self.me, hashlib.sha256(data).hexdigest())

    async def waits(self, result_id: str) -> bool:
        """Whether a result is to come."""
        return await self.service.records.look(self.me, result_id) is None

    async def unknown(self, result_id: str) -> bool:
        with contextlib.suppress(NotFound):
            await self.service.records.look(self.me, result_id)
            return False
        return True


Story = Callable[[Shop], Awaitable[None]]


@pytest.fixture
def play(make_local: Callable[..., Local], moto: str, proxy: FaultProxy) -> Callable[..., None]:
    """Run a story with a Shop of its own."""

    def run(story: Story, limits: S3Limits = PATIENT, **settings: Any) -> None:
        bucket = make_bucket(moto)

        async def with_a_shop(aws: Any) -> None:
            store = f"s3://{bucket}/pre/fix"
            local = make_local(store=store, **{"budget_ms": 60_000} | settings)
            local.service.images.shared = S3Images(Bucket.at(store), None, limits)
            try:
                await story(Shop(local, bucket, proxy, aws))
            finally:
                await local.service.close()

        with somebody_else(moto, "s3") as aws:
            aws.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
            asyncio.run(with_a_shop(aws))

    return run


class TestAnUpload:
    def test_gets_the_promised_result_and_moves_to_its_place(self, play):
        async def story(shop: Shop) -> None:
            asked = UploadIn(media_type="image/jpeg", bytes=100_000, profile=ANA)
            promised = await shop.arrivals.promise(shop.me, asked)
            assert await shop.waits(promised.id)
            form = {"data": promised.fields, "files": {"file": meal()}}
            assert (await asyncio.to_thread(httpx.post, promised.url, **form, trust_env=False)).is_success
            assert shop.stored() == {promised.key}
            shop.proxy.requests.clear()

            result = await shop.score(promised.key)
            place = shop.place_of(meal())
            assert (result.id, result.user, result.image.key) == (promised.id, "ana", place)
            assert shop.stored() == {place}
            assert shop.aws.get_object(Bucket=shop.bucket, Key=f"pre/fix/{place}")["Body"].read() == meal()
            assert (shop.asked("GET"), shop.asked("PUT"), shop.asked("DELETE")) == (
                [promised.key], [place], [promised.key],
            )  # fmt: skip
            assert await shop.service.records.look(shop.me, promised.id) == result

        play(story)

    def test_asked_for_again_has_the_same_result_and_costs_nothing(self, play):
        async def story(shop: Shop) -> None:
            key = shop.upload(meal())
            first = await shop.score(key)
            shop.proxy.requests.clear()
            assert await shop.score(key, ANA) == first
            assert shop.scorer.calls == 1
            assert shop.asked("GET") == shop.asked("PUT") == []

        play(story)

    def test_two_who_come_at_once_get_one_result(self, play):
        """As when a client asks by key while the queue's message about it is in work."""

        async def story(shop: Shop) -> None:
            key = shop.upload(meal())
            results = await asyncio.gather(*(shop.score(key) for _ in range(4)))
            assert all(result == results[0] for result in results)
            assert shop.scorer.calls == 1
            assert shop.stored() == {shop.place_of(meal())}
            assert shop.written(shop.place_of(meal())) == 1

        play(story)

    def test_one_who_finds_it_gone_finds_the_result(self, play, monkeypatch):
        """It was there when the second looked for the result, and scored and cleared away when it read."""

        async def story(shop: Shop) -> None:
            key = shop.upload(meal())
            images = shop.service.images.shared
            fetch, first = images.fetch, list[Result]()

            async def late(*arguments: Any) -> Any:
                monkeypatch.setattr(images, "fetch", fetch)
                first.append(await shop.score(key))
                return await fetch(*arguments)

            monkeypatch.setattr(images, "fetch", late)
            assert [await shop.score(key)] == first

        play(story)

    def test_of_a_photo_that_is_known_is_its_duplicate(self, play):
        async def story(shop: Shop) -> None:
            first = await shop.sync(meal())
            key = shop.upload(meal())
            second = await shop.score(key)
            assert (second.duplicate_of, second.image) == (first.id, first.image)
            assert shop.stored() == {first.image.key}
            assert shop.written(first.image.key) == 1

        play(story)

    def test_that_cannot_be_scored_stays(self, play):
        """Its result was promised: who asks for it gets told why, and its owner may look at it."""

        async def story(shop: Shop) -> None:
            key = shop.upload(meal()[:-2000])
            with pytest.raises(TruncatedImage):
                await shop.score(key)
            await shop.service.pipeline.drained()
            assert shop.stored() == {key}

        play(story)

    def test_that_failed_may_be_tried_again(self, play):
        """By whoever asks: what was away then may be here now."""

        async def story(shop: Shop) -> None:
            key = shop.upload(meal())
            failed = Job(profile=ANA, failed=Failure(code="scorer_unavailable", detail="Nobody was there."))
            result_id = key.rpartition("/")[2]
            await shop.service.results.put_job(shop.me, result_id, failed.model_dump_json().encode())
            with pytest.raises(ScorerUnavailable, match="Nobody was there"):
                await shop.service.records.look(shop.me, result_id)
            assert await shop.arrivals.later_by_key(shop.me, key, Profile()) == result_id
            assert await shop.waits(result_id)
            result = await shop.score(key)
            assert (result.id, result.user) == (result_id, "ana")

        play(story)

    def test_is_for_whom_it_was_sent_unless_somebody_says_otherwise(self, play):
        async def story(shop: Shop) -> None:
            for profile, user in ((None, "ana"), (Profile(), "ana"), (Profile(user="ben"), "ben")):
                asked = UploadIn(media_type="image/jpeg", bytes=100_000, profile=ANA)
                promised = await shop.arrivals.promise(shop.me, asked)
                shop.put(promised.key, meal())
                assert (await shop.score(promised.key, profile)).user == user

        play(story)

    def test_needs_a_bucket(self, make_local, tmp_path):
        async def story() -> None:
            local = make_local(store=str(tmp_path / "photos"))
            asked = UploadIn(media_type="image/jpeg", bytes=1)
            with pytest.raises(NeedsObjectStorage):
                await local.service.arrivals.promise(local.service.access.directory.ids[0], asked)
            await local.service.close()

        asyncio.run(story())


class TestByKey:
    def test_a_kept_photo_is_read_once_and_not_written_again(self, play):
        async def story(shop: Shop) -> None:
            first = await shop.sync(meal())
            shop.proxy.requests.clear()
            again = await shop.score(first.image.key, ANA)
            assert (again.duplicate_of, again.user, again.image) == (first.id, "ana", first.image)
            assert (shop.asked("GET"), shop.asked("PUT")) == ([first.image.key], [])

            # Judged anew, its way is that of a new photo, except that it is where it belongs.
            shop.service.judges.serving = shop.service.judges.serving.adjusted({"food": 1.0})
            anew = await shop.score(first.image.key)
            assert (anew.duplicate_of, anew.status) == (None, "not_food")
            assert shop.written(first.image.key) == 1
            assert shop.stored() == {first.image.key}

        play(story)

    def test_another_object_of_one_s_own_stays_where_it_is(self, play):
        async def story(shop: Shop) -> None:
            key = f"{shop.me}/inbox/lunch.jpg"
            shop.put(key, meal())
            result = await shop.score(key)
            assert shop.stored() == {key, result.image.key}
            assert result.image.key == shop.place_of(meal())

        play(story)

    def test_too_large_a_photo_is_not_read(self, play):
        async def story(shop: Shop) -> None:
            key = shop.upload(meal() + bytes(200_000))
            with pytest.raises(BodyTooLarge, match="more than 100000 bytes"):
                await shop.score(key)
            assert shop.scorer.calls == 0
            assert shop.stored() == {key}

        play(story, max_body_bytes=100_000)

    def test_reading_counts_for_the_budget(self, play):
        async def story(shop: Shop) -> None:
            key = shop.upload(meal())
            shop.proxy.goes("slow", times=1)
            with pytest.raises(DeadlineExceeded):
                await shop.score(key, budget_s=0.3)
            assert (await shop.score(key)).id in key

        play(story)

    @pytest.mark.parametrize(
        "key", ["inbox/lunch.jpg", "{other}/inbox/lunch.jpg", "uploads/{other}/lunch.jpg"]
    )
    def test_what_is_not_one_s_own_is_not_found_and_the_store_not_asked(self, play, key: str):
        async def story(shop: Shop) -> None:
            name = key.format(other=shop.other)
            shop.put(name, meal())
            for call in (
                shop.score(name),
                shop.arrivals.later_by_key(shop.me, name, Profile()),
                shop.score(key.format(other="nobody"), tenant="nobody"),
            ):
                with pytest.raises(NotFound):
                    await call
            assert shop.proxy.requests == []
            assert shop.sent == []

        play(story)

    def test_nor_is_what_is_not_there(self, play):
        async def story(shop: Shop) -> None:
            for key in (upload_key(shop.me, UNKNOWN), f"{shop.me}/inbox/lunch.jpg"):
                for call in (shop.score(key), shop.arrivals.later_by_key(shop.me, key, ANA)):
                    with pytest.raises(NotFound):
                        await call
            assert shop.sent == []
            assert await shop.unknown(UNKNOWN)

        play(story)


class TestTheIdOfAResult:
    def test_is_the_same_for_the_same_content_and_another_for_other(self, play):
        async def story(shop: Shop) -> None:
            key = f"uploads/{shop.me}/lunch.jpg"
            etag = shop.put(key, meal())
            first = await shop.arrivals.id_of(shop.me, key, etag)
            ids = await asyncio.gather(*(shop.arrivals.id_of(shop.me, key, etag) for _ in range(4)))
            assert set(ids) == {first}
            others = [
                await shop.arrivals.id_of(shop.me, key, shop.put(key, meal(1))),
                await shop.arrivals.id_of(shop.me, f"{key}.jpg", etag),
                await shop.arrivals.id_of(shop.other, f"uploads/{shop.other}/lunch.jpg", etag),
            ]
            assert len({first, *others}) == 4

        play(story)

    def test_needs_no_etag_where_the_store_can_be_asked(self, play):
        async def story(shop: Shop) -> None:
            key = f"uploads/{shop.me}/lunch.jpg"
            shop.put(key, meal())
            asked = await shop.arrivals.id_of(shop.me, key)
            version = (await shop.service.images.shared.head(key)).version
            assert asked == await shop.arrivals.id_of(shop.me, key, version or "")
            with pytest.raises(NotFound):
                await shop.arrivals.id_of(shop.me, f"{key}.jpg")

        play(story)

    def test_of_an_upload_is_in_its_key(self, play):
        async def story(shop: Shop) -> None:
            assert await shop.arrivals.id_of(shop.me, upload_key(shop.me, UNKNOWN)) == UNKNOWN
            assert shop.proxy.requests == []

        play(story)

    def test_holds_for_what_comes_without_a_promise(self, play):
        """Two messages about one object: one result, and the object is gone after the first."""

        async def story(shop: Shop) -> None:
            key = f"uploads/{shop.me}/monday/lunch.jpg"
            etag = shop.put(key, meal())
            results = []
            for _ in range(2):
                result_id = await shop.arrivals.id_of(shop.me, key, etag)
                results.append(await shop.score(key, result_id=result_id))
                assert results[-1].id == result_id
            assert results[0] == results[1]
            assert shop.stored() == {shop.place_of(meal())}

        play(story)


class TestLater:
    def test_leaves_a_job_the_photo_and_a_message(self, play):
        async def story(shop: Shop) -> None:
            result_id = await shop.arrivals.later(shop.photo(meal(), user="ana"))
            key = upload_key(shop.me, result_id)
            assert shop.stored() == {key}
            assert await shop.waits(result_id)
            [message] = shop.sent
            assert parse(message) == (Arrival(shop.bucket, f"pre/fix/{key}"),)
            place = shop.service.places.of(shop.bucket, f"pre/fix/{key}")
            assert place
            assert (place.tenant.id, place.key) == (shop.me, key)
            assert shop.scorer.calls == 0

            result = await shop.score(place.key)
            assert (result.id, result.user) == (result_id, "ana")
            assert shop.stored() == {result.image.key}

        play(story)

    def test_does_not_take_what_is_no_image(self, play):
        async def story(shop: Shop) -> None:
            with pytest.raises(UnsupportedMediaType):
                await shop.arrivals.later(shop.photo(b"no image at all, but long enough to be looked at"))
            assert (shop.stored(), shop.sent) == (set(), [])

        play(story)

    def test_that_fails_leaves_nothing(self, play, store):
        async def story(shop: Shop) -> None:
            shop.queue_away = True
            with pytest.raises(QueueUnavailable):
                await shop.arrivals.later(shop.photo(meal()))
            await shop.service.pipeline.drained()
            shop.queue_away = False
            shop.proxy.goes("deny", times=1)
            with pytest.raises(ImagesUnavailable):
                await shop.arrivals.later(shop.photo(meal()))
            await shop.service.pipeline.drained()
            assert (shop.stored(), shop.sent) == (set(), [])
            assert keys(store.url, shop.me) == set()

        play(story)

    def test_the_same_request_has_the_same_id(self, play):
        async def story(shop: Shop) -> None:
            photo = shop.photo(meal(), "key", user="ana")
            first = await shop.arrivals.later(photo)
            ids = await asyncio.gather(*(shop.arrivals.later(photo) for _ in range(4)))
            assert set(ids) == {first}
            assert shop.written(upload_key(shop.me, first)) == 1
            result = await shop.score(upload_key(shop.me, first))
            sent = list(shop.sent)
            assert await shop.arrivals.later(photo) == first == result.id
            assert shop.sent == sent, "what is scored is not sent again"
            assert shop.stored() == {result.image.key}

        play(story)

    def test_the_same_key_for_something_else_is_refused(self, play):
        async def story(shop: Shop) -> None:
            first = await shop.arrivals.later(shop.photo(meal(), "key"))
            for other in (shop.photo(meal(1), "key"), shop.photo(meal(), "key", user="ana")):
                with pytest.raises(IdempotencyKeyReused):
                    await shop.arrivals.later(other)
            assert shop.stored() == {upload_key(shop.me, first)}
            assert await shop.arrivals.later(shop.photo(meal(), "another")) != first

        play(story)

    def test_a_retry_after_a_failure_goes_on_where_it_ended(self, play):
        async def story(shop: Shop) -> None:
            photo = shop.photo(meal(), "key")
            shop.queue_away = True
            with pytest.raises(QueueUnavailable):
                await shop.arrivals.later(photo)
            shop.queue_away = False
            result_id = await shop.arrivals.later(photo)
            assert shop.stored() == {upload_key(shop.me, result_id)}
            assert len(shop.sent) == 1

        play(story)


class TestLaterByKey:
    def test_leaves_a_job_and_a_message(self, play):
        async def story(shop: Shop) -> None:
            key = f"{shop.me}/inbox/lunch.jpg"
            shop.put(key, meal())
            result_id = await shop.arrivals.later_by_key(shop.me, key, ANA)
            assert await shop.arrivals.later_by_key(shop.me, key, ANA) == result_id
            assert await shop.waits(result_id)
            assert json.loads(shop.sent[0]) == {"bucket": shop.bucket, "key": f"pre/fix/{key}"}
            result = await shop.score(key, result_id=await shop.arrivals.id_of(shop.me, key))
            assert (result.id, result.user) == (result_id, "ana")
            sent = list(shop.sent)
            assert await shop.arrivals.later_by_key(shop.me, key, ANA) == result_id
            assert shop.sent == sent, "what is scored is not sent again"

        play(story)

    def test_an_upload_stays_whose_it_was(self, play):
        async def story(shop: Shop) -> None:
            asked = UploadIn(media_type="image/jpeg", bytes=100_000, profile=ANA)
            promised = await shop.arrivals.promise(shop.me, asked)
            shop.put(promised.key, meal())
            assert await shop.arrivals.later_by_key(shop.me, promised.key, Profile()) == promised.id
            assert (await shop.score(promised.key)).user == "ana"

        play(story)


class TestWhatWaits:
    def test_is_taken_off_whole(self, play, store):
        async def story(shop: Shop) -> None:
            result_id = await shop.arrivals.later(shop.photo(meal()))
            with pytest.raises(NotFound):
                await shop.service.records.delete(shop.other, result_id)
            assert await shop.waits(result_id)
            await shop.service.records.delete(shop.me, result_id)
            assert shop.stored() == set()
            assert keys(store.url, shop.me) == {f"job:{result_id}"}  # the mark, with nothing of the profile
            _, mark = await shop.service.results.find(shop.me, result_id)
            assert Job.model_validate_json(mark or b"") == Job(deleted=True)
            assert await shop.unknown(result_id)
            with pytest.raises(NotFound):  # as the message about it will find
                await shop.score(upload_key(shop.me, result_id))
            with pytest.raises(NotFound):
                await shop.service.records.delete(shop.me, result_id)

        play(story)

    def test_is_taken_off_while_it_is_being_scored(self, play, store):
        async def story(shop: Shop) -> None:
            result_id = await shop.arrivals.later(shop.photo(meal(), user="ann"))

            async def deleted_meanwhile(_: PhotoJob) -> None:
                await shop.service.records.delete(shop.me, result_id)

            shop.scorer.before = deleted_meanwhile
            with pytest.raises(NotFound):
                await shop.score(upload_key(shop.me, result_id))
            await shop.service.pipeline.drained()
            assert shop.stored() == set()
            assert keys(store.url, shop.me) - {"tip:ann"} == {f"job:{result_id}"}
            assert await shop.unknown(result_id)

        play(story)

    def test_says_what_kept_it_from_being_scored(self, play):
        async def story(shop: Shop) -> None:
            for code in ("image_truncated", "body_too_large", "credentials_unavailable"):
                job = Job(failed=Failure(code=code, detail=f"Words about {code}."))
                await shop.service.results.put_job(shop.me, UNKNOWN, job.model_dump_json().encode())
                with pytest.raises(FoodDXError, match=f"Words about {code}") as failed:
                    await shop.service.records.look(shop.me, UNKNOWN)
                assert failed.value.code == code

        play(story)


class TestWhatIsInAPhotoSPlace:
    def test_and_is_something_else_is_not_ours_to_delete(self, play):
        async def story(shop: Shop) -> None:
            place = shop.place_of(meal())
            shop.put(place, b"something else")
            key = shop.upload(meal())
            for call in (shop.score(key), shop.sync(meal())):
                with pytest.raises(ImageConflict):
                    await call
                await shop.service.pipeline.drained()
            assert shop.stored() == {place, key}
            assert shop.written(place) == 1
            assert shop.asked("DELETE") == []

        play(story)

    def test_after_nobody_waited_for_it_any_more_is_swept(self, play, store, monkeypatch):
        """S3 took the photo after it was given up on and deleted; only the sweep can know."""
        monkeypatch.setattr(records, "SWEEP_AGE", timedelta(seconds=-1))
        hasty = S3Limits(connect_s=20, attempt_s=0.2, total_s=20, retries=0)

        async def story(shop: Shop) -> None:
            shop.proxy.delay_s = 1.0
            shop.proxy.goes("slow", times=1)
            with pytest.raises(ImagesUnavailable, match="is slow"):
                await shop.sync(meal())
            # The store is quick again for the clean-up.
            shop.service.images.shared = S3Images(Bucket.at(f"s3://{shop.bucket}/pre/fix"), None, PATIENT)
            await shop.service.pipeline.drained()
            assert keys(store.url, shop.me) == {"pending"}
            async with asyncio.timeout(20):
                while shop.place_of(meal()) not in shop.stored():  # noqa: ASYNC110 - S3 tells nobody
                    await asyncio.sleep(0.05)
            assert await shop.service.records.sweep(shop.me) == 1
            assert shop.stored() == set()
            assert keys(store.url, shop.me) == set()
            assert (await shop.sync(meal())).duplicate_of is None

        play(story, hasty)

"""The intake, over moto's SQS and S3, real stores and the real model: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import intake as intakes
from app.errors import DeadlineExceeded, Overloaded, QueueUnavailable, ResultsUnavailable, ScorerUnavailable
from app.intake import Intake, NotTold, Pace
from app.messages import PhotoJob
from app.schemas import Job, Profile, Result, UploadIn
from app.stores.embedded import EmbeddedStore
from app.stores.images import image_key
from app.stores.queue import Queue, QueueLimits, Received
from app.stores.tenants import TenantAdmin
from app.tenants.tenants import Directory, Tenant
from tests.conftest import Local
from tests.rooms import keys, meal, wall
from tests.stores.faults import FaultProxy, make_bucket, somebody_else, use_aws

# Short polls, since a stop waits for one; and patient: a busy machine must not look like a slow queue.
LIMITS = QueueLimits(connect_s=20, read_s=20, poll_s=1)
WAITING, IN_FLIGHT = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"


# --- the pace -------------------------------------------------------------------------------------

most = st.integers(1, 64)
QUICK, SLOW = 0.01, 0.5
waits = st.sampled_from([QUICK, SLOW, None]) | st.floats(0, 10)
"""Of photos, in seconds; None: refused."""


def paced(most: int, history: Sequence[float | None]) -> Pace:
    pace = Pace(most, wait_s=0.1)
    for wait in history:
        pace.refused() if wait is None else pace.waited(wait)
    return pace


histories = st.builds(paced, most, st.lists(waits, max_size=200))


@given(most, st.lists(waits, max_size=200))
def test_the_pace_stays_in_its_bounds(most: int, history: list[float | None]) -> None:
    for length in range(len(history) + 1):
        assert 1 <= paced(most, history[:length]).allowed <= most


@given(histories, st.lists(st.floats(0.1, 10, exclude_min=True) | st.none(), max_size=50))
def test_no_wait_over_the_bound_and_no_refusal_raises_it(pace: Pace, bad: list[float | None]) -> None:
    for wait in bad:
        before = pace.allowed
        pace.refused() if wait is None else pace.waited(wait)
        assert pace.allowed <= before


@given(histories)
def test_a_refusal_halves_it(pace: Pace) -> None:
    before = pace.allowed
    pace.refused()
    assert pace.allowed == max(1, before // 2)


@given(histories)
def test_photos_that_were_under_way_together_halve_it_once(pace: Pace) -> None:
    for _ in range(64):  # whatever it was settling from, it is no more
        pace.waited(QUICK)
    before = pace.allowed
    for _ in range(before):
        pace.waited(SLOW)
    assert pace.allowed == max(1, before // 2)


@given(most, st.lists(waits, max_size=200))
def test_it_recovers_whatever_happened(most: int, history: list[float | None]) -> None:
    pace = paced(most, history)
    for _ in range(most * most):
        pace.waited(QUICK)
    assert pace.allowed == most


# --- the world around an intake -------------------------------------------------------------------


@dataclass(frozen=True)
class Cloud:
    """A bucket, the queue that it tells, and the dead letters; seen by somebody else with access to them."""

    s3: Any
    sqs: Any
    bucket: str
    queue: str
    dead: str

    @property
    def settings(self) -> dict[str, str]:
        return {
            "store": f"s3://{self.bucket}/photos",
            "queue": self.queue,
            "dead_letter_queue": self.dead,
        }

    def put(self, key: str, body: bytes) -> str:
        """An object under a key of the store; its etag."""
        answer = self.s3.put_object(Bucket=self.bucket, Key=f"photos/{key}", Body=body)
        return str(answer["ETag"]).strip('"')

    def stored(self) -> set[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="photos/").get("Contents", ())
        return {item["Key"].removeprefix("photos/") for item in found} - {"fooddx-ready"}

    def send(self, body: str) -> None:
        self.sqs.send_message(QueueUrl=self.queue, MessageBody=body)

    def ask(self, key: str) -> None:
        """A message of our own."""
        self.send(json.dumps({"bucket": self.bucket, "key": f"photos/{key}"}))

    def visible_after(self, seconds: int) -> None:
        self.sqs.set_queue_attributes(QueueUrl=self.queue, Attributes={"VisibilityTimeout": str(seconds)})

    def redrives_after(self, receives: int) -> None:
        asked = self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["QueueArn"])
        policy = {"deadLetterTargetArn": asked["Attributes"]["QueueArn"], "maxReceiveCount": receives}
        self.sqs.set_queue_attributes(QueueUrl=self.queue, Attributes={"RedrivePolicy": json.dumps(policy)})

    def count(self, *names: str) -> int:
        asked = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=list(names))
        return sum(int(asked["Attributes"][name]) for name in names)

    def drain(self) -> None:
        """Take away what waits in the queue."""
        while messages := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])

    def empty(self) -> bool:
        return self.count(WAITING, IN_FLIGHT) == 0

    def dead_letters(self) -> list[tuple[str, dict[str, str]]]:
        """The body of each, and what stands beside it."""
        found = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.dead, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                beside = message.get("MessageAttributes", {})
                found.append((message["Body"], {name: part["StringValue"] for name, part in beside.items()}))
        return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait that spreads load is short, or as short as SQS has them."""
    monkeypatch.setattr(intakes, "_PAUSES_S", (0.02,))
    monkeypatch.setattr(intakes, "_BACKOFFS_S", (1,))


@pytest.fixture
def cloud(moto: str, monkeypatch: pytest.MonkeyPatch, own_session: None) -> Iterator[Cloud]:
    use_aws(monkeypatch, moto)
    with somebody_else(moto, "s3") as s3, somebody_else(moto, "sqs") as sqs:
        name = make_bucket(moto)
        paths = [httpx.URL(sqs.create_queue(QueueName=f"{name}-{of}")["QueueUrl"]).path for of in ("q", "d")]
        made = Cloud(s3, sqs, name, *(f"{moto}{path}" for path in paths))
        asked = sqs.get_queue_attributes(QueueUrl=made.queue, AttributeNames=["QueueArn"])
        rule = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "photos/uploads/"}]}}
        arn = asked["Attributes"]["QueueArn"]
        told = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": rule}
        s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"QueueConfigurations": [told]}
        )
        made.drain()  # what S3 tries the queue out with; one test is about it
        yield made


@dataclass
class Desk:
    """A service over the cloud, whose intakes tell ``told``, in this order and with this outcome."""

    local: Local
    cloud: Cloud
    told: list[tuple[str, str, bytes]] = field(default_factory=list)
    tell: Callable[[], Awaitable[None]] | None = None
    pace: Pace = field(default_factory=lambda: Pace(4))

    @property
    def tenant(self) -> str:
        return self.local.service.access.directory.ids[-1]

    @property
    def kept(self) -> set[str]:
        """The first words of the tenant's keys in Redis: result, refs, seen, job, object …"""
        return {key.partition(":")[0] for key in keys(self.redis_url, self.tenant)}

    redis_url: str = ""

    def outcomes(self, outcome: str) -> float:
        return self.local.meter.total("fooddx_intake_total", outcome=outcome)

    def intake(self, tries: int = 4) -> Intake:
        async def tell(tenant: Tenant, result_id: str, body: bytes) -> None:
            self.told.append((tenant.id, result_id, body))
            if self.tell:
                await self.tell()

        return Intake(
            queue=Queue(self.cloud.queue, LIMITS),
            dead_letters=Queue(self.cloud.dead, LIMITS),
            service=self.local.service,
            tell=tell,
            pace=self.pace,
            tries=tries,
        )

    @contextlib.asynccontextmanager
    async def at_work(self, tries: int = 4) -> AsyncIterator[Intake]:
        """An intake that runs; nothing may have made it end before it is stopped."""
        intake = self.intake(tries)
        running = asyncio.create_task(intake.run())
        try:
            yield intake
            assert not running.done()
        finally:
            await intake.stop(20)
            await running

    async def works_off(self, tries: int = 4) -> None:
        """Run an intake until the queue is empty."""
        async with self.at_work(tries):
            await until(self.cloud.empty)

    async def promised(self, photo: bytes, **profile: Any) -> str:
        """Upload a photo by a form; the id of its result to come."""
        asked = UploadIn(media_type="image/jpeg", bytes=len(photo), profile=Profile(**profile))
        upload = await self.local.service.arrivals.promise(self.tenant, asked)
        async with httpx.AsyncClient(trust_env=False) as client:
            sent = await client.post(upload.url, data=upload.fields, files={"file": photo})
        assert sent.is_success, sent.text
        return upload.id

    async def get(self, result_id: str) -> tuple[int, dict[str, Any]]:
        async with self.local.client() as client:
            answer = await client.get(f"/v1/scores/{result_id}")
        return answer.status_code, answer.json()

    def results(self) -> list[str]:
        ids = [key.split(":")[1] for key in keys(self.redis_url, self.tenant) if key.startswith("result:")]
        return sorted(ids)


Story = Callable[[Desk], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(make_local: Callable[..., Local], store: EmbeddedStore, cloud: Cloud) -> Play:
    """Run a story at a desk, which stores what the settings given here say, and else what its cloud does."""

    def run(story: Story, redis_url: str = store.url, **settings: Any) -> None:
        async def whole() -> None:
            local = make_local(redis_url=redis_url, **cloud.settings | settings)
            try:
                await story(Desk(local, cloud, redis_url=redis_url))
            finally:
                await local.service.close()

        asyncio.run(whole())

    return run


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - a queue has no event for it
            await asyncio.sleep(0.02)


class Gate:
    """Holds photos at the scorer's door until it is opened."""

    def __init__(self, desk: Desk) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        self.most = 0
        desk.local.scorer.before = self._wait

    async def _wait(self, _: PhotoJob) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1


def failing(*errors: Exception) -> Callable[[PhotoJob], Awaitable[None]]:
    """A ``before`` that raises these in turn, then nothing more."""
    left = list(errors)

    async def before(_: PhotoJob) -> None:
        if left:
            raise left.pop(0)

    return before


def always(error: Exception) -> Callable[[PhotoJob], Awaitable[None]]:
    async def before(_: PhotoJob) -> None:
        raise error

    return before


def event(bucket: str, *objects: tuple[str, str], name: str = "ObjectCreated:Put") -> str:
    """What S3 says of objects, each a key of the store and an etag."""
    records = [
        {
            "eventName": name,
            "s3": {"bucket": {"name": bucket}, "object": {"key": f"photos/{key}", "eTag": etag}},
        }
        for key, etag in objects
    ]
    return json.dumps({"Records": records})


# --- what becomes of a message --------------------------------------------------------------------


def test_an_upload_becomes_its_result_and_only_then_is_its_message_deleted(play: Play) -> None:
    async def story(desk: Desk) -> None:
        in_flight = []

        async def tell() -> None:
            in_flight.append(desk.cloud.count(IN_FLIGHT))

        desk.tell = tell
        promised = await desk.promised(meal(), user="ann")
        assert (await desk.get(promised))[0] == 202
        await desk.works_off()
        status, result = await desk.get(promised)
        assert (status, result["id"], result["user"], result["score"]) == (200, promised, "ann", 4)
        assert [(tenant, told) for tenant, told, _ in desk.told] == [(desk.tenant, promised)]
        assert Result.model_validate_json(desk.told[0][2]).id == promised
        assert in_flight[0] >= 1
        # The upload is gone, the photo is kept, and nothing waits any more.
        assert desk.cloud.stored() == {image_key(desk.tenant, result["image"]["sha256"])}
        assert desk.kept == {"result", "seen", "refs", "diary", "tip"}
        assert desk.cloud.dead_letters() == []

    play(story)


def test_what_asks_for_nothing_is_deleted(play: Play) -> None:
    async def story(desk: Desk) -> None:
        kept = image_key(desk.tenant, "ab" * 32)
        desk.cloud.send(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
        desk.cloud.send(
            event(desk.cloud.bucket, (f"uploads/{desk.tenant}/a", "e"), name="ObjectRemoved:Delete")
        )
        desk.cloud.send(event(desk.cloud.bucket, (kept, "e")))  # about what the service itself has stored
        desk.cloud.send(event(desk.cloud.bucket, (f"uploads/{desk.tenant}/deleted-meanwhile", "e")))
        await desk.works_off()
        assert (desk.local.scorer.calls, desk.told, desk.cloud.dead_letters()) == (0, [], [])
        assert desk.results() == []

    play(story)


def test_of_several_records_each_is_scored_and_the_bad_one_named(play: Play) -> None:
    async def story(desk: Desk) -> None:
        names = [f"uploads/{desk.tenant}/bulk/{n} +é" for n in range(3)]
        bodies = [meal(1), b"no photo", wall()]
        etags = [desk.cloud.put(name, body) for name, body in zip(names, bodies, strict=True)]
        desk.cloud.drain()
        quoted = [name.replace(" ", "+").replace("+é", "%2B%C3%A9") for name in names]
        body = event(desk.cloud.bucket, *zip(quoted, etags, strict=True))
        desk.cloud.send(body)
        await desk.works_off()
        assert len(desk.results()) == 2
        assert {key for key in desk.cloud.stored() if key.startswith("uploads/")} == {names[1]}
        ((letter, beside),) = desk.cloud.dead_letters()
        assert (letter, beside["code"]) == (body, "unsupported_media_type")

    play(story)


def test_a_photo_that_cannot_be_scored_is_a_dead_letter_at_once_and_says_why(play: Play) -> None:
    async def story(desk: Desk) -> None:
        bad = await desk.promised(meal()[:2000])
        gone = await desk.promised(meal(1))
        desk.cloud.s3.delete_object(Bucket=desk.cloud.bucket, Key=f"photos/uploads/{desk.tenant}/{gone}")
        await desk.works_off()
        for result_id, expected in ((bad, (422, "image_truncated")), (gone, (404, "not_found"))):
            status, problem = await desk.get(result_id)
            assert (status, problem["code"]) == expected
        assert sorted(beside["code"] for _, beside in desk.cloud.dead_letters()) == [
            "image_truncated",
            "not_found",
        ]
        assert (desk.outcomes("given_up"), desk.outcomes("again"), desk.told) == (2, 0, [])

    play(story)


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("{", "malformed_message", "it is not JSON"),
        ('{"key": ""}', "malformed_message", "a key in it is not 1 to 1024 bytes of UTF-8"),
        ('{"bucket": "another", "key": "uploads/t/a"}', "not_found", "The object is under no tenant's name."),
        ('{"key": "uploads/nobody-here/a"}', "not_found", "The object is under no tenant's name."),
        ('{"key": "uploads/retired/a"}', "not_found", "The object is under no tenant's name."),
    ],
)
def test_what_can_never_be_scored_is_a_dead_letter_with_its_reason(
    play: Play, body: str, code: str, reason: str
) -> None:
    async def story(desk: Desk) -> None:
        access = desk.local.service.access
        retired = Tenant(id="retired", disabled=True, made_at=datetime.now(UTC))
        access.directory = Directory([retired, *access.directory.tenants])
        desk.cloud.send(body)
        await desk.works_off()
        assert desk.cloud.dead_letters() == [(body, {"code": code, "reason": reason})]
        assert desk.local.scorer.calls == 0

    play(story)


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A Valkey that a test may stop and start, and fill with tenants."""
    running = EmbeddedStore(tmp_path / "own").start()
    yield running
    running.stop()


def test_a_tenant_may_be_newer_than_what_is_known_of_them(play: Play, own_store: EmbeddedStore) -> None:
    async def story(desk: Desk) -> None:
        assert await desk.local.service.access.refresh()
        with TenantAdmin(own_store.url) as admin:
            admin.add(Tenant(id="newcomer", made_at=datetime.now(UTC)))
        desk.cloud.put("uploads/newcomer/a.jpg", meal())
        await desk.works_off()
        assert [tenant for tenant, _, _ in desk.told] == ["newcomer"]
        assert desk.cloud.dead_letters() == []

    play(story, own_store.url)


# --- what another try mends -----------------------------------------------------------------------


def test_what_another_try_may_mend_comes_again_and_is_given_up_at_last(play: Play) -> None:
    async def story(desk: Desk) -> None:
        promised = await desk.promised(meal())
        desk.local.scorer.before = always(ScorerUnavailable("The models are elsewhere."))
        await desk.works_off(tries=3)
        assert (desk.outcomes("again"), desk.outcomes("given_up")) == (2, 1)
        ((_, beside),) = desk.cloud.dead_letters()
        assert beside == {"code": "scorer_unavailable", "reason": "The models are elsewhere."}
        assert (await desk.get(promised))[1]["code"] == "scorer_unavailable"
        # Somebody mends it and sends the message back.
        desk.local.scorer.before = None
        desk.cloud.ask(f"uploads/{desk.tenant}/{promised}")
        await desk.works_off()
        assert (await desk.get(promised))[0] == 200

    play(story)


def test_a_full_house_costs_no_try(play: Play) -> None:
    async def story(desk: Desk) -> None:
        promised = await desk.promised(meal())
        desk.local.scorer.before = failing(*[Overloaded("All places are taken.")] * 50)
        await desk.works_off(tries=1)
        assert (await desk.get(promised))[0] == 200
        assert (desk.outcomes("again"), desk.outcomes("scored"), desk.local.scorer.calls) == (0, 1, 51)

    play(story)


def test_an_outage_of_the_scorer_costs_those_in_hand_one_try_and_all_others_none(play: Play) -> None:
    async def story(desk: Desk) -> None:
        away = True
        asked = 0

        async def ready() -> None:
            nonlocal asked
            asked += 1
            if away:
                raise ScorerUnavailable

        async def before(_: PhotoJob) -> None:
            if away:
                raise ScorerUnavailable

        object.__setattr__(desk.local.service, "scorer_ready", ready)
        desk.local.scorer.before = before
        promised = [await desk.promised(meal(n)) for n in range(4)]
        async with desk.at_work(tries=2):
            await until(lambda: asked > 60)  # pauses of 20 ms
            assert desk.outcomes("again") == 1
            away = False
            await until(desk.cloud.empty)
        assert desk.outcomes("again") == 1
        assert [(await desk.get(result_id))[0] for result_id in promised] == [200] * 4
        assert desk.cloud.dead_letters() == []

    play(story)


def test_photos_that_cannot_be_reached_are_waited_for(
    play: Play, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, cloud: Cloud
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)

    async def story(desk: Desk) -> None:
        for n in range(4):
            cloud.put(f"uploads/{desk.tenant}/{n}.jpg", meal(n))
        proxy.stop()
        async with desk.at_work(tries=2):
            await until(lambda: desk.outcomes("again"))
            await asyncio.sleep(1.5)  # longer than a message that failed stays away
            assert desk.outcomes("again") == 1
            proxy.start()
            await until(cloud.empty)
        assert len(desk.results()) == 4
        assert cloud.dead_letters() == []

    play(story)


def test_results_that_cannot_be_written_are_waited_for(play: Play, own_store: EmbeddedStore) -> None:
    async def story(desk: Desk) -> None:
        for n in range(3):
            desk.cloud.put(f"uploads/{desk.tenant}/{n}.jpg", meal(n))
        own_store.stop()
        async with desk.at_work(tries=2):
            await until(lambda: desk.outcomes("again"))
            own_store.start()
            await until(desk.cloud.empty)
        assert desk.outcomes("again") == 1
        assert len(desk.results()) == 3
        assert desk.cloud.dead_letters() == []

    play(story, own_store.url)


def test_a_queue_that_is_away_is_waited_for(
    play: Play, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, cloud: Cloud
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", proxy.url)

    async def story(desk: Desk) -> None:
        async with desk.at_work():
            await until(lambda: proxy.requests)
            proxy.goes("fail")
            await until(lambda: len(proxy.requests) > 3)
            cloud.put(f"uploads/{desk.tenant}/1.jpg", meal())
            proxy.goes("")
            await until(lambda: desk.told)
            await until(cloud.empty)
        assert len(desk.results()) == 1

    play(story)


def test_why_a_photo_failed_is_told_to_whoever_waits_or_the_message_comes_again(play: Play) -> None:
    async def story(desk: Desk) -> None:
        promised = await desk.promised(meal()[:2000])
        put_job = desk.local.service.results.put_job
        failures = [ResultsUnavailable()]

        async def once_away(tenant: str, result_id: str, job: bytes) -> None:
            if failures and Job.model_validate_json(job).failed:
                raise failures.pop()
            await put_job(tenant, result_id, job)

        desk.local.service.results.put_job = once_away  # type: ignore[method-assign]
        await desk.works_off()
        assert (desk.outcomes("again"), desk.outcomes("given_up")) == (1, 1)
        assert (await desk.get(promised))[1]["code"] == "image_truncated"

    play(story)


# --- what nobody is told of, or too often ---------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "told", "dead"), [(True, 2, []), (False, 1, [{"code": "not_told", "reason": "Nobody there."}])]
)
def test_who_was_not_told_is_told_again_where_that_may_help(
    play: Play, again: bool, told: int, dead: list[Mapping[str, str]]
) -> None:
    async def story(desk: Desk) -> None:
        failures = [NotTold("Nobody there.", again=again)]

        async def tell() -> None:
            if failures:
                raise failures.pop()

        desk.tell = tell
        promised = await desk.promised(meal())
        await desk.works_off()
        assert (await desk.get(promised))[0] == 200
        assert (len(desk.told), desk.local.scorer.calls) == (told, 1)
        assert len({result for _, result, _ in desk.told}) == 1
        assert [beside for _, beside in desk.cloud.dead_letters()] == dead

    play(story)


# --- at least once, and visibly once --------------------------------------------------------------


def test_two_messages_about_one_object_make_one_result(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.pace = paced(4, [QUICK] * 16)
        gate = Gate(desk)
        etag = desk.cloud.put(f"uploads/{desk.tenant}/one.jpg", meal())
        desk.cloud.send(event(desk.cloud.bucket, (f"uploads/{desk.tenant}/one.jpg", etag)))
        async with desk.at_work():
            await until(lambda: desk.cloud.count(IN_FLIGHT) == 2 and gate.waiting)
            gate.opened.set()
            await until(desk.cloud.empty)
        assert (len(desk.results()), desk.local.scorer.calls) == (1, 1)
        assert len({result_id for _, result_id, _ in desk.told}) == 1
        assert desk.cloud.dead_letters() == []

    play(story)


def test_who_finds_the_upload_taken_away_by_a_twin_does_no_harm(play: Play) -> None:
    """The twin has looked for a result, and comes for the photo when the first is through with it."""

    async def story(desk: Desk) -> None:
        desk.pace = paced(4, [QUICK] * 16)
        arrivals = desk.local.service.arrivals
        fetch, fetches = arrivals._fetch, 0
        scored, looked = asyncio.Event(), asyncio.Event()

        async def late(*args: Any) -> bytes:
            nonlocal fetches
            fetches += 1
            if fetches == 2:
                await scored.wait()
            return await fetch(*args)

        async def tell() -> None:
            if not scored.is_set():
                scored.set()
                await looked.wait()  # the first is not through yet when the twin looks

        arrivals._fetch = late  # type: ignore[method-assign]
        desk.tell = tell
        gate = Gate(desk)
        promised = await desk.promised(meal())
        desk.cloud.ask(f"uploads/{desk.tenant}/{promised}")
        async with desk.at_work():
            await until(lambda: fetches == 2)
            gate.opened.set()
            await until(lambda: desk.outcomes("scored") == 1)
            looked.set()
            await until(desk.cloud.empty)
        assert (await desk.get(promised))[0] == 200
        assert (desk.cloud.dead_letters(), desk.outcomes("given_up")) == ([], 0)
        assert "job" not in desk.kept

    play(story)


def test_a_crash_between_result_and_delete_is_made_good_by_the_next(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.cloud.visible_after(2)
        promised = await desk.promised(meal())
        crashing = asyncio.Event()

        async def never() -> None:
            crashing.set()
            await asyncio.Event().wait()

        desk.tell = never
        first = desk.intake()
        running = asyncio.create_task(first.run())
        await crashing.wait()
        # As a kill does it: nobody gives anything back.
        dying = [running, *asyncio.all_tasks() - {running, asyncio.current_task()}]
        for task in dying:
            task.cancel()
        await asyncio.wait(dying)
        desk.tell = None
        await desk.works_off()
        assert desk.results() == [promised]
        assert [result for _, result, _ in desk.told] == [promised, promised]
        assert (desk.local.scorer.calls, desk.cloud.dead_letters()) == (1, [])
        await first._queue.close()

    play(story)


def test_what_nobody_planned_for_ends_as_the_queues_own_dead_letter(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.cloud.visible_after(1)
        desk.cloud.redrives_after(2)
        desk.local.scorer.before = always(ZeroDivisionError())
        desk.cloud.put(f"uploads/{desk.tenant}/cursed.jpg", meal())
        letters = []
        async with desk.at_work():
            await until(lambda: letters.extend(desk.cloud.dead_letters()) or letters)
            # The intake lives on.
            desk.local.scorer.before = None
            desk.cloud.put(f"uploads/{desk.tenant}/blessed.jpg", meal(1))
            await until(desk.cloud.empty)
        assert [("cursed" in body, beside) for body, beside in letters] == [(True, {})]
        assert len(desk.results()) == 1

    play(story)


def test_a_slow_photo_is_kept_from_others(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.cloud.visible_after(3)
        desk.local.service.pipeline.budget_s = 30
        gate = Gate(desk)
        promised = await desk.promised(meal())
        async with desk.at_work():
            await until(lambda: gate.waiting)
            await asyncio.sleep(4.5)
            assert desk.cloud.count(WAITING) == 0
            gate.opened.set()
            await until(desk.cloud.empty)
        assert (await desk.get(promised))[0] == 200
        assert (len(desk.told), desk.local.scorer.calls) == (1, 1)

    play(story)


def test_never_more_photos_at_once_than_the_pace_allows(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.pace = Pace(3)
        gate = Gate(desk)

        def arrive(*numbers: int) -> None:
            for n in numbers:
                desk.cloud.put(f"uploads/{desk.tenant}/{n}.jpg", meal(n))

        arrive(*range(6))
        async with desk.at_work():
            await until(lambda: gate.waiting == 1)
            await asyncio.sleep(0.3)
            assert desk.cloud.count(IN_FLIGHT) == 1  # it begins slowly
            gate.opened.set()
            await until(desk.cloud.empty)
            gate.opened.clear()
            arrive(*range(6, 12))
            await until(lambda: gate.waiting == 3)
            await asyncio.sleep(0.3)
            assert desk.cloud.count(IN_FLIGHT) == 3
            gate.opened.set()
            await until(desk.cloud.empty)
        assert gate.most == 3
        assert len(desk.results()) == 12
        in_hand = [value for name, value, _ in desk.local.meter.records if name == "fooddx_intake_in_flight"]
        assert (max(in_hand), in_hand[-1]) == (3, 0)

    play(story)


# --- the end --------------------------------------------------------------------------------------


def test_a_stop_finishes_what_it_can_and_gives_back_the_rest_at_once(play: Play) -> None:
    async def story(desk: Desk) -> None:
        desk.pace = paced(2, [QUICK] * 16)
        release = asyncio.Event()
        stuck = 0

        async def before(job: PhotoJob) -> None:
            nonlocal stuck
            stuck += 1
            await (release.wait() if job.data == meal(0) else asyncio.Event().wait())

        desk.local.scorer.before = before
        desk.cloud.visible_after(600)
        for n in range(3):
            desk.cloud.put(f"uploads/{desk.tenant}/{n}.jpg", meal(n))
        intake = desk.intake()
        running = asyncio.create_task(intake.run())
        await until(lambda: stuck == 2)
        stopping = asyncio.create_task(intake.stop(1))
        release.set()
        await asyncio.wait_for(stopping, 20)
        await running
        in_work = {result for _, result, _ in desk.told}
        # One was finished; the other is back, and the third never left.
        assert (len(in_work), desk.cloud.count(IN_FLIGHT), desk.cloud.count(WAITING)) == (1, 0, 2)
        desk.local.scorer.before = None
        await desk.works_off()
        assert len(desk.results()) == 3

    play(story)


class Scripted:
    """A queue of one message that notes down what is done to it, the first time ``call_s`` later."""

    def __init__(self, body: str, call_s: float = 0.0) -> None:
        self.message = Received(body, "receipt", "id", 1, datetime.now(UTC))
        self.done: list[str] = []
        self.received: Callable[[], None] = lambda: None
        self._left = [self.message]
        self._call_s = call_s

    async def receive(self, max_messages: int, wait_s: int) -> list[Received]:
        if not self._left:
            await asyncio.Event().wait()
        self.received()
        return [self._left.pop()]

    async def delete(self, message: Received) -> None:
        await self._in_a_thread("deleted")

    async def hide(self, message: Received, seconds: int) -> None:
        await self._in_a_thread("given back" if seconds == 0 else "hidden")

    async def send(self, body: str, attributes: Mapping[str, str]) -> None:
        self.done.append(attributes["code"])

    async def visibility_s(self) -> int:
        return 1

    async def close(self) -> None:
        self.done.append("closed")

    async def _in_a_thread(self, what: str) -> None:
        """Like a real one's calls, it goes on when whoever made it does not wait any more."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def call() -> None:
            self.done.append(what)
            loop.call_soon_threadsafe(ended.set)

        seconds, self._call_s = self._call_s, 0.0
        threading.Timer(seconds, call).start()
        await ended.wait()


def scripted(desk: Desk, queue: Scripted) -> Intake:
    async def tell(*_: object) -> None:
        return None

    return Intake(
        queue=queue, dead_letters=Scripted(""), service=desk.local.service, tell=tell, pace=Pace(1), tries=4
    )


def test_a_message_that_comes_as_the_intake_is_stopped_is_not_forgotten(play: Play) -> None:
    async def story(desk: Desk) -> None:
        etag = desk.cloud.put(f"uploads/{desk.tenant}/late.jpg", meal())
        queue = Scripted(event(desk.cloud.bucket, (f"uploads/{desk.tenant}/late.jpg", etag)))
        intake = scripted(desk, queue)
        stops: list[asyncio.Task[None]] = []
        queue.received = lambda: stops.append(asyncio.create_task(intake.stop(20)))
        await intake.run()
        await stops[0]
        assert queue.done == ["deleted", "closed"]
        assert len(desk.results()) == 1

    play(story)


@pytest.mark.parametrize(
    ("error", "last"), [(None, "deleted"), (DeadlineExceeded(), "hidden"), ("stop", "given back")]
)
def test_a_heartbeat_never_undoes_what_is_decided_after_it(
    play: Play, monkeypatch: pytest.MonkeyPatch, error: Exception | str | None, last: str
) -> None:
    """It takes a while; the work is over, or the intake stopped, while it is under way."""
    monkeypatch.setattr(intakes, "_LEAST_VISIBLE_S", 0.15)

    async def story(desk: Desk) -> None:
        async def before(_: PhotoJob) -> None:
            await asyncio.sleep(60 if error == "stop" else 0.3)
            if isinstance(error, Exception):
                raise error

        desk.local.scorer.before = before
        etag = desk.cloud.put(f"uploads/{desk.tenant}/slow.jpg", meal())
        queue = Scripted(event(desk.cloud.bucket, (f"uploads/{desk.tenant}/slow.jpg", etag)), call_s=0.6)
        intake = scripted(desk, queue)
        running = asyncio.create_task(intake.run())
        await until(lambda: desk.local.scorer.calls)
        await asyncio.sleep(0.3)
        await intake.stop(0.01 if error == "stop" else 20)
        await running
        assert queue.done == ["hidden", last, "closed"]

    play(story)


def test_a_queue_that_says_nothing_of_itself_is_not_pestered(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intakes, "_LEAST_VISIBLE_S", 0.3)

    async def story(desk: Desk) -> None:
        asked = 0

        async def away() -> int:
            nonlocal asked
            asked += 1
            raise QueueUnavailable

        gate = Gate(desk)
        etag = desk.cloud.put(f"uploads/{desk.tenant}/a.jpg", meal())
        queue = Scripted(event(desk.cloud.bucket, (f"uploads/{desk.tenant}/a.jpg", etag)))
        queue.visibility_s = away  # type: ignore[method-assign]
        intake = scripted(desk, queue)
        running = asyncio.create_task(intake.run())
        await until(lambda: gate.waiting)
        await asyncio.sleep(0.5)
        gate.opened.set()
        await intake.stop(20)
        await running
        assert 0 < asked < 20
        assert queue.done == ["deleted", "closed"]

    play(story)


def test_stops_that_find_nothing_to_do_end_at_once(play: Play) -> None:
    async def story(desk: Desk) -> None:
        intake = desk.intake()
        await intake.stop(20)  # before it ran
        await intake.run()

    play(story)

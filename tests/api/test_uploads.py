"""Photos that go straight into the bucket, and answers that come later."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.arrivals import Arrivals
from app.errors import TruncatedImage
from app.events import parse
from app.schemas import Failure, Job, Pending, Result, Upload
from app.stores.queue import Queue, QueueLimits, Received
from app.stores.s3 import Bucket, S3Images
from app.telemetry import Stages
from tests.api.conftest import Api, is_problem
from tests.conftest import Local
from tests.photos import coffee_jpeg
from tests.stores.faults import PATIENT, make_bucket, somebody_else, use_aws

LATER = {"Prefer": "respond-async"}
ASKED = {"media_type": "image/jpeg", "bytes": 100_000}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, moto: str, own_session: None) -> None:
    use_aws(monkeypatch, moto)


@pytest.fixture
def make_local(make_local: Callable[..., Local]) -> Iterator[Callable[..., Local]]:
    """A Local that sends to its queue as an ingress does, and whose bucket may take its time."""
    made: list[Queue] = []

    def make(**changes: Any) -> Local:
        local = make_local(**changes)
        service, settings = local.service, local.settings
        if settings.on_s3:
            service.images.shared = S3Images(Bucket.at(settings.store), None, PATIENT)
        if settings.queue:
            made.append(Queue(settings.queue, QueueLimits(read_s=20)))
            arrivals = Arrivals(
                images=service.images,
                results=service.results,
                pipeline=service.pipeline,
                places=service.places,
                max_bytes=settings.max_body_bytes,
                delete=local.service.records.delete,
                send=made[-1].send,
            )
            local.service = dataclasses.replace(service, arrivals=arrivals)
        return local

    yield make
    for queue in made:
        asyncio.run(queue.close())


@pytest.fixture
def bucket(moto: str) -> str:
    return make_bucket(moto)


@pytest.fixture
def api(make_api: Callable[..., Api], bucket: str) -> Api:
    """Photos in a bucket, and no queue."""
    return make_api(store=f"s3://{bucket}/pre/fix")


@dataclasses.dataclass
class Behind:
    """What is behind the service: its bucket, its queue, and an intake that works when it is told to."""

    api: Api
    bucket: str
    queue: Queue
    aws: Any

    def stored(self) -> set[str]:
        found = self.aws.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return {entry["Key"].removeprefix("pre/fix/") for entry in found}

    def messages(self) -> list[Received]:
        return self.api.run(self.queue.receive(10, wait_s=0))

    def intake(self) -> None:
        """Score what one message names."""
        [message] = self.messages()
        [arrival] = parse(message.body)
        service = self.api.local.service
        place = service.places.of(arrival.bucket, arrival.key)
        assert place
        score = service.arrivals.score(place.tenant.id, place.key, arrival.profile, Stages())
        self.api.run(score)


@pytest.fixture
def behind(make_api: Callable[..., Api], bucket: str, moto: str) -> Iterator[Behind]:
    with somebody_else(moto, "sqs") as sqs, somebody_else(moto, "s3") as s3:
        url = sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex}")["QueueUrl"]
        api = make_api(store=f"s3://{bucket}/pre/fix", queue=url, dead_letter_queue=url)
        queue = Queue(url, QueueLimits(read_s=20, poll_s=0))
        yield Behind(api, bucket, queue, s3)
        api.run(queue.close())


def send(upload: Upload, data: bytes) -> httpx.Response:
    return httpx.post(upload.url, data=upload.fields, files={"file": data}, trust_env=False)


def by_key(api: Api, key: str, headers: dict[str, str] | None = None, **profile: Any) -> httpx.Response:
    body = {"key": key} | ({"profile": profile} if profile else {})
    return api.post("/v1/scores", json=body, headers=headers)


def pending(response: httpx.Response) -> str:
    """The id of a result to come."""
    assert response.status_code == 202, response.text
    found = Pending.model_validate_json(response.content)
    assert response.headers["location"] == f"/v1/scores/{found.id}"
    assert int(response.headers["retry-after"]) >= 1
    assert uuid.UUID(found.id).version == 7
    return found.id


class TestAPresignedUpload:
    def asked(self, api: Api, **changes: Any) -> Upload:
        response = api.post("/v1/uploads", json=ASKED | changes)
        assert response.status_code == 201, response.text
        return Upload.model_validate_json(response.content)

    def test_becomes_a_result_under_the_id_that_was_promised(self, api):
        upload = self.asked(api, profile={"user": "ana"})
        path = f"/v1/scores/{upload.id}"
        assert pending(api.get(path)) == upload.id
        assert send(upload, coffee_jpeg()).status_code == 204
        assert pending(api.get(path)) == upload.id
        answer = by_key(api, upload.key)
        result = Result.model_validate_json(answer.content)
        assert (result.id, result.user) == (upload.id, "ana")
        assert answer.headers["server-timing"]
        assert api.get(path).content == answer.content == by_key(api, upload.key).content
        assert api.get(f"{path}/image").content == coffee_jpeg()
        assert api.get("/v1/scores", params={"user": "ana"}).json()["items"] == [answer.json()]

    def test_has_a_form_for_one_key_and_five_minutes(self, api, bucket):
        one, two = self.asked(api), self.asked(api)
        assert one.id != two.id
        assert one.key == f"uploads/{api.tenant}/{one.id}"
        assert one.fields["key"] == f"pre/fix/{one.key}"
        assert abs(one.expires_at - datetime.now(UTC) - timedelta(minutes=5)) < timedelta(minutes=1)
        assert one.url.endswith(f"/{bucket}")

    @pytest.mark.parametrize(("asked", "allowed"), [(1, 1), (2048, 2048), (2049, 2048), (10**15, 2048)])
    def test_is_no_larger_than_was_asked_nor_than_any_photo_may_be(
        self, make_api, bucket, asked: int, allowed: int
    ):
        api = make_api(store=f"s3://{bucket}", max_body_bytes=2048)
        policy = json.loads(base64.b64decode(self.asked(api, bytes=asked).fields["policy"]))
        assert ["content-length-range", 1, allowed] in policy["conditions"]

    def test_that_is_larger_all_the_same_is_not_scored(self, make_api, bucket):
        """The emulator takes any size; S3 would not."""
        api = make_api(store=f"s3://{bucket}", max_body_bytes=2048)
        upload = self.asked(api)
        assert send(upload, coffee_jpeg()).is_success
        is_problem(by_key(api, upload.key), 413, "body_too_large")

    def test_that_nobody_sent_is_not_found(self, api):
        is_problem(by_key(api, self.asked(api).key), 404, "not_found")

    def test_is_taken_off_with_its_photo(self, api):
        upload = self.asked(api)
        assert send(upload, coffee_jpeg()).is_success
        assert api.delete(f"/v1/scores/{upload.id}").status_code == 204
        is_problem(api.get(f"/v1/scores/{upload.id}"), 404, "not_found")
        is_problem(by_key(api, upload.key), 404, "not_found")

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({**ASKED, "media_type": "text/html"}, 422, "invalid_field"),
            ({**ASKED, "bytes": 0}, 422, "invalid_field"),
            ({**ASKED, "key": "of my choice"}, 422, "invalid_field"),
            ({**ASKED, "profile": {"user": "../ana"}}, 422, "invalid_field"),
            ({}, 422, "invalid_field"),
        ],
    )
    def test_must_be_asked_for_properly(self, api, body: Any, status: int, code: str):
        is_problem(api.post("/v1/uploads", json=body), status, code)

    def test_needs_a_bucket(self, make_api):
        problem = is_problem(make_api().post("/v1/uploads", json=ASKED), 501, "needs_object_storage")
        assert "send the photo itself" in problem.detail


class TestAnAnswerLater:
    def test_is_where_location_says(self, behind):
        form = {"files": {"image": coffee_jpeg()}, "data": {"profile": '{"user": "ana"}'}}
        result_id = pending(behind.api.post("/v1/scores", **form, headers=LATER))
        path = f"/v1/scores/{result_id}"
        assert behind.stored() == {f"uploads/{behind.api.tenant}/{result_id}"}
        assert pending(behind.api.get(path)) == result_id
        assert behind.api.local.scorer.calls == 0
        behind.intake()
        result = Result.model_validate_json(behind.api.get(path).content)
        assert (result.id, result.user, result.duplicate_of) == (result_id, "ana", None)
        assert behind.stored() == {result.image.key}

    @pytest.mark.parametrize(
        "prefer", ["respond-async", "Respond-Async", "wait=10, respond-async", "respond-async; x=1"]
    )
    def test_is_asked_for_in_many_words(self, behind, prefer: str):
        pending(behind.api.score(coffee_jpeg(), {"Prefer": prefer}))

    @pytest.mark.parametrize("prefer", ["", "wait=10", "return=minimal", "respond-asynchronously"])
    def test_and_is_not_given_to_whoever_did_not_ask(self, behind, prefer: str):
        assert behind.api.score(coffee_jpeg(), {"Prefer": prefer}).status_code == 200
        assert behind.messages() == []

    def test_is_not_given_without_a_queue(self, api):
        """RFC 7240 lets a server ignore what it cannot do."""
        answer = api.score(coffee_jpeg(), LATER)
        assert (answer.status_code, answer.json()["status"]) == (200, "scored")
        assert by_key(api, answer.json()["image"]["key"], LATER).status_code == 200

    def test_of_a_stored_photo(self, behind):
        first = behind.api.result(coffee_jpeg())
        result_id = pending(by_key(behind.api, first["image"]["key"], LATER, user="ana"))
        assert pending(by_key(behind.api, first["image"]["key"], LATER, user="ana")) == result_id
        assert {parse(message.body)[0].key for message in behind.messages()} == {
            f"pre/fix/{first['image']['key']}"
        }
        is_problem(by_key(behind.api, f"{behind.api.tenant}/missing", LATER), 404, "not_found")

    def test_is_the_same_for_the_same_idempotency_key(self, behind):
        headers = LATER | {"Idempotency-Key": "k"}
        result_id = pending(behind.api.score(coffee_jpeg(), headers))
        assert pending(behind.api.score(coffee_jpeg(), headers)) == result_id
        is_problem(behind.api.score(coffee_jpeg(quality=80), headers), 409, "idempotency_key_reused")
        assert behind.stored() == {f"uploads/{behind.api.tenant}/{result_id}"}

    def test_is_not_promised_of_what_is_no_photo(self, behind):
        is_problem(behind.api.score(b"words" * 20, LATER), 415, "unsupported_media_type")
        is_problem(behind.api.score(b"", LATER), 422, "image_empty")
        assert (behind.messages(), behind.stored()) == ([], set())

    def test_says_what_kept_the_photo_from_being_scored(self, behind):
        result_id = pending(behind.api.score(coffee_jpeg()[:-3000], LATER))
        with pytest.raises(TruncatedImage) as failed:
            behind.intake()
        failure = Failure(code=failed.value.code, detail=failed.value.detail)
        job = Job(failed=failure).model_dump_json().encode()
        results = behind.api.local.service.results
        behind.api.run(results.put_job(behind.api.tenant, result_id, job))
        problem = is_problem(behind.api.get(f"/v1/scores/{result_id}"), 422, "image_truncated")
        assert problem.detail == failed.value.detail

    def test_is_not_promised_without_a_queue_that_answers(self, make_api, bucket, moto, behind):
        url = f"{moto}/123456789012/no-such-queue"
        api = make_api(store=f"s3://{bucket}/pre/fix", queue=url, dead_letter_queue=url)
        problem = is_problem(api.score(coffee_jpeg(), LATER), 503, "queue_unavailable")
        assert moto not in problem.detail
        api.settled()
        assert behind.stored() == set()
        assert api.score(coffee_jpeg()).status_code == 200, "who waits for an answer needs no queue"

    def test_can_be_renounced(self, behind):
        result_id = pending(behind.api.score(coffee_jpeg(), LATER))
        assert behind.api.delete(f"/v1/scores/{result_id}").status_code == 204
        is_problem(behind.api.get(f"/v1/scores/{result_id}"), 404, "not_found")
        is_problem(behind.api.delete(f"/v1/scores/{result_id}"), 404, "not_found")
        assert behind.stored() == set()

"""Who is told of a result, by a queue in moto and a real TLS server; who is not, and why."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import httpx
import pytest

from app.errors import CredentialsUnavailable, FoodDXError
from app.intake import NotTold
from app.notices.notices import SCORED, Notices
from app.notices.webhook import Webhook, verify
from app.stores import queue as queues
from app.stores.queue import Queue, QueueLimits
from app.tenants.credentials import Secrets
from app.tenants.tenants import Tenant
from tests.notices.test_webhook import ID, SECRET, Receiver, certificates
from tests.stores.faults import FaultProxy, emulated_s3

RESULT = json.dumps({"id": ID, "status": "scored", "score": 4, "dishes": [{"name": "café"}]}).encode()


class Room:
    """A queue to be told, a receiver to be told, and a tenant who has sealed ``secrets``."""

    def __init__(self, sqs: Any, queue: str, receiver: Receiver, trusts: ssl.SSLContext) -> None:
        self.sqs, self.queue, self.receiver, self._trusts = sqs, queue, receiver, trusts
        self.secrets: Mapping[str, str] | FoodDXError | None = {"webhook_secret": SECRET}

    async def _open(self, tenant: Tenant) -> Secrets | None:
        if isinstance(self.secrets, FoodDXError):
            raise self.secrets
        return None if self.secrets is None else Secrets(self.secrets)

    def tell(self, path: str = "", *, queue: str = "") -> NotTold | None:
        """Tell of the result; what went wrong. ``path``: of the tenant's webhook; ``queue``: its URL."""

        async def run() -> NotTold | None:
            limits = QueueLimits(connect_s=20, read_s=20, attempts=1)
            webhook = Webhook(is_allowed=lambda _: True, tls=self._trusts)
            notices = Notices(Queue(queue, limits) if queue else None, self._open, webhook)
            url = self.receiver.url(path, "127.0.0.1") if path else ""
            tenant = Tenant(id="clinic", webhook=url, made_at=datetime.now(UTC))
            try:
                await notices.tell(tenant, ID, RESULT)
            except NotTold as error:
                return error
            finally:
                await notices.close()
            return None

        return asyncio.run(run())

    def queued(self) -> list[dict[str, Any]]:
        messages = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", ())
        return [json.loads(message["Body"]) for message in messages]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with emulated_s3() as url:
        yield url


@pytest.fixture
def room(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Room]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours-too")
    queues._session.cache_clear()
    shown, trusts = certificates(tmp_path)
    with (
        contextlib.closing(boto3.client("sqs", endpoint_url=moto, region_name="us-east-1")) as sqs,
        Receiver(shown) as receiver,
    ):
        path = httpx.URL(sqs.create_queue(QueueName=f"n-{uuid.uuid4().hex}")["QueueUrl"]).path
        thread = Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Room(sqs, f"{moto}{path}", receiver, trusts)
        receiver.test_is_over.set()
        receiver.shutdown()
        thread.join(30)
    queues._session.cache_clear()


def test_both_are_told_the_same_and_the_webhook_by_a_signature(room: Room) -> None:
    assert room.tell("/204", queue=room.queue) is None
    event = {"type": SCORED, "tenant": "clinic", "data": json.loads(RESULT)}
    assert room.queued() == [event]
    ((_, headers, body),) = room.receiver.seen
    assert json.loads(body) == event
    assert headers["webhook-id"] == ID
    assert verify(SECRET, headers, body, time.time())


def test_who_wants_to_know_nothing_is_told_nothing_and_no_secret_is_opened(room: Room) -> None:
    room.secrets = CredentialsUnavailable()
    assert room.tell() is None
    assert room.tell(queue=room.queue) is None
    assert (len(room.queued()), room.receiver.seen) == (1, [])


@pytest.mark.parametrize(
    ("path", "again", "reason"),
    [
        ("/503", True, "The webhook failed: the answer was 503."),
        ("/429", True, "The webhook failed: the answer was 429."),
        ("/410", False, "The webhook failed: the answer was 410."),
        ("/broken", True, "The webhook failed: the connection broke."),
    ],
)
def test_whether_another_try_may_help_is_as_the_webhook_says(
    room: Room, path: str, again: bool, reason: str
) -> None:
    failed = room.tell(path, queue=room.queue)
    assert failed
    assert (failed.again, str(failed)) == (again, reason)
    assert len(room.queued()) == 1  # it comes first, and is told again with the next try


@pytest.mark.parametrize(
    ("secrets", "again", "reason"),
    [
        (None, False, "The tenant's credentials have no webhook_secret."),
        ({"access_key_id": "a"}, False, "The tenant's credentials have no webhook_secret."),
        (CredentialsUnavailable("The key service is away."), True, "The key service is away."),
        (
            {"webhook_secret": "too short"},
            False,
            "The webhook failed: a webhook's secret is whsec_ and 24 to 64 bytes in base64.",
        ),
    ],
)
def test_nothing_is_sent_unsigned(
    room: Room, secrets: Mapping[str, str] | FoodDXError | None, again: bool, reason: str
) -> None:
    room.secrets = secrets
    failed = room.tell("/204")
    assert failed
    assert (failed.again, str(failed)) == (again, reason)
    assert room.receiver.seen == []


def test_a_queue_that_is_away_is_tried_again_before_the_webhook(room: Room, moto: str) -> None:
    with FaultProxy(moto) as proxy:
        proxy.goes("fail")
        failed = room.tell("/204", queue=room.queue.replace(moto, proxy.url))
        assert failed
        assert failed.again
        assert "fails with status 503" in str(failed)
        assert room.receiver.seen == []
        proxy.goes("")
        assert room.tell("/204", queue=room.queue.replace(moto, proxy.url)) is None
    assert len(room.receiver.seen) == len(room.queued()) == 1

"""A queue: what is taken is deleted, hidden or given back, and what the queue does wrong has words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError

from app.events import Arrival, parse
from app.stores import queue as queues
from app.stores.queue import (
    Queue,
    QueueLimits,
    QueueUnavailable,
    Received,
    check_queue_url,
    diagnose,
    located,
)
from tests.stores.faults import Fault, FaultProxy, make_bucket, somebody_else, use_aws

SECRET = "the-secret-of-the-queue"  # noqa: S105
# For what is not about time: an overloaded machine must not look like a slow queue.
PATIENT = QueueLimits(connect_s=20, read_s=20)
ONCE = QueueLimits(connect_s=20, read_s=20, attempts=1)
HASTY = QueueLimits(connect_s=0.3, read_s=0.3, poll_s=0, attempts=1)
GONE = Received("body", "no-receipt", "id", 1, datetime.now(UTC))

CALLS: dict[str, Callable[[Queue], Coroutine[Any, Any, object]]] = {
    "receive": lambda queue: queue.receive(1, wait_s=0),
    "delete": lambda queue: queue.delete(GONE),
    "hide": lambda queue: queue.hide(GONE, 5),
    "send": lambda queue: queue.send("body"),
    "visibility": lambda queue: queue.visibility_s(),
    "max_receives": lambda queue: queue.max_receives(),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, own_session: None) -> None:
    use_aws(monkeypatch, secret_access_key=SECRET)


@pytest.fixture
def aws(moto: str) -> Iterator[Any]:
    """Somebody else with access to the queues."""
    with somebody_else(moto, "sqs") as client:
        yield client


@pytest.fixture
def path(aws: Any) -> str:
    """The path of a new queue, the same at moto and at the proxy."""
    url = aws.create_queue(QueueName=f"q-{uuid.uuid4().hex}", Attributes={"VisibilityTimeout": "600"})
    return "/" + "/".join(str(url["QueueUrl"]).split("/")[-2:])


@contextlib.asynccontextmanager
async def opened(url: str, limits: QueueLimits = PATIENT) -> AsyncIterator[Queue]:
    queue = Queue(url, limits)
    try:
        yield queue
    finally:
        await queue.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what happens there happens in threads
            await asyncio.sleep(0.01)


async def failure(url: str, call: Callable[[Queue], Coroutine[Any, Any, object]], limits: QueueLimits) -> str:
    """What a call says when it fails: its whole traceback holds neither a secret nor the account."""
    async with opened(url, limits) as queue:
        with pytest.raises(QueueUnavailable) as caught:
            await call(queue)
    words = "".join(traceback.format_exception(caught.value))
    assert not any(secret in words for secret in (SECRET, "quoted-token", "123456789012"))
    assert str(caught.value).startswith(f"The queue {queue.name} ")
    return str(caught.value).removeprefix(f"The queue {queue.name} ")


def test_a_message_is_taken_hidden_given_back_and_deleted(moto: str, aws: Any, path: str) -> None:
    async def use() -> None:
        async with opened(moto + path) as queue:
            before = datetime.now(UTC) - timedelta(seconds=1)
            await queue.send("é 1")
            [first] = await queue.receive(50, wait_s=5)
            assert (first.body, first.tries) == ("é 1", 1)
            assert before < first.sent_at < datetime.now(UTC) + timedelta(seconds=1)
            assert await queue.receive(wait_s=0) == []
            await queue.hide(first, 0)
            [second] = await queue.receive(wait_s=5)
            assert (second.id, second.tries) == (first.id, 2)
            await queue.hide(second, 1)
            assert await queue.receive(wait_s=0) == []
            [third] = await queue.receive(wait_s=10)
            await queue.delete(third)
            # Whoever is late with any of its receipts does no harm, and hears no error.
            for message in (first, third, GONE):
                await queue.delete(message)
                await queue.hide(message, 30)
            assert await queue.receive(wait_s=0) == []

    asyncio.run(use())


def test_an_upload_is_read_off_the_queue(moto: str, aws: Any, path: str) -> None:
    key = "uploads/acme/a b+c%2Bd/日本.jpg"
    arn = aws.get_queue_attributes(QueueUrl=moto + path, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    with somebody_else(moto, "s3") as s3:
        bucket = make_bucket(moto)
        configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
        etag = s3.put_object(Bucket=bucket, Key=key, Body=b"photo")["ETag"].strip('"')

    async def read() -> list[tuple[Arrival, ...]]:
        async with opened(moto + path) as queue:
            return [parse(message.body) for message in await queue.receive(wait_s=5)]

    # First what S3 tries the queue out with.
    assert asyncio.run(read()) == [(), (Arrival(bucket, key, etag, size=5),)]


def test_a_dead_letter_has_its_reason_beside_it(moto: str, aws: Any, path: str) -> None:
    async def bury() -> None:
        async with opened(moto + path) as queue:
            await queue.send("body", {"reason": "It is not JSON.", "code": "malformed", "key": ""})

    asyncio.run(bury())
    [message] = aws.receive_message(QueueUrl=moto + path, MessageAttributeNames=["All"])["Messages"]
    values = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert values == {"reason": "It is not JSON.", "code": "malformed"}


def test_what_a_queue_says_of_itself(moto: str, aws: Any, path: str) -> None:
    async def ask() -> tuple[int, int | None]:
        async with opened(moto + path) as queue:
            return await queue.visibility_s(), await queue.max_receives()

    assert asyncio.run(ask()) == (600, None)
    dead = aws.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    arn = aws.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 5})
    aws.set_queue_attributes(QueueUrl=moto + path, Attributes={"RedrivePolicy": policy})
    assert asyncio.run(ask()) == (600, 5)


def test_what_a_cancelled_poll_gets_is_given_back_at_once(
    moto: str, aws: Any, path: str, proxy: FaultProxy
) -> None:
    async def abandon() -> None:
        async with opened(proxy.url + path) as queue:
            poll = asyncio.create_task(queue.receive(wait_s=20))
            await until(lambda: proxy.requests)
            poll.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poll
            aws.send_message(QueueUrl=moto + path, MessageBody="body")

    asyncio.run(abandon())
    # The visibility time-out of ten minutes is not what brings it back.
    [message] = aws.receive_message(QueueUrl=moto + path, AttributeNames=["All"])["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "2"


def test_a_loop_that_ends_during_a_poll_loses_nothing_either(
    moto: str, aws: Any, path: str, proxy: FaultProxy
) -> None:
    queue = Queue(proxy.url + path, PATIENT)

    async def die() -> None:
        asyncio.create_task(queue.receive(wait_s=20))  # noqa: RUF006 - the loop's end cancels it
        await until(lambda: proxy.requests)

    asyncio.run(die())
    aws.send_message(QueueUrl=moto + path, MessageBody="body")
    asyncio.run(queue.close())
    assert aws.receive_message(QueueUrl=moto + path)["Messages"]


def test_a_poll_that_was_not_begun_is_not_made(path: str, proxy: FaultProxy) -> None:
    async def change_minds() -> None:
        async with opened(proxy.url + path) as queue:
            first = asyncio.create_task(queue.receive(wait_s=1))
            await until(lambda: proxy.requests)
            second = asyncio.create_task(queue.receive(wait_s=20))
            await asyncio.sleep(0)
            second.cancel()
            assert await first == []

    asyncio.run(change_minds())
    assert len(proxy.requests) == 1


def test_close_waits_only_so_long(path: str, proxy: FaultProxy) -> None:
    async def hurry() -> None:
        queue = Queue(proxy.url + path, PATIENT)
        poll = asyncio.create_task(queue.receive(wait_s=2))
        await until(lambda: proxy.requests)
        poll.cancel()
        await queue.close(patience_s=0.01)
        assert [thread for thread in threading.enumerate() if thread.name.startswith(f"poll-{queue.name}")]
        await queue.close()
        with pytest.raises(RuntimeError):
            await queue.receive()

    asyncio.run(hurry())


def test_a_poll_holds_neither_other_calls_nor_asyncios_own_threads(path: str, proxy: FaultProxy) -> None:
    async def both() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with opened(proxy.url + path) as queue:
            poll = asyncio.create_task(queue.receive(wait_s=20))
            await until(lambda: proxy.requests)
            await asyncio.to_thread(time.monotonic)
            assert await queue.visibility_s() == 600
            assert not poll.done()
            await queue.send("body")
            assert [message.body for message in await poll] == ["body"]

    asyncio.run(both())


@each_call
@pytest.mark.parametrize(
    ("fault", "limits", "words"),
    [
        ("deny", PATIENT, "denies access"),
        ("slow", HASTY, "is slow: it did not answer in time."),
        ("cut", ONCE, "cannot be reached."),
    ],
)
def test_what_a_queue_does_wrong_has_words(
    path: str, proxy: FaultProxy, call: Any, fault: Fault, limits: QueueLimits, words: str
) -> None:
    proxy.goes(fault)
    assert asyncio.run(failure(proxy.url + path, call, limits)).startswith(words)


def test_a_queue_that_is_away_or_was_never_there(moto: str, proxy: FaultProxy) -> None:
    url = f"{proxy.url}/123456789012/nobody"
    missing = "is not there (NonExistentQueue)."
    assert asyncio.run(failure(url, CALLS["receive"], PATIENT)) == missing
    proxy.stop()
    assert asyncio.run(failure(url, CALLS["send"], ONCE)) == "cannot be reached."


def test_a_poll_may_be_longer_than_any_other_call(path: str, proxy: FaultProxy) -> None:
    async def wait() -> None:
        async with opened(proxy.url + path, QueueLimits(connect_s=20, read_s=0.5)) as queue:
            assert await queue.receive(wait_s=1) == []

    asyncio.run(wait())


def test_a_hiccup_is_bridged_and_attempts_are_counted(path: str, proxy: FaultProxy) -> None:
    async def once() -> int:
        async with opened(proxy.url + path) as queue:
            return await queue.visibility_s()

    proxy.goes("fail", times=1)
    assert asyncio.run(once()) == 600
    proxy.goes("fail")
    words = asyncio.run(failure(proxy.url + path, CALLS["send"], PATIENT))
    assert words.startswith("fails with status 503")
    assert len(proxy.requests) == PATIENT.attempts


def test_a_queue_without_credentials(
    path: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(queues, "_session", queues._session.__wrapped__)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    words = asyncio.run(failure(proxy.url + path, CALLS["send"], PATIENT))
    assert words == "cannot be used without credentials, and none were found."
    assert not proxy.requests


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDeniedException", 400, "denies access (AccessDeniedException)"),
        ("com.amazonaws.sqs#KmsAccessDenied", 400, "denies access (KmsAccessDenied)"),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, "is not there (NonExistentQueue)"),
        ("RequestThrottled", 403, "takes no more requests for now (RequestThrottled)"),
        ("InvalidParameterValue", 400, "refuses the request with status 400 (InvalidParameterValue)"),
        ("<b>secret</b>", 502, "fails with status 502"),
    ],
)
def test_errors_of_sqs_in_words(code: str, status: int, words: str) -> None:
    answer = {
        "Error": {"Code": code, "Message": "secret"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    assert diagnose(ClientError(answer, "SendMessage")) == words


def test_errors_of_credentials_in_words() -> None:
    assert "none were found" in diagnose(NoCredentialsError())
    retrieval = CredentialRetrievalError(provider="custom-process", error_msg="secret")
    assert diagnose(retrieval) == "cannot be used (CredentialRetrievalError)"


@pytest.mark.parametrize(
    ("code", "message", "raises"),
    [
        ("InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid. Reason: expired.", False),
        ("AWS.SimpleQueueService.MessageNotInflight", "", False),
        ("InvalidParameterValue", "Value 99999 for parameter VisibilityTimeout is invalid.", True),
    ],
)
def test_only_a_receipt_that_is_no_longer_good_is_forgiven(
    moto: str, path: str, monkeypatch: pytest.MonkeyPatch, code: str, message: str, raises: bool
) -> None:
    class Client:
        def change_message_visibility(self, **_: Any) -> None:
            answer = {
                "Error": {"Code": code, "Message": message},
                "ResponseMetadata": {"HTTPStatusCode": 400},
            }
            raise ClientError(answer, "ChangeMessageVisibility")

    async def hide() -> None:
        async with opened(moto + path) as queue:
            monkeypatch.setattr(queue, "_client", lambda polls: Client())
            await queue.hide(GONE, 5)

    with pytest.raises(QueueUnavailable) if raises else contextlib.nullcontext():
        asyncio.run(hide())


@pytest.mark.parametrize(
    "url",
    [
        "https://sqs.eu-west-1.amazonaws.com/123456789012/fooddx-intake",
        "http://127.0.0.1:4566/000000000000/q",
        "http://localhost:4566/q",
    ],
)
def test_a_url_of_a_queue(url: str) -> None:
    assert check_queue_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "https://sqs"),
        ("fooddx-intake", "https://sqs"),
        ("arn:aws:sqs:eu-west-1:123456789012:q", "https://sqs"),
        ("http://sqs.eu-west-1.amazonaws.com/123456789012/q", "this machine only"),
        ("https://user:secret@sqs.eu-west-1.amazonaws.com/123456789012/q", "https://sqs"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/", "https://sqs"),
        ("https://sqs.eu-west-1.amazonaws.com:secret/1/q", "https://sqs"),
        ("https://[::1/1/q", "https://sqs"),
        ("https://sqs.eu-west-1.amazonaws.com/1/q?secret", "https://sqs"),
        ("https://sqs.eu-west-1.amazonaws.com/1/q.fifo", "FIFO"),
    ],
)
def test_no_url_of_a_queue(url: str, words: str) -> None:
    for check in (check_queue_url, Queue):
        with pytest.raises(ValueError, match=words) as caught:
            check(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "where"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", {}, ("https://sqs.eu-west-1.amazonaws.com", "eu-west-1")),
        (
            "https://vpce-0a1b-cd.sqs.us-gov-west-1.vpce.amazonaws.com/1/q",
            {"AWS_REGION": "eu-west-1"},
            ("https://vpce-0a1b-cd.sqs.us-gov-west-1.vpce.amazonaws.com", "us-gov-west-1"),
        ),
        ("http://127.0.0.1:4566/1/q", {"AWS_REGION": "eu-west-1"}, ("http://127.0.0.1:4566", "eu-west-1")),
        ("http://127.0.0.1:4566/1/q", {"AWS_ENDPOINT_URL": "https://aws"}, ("https://aws", "")),
        (
            "https://sqs.eu-west-1.amazonaws.com/1/q",
            {"AWS_ENDPOINT_URL": "https://aws", "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:1/"},
            ("http://127.0.0.1:1", "eu-west-1"),
        ),
    ],
)
def test_where_calls_go(url: str, environ: dict[str, str], where: tuple[str, str]) -> None:
    assert located(url, environ) == where

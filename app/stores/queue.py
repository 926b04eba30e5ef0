"""An SQS queue: messages are taken, kept from others while they are worked on, and deleted or given back.

botocore knows no asyncio. Its calls are made in threads of their own, so that a long poll, which may take
twenty seconds, never holds one of those that the rest of the process shares.

A queue delivers at least once, and a send whose answer is lost is made again: who receives must bear both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from app.errors import QueueUnavailable
from app.stores.s3 import usable_endpoint

MAX_BATCH: Final = 10
"""The most messages SQS hands out at once."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d")
_DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How long a queue may take.

    With the defaults any call but a poll fails within nine seconds, once it has a thread and credentials.

    Attributes:
        connect_s: for a connection.
        read_s: for an answer; a poll has as much beyond poll_s.
        poll_s: the longest that a poll waits for a message, 0 to 20 as SQS allows. A stop may take as long.
        attempts: per call, the first included. Between two is a wait of up to a second, drawn at random.
        threads: calls at a time, besides the poll.
    """

    connect_s: float = 1.0
    read_s: float = 3.0
    poll_s: int = 20
    attempts: int = 2
    threads: int = 4


@dataclass(frozen=True, slots=True)
class Received:
    """A message that is hidden from all others until its visibility time-out is over.

    Attributes:
        body: what was sent.
        receipt: names this delivery of it; the next one has another.
        id: of the message.
        tries: how often it was delivered, this time included; SQS calls the number approximate.
        sent_at: when it came into the queue.
    """

    body: str = field(repr=False)
    receipt: str = field(repr=False)
    id: str
    tries: int
    sent_at: datetime


def check_queue_url(url: str) -> str:
    """The URL itself, if it can be that of a queue.

    Raises:
        ValueError: it cannot; the text says why, without quoting it.
    """
    try:
        usable_endpoint(url)
        parts = urlsplit(url)
        name = parts.path.rpartition("/")[2]
        usable = parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _NAME.fullmatch(name.removesuffix(".fifo")):
        raise ValueError(
            "a queue is named by its URL, https://sqs.<region>.amazonaws.com/<account>/<name>;"
            " http is for this machine only"
        )
    if name.endswith(".fifo"):
        raise ValueError("a FIFO queue cannot be used: S3 notifies standard queues only")
    return url


def located(url: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Where a queue's calls go, and its region.

    AWS's own variables say where; without them, the queue's URL does. The region is the one in the URL.

    Returns:
        The URL of a server, without a path; and a region, or "" where neither URL nor variables tell.

    Raises:
        ValueError: the variables name a server that photos' names must not travel to.
    """
    parts = urlsplit(url)
    endpoint = environ.get("AWS_ENDPOINT_URL_SQS") or environ.get("AWS_ENDPOINT_URL", "")
    labels = (parts.hostname or "").split(".")
    region = next((label for label in labels if _REGION.fullmatch(label)), environ.get("AWS_REGION", ""))
    return usable_endpoint(endpoint) or f"{parts.scheme}://{parts.netloc}", region


class Queue:
    """One queue. Every method raises QueueUnavailable when the queue fails.

    A call that is cancelled may have its effect all the same.
    """

    def __init__(self, url: str, limits: QueueLimits = QueueLimits()) -> None:
        """Know a queue; nothing is asked of it yet, and botocore is not loaded before.

        Args:
            url: of a standard queue. S3 cannot notify a FIFO queue, so none is taken.
            limits: how long it may take.

        Raises:
            ValueError: no such queue can be; the text says why.
        """
        self.url = check_queue_url(url)
        self.name = url.rpartition("/")[2]
        self._limits = limits
        self._endpoint, self._region = located(url)
        self._clients: dict[bool, Any] = {}
        # One, so that what is given back waits for the poll that got it; see receive.
        self._polls = ThreadPoolExecutor(1, thread_name_prefix=f"poll-{self.name}")
        self._calls = ThreadPoolExecutor(limits.threads, thread_name_prefix=f"queue-{self.name}")
        self._closing = False
        self._ended = threading.Event()

    async def receive(self, max_messages: int = MAX_BATCH, wait_s: int = 20) -> list[Received]:
        """Take messages, as soon as there is at least one.

        There is one poll at a time: a second waits for the first. SQS cannot be told that a poll is over,
        so one that is cancelled goes on, and what it gets is given back at once. That costs each message one
        of its tries. What could not be given back returns when its visibility time-out is over.

        Args:
            max_messages: from 1; more than ten are never handed out.
            wait_s: how long to wait for the first, in seconds; longer than poll_s is never waited.

        Returns:
            Messages in no order; none, if none came.
        """
        poll = self._polls.submit(
            self._receive, min(max_messages, MAX_BATCH), min(wait_s, self._limits.poll_s)
        )
        try:
            return await asyncio.wrap_future(poll)
        except asyncio.CancelledError:
            # Later than the poll in the same thread; after close, the visibility time-out does it.
            if not poll.cancel():
                with contextlib.suppress(RuntimeError):
                    self._polls.submit(self._give_back, poll)
            raise

    async def delete(self, message: Received) -> None:
        """Take a message out for good. A receipt that is no longer good is no error: see hide."""
        await self._call("delete_message", ReceiptHandle=message.receipt)

    async def hide(self, message: Received, seconds: int) -> None:
        """Keep a message from others for so long from now, at most 12 hours since it was received.

        A receipt that is no longer good is no error: the message is deleted, or somebody else's already.

        Args:
            message: one that was received.
            seconds: 0 gives it back at once.
        """
        await self._call("change_message_visibility", **_hidden(message, seconds))

    async def send(self, body: str, attributes: Mapping[str, str] = {}) -> None:
        """Put a message in, for a dead-letter queue with its reasons as attributes.

        It may be there twice when an answer was lost on the way.

        Args:
            body: text, 1 byte to 1 MiB of UTF-8, attributes included.
            attributes: shown beside it, at most ten; empty ones are left out, since SQS refuses them.
        """
        typed = {
            name: {"DataType": "String", "StringValue": value} for name, value in attributes.items() if value
        }
        await self._call("send_message", MessageBody=body, MessageAttributes=typed)

    async def visibility_s(self) -> int:
        """How long a message is hidden from others once it is received. As good a sign of life as any."""
        return int(await self._attribute("VisibilityTimeout") or 0)

    async def max_receives(self) -> int | None:
        """After how many deliveries SQS itself calls a message a dead letter; None: it never does."""
        policy = await self._attribute("RedrivePolicy")
        return int(json.loads(policy)["maxReceiveCount"]) if policy else None

    async def close(self, patience_s: float = 25.0) -> None:
        """Wait for what is under way, and for what a cancelled poll still gives back; nothing can follow.

        Call it when no receive is awaited any more. Cut short, it goes on in its thread, which the end of the
        process waits for.

        Args:
            patience_s: how long to wait. A poll cannot be broken off: poll_s and a little more is enough.
        """
        if not self._closing:
            self._closing = True
            self._polls.submit(self._end)
            self._polls.shutdown(wait=False)
        await asyncio.to_thread(self._ended.wait, patience_s)

    async def _attribute(self, name: str) -> str:
        answer = await self._call("get_queue_attributes", AttributeNames=[name])
        return str(answer.get("Attributes", {}).get(name, ""))

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        ask = functools.partial(self._ask, operation, **parameters)
        return await asyncio.wrap_future(self._calls.submit(ask))

    # What follows runs in threads.

    def _receive(self, max_messages: int, wait_s: int) -> list[Received]:
        answer = self._ask(
            "receive_message",
            polls=True,
            MaxNumberOfMessages=max_messages,
            WaitTimeSeconds=wait_s,
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
        )
        return [_received(message) for message in answer.get("Messages", ())]

    def _give_back(self, poll: Future[list[Received]]) -> None:
        with contextlib.suppress(QueueUnavailable):
            for message in poll.result():
                self._ask("change_message_visibility", **_hidden(message, 0))

    def _end(self) -> None:
        self._calls.shutdown()
        for client in self._clients.values():
            client.close()
        self._ended.set()

    def _ask(self, operation: str, *, polls: bool = False, **parameters: Any) -> dict[str, Any]:
        """One call and its retries; nothing, where a receipt is no longer good."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - 20 MB, only with a queue
        from botocore.parsers import ResponseParserError  # noqa: PLC0415

        try:
            answer: dict[str, Any] = getattr(self._client(polls), operation)(QueueUrl=self.url, **parameters)
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            if _is_stale(error):
                return {}
            # Not chained: the words of a proxy or a program of credentials may quote a secret.
            raise QueueUnavailable(f"The queue {self.name} {diagnose(error)}.") from None
        return answer

    def _client(self, polls: bool) -> Any:
        """A client; polls have one of their own, since a client's time-out is the same for all its calls."""
        from botocore.config import Config  # noqa: PLC0415

        with _making:
            if polls not in self._clients:
                session = _session()
                region = self._region or session.get_config_variable("region") or _DEFAULT_REGION
                self._clients[polls] = session.create_client(
                    "sqs",
                    region_name=region,
                    endpoint_url=self._endpoint,
                    config=Config(
                        connect_timeout=self._limits.connect_s,
                        read_timeout=self._limits.read_s + (self._limits.poll_s if polls else 0),
                        retries={"mode": "standard", "total_max_attempts": self._limits.attempts},
                    ),
                )
            return self._clients[polls]


_making = threading.Lock()


@functools.cache
def _session() -> Any:
    """One for all queues: each would load SQS's model, 9 MB, and look for credentials itself."""
    import botocore.session  # noqa: PLC0415

    return botocore.session.get_session()


def _hidden(message: Received, seconds: int) -> dict[str, Any]:
    return {"ReceiptHandle": message.receipt, "VisibilityTimeout": seconds}


def _received(message: Mapping[str, Any]) -> Received:
    known = message["Attributes"]
    return Received(
        body=message["Body"],
        receipt=message["ReceiptHandle"],
        id=message["MessageId"],
        tries=int(known["ApproximateReceiveCount"]),
        sent_at=datetime.fromtimestamp(int(known["SentTimestamp"]) / 1000, UTC),
    )


def _code(error: Any) -> str:
    """SQS's name for an error, without what older protocols put around it."""
    code = str(error.response.get("Error", {}).get("Code", "")).rpartition("#")[2].rpartition(".")[2]
    return code if re.fullmatch(r"\w{1,64}", code) else ""


def _is_stale(error: Exception) -> bool:
    """Whether a receipt is no longer good. An expired one has no code of its own."""
    from botocore.exceptions import ClientError  # noqa: PLC0415

    if not isinstance(error, ClientError):
        return False
    message = str(error.response.get("Error", {}).get("Message", ""))
    return _code(error) in {"ReceiptHandleIsInvalid", "MessageNotInflight"} or (
        _code(error) == "InvalidParameterValue" and "parameter ReceiptHandle" in message
    )


def diagnose(error: Exception) -> str:
    """What a queue did, in words without a secret."""
    from botocore import exceptions  # noqa: PLC0415

    if isinstance(error, exceptions.ClientError):
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        why = f" ({code})" if code else ""
        if "Throttl" in code or status == 429:
            return f"takes no more requests for now{why}"
        if code in {"QueueDoesNotExist", "NonExistentQueue"}:
            return f"is not there{why}"
        if status in {401, 403} or code in _DENIALS:
            return f"denies access{why}"
        return f"{'fails' if status >= 500 else 'refuses the request'} with status {status}{why}"
    if isinstance(error, exceptions.NoCredentialsError):
        return "cannot be used without credentials, and none were found"
    if isinstance(error, (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError)):
        return "is slow: it did not answer in time"
    if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        return "cannot be reached"
    return f"cannot be used ({type(error).__name__})"


# Of status 400, as those that SQS's JSON protocol denies with mostly are.
_DENIALS: Final = {
    "AccessDenied", "AccessDeniedException", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature",
    "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "InvalidSignatureException",
    "KmsAccessDenied", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
    "OptInRequired", "SignatureDoesNotMatch", "UnrecognizedClientException",
}  # fmt: skip

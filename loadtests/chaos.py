"""Photos through the queue while replicas are killed: kill -9, beside ``make run-aws`` and nothing you need.

    python -m loadtests.chaos --messages 1000

Photos of their own are put straight into the bucket, under ``uploads/<tenant>/``, a few files that are none
among them, and S3 tells the queue. Some messages are sent twice. As long as messages wait, replicas drawn at
random are killed, each some seconds after the last and not before there is progress again. Once the queue is
empty, what is there is compared with what was sent: each photo has one result, each file that is no photo is
a dead letter with its reason, and nothing else is left.

It reads results in Redis and counts in the account, both as the running service has them: no call of the API
lists photos that came without a profile.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import httpx
import psutil
import redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.events import MalformedMessage, parse
from loadtests.aws import SHARED
from loadtests.emulators import Account
from loadtests.photos import make_photo

MEGAPIXELS: Final = 0.05
PATIENCE_S: Final = 900.0
"""How long the queue may take to become empty after the last photo was sent."""
NOT_A_PHOTO: Final = "unsupported_media_type"
_DEFAULT_PORT: Final = "8000"
_WAITING, _IN_FLIGHT = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"


class NoServiceError(RuntimeError):
    """There is nothing to hurt; the text says what is missing."""


@dataclass(frozen=True)
class Target:
    """A running service with a queue, on this machine.

    Attributes:
        url: of its API.
        process: of the command that started it.
        account: where its bucket and queues are.
        bucket: of its photos.
        prefix: of its keys there; "", or with a slash at the end.
        queue: URL of the intake's.
        dead_letters: URL of the other.
        redis_url: of its results.
    """

    url: str
    process: psutil.Process
    account: Account
    bucket: str
    prefix: str
    queue: str
    dead_letters: str
    redis_url: str = field(repr=False)

    @classmethod
    def find(cls, url: str) -> Target:
        """The service at ``url``, on this machine, with a queue in an emulated account.

        Raises:
            NoServiceError: there is none.
        """
        port = str(urlsplit(url).port)
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if words[-1] != "serve" or not any(Path(word).name == "fooddx" for word in words):
                continue
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                emulated = {"FOODDX_QUEUE", "AWS_ENDPOINT_URL"} <= environment.keys()
                if emulated and environment.get("FOODDX_PORT", _DEFAULT_PORT) == port:
                    return cls.of(url, process, environment)
        raise NoServiceError(f"no service with an emulated queue runs here at {url}: make run-aws starts one")

    @classmethod
    def of(cls, url: str, process: psutil.Process, environment: Mapping[str, str]) -> Target:
        """A service by the variables that it was started with."""
        bucket, _, prefix = environment["FOODDX_STORE"].removeprefix("s3://").partition("/")
        return cls(
            url=url.rstrip("/"),
            process=process,
            account=Account(environment["AWS_ENDPOINT_URL"]),
            bucket=bucket,
            prefix=f"{prefix.rstrip('/')}/" if prefix else "",
            queue=environment["FOODDX_QUEUE"],
            dead_letters=environment["FOODDX_DEAD_LETTER_QUEUE"],
            redis_url=environment["FOODDX_REDIS_URL"],
        )

    def ready(self) -> bool:
        """Whether the service could score a photo now."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success
        return False

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:fooddx:{deployment}"
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found


@dataclass(frozen=True)
class Sent:
    """What went into the bucket.

    Attributes:
        photos: key of each photo, and its SHA-256 in hex.
        poison: keys of files that are no photos.
        twice: how many messages were sent a second time.
    """

    photos: Mapping[str, str]
    poison: frozenset[str]
    twice: int


@dataclass(frozen=True)
class Left:
    """What is there at the end.

    Attributes:
        results: of each photo that was sent, by SHA-256: how many.
        dead_letters: of this run, each a key and its code; "" where SQS itself gave a message up.
        uploads: keys that still lie where they were put.
        messages: in the queue, those in flight included.
    """

    results: Mapping[str, int]
    dead_letters: Sequence[tuple[str, str]]
    uploads: frozenset[str]
    messages: int


def faults(sent: Sent, left: Left) -> list[str]:
    """What should not be, in words; empty when all is well."""
    counts = [left.results.get(sha256, 0) for sha256 in sent.photos.values()]
    dead = {key for key, _ in left.dead_letters}
    wrong = Counter(code or "no reason" for key, code in left.dead_letters if code != NOT_A_PHOTO)
    found = {
        "photos without a result": sum(count == 0 for count in counts),
        "photos with more than one result": sum(count > 1 for count in counts),
        "photos among the dead letters": len(dead & sent.photos.keys()),
        "poisoned files that are no dead letters": len(sent.poison - dead),
        "photos still under uploads/": len(left.uploads & sent.photos.keys()),
        "poisoned files that are not there any more": len(sent.poison - left.uploads),
        "messages still in the queue": left.messages,
    } | {f"dead letters with {code}": count for code, count in wrong.items()}
    return [f"{count} {what}" for what, count in found.items() if count]


class Killer(threading.Thread):
    """Kills one replica after another, drawn at random, until it is told to stop.

    None before the service is ready and ``left``, the number of messages, is less than it was: a service that
    never gets to its feet shows nothing, and takes for ever.
    """

    def __init__(
        self,
        target: Target,
        left: Callable[[], int],
        deployments: Sequence[str],
        every_s: float,
        seed: int,
    ) -> None:
        super().__init__(daemon=True)
        self.kills: Counter[str] = Counter()
        self._target, self._left = target, left
        self._deployments, self._every_s = deployments, every_s
        self._random = random.Random(seed)  # noqa: S311 - to be drawn again, not to be secret
        self._stopping = threading.Event()

    def run(self) -> None:
        """What ``start`` starts."""
        # From half to one and a half times the mean: never in step with whatever starts anew.
        before = 0
        while not self._stopping.wait(self._every_s * self._random.uniform(0.5, 1.5)):
            left = self._left()
            before = max(before, left)
            if left == before or not self._target.ready():
                continue
            before = left
            deployment = self._random.choice(self._deployments)
            if victims := self._target.replicas(deployment):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._random.choice(victims).kill()
                    self.kills[deployment] += 1

    def stop(self) -> None:
        """Kill nothing more."""
        self._stopping.set()
        self.join()


class Bench:
    """Somebody with every right in the account of a service, for one run under a name of its own."""

    def __init__(self, target: Target, s3: Any, sqs: Any, tenant: str) -> None:
        self._target, self._s3, self._sqs, self._tenant = target, s3, sqs, tenant
        self.folder = f"uploads/{tenant}/chaos-{uuid.uuid4().hex[:8]}/"

    @classmethod
    @contextlib.contextmanager
    def at(cls, target: Target, tenant: str) -> Iterator[Bench]:
        """With connections that are closed at the end."""
        with (
            contextlib.closing(target.account.client("s3")) as s3,
            contextlib.closing(target.account.client("sqs")) as sqs,
        ):
            yield cls(target, s3, sqs, tenant)

    def send(self, photos: int, poison: int, twice_every: int, seed: int) -> Sent:
        """Put everything into the bucket, shuffled; every ``twice_every``-th photo's message goes twice."""
        photo = make_photo(MEGAPIXELS)
        order = ["photo"] * photos + ["poison"] * poison
        random.Random(seed).shuffle(order)  # noqa: S311 - as above
        sent: dict[str, str] = {}
        poisoned = set()
        twice = 0
        for number, kind in enumerate(track(order, "sent")):
            key = f"{self.folder}{number}.jpg"
            body = photo.unique() if kind == "photo" else f"no photo {uuid.uuid4()}".encode()
            whole = self._target.prefix + key
            etag = self._s3.put_object(Bucket=self._target.bucket, Key=whole, Body=body)["ETag"].strip('"')
            if kind == "poison":
                poisoned.add(key)
                continue
            sent[key] = hashlib.sha256(body).hexdigest()
            if len(sent) % twice_every == 0:
                self._sqs.send_message(
                    QueueUrl=self._target.queue, MessageBody=_event(self._target.bucket, whole, etag)
                )
                twice += 1
        return Sent(sent, frozenset(poisoned), twice)

    def messages(self) -> tuple[int, int]:
        """In the intake's queue: those that wait, and those in flight."""
        names = [_WAITING, _IN_FLIGHT]
        asked = self._sqs.get_queue_attributes(QueueUrl=self._target.queue, AttributeNames=names)
        waiting, in_flight = (int(asked["Attributes"][name]) for name in names)
        return waiting, in_flight

    def wait(self, killer: Killer, patience_s: float) -> None:
        """Until the queue is empty, ``patience_s`` seconds at most; ``killer`` ends when nothing waits."""
        deadline = time.monotonic() + patience_s
        empty = 0
        # Twice in a row, a second apart: SQS calls its counts approximate.
        while empty < 2 and time.monotonic() < deadline:
            waiting, in_flight = self.messages()
            if not waiting and killer.is_alive():
                killer.stop()
            empty = 0 if waiting + in_flight else empty + 1
            time.sleep(1)

    def look(self, sent: Sent) -> Left:
        """What is there of what was sent; dead letters of this run are taken out of their queue."""
        return Left(self._results(sent), self._dead_letters(), self._uploads(), sum(self.messages()))

    def _results(self, sent: Sent) -> Counter[str]:
        ours = set(sent.photos.values())
        found: Counter[str] = Counter()
        with redis.Redis.from_url(self._target.redis_url) as client:
            keys = list(client.scan_iter(f"fooddx:{{{self._tenant}}}:result:*", 1000))
            for start in range(0, len(keys), 500):
                for body in client.mget(keys[start : start + 500]):
                    sha256 = json.loads(body)["image"]["sha256"] if body else ""
                    found.update({sha256} & ours)
        return found

    def _dead_letters(self) -> list[tuple[str, str]]:
        found = []
        queue = self._target.dead_letters
        while messages := self._sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                ours = [key for key in _keys(message["Body"], self._target.prefix) if self._is_ours(key)]
                code = message.get("MessageAttributes", {}).get("code", {}).get("StringValue", "")
                found += [(key, code) for key in ours]
                if ours:
                    self._sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return found

    def _is_ours(self, key: str) -> bool:
        return key.startswith(self.folder)

    def _uploads(self) -> frozenset[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._target.bucket, Prefix=self._target.prefix + self.folder
        )
        found = (item["Key"] for page in pages for item in page.get("Contents", ()))
        return frozenset(key.removeprefix(self._target.prefix) for key in found)


def _event(bucket: str, key: str, etag: str) -> str:
    """What S3 says of an object that was put."""
    about = {"bucket": {"name": bucket}, "object": {"key": quote_plus(key), "eTag": etag}}
    return json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": about}]})


def _keys(body: str, prefix: str) -> list[str]:
    try:
        return [arrival.key.removeprefix(prefix) for arrival in parse(body)]
    except MalformedMessage:
        return []


def table(sent: Sent, left: Left, kills: Mapping[str, int], seconds: float) -> Table:
    """What was sent and what came of it, for people."""
    result = Table("", "sent", "found", title="kill -9 of replicas, photos by the queue")
    for column in result.columns[1:]:
        column.justify = "right"
    scored = sum(left.results.get(sha256, 0) >= 1 for sha256 in sent.photos.values())
    dead = {key for key, _ in left.dead_letters}
    rows: list[tuple[str, int | str, int | str]] = [
        ("photos, and those with a result", len(sent.photos), scored),
        ("further results of these", 0, sum(left.results.values()) - scored),
        ("poison, and dead letters by file", len(sent.poison), len(dead)),
        ("files still under uploads/", len(sent.poison), len(left.uploads)),
        ("messages sent twice, and left", sent.twice, left.messages),
        *((f"killed, {deployment}", "", count) for deployment, count in sorted(kills.items())),
        ("seconds", "", round(seconds)),
    ]
    for what, before, after in rows:
        result.add_row(what, str(before), str(after))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when something was lost, doubled or left over, 2 when it could not be tried."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--url", default=f"http://127.0.0.1:{_DEFAULT_PORT}")
    parser.add_argument("--messages", type=int, default=1000, metavar="N", help="photos")
    parser.add_argument("--poison", type=int, default=10, metavar="N", help="files that are no photos")
    parser.add_argument(
        "--twice-every", type=int, default=10, metavar="N", help="sent twice: one message in N"
    )
    parser.add_argument("--kill", nargs="+", default=["Intake", "Preprocessor", "Scorer"])
    parser.add_argument("--every", type=float, default=3.0, metavar="S", help="seconds to the next kill")
    parser.add_argument("--tenant", default=SHARED, help="one whose photos are in the service's own bucket")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, metavar="S", help="for the queue")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        target = Target.find(options.url)
    except NoServiceError as error:
        console.print(f"[red]{error}")
        return 2

    start = time.perf_counter()
    with Bench.at(target, options.tenant) as bench:
        killer = Killer(target, lambda: sum(bench.messages()), options.kill, options.every, options.seed)
        killer.start()
        try:
            sent = bench.send(options.messages, options.poison, options.twice_every, options.seed)
            bench.wait(killer, options.patience)
        finally:
            killer.stop()
        seconds = time.perf_counter() - start
        left = bench.look(sent)
    console.print(table(sent, left, killer.kills, seconds))
    wrong = faults(sent, left)
    for fault in wrong:
        console.print(f"[red]{fault}")
    if options.json:
        figures = {
            "photos": len(sent.photos), "poison": len(sent.poison), "twice": sent.twice,
            "kills": dict(killer.kills), "every_s": options.every, "seed": options.seed,
            "seconds": round(seconds, 1), "results": sum(left.results.values()),
            "dead_letters": dict(Counter(code for _, code in left.dead_letters)),
            "uploads_left": len(left.uploads), "messages_left": left.messages, "faults": wrong,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

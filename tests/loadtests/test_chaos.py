"""The chaos tool: what it kills, what it counts, and what it calls a fault."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
import redis
from rich.console import Console

from app.events import parse
from app.stores.embedded import EmbeddedStore
from loadtests import chaos
from loadtests.chaos import Bench, Killer, Left, NoServiceError, Sent, Target, faults
from loadtests.emulators import Account
from tests.stores.faults import emulated_s3

SENT = Sent({"a": "11", "b": "22"}, frozenset({"p"}), twice=1)
WELL = Left({"11": 1, "22": 1}, [("p", "unsupported_media_type")], frozenset({"p"}), 0)


def test_all_is_well_only_if_nothing_is_lost_doubled_or_left() -> None:
    assert faults(SENT, WELL) == []
    # At least once: a dead letter may be there twice.
    assert faults(SENT, replace(WELL, dead_letters=[*WELL.dead_letters] * 2)) == []


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (replace(WELL, results={"11": 1}), "1 photos without a result"),
        (replace(WELL, results={"11": 1, "22": 2}), "1 photos with more than one result"),
        (replace(WELL, dead_letters=[]), "1 poisoned files that are no dead letters"),
        (replace(WELL, dead_letters=[("p", "")]), "1 dead letters with no reason"),
        (replace(WELL, dead_letters=[("p", "overloaded")]), "1 dead letters with overloaded"),
        (
            replace(WELL, dead_letters=[*WELL.dead_letters, ("a", "unsupported_media_type")]),
            "1 photos among the dead letters",
        ),
        (replace(WELL, uploads=frozenset({"p", "b"})), "1 photos still under uploads/"),
        (replace(WELL, uploads=frozenset()), "1 poisoned files that are not there any more"),
        (replace(WELL, messages=3), "3 messages still in the queue"),
    ],
)
def test_whatever_is_not_as_it_should_be_has_words(left: Left, words: str) -> None:
    assert faults(SENT, left) == [words]


def test_the_table_sets_what_was_found_beside_what_was_sent() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    left = Left({"11": 2}, WELL.dead_letters, frozenset({"p", "b"}), 4)
    console.print(chaos.table(SENT, left, {"Intake": 2}, 61.2))
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row for row in rows if row] == [
        ["photos, and those with a result", "2", "1"],
        ["further results of these", "0", "1"],
        ["poison, and dead letters by file", "1", "1"],
        ["files still under uploads/", "1", "2"],
        ["messages sent twice, and left", "1", "4"],
        ["killed, Intake", "", "2"],
        ["seconds", "", "61"],
    ]


# --- the account ----------------------------------------------------------------------------------


@dataclass
class Room:
    """A bucket that tells a queue, as ``make run-aws`` has them, and no service behind."""

    target: Target
    bench: Bench

    def scored(self, sha256: str, *, times: int = 1, tenant: str = "clinic") -> None:
        """What a service writes of a photo, as far as it matters here."""
        with redis.Redis.from_url(self.target.redis_url) as client:
            for _ in range(times):
                body = json.dumps({"image": {"sha256": sha256}})
                client.set(f"fooddx:{{{tenant}}}:result:{uuid.uuid4()}", body)


@pytest.fixture
def room(store: EmbeddedStore) -> Iterator[Room]:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    with (
        emulated_s3() as url,
        contextlib.closing(boto3.client("s3", endpoint_url=url, **keys)) as s3,
        contextlib.closing(boto3.client("sqs", endpoint_url=url, **keys)) as sqs,
    ):
        name = f"b-{uuid.uuid4().hex}"
        queues = [
            f"{url}{httpx.URL(sqs.create_queue(QueueName=f'{name}-{of}')['QueueUrl']).path}" for of in "qd"
        ]
        s3.create_bucket(Bucket=name)
        asked = sqs.get_queue_attributes(QueueUrl=queues[0], AttributeNames=["QueueArn"])["Attributes"]
        told = {"QueueArn": asked["QueueArn"], "Events": ["s3:ObjectCreated:*"]}
        s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"QueueConfigurations": [told]}
        )
        assert sqs.receive_message(QueueUrl=queues[0])["Messages"]  # the test event is not ours
        variables = {
            "FOODDX_STORE": f"s3://{name}/photos",
            "FOODDX_QUEUE": queues[0],
            "FOODDX_DEAD_LETTER_QUEUE": queues[1],
            "FOODDX_REDIS_URL": store.url,
            "AWS_ENDPOINT_URL": url,
        }
        target = Target.of("http://127.0.0.1:8000/", psutil.Process(), variables)
        assert (target.account, target.prefix) == (Account(url), "photos/")
        with Bench.at(target, "clinic") as bench:
            yield Room(target, bench)


def test_every_photo_is_new_one_in_so_many_is_told_of_twice_and_some_are_poison(room: Room) -> None:
    sent = room.bench.send(6, poison=2, twice_every=3, seed=1)
    assert (len(sent.photos), len(set(sent.photos.values())), len(sent.poison), sent.twice) == (6, 6, 2, 2)
    with contextlib.closing(room.target.account.client("sqs")) as sqs:
        arrivals = []
        while messages := sqs.receive_message(QueueUrl=room.target.queue, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            arrivals += [arrival for message in messages for arrival in parse(message["Body"])]
    with contextlib.closing(room.target.account.client("s3")) as s3:
        for key, sha256 in sent.photos.items():
            body = s3.get_object(Bucket=room.target.bucket, Key=f"photos/{key}")["Body"].read()
            assert hashlib.sha256(body).hexdigest() == sha256
    assert {arrival.key for arrival in arrivals} == {f"photos/{key}" for key in {*sent.photos, *sent.poison}}
    # A message that is sent again says what S3 said, so that both mean one object.
    assert len(arrivals) == 10
    assert len({(arrival.bucket, arrival.key, arrival.etag) for arrival in arrivals}) == 8


def test_what_is_left_is_counted_and_only_of_this_run(room: Room) -> None:
    sent = room.bench.send(3, poison=1, twice_every=10, seed=1)
    first, second, third = sent.photos.values()
    room.scored(first)
    room.scored(second, times=2)
    room.scored(third, tenant="another")
    room.scored("ab" * 32)
    (poison,) = sent.poison
    with contextlib.closing(room.target.account.client("sqs")) as sqs:
        for key, code in ((poison, "unsupported_media_type"), ("uploads/clinic/before", "internal")):
            sqs.send_message(
                QueueUrl=room.target.dead_letters,
                MessageBody=json.dumps({"bucket": room.target.bucket, "key": f"photos/{key}"}),
                MessageAttributes={"code": {"DataType": "String", "StringValue": code}},
            )
        sqs.send_message(QueueUrl=room.target.dead_letters, MessageBody="{")
    left = room.bench.look(sent)
    assert left.results == {first: 1, second: 2}
    assert left.dead_letters == [(poison, "unsupported_media_type")]
    assert left.uploads == {*sent.photos, *sent.poison}
    assert left.messages == 4 + 1  # the test event is in flight
    assert faults(sent, left) == [
        "1 photos without a result",
        "1 photos with more than one result",
        "3 photos still under uploads/",
        "5 messages still in the queue",
    ]


# --- processes ------------------------------------------------------------------------------------


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that are called what they are told to be, and do nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*title: str, **variables: str) -> subprocess.Popen[bytes]:
        script = 'exec -a "$0" sleep 60' if len(title) == 1 else 'sleep 60 & wait "$!"'
        words = ["bash", "-c", script, *title]
        started.append(subprocess.Popen(words, env=os.environ | variables))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_replicas_of_the_named_deployments_are_killed_and_none_without_progress(
    start: Start, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = [start("ray::ServeReplica:fooddx:Intake") for _ in range(2)]
    spared = [start("ray::ServeReplica:fooddx:Ingress"), start("sleep")]
    until(lambda: len(room.target.replicas("Intake")) == 2 and room.target.replicas("Ingress"))
    counts = itertools.chain([5, 7, 7], itertools.count(6, -1))
    left: list[int] = []
    asked: list[int] = []

    def ready(_: Target) -> bool:
        asked.append(left[-1])
        return len(asked) > 3

    monkeypatch.setattr(Target, "ready", ready)
    killer = Killer(
        room.target,
        lambda: left.append(next(counts)) or left[-1],
        ["Intake", "Nothing"],
        every_s=0.02,
        seed=1,
    )
    killer.start()
    until(lambda: all(victim.poll() is not None for victim in victims))
    killer.stop()
    assert killer.kills == {"Intake": 2}
    assert asked[:4] == [6, 5, 4, 3]
    assert [process.poll() for process in spared] == [None, None]


def test_the_service_is_found_by_its_variables(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOODDX_QUEUE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    mine: list[psutil.Process] = []
    monkeypatch.setattr(
        psutil, "process_iter", lambda _: [p for p in mine if p.info is not None]
    )  # what else runs on this machine is not looked at

    def process(**variables: str) -> psutil.Process:
        found = psutil.Process(start("fooddx", "serve", **variables).pid)
        until(lambda: found.cmdline()[-1:] == ["serve"])
        found.info = {"cmdline": found.cmdline()}
        mine.append(found)
        return found

    process()
    variables = {
        "FOODDX_PORT": "8123",
        "FOODDX_STORE": "s3://photos",
        "FOODDX_QUEUE": "http://127.0.0.1:1/0/intake",
        "FOODDX_DEAD_LETTER_QUEUE": "http://127.0.0.1:1/0/dead",
        "FOODDX_REDIS_URL": "unix:///redis",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    process(**variables | {"FOODDX_PORT": "8124"})
    with pytest.raises(NoServiceError, match="8123"):
        Target.find("http://127.0.0.1:8123")
    one = process(**variables)
    target = Target.find("http://127.0.0.1:8123")
    assert (target.process, target.bucket, target.prefix) == (one, "photos", "")
    assert "redis" not in repr(target)


def test_without_a_service_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda _: [])
    assert chaos.main(["--messages", "1", "--json", str(tmp_path / "figures.json")]) == 2
    assert not (tmp_path / "figures.json").exists()

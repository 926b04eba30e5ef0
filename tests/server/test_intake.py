"""Photos by bucket and queue into the whole service: what a killed replica, and a stop, do to them."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest

from tests.conftest import Running, start_service, stop_service
from tests.photos import coffee_jpeg
from tests.server.processes import replica
from tests.server.test_scores import unique
from tests.stores.faults import emulated_s3

pytestmark = pytest.mark.server

PATIENCE_S = 60.0
VISIBLE_AFTER_S = 4
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Cloud:
    """The bucket, the queue that it tells, and the dead letters."""

    s3: Any
    sqs: Any
    bucket: str
    queue: str
    dead: str

    def messages(self, kind: str = "", queue: str = "") -> int:
        name = f"ApproximateNumberOfMessages{kind}"
        asked = self.sqs.get_queue_attributes(QueueUrl=queue or self.queue, AttributeNames=[name])
        return int(asked["Attributes"][name])

    @property
    def in_flight(self) -> int:
        return self.messages("NotVisible")

    def empty(self) -> bool:
        return self.messages() + self.in_flight == 0

    def uploads(self) -> int:
        return int(self.s3.list_objects_v2(Bucket=self.bucket, Prefix="uploads/")["KeyCount"])


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    options = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    with (
        emulated_s3() as url,
        contextlib.closing(boto3.client("s3", endpoint_url=url, **options)) as s3,
        contextlib.closing(boto3.client("sqs", endpoint_url=url, **options)) as sqs,
    ):
        name = f"b-{uuid.uuid4().hex}"
        attributes = {"VisibilityTimeout": str(VISIBLE_AFTER_S)}
        paths = [
            httpx.URL(sqs.create_queue(QueueName=f"{name}-{of}", Attributes=attributes)["QueueUrl"]).path
            for of in ("intake", "dead")
        ]
        made = Cloud(s3, sqs, name, *(f"{url}{path}" for path in paths))
        s3.create_bucket(Bucket=name)
        asked = sqs.get_queue_attributes(QueueUrl=made.queue, AttributeNames=["QueueArn"])
        rule = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "uploads/"}]}}
        told = {
            "QueueArn": asked["Attributes"]["QueueArn"],
            "Events": ["s3:ObjectCreated:*"],
            "Filter": rule,
        }
        s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"QueueConfigurations": [told]}
        )
        yield made


@pytest.fixture(scope="module")
def served(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Running]:
    """The whole service over the cloud. The last test stops it."""
    running = start_service(
        tmp_path_factory.mktemp("intake"),
        FOODDX_STORE=f"s3://{cloud.bucket}",
        FOODDX_QUEUE=cloud.queue,
        FOODDX_DEAD_LETTER_QUEUE=cloud.dead,
        AWS_ENDPOINT_URL=cloud.s3.meta.endpoint_url,
        **KEYS,
    )
    yield running
    if running.process.poll() is None:
        stop_service(running)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def upload(served: Running, user: str) -> str:
    """Send a photo by a form; the id of its result to come."""
    photo = unique(coffee_jpeg(640, 480))
    asked = {"media_type": "image/jpeg", "bytes": len(photo), "profile": {"user": user}}
    form = httpx.post(f"{served.url}/v1/uploads", json=asked, headers=served.headers, timeout=20)
    assert form.is_success, form.text
    sent = httpx.post(form.json()["url"], data=form.json()["fields"], files={"file": photo}, timeout=20)
    assert sent.is_success, sent.text
    return str(form.json()["id"])


def look(served: Running, path: str, **query: str) -> httpx.Response:
    return httpx.get(f"{served.url}{path}", params=query, headers=served.headers, timeout=20)


def test_an_upload_becomes_a_result(served: Running, cloud: Cloud) -> None:
    result_id = upload(served, "ann")
    until(lambda: look(served, f"/v1/scores/{result_id}").status_code != 202)
    result = look(served, f"/v1/scores/{result_id}").json()
    assert (result["id"], result["status"], result["user"]) == (result_id, "scored", "ann")
    until(cloud.empty)
    assert (cloud.uploads(), cloud.messages(queue=cloud.dead)) == (0, 0)


def test_a_photo_in_the_hands_of_a_killed_replica_gets_its_one_result(served: Running, cloud: Cloud) -> None:
    scorer, intake = replica(served, "Scorer"), replica(served, "Intake")
    scorer.suspend()  # so that the photo is still in work when the intake dies
    try:
        result_id = upload(served, "bob")
        until(lambda: cloud.in_flight)
        intake.kill()
    finally:
        scorer.resume()
    until(lambda: look(served, f"/v1/scores/{result_id}").status_code != 202)
    until(cloud.empty)
    assert [item["id"] for item in look(served, "/v1/scores", user="bob").json()["items"]] == [result_id]
    assert (cloud.uploads(), cloud.messages(queue=cloud.dead)) == (0, 0)
    assert replica(served, "Intake").pid != intake.pid


def test_a_stop_finishes_the_photo_in_hand_or_gives_it_back(served: Running, cloud: Cloud) -> None:
    scorer = replica(served, "Scorer")
    scorer.suspend()
    try:
        upload(served, "eve")
        until(lambda: cloud.in_flight)
        served.process.terminate()
        time.sleep(1)  # the stop has reached the intake, whose photo cannot be done yet
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            scorer.resume()
    assert served.process.wait(90) == 0
    assert cloud.in_flight == 0
    assert cloud.uploads() == cloud.messages() <= 1
    assert cloud.messages(queue=cloud.dead) == 0

"""What ``make run-aws`` makes of the template, in the emulator that it runs: all but the service itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import httpx
import psutil
import pytest
from botocore.exceptions import ClientError
from cfnlint.decode import decode_str
from pydantic import SecretStr

from app.errors import ImagesUnavailable
from app.stores.embedded import EmbeddedStore
from app.stores.images import ImageStore
from app.stores.s3 import S3Credentials
from app.stores.tenants import TenantAdmin
from app.stores.uploads import UploadForm, upload_form
from app.tenants.credentials import decrypt, encrypt
from app.tenants.envelope import KeysDenied, WrongTenant
from app.tenants.kms import KmsKeys
from app.tenants.tenants import Directory, Tenant
from loadtests import aws
from loadtests.aws import OWN, OWN_BUCKET, SHARED, Cloud
from loadtests.emulators import REGION
from tests.photos import coffee_jpeg


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with aws.emulated_cloud(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture(scope="module")
def seeded(
    cloud: Cloud, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, Tenant]]:
    """The API keys that were given out, and the tenants as they are stored."""
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store, TenantAdmin(store.url) as admin:
        api_keys = aws.seed(cloud, admin)
        return api_keys, {tenant.id: tenant for tenant in admin.all()}


@pytest.fixture
def sqs(cloud: Cloud) -> Iterator[Any]:
    """Queues as the service has them; the intake queue is empty at first."""
    with contextlib.closing(cloud.account.client("sqs", cloud.service)) as client:
        received(client, cloud)
        yield client


def received(sqs: Any, cloud: Cloud, *, wait_s: int = 0) -> list[dict[str, Any]]:
    """The bodies of the messages in the intake queue, which is empty then."""
    queue, found = cloud.outputs["IntakeQueueUrl"], []
    while messages := sqs.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=0 if found else wait_s
    ).get("Messages"):
        found += [json.loads(message["Body"]) for message in messages]
        for message in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return found


def service_keys(cloud: Cloud) -> S3Credentials:
    return S3Credentials(
        access_key_id=cloud.service.access_key_id,
        secret_access_key=SecretStr(cloud.service.secret_access_key),
        region=REGION,
        endpoint=cloud.account.url,
    )


def store_of(tenant: Tenant, cloud: Cloud) -> ImageStore:
    """Where the service finds a tenant's photos."""
    if not tenant.store:
        return ImageStore.at(cloud.outputs["PhotoStore"], service_keys(cloud))
    keys = KmsKeys.from_environment(cloud.aws_environment(cloud.service))
    return ImageStore.at(tenant.store, S3Credentials(**decrypt(tenant.credentials, tenant.id, keys)))


def form_for(images: ImageStore, key: str, max_bytes: int = 10**6) -> UploadForm:
    return asyncio.run(
        upload_form(images, key, media_type="image/jpeg", max_bytes=max_bytes, now=datetime.now(UTC))
    )


def send(form: UploadForm, photo: bytes) -> int:
    answer = httpx.post(form.url, data=dict(form.fields), files={"file": photo}, trust_env=False)
    return answer.status_code


@pytest.mark.parametrize("tenant_id", [SHARED, OWN])
def test_an_upload_by_form_becomes_a_message_that_names_it(seeded, cloud: Cloud, sqs: Any, tenant_id: str):
    _, tenants = seeded
    images = store_of(tenants[tenant_id], cloud)
    key = f"uploads/{tenant_id}/01 99+é"
    photo = coffee_jpeg(64, 48)
    assert send(form_for(images, key), photo) == 204
    (message,) = received(sqs, cloud, wait_s=5)
    (record,) = message["Records"]
    assert record["eventName"] == "ObjectCreated:Post"
    assert f"s3://{record['s3']['bucket']['name']}" == (
        tenants[tenant_id].store or cloud.outputs["PhotoStore"]
    )
    assert unquote_plus(record["s3"]["object"]["key"]) == key
    assert asyncio.run(images.fetch(key)).data == photo


@pytest.mark.parametrize("tenant_id", [SHARED, OWN])
def test_what_the_service_keeps_is_no_event(seeded, cloud: Cloud, sqs: Any, tenant_id: str):
    """Else every photo would be scored again as soon as it is kept."""
    _, tenants = seeded
    asyncio.run(store_of(tenants[tenant_id], cloud).put(f"{tenant_id}/ab/abc", b"photo"))
    assert received(sqs, cloud, wait_s=1) == []


def test_a_form_that_was_changed_or_is_too_small_is_refused(seeded, cloud: Cloud, sqs: Any):
    images = ImageStore.at(cloud.outputs["PhotoStore"], service_keys(cloud))
    form = form_for(images, "uploads/clinic-a/1", max_bytes=10)
    forged = UploadForm(form.url, {**form.fields, "key": "uploads/clinic-b/1"}, form.expires_at)
    assert send(form, b"x" * 11) == 400
    assert send(forged, b"x") == 403
    assert received(sqs, cloud) == []


def test_a_message_nobody_deletes_comes_back_and_then_is_a_dead_letter(cloud: Cloud, sqs: Any):
    queue, dead = cloud.outputs["IntakeQueueUrl"], cloud.outputs["DeadLetterQueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody="poison")
    for _ in range(5):  # MaxReceives of the template
        (message,) = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]
        assert "Messages" not in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=0), (
            "it is visible while at work"
        )
        sqs.change_message_visibility(
            QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
    assert "Messages" not in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=0)
    with contextlib.closing(cloud.account.client("sqs")) as root:
        (letter,) = root.receive_message(QueueUrl=dead, WaitTimeSeconds=5)["Messages"]
    assert letter["Body"] == "poison"


def test_the_service_may_do_what_a_node_may_and_no_more(seeded, cloud: Cloud, sqs: Any):
    with pytest.raises(ClientError, match="not authorized to perform: sqs:PurgeQueue"):
        sqs.purge_queue(QueueUrl=cloud.outputs["IntakeQueueUrl"])
    with pytest.raises(ImagesUnavailable, match="denies access"):
        asyncio.run(ImageStore.at(f"s3://{OWN_BUCKET}", service_keys(cloud)).get("clinic-b/ab/abc"))
    sealing = KmsKeys.from_environment(
        cloud.aws_environment(cloud.service), key_id=cloud.outputs["CredentialKeyArn"]
    )
    with pytest.raises(KeysDenied):
        encrypt({"name": "value"}, OWN, sealing)


def test_the_tenants_are_let_in_and_sealed_credentials_are_of_one_alone(seeded, cloud: Cloud):
    api_keys, tenants = seeded
    directory = Directory(tenants.values())
    for tenant_id in (SHARED, OWN):
        owner = directory.owner(f"Bearer {api_keys[tenant_id]}", datetime.now(UTC))
        assert owner == tenants[tenant_id]
    reading = KmsKeys.from_environment(cloud.aws_environment(cloud.service))
    with pytest.raises(WrongTenant):
        decrypt(tenants[OWN].credentials, SHARED, reading)


def test_everything_listens_on_loopback(cloud: Cloud):
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")  # IPv4, as a socket of both families has it
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_the_template_loses_only_what_the_emulator_cannot_judge():
    template, _ = decode_str(aws.TEMPLATE.read_text())
    kept = aws.for_emulator(template)
    assert template["Resources"].keys() - kept["Resources"].keys() == {
        "PhotoBucketPolicy",
        "DeadLetterQueuePolicy",
    }
    words = json.dumps(kept)
    assert not re.search("|".join(aws.UNJUDGED), words)
    assert {"EventsOfPhotoBucket", "UnwrapDataKeys", "ThroughOurBucketOnly"} <= set(
        re.findall(r'"Sid": "(\w+)"', words)
    )


def test_the_walk_through_uploads_as_it_is_printed(seeded, cloud: Cloud, sqs: Any, tmp_path: Path):
    """The second step as a shell runs it, over a form as the service would answer it."""
    photo = tmp_path / "sample.jpg"
    photo.write_bytes(coffee_jpeg(64, 48))
    upload = tmp_path / "upload.json"
    words = aws.walk_through(cloud, "http://127.0.0.1:8000", seeded[0], photo, upload)
    form = form_for(ImageStore.at(cloud.outputs["PhotoStore"], service_keys(cloud)), "uploads/clinic-a/walk")
    upload.write_text(json.dumps({"id": "walk", "url": form.url, "fields": dict(form.fields)}))
    second, third = (
        "\n".join(line for line in step.splitlines() if line.startswith("  "))
        for step in (words.split("2. ")[1].split("3. ")[0], words.split("3. ")[1].split("How long")[0])
    )
    assert shell(second) == "204"
    ((record,),) = [message["Records"] for message in received(sqs, cloud, wait_s=5)]
    assert record["s3"]["object"]["key"] == "uploads/clinic-a/walk"
    said = shell("key=ours; curl() { echo $*; }\n" + third)
    assert said == "-sS -i -H Authorization: Bearer ours http://127.0.0.1:8000/v1/scores/walk"


def shell(commands: str) -> str:
    done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

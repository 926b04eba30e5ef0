"""``fooddx credentials``: sealed under a key file and under KMS, wrapped anew, tried on a store."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from moto.server import ThreadedMotoServer

from app.stores.embedded import EmbeddedStore
from app.stores.tenants import TENANTS, TenantAdmin
from app.tenants import credentials
from app.tenants.credentials import decrypt, encrypt
from app.tenants.envelope import Envelope, KeysUnavailable
from app.tenants.kms import KEY_FILE, KeyService, KmsKeys, LocalKeys, key_service
from app.tenants.tenants import Tenant

SECRET = "wJalr-the-secret"  # noqa: S105 - of the tests
MINE = {"access_key_id": "AKIATEST", "secret_access_key": SECRET}
SIGNS = {"webhook_secret": "whsec_" + "c2lnbnMtbm90aWNlcy1vZi10aGUtdGVzdHM="}


@pytest.fixture(autouse=True)
def away_from_aws(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("FOODDX_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def running(data) -> Iterator[EmbeddedStore]:
    """An embedded store as a service runs it."""
    with EmbeddedStore(data / "valkey") as store:
        yield store


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of an emulated AWS."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def aws(url: str, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="eu-west-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key=SECRET,
    )


@pytest.fixture(scope="module")
def bucket(moto) -> str:
    place = {"LocationConstraint": "eu-west-1"}
    aws(moto, "s3").create_bucket(Bucket="photos-of-credentials", CreateBucketConfiguration=place)
    return "photos-of-credentials"


@pytest.fixture
def kms(moto, monkeypatch) -> str:
    """The id of a KMS key, with what the environment of a service says of it."""
    key_id = str(aws(moto, "kms").create_key()["KeyMetadata"]["KeyId"])
    said = {
        "FOODDX_CREDENTIAL_KEY": key_id,
        "AWS_ENDPOINT_URL": moto,
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    return key_id


@pytest.fixture(params=["file", "kms"])
def keys(request, data) -> KeyService:
    return key_service(request.getfixturevalue("kms") if request.param == "kms" else "", data)


@pytest.fixture
def say(monkeypatch):
    """Put something on standard input: text as it is, anything else as JSON."""

    def put(what: object) -> None:
        text = what if isinstance(what, str) else json.dumps(what)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return put


def stored(store: EmbeddedStore, tenant: str) -> Tenant:
    with redis.Redis.from_url(store.url) as client:
        return Tenant.model_validate_json(client.hget(TENANTS, tenant))


def replace(store: EmbeddedStore, tenant: str, /, **fields: object) -> None:
    with TenantAdmin(store.url) as admin:
        admin.change(tenant, lambda found: found.model_copy(update=fields))


@pytest.fixture
def clinic(fooddx, running) -> EmbeddedStore:
    """A store that knows the tenant ``clinic``."""
    assert fooddx("tenant", "add", "clinic")[0] == 0
    return running


class TestTheKeyService:
    def test_is_kms_where_there_is_a_key_and_a_file_elsewhere(self, tmp_path, kms):
        assert isinstance(key_service(kms, tmp_path), KmsKeys)
        local = key_service("", tmp_path)
        assert isinstance(local, LocalKeys)
        local.generate("clinic")
        assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]

    def test_needs_a_region(self, fooddx, clinic, kms, monkeypatch):
        monkeypatch.delenv("AWS_REGION")
        status, _, err = fooddx("credentials", "rotate")
        assert (status, "AWS_REGION" in err) == (1, True)


class TestEncrypt:
    def test_seals_what_standard_input_says(self, fooddx, clinic, keys, say):
        say(MINE | SIGNS)
        status, out, err = fooddx("credentials", "encrypt", "clinic")
        assert (status, err) == (0, "")
        assert SECRET not in out
        found = stored(clinic, "clinic")
        assert decrypt(found.credentials, "clinic", keys) == MINE | SIGNS
        assert len(found.keys) == 1
        assert "sealed" in fooddx("tenant", "list")[1]
        assert found.credentials not in fooddx("tenant", "list")[1]

    def test_seals_what_a_file_says_in_the_place_of_what_was(self, fooddx, clinic, data, tmp_path):
        file = tmp_path / "credentials.json"
        for each in (MINE, SIGNS):
            file.write_text(json.dumps(each))
            assert fooddx("credentials", "encrypt", "clinic", "--from", file)[0] == 0
        assert decrypt(stored(clinic, "clinic").credentials, "clinic", key_service("", data)) == SIGNS

    def test_prints_without_a_store(self, fooddx, data, say, keys):
        say(MINE)
        status, out, _ = fooddx("credentials", "encrypt", "clinic-b", "--print")
        assert (status, out.count("\n")) == (0, 1)
        assert decrypt(out.strip(), "clinic-b", keys) == MINE
        assert not (data / "valkey").exists()

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (MINE | {"acess_key": SECRET}, "unknown: acess_key; known: access_key_id, "),
            ({"access_key_id": SECRET}, "secret_access_key: Field required"),
            (MINE | {"endpoint": f"http://far.example/{SECRET}"}, "endpoint: "),
            ({"webhook_secret": SECRET}, "whsec_"),
            (MINE | {"region": {"a": SECRET}}, "not a JSON object of strings"),
            ([SECRET], "not a JSON object of strings"),
            ({}, "with at least one"),
            (MINE | {"region": SECRET * 400}, "at most 4096 bytes"),
            (f'{{"secret_access_key": {SECRET}', "not JSON"),
        ],
    )
    def test_says_what_is_wrong_and_quotes_nothing(self, fooddx, clinic, say, given, words):
        say(given)
        status, out, err = fooddx("credentials", "encrypt", "clinic")
        assert (status, out) == (1, "")
        assert words in err
        assert SECRET not in err
        assert stored(clinic, "clinic").credentials == ""

    def test_is_for_tenants_who_are_there(self, fooddx, clinic, say, tmp_path):
        say(MINE)
        assert "no tenant nobody" in fooddx("credentials", "encrypt", "nobody")[2]
        missing = tmp_path / "no-file"
        assert f"{missing}: No such file" in fooddx("credentials", "encrypt", "clinic", "--from", missing)[2]

    def test_takes_no_secret_as_an_argument(self, fooddx, clinic):
        assert fooddx("credentials", "encrypt", "clinic", json.dumps(MINE))[0] == 2


@pytest.fixture
def three(fooddx, clinic, keys) -> dict[str, str]:
    """The envelopes of two tenants; a third has none."""
    for tenant in ("other", "without"):
        assert fooddx("tenant", "add", tenant)[0] == 0
    envelopes = {tenant: encrypt(MINE | {"region": tenant}, tenant, keys) for tenant in ("clinic", "other")}
    for tenant, envelope in envelopes.items():
        replace(clinic, tenant, credentials=envelope)
    return envelopes


class TestRotate:
    def test_wraps_all_anew_while_both_envelopes_open(self, fooddx, clinic, three, keys, data):
        status, out, _ = fooddx("credentials", "rotate")
        assert (status, out.count("re-wrapped")) == (0, 2)
        for tenant, before in three.items():
            after = stored(clinic, tenant).credentials
            old, new = (Envelope.parse(text, tenant) for text in (before, after))
            assert old.wrapped != new.wrapped
            assert old._replace(wrapped=b"") == new._replace(wrapped=b"")
            assert decrypt(before, tenant, keys) == decrypt(after, tenant, keys) == MINE | {"region": tenant}
        assert stored(clinic, "without").credentials == ""
        if isinstance(keys, LocalKeys):
            assert len((data / KEY_FILE).read_text().split()) == 2

    def test_leaves_those_who_are_not_named(self, fooddx, clinic, three):
        assert fooddx("credentials", "rotate", "clinic", "clinic")[1].count("re-wrapped") == 1
        assert stored(clinic, "clinic").credentials != three["clinic"]
        assert stored(clinic, "other").credentials == three["other"]
        status, _, err = fooddx("credentials", "rotate", "clinic", "without", "nobody")
        assert (status, "without, nobody" in err) == (1, True)

    def test_takes_fresh_data_keys_where_asked(self, fooddx, clinic, three, keys):
        assert fooddx("credentials", "rotate", "--reseal", "clinic")[0] == 0
        old = Envelope.parse(three["clinic"], "clinic")
        new = Envelope.parse(stored(clinic, "clinic").credentials, "clinic")
        assert keys.unwrap(old.wrapped, "clinic") != keys.unwrap(new.wrapped, "clinic")
        assert decrypt(str(new), "clinic", keys) == MINE | {"region": "clinic"}

    def test_overwrites_nobody_who_was_faster(self, fooddx, clinic, three, keys, monkeypatch):
        """While an envelope is re-wrapped, somebody changes credentials and limits."""
        changed, seen, rotate = encrypt(SIGNS, "clinic", keys), [], credentials.rotate

        def slow(text: str, tenant: str, with_keys: KeyService) -> str:
            seen.append(text)
            rotated = rotate(text, tenant, with_keys)
            if len(seen) == 1:
                replace(clinic, "clinic", credentials=changed, models=("meals-lite2",))
            return rotated

        monkeypatch.setattr(credentials, "rotate", slow)
        assert fooddx("credentials", "rotate", "clinic")[0] == 0
        assert seen == [three["clinic"], changed]
        found = stored(clinic, "clinic")
        assert decrypt(found.credentials, "clinic", keys) == SIGNS
        assert (found.credentials == changed, found.models) == (False, ("meals-lite2",))

    def test_goes_on_after_one_that_cannot_be_opened(self, fooddx, clinic, three):
        replace(clinic, "clinic", credentials=three["other"])
        status, out, err = fooddx("credentials", "rotate")
        assert (status, out.count("re-wrapped")) == (1, 1)
        assert "clinic: " in err
        assert "(wrong_tenant)" in err
        assert stored(clinic, "clinic").credentials == three["other"]
        assert stored(clinic, "other").credentials != three["other"]

    def test_makes_no_key_file_in_the_place_of_a_lost_one(self, fooddx, clinic, data):
        replace(clinic, "clinic", credentials=encrypt(MINE, "clinic", key_service("", data)))
        (data / KEY_FILE).unlink()
        status, _, err = fooddx("credentials", "rotate")
        assert (status, "is not there" in err) == (1, True)
        assert not (data / KEY_FILE).exists()

    def test_has_nothing_to_do_without_credentials(self, fooddx, clinic, data):
        status, out, _ = fooddx("credentials", "rotate")
        assert (status, "No tenant" in out) == (0, True)
        assert not (data / KEY_FILE).exists()


class TestRemove:
    def test_forgets_them(self, fooddx, clinic, data, say):
        say(MINE)
        assert fooddx("credentials", "encrypt", "clinic")[0] == 0
        assert fooddx("credentials", "remove", "clinic")[0] == 0
        status, out, _ = fooddx("tenant", "list")
        assert status == 0
        assert "sealed" not in out


class TestCheck:
    def test_opens_and_tries_the_store(self, fooddx, clinic, keys, moto, bucket):
        own = MINE | {"endpoint": moto, "region": "eu-west-1"}
        replace(clinic, "clinic", credentials=encrypt(own, "clinic", keys), store=f"s3://{bucket}/clinic")
        status, out, err = fooddx("credentials", "check", "clinic")
        assert (status, err) == (0, "")
        assert "access_key_id, endpoint, region, secret_access_key can be opened" in out
        assert f"s3://{bucket}/clinic takes photos" in out
        assert SECRET not in out

        replace(clinic, "clinic", store="s3://nobodys")
        status, _, err = fooddx("credentials", "check", "clinic")
        assert (status, "s3://nobodys is not there (NoSuchBucket)" in err) == (1, True)

    def test_tells_of_a_webhook_that_nothing_signs_for(self, fooddx, clinic, keys):
        for sealed, expected in ((MINE, 1), (SIGNS, 0)):
            replace(
                clinic,
                "clinic",
                credentials=encrypt(sealed, "clinic", keys),
                webhook="https://hooks.clinic.example/",
            )
            status, _, err = fooddx("credentials", "check", "clinic")
            assert (status, "no webhook_secret" in err) == (expected, bool(expected))

    def test_says_why_they_cannot_be_opened(self, fooddx, clinic, keys):
        assert "no tenant nobody" in fooddx("credentials", "check", "nobody")[2]
        assert "neither credentials nor a store" in fooddx("credentials", "check", "clinic")[2]
        envelope = encrypt(MINE, "clinic", keys)
        for text, code in (
            (envelope.replace("fdxc1", "fdxc2"), "unknown_version"),
            (envelope[:-8], "damaged"),
            (encrypt(MINE, "other", keys), "wrong_tenant"),
        ):
            replace(clinic, "clinic", credentials=text)
            status, _, err = fooddx("credentials", "check", "clinic")
            assert (status, f"({code}): " in err) == (1, True)

    def test_tells_a_key_that_is_gone_from_a_key_service_that_is_away(self, fooddx, clinic, data):
        file = data / KEY_FILE
        replace(clinic, "clinic", credentials=encrypt(MINE, "clinic", LocalKeys(file)))
        file.unlink()
        assert KeysUnavailable.text in fooddx("credentials", "check", "clinic")[2]
        LocalKeys(file).add_key()
        assert "(keys_denied)" in fooddx("credentials", "check", "clinic")[2]

"""The key services: the same laws for both; KMS signed as botocore signs, and patient within bounds."""

from __future__ import annotations

import json
import os
import ssl
import stat
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from app.tenants.envelope import KeysDenied, KeysUnavailable, WrongTenant
from app.tenants.kms import (
    EnvironmentCredentials,
    KeyService,
    KmsKeys,
    LocalKeys,
    session_credentials,
    signed,
)

SECRET = "a-secret-key-that-signs"  # noqa: S105 - of the tests
ENVIRON = {
    "AWS_ACCESS_KEY_ID": "AKIATEST",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": "a-token",
    "AWS_REGION": "eu-west-1",
}
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of an emulated KMS."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def admin(url: str) -> Any:
    return boto3.client(
        "kms",
        endpoint_url=url,
        region_name="eu-west-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key=SECRET,
    )


def new_kms_key(url: str) -> str:
    return str(admin(url).create_key()["KeyMetadata"]["KeyId"])


def kms_keys(url: str, key_id: str | None = None, **options: Any) -> KmsKeys:
    credentials = EnvironmentCredentials(ENVIRON).itself
    return KmsKeys("eu-west-1", credentials, key_id=key_id, endpoint=url, **options)


@pytest.fixture(params=["kms", "local"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> KeyService:
    if request.param == "local":
        return LocalKeys(tmp_path / "data" / "credential_keys")
    url = request.getfixturevalue("moto")
    return kms_keys(url, new_kms_key(url))


class TestEveryKeyService:
    def test_unwraps_what_it_wrapped(self, keys):
        plain, wrapped = keys.generate("clinic-a")
        assert len(plain) == 32
        assert bytes(plain) not in wrapped
        assert keys.unwrap(wrapped, "clinic-a") == plain

    def test_makes_another_key_each_time(self, keys):
        assert keys.generate("clinic-a")[0] != keys.generate("clinic-a")[0]

    def test_refuses_another_tenant(self, keys):
        _, wrapped = keys.generate("clinic-a")
        for call in (keys.unwrap, keys.rewrap):
            with pytest.raises(WrongTenant):
                call(wrapped, "clinic-b")

    def test_refuses_a_wrapped_key_with_a_changed_byte(self, keys):
        _, wrapped = keys.generate("clinic-a")
        for place in (0, len(wrapped) // 2, len(wrapped) - 1):
            changed = bytearray(wrapped)
            changed[place] ^= 1
            # A changed name of the wrapping key is a key that is not there.
            with pytest.raises((WrongTenant, KeysDenied)):
                keys.unwrap(bytes(changed), "clinic-a")
        for nonsense in (b"\0", wrapped[:9], wrapped[:-1], wrapped + b"\0"):
            with pytest.raises((WrongTenant, KeysDenied)):
                keys.unwrap(nonsense, "clinic-a")

    def test_rewraps_the_same_data_key(self, keys):
        plain, wrapped = keys.generate("clinic-a")
        again = keys.rewrap(wrapped, "clinic-a")
        assert again != wrapped
        assert keys.unwrap(again, "clinic-a") == keys.unwrap(wrapped, "clinic-a") == plain

    def test_wraps_for_nobody_whose_id_is_none(self, keys):
        for tenant in ("", "Clinic A", "clinic-a\n"):
            with pytest.raises(WrongTenant):
                keys.generate(tenant)


class TestKmsRotation:
    def test_rewraps_under_another_key_and_the_old_one_stays_readable(self, moto):
        old_key, new_key = new_kms_key(moto), new_kms_key(moto)
        plain, wrapped = kms_keys(moto, old_key).generate("clinic-a")
        again = kms_keys(moto, new_key).rewrap(wrapped, "clinic-a")
        reader = kms_keys(moto)
        assert reader.unwrap(wrapped, "clinic-a") == reader.unwrap(again, "clinic-a") == plain

        told = admin(moto).decrypt(CiphertextBlob=again, EncryptionContext={"tenant": "clinic-a"})
        assert told["KeyId"].endswith(new_key)

    def test_needs_a_key_to_wrap_with_and_none_to_unwrap(self, moto):
        with pytest.raises(ValueError, match="KMS key is needed"):
            kms_keys(moto).generate("clinic-a")
        with pytest.raises(KeysDenied):
            kms_keys(moto, "no-such-key").generate("clinic-a")


printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(
    body=st.binary(max_size=300),
    region=st.sampled_from(["eu-west-1", "us-east-1", "cn-north-1"]),
    host=st.from_regex(r"[a-z0-9.-]{1,30}(:[0-9]{1,5})?", fullmatch=True),
    target=printable,
    access_key=printable,
    secret_key=st.text(min_size=1, max_size=60),
    token=st.none() | printable,
    at=st.datetimes(min_value=datetime(2000, 1, 1)),
)
def test_a_request_is_signed_as_botocore_signs_it(
    body, region, host, target, access_key, secret_key, token, at
):
    credentials = Credentials(access_key, secret_key, token)
    headers = {"content-type": "application/x-amz-json-1.1", "host": host, "x-amz-target": target}
    ours = signed(headers, body, region, credentials, at.timetuple())

    theirs = AWSRequest("POST", f"https://{host}/", headers=headers, data=body)
    theirs.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
    signer = SigV4Auth(credentials, "kms", region)
    signer._modify_request_before_signing(theirs)
    to_sign = signer.string_to_sign(theirs, signer.canonical_request(theirs))
    signer._inject_signature_to_request(theirs, signer.signature(to_sign, theirs))
    assert {name.lower(): value for name, value in theirs.headers.items()} == ours


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next (status, body, seconds before it) of its script."""

    def __init__(self, *script: tuple[int, Any] | tuple[int, Any, float]) -> None:
        self.script, self.seen = list(script), []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Scripted:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((dict(self.headers), json.loads(body)))
        status, answer, *wait = self.server.script.pop(0)
        time.sleep(wait[0] if wait else 0)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client has lost its patience: that is the test

    def log_message(self, *_: object) -> None:
        pass


GOOD = (200, {"Plaintext": b64encode(KEY).decode()})


def refusal(status: int, kind: str) -> tuple[int, dict[str, str]]:
    return status, {"__type": kind, "message": f"{SECRET} arn:aws:kms:eu-west-1:111122223333:key/1"}


class TestKms:
    def test_is_asked_with_the_tenant_as_encryption_context(self):
        with Scripted(GOOD) as kms:
            assert kms_keys(kms.url).unwrap(b"wrapped", "clinic-a") == KEY
        headers, asked = kms.seen[0]
        assert asked == {"CiphertextBlob": "d3JhcHBlZA==", "EncryptionContext": {"tenant": "clinic-a"}}
        assert headers["x-amz-target"] == "TrentService.Decrypt"
        assert headers["x-amz-security-token"] == "a-token"
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
        assert SECRET not in str(kms.seen)

    @pytest.mark.parametrize(
        "first",
        [
            refusal(400, "ThrottlingException"),
            refusal(400, "com.amazonaws.kms#LimitExceededException"),
            refusal(500, "KMSInternalException"),
            refusal(503, "DependencyTimeoutException"),
            (429, b""),
            (502, b"<html>"),
            (200, b"<html>"),
            (200, b'{"Plaintext": "AAAA"'),
        ],
    )
    def test_is_tried_again_once(self, first):
        with Scripted(first, GOOD) as kms:
            assert kms_keys(kms.url).unwrap(b"wrapped", "clinic-a") == KEY
        with Scripted(first, first, GOOD) as kms, pytest.raises(KeysUnavailable):
            kms_keys(kms.url).unwrap(b"wrapped", "clinic-a")
        assert len(kms.seen) == 2

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (refusal(400, "InvalidCiphertextException"), WrongTenant),
            (refusal(400, "AccessDeniedException"), KeysDenied),
            (refusal(400, "DisabledException"), KeysDenied),
            (refusal(400, "NotFoundException"), KeysDenied),
            (refusal(409, "KMSInvalidStateException"), KeysDenied),
            (refusal(403, "ExpiredTokenException"), KeysDenied),
            (refusal(400, "com.amazon.coral.service#UnrecognizedClientException"), KeysDenied),
            ((301, {}), KeysDenied),
            ((200, {}), KeysUnavailable),
            ((200, []), KeysUnavailable),
            ((200, {"Plaintext": "AAAA"}), KeysUnavailable),
            ((200, {"Plaintext": "no base64"}), KeysUnavailable),
        ],
    )
    def test_is_not_asked_again_where_that_cannot_help(self, answer, error):
        with Scripted(answer, GOOD) as kms, pytest.raises(error) as raised:
            kms_keys(kms.url).unwrap(b"wrapped", "clinic-a")
        assert len(kms.seen) == 1
        assert raised.value.args == (error.text,)

    def test_is_not_waited_for_beyond_its_time(self):
        with Scripted((*GOOD, 0.5), (*GOOD, 0.5)) as kms:
            with pytest.raises(KeysUnavailable):
                kms_keys(kms.url, timeout_s=0.1).unwrap(b"wrapped", "clinic-a")
            assert len(kms.seen) == 2

    def test_is_away_where_nobody_listens_and_back_without_a_restart(self):
        kms = Scripted(GOOD)
        keys = kms_keys(kms.url)
        port = kms.server_port
        kms.server_close()
        with pytest.raises(KeysUnavailable):
            keys.unwrap(b"wrapped", "clinic-a")
        kms = Scripted.__new__(Scripted)
        kms.script, kms.seen = [GOOD], []
        ThreadingHTTPServer.__init__(kms, ("127.0.0.1", port), _Answer)
        with kms:
            assert keys.unwrap(b"wrapped", "clinic-a") == KEY


class TestTheEndpoint:
    @pytest.mark.parametrize(
        ("more", "netloc"),
        [
            ({}, "kms.eu-west-1.amazonaws.com"),
            ({"AWS_REGION": "cn-north-1"}, "kms.cn-north-1.amazonaws.com.cn"),
            ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-east-1"}, "kms.us-east-1.amazonaws.com"),
            ({"AWS_ENDPOINT_URL": "http://localhost:5000"}, "localhost:5000"),
            (
                {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_KMS": "https://kms.internal"},
                "kms.internal",
            ),
        ],
    )
    def test_is_where_the_environment_says(self, more, netloc):
        assert KmsKeys.from_environment(ENVIRON | more)._netloc == netloc

    @pytest.mark.parametrize("url", ["http://kms.internal", "http://10.0.0.7:5000", "ftp://127.0.0.1", "kms"])
    def test_never_takes_keys_over_a_network_in_the_clear(self, url):
        with pytest.raises(ValueError, match="https"):
            KmsKeys.from_environment(ENVIRON | {"AWS_ENDPOINT_URL": url})

    def test_needs_a_region(self):
        with pytest.raises(ValueError, match="AWS_REGION"):
            KmsKeys.from_environment({**ENVIRON, "AWS_REGION": ""})

    def test_is_trusted_only_with_a_certificate_for_it(self, tmp_path):
        certificate, key = self_signed(tmp_path)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        kms = Scripted(GOOD)
        kms.socket = tls.wrap_socket(kms.socket, server_side=True)
        kms.handle_error = lambda *_: None  # the refused handshakes
        url = f"https://127.0.0.1:{kms.server_port}"
        with kms:
            with pytest.raises(KeysUnavailable):
                KmsKeys.from_environment(ENVIRON | {"AWS_ENDPOINT_URL": url}).unwrap(b"w", "clinic-a")
            assert kms.seen == []
            trusting = ENVIRON | {"AWS_ENDPOINT_URL": url, "AWS_CA_BUNDLE": str(certificate)}
            assert KmsKeys.from_environment(trusting).unwrap(b"w", "clinic-a") == KEY


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kms of the tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "kms.pem", folder / "kms.key"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


class TestAwsCredentials:
    def test_of_the_environment_do_not_show(self):
        credentials = EnvironmentCredentials(ENVIRON)
        assert (credentials.secret_key, credentials.token) == (SECRET, "a-token")
        assert SECRET not in f"{credentials} {credentials!r} {KmsKeys.from_environment(ENVIRON)!r}"

    def test_that_are_missing_fail_at_start(self):
        with pytest.raises(KeyError, match="AWS_SECRET_ACCESS_KEY"):
            KmsKeys.from_environment({"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKIATEST"})

    def test_of_the_standard_chain_are_found_at_each_call(self, monkeypatch, tmp_path):
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        current = session_credentials()
        with pytest.raises(KeysUnavailable):
            current()
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = {SECRET}\n"
        )
        current = session_credentials()
        assert (current().access_key, current().secret_key, current().token) == ("AKIATEST", SECRET, None)


class TestTheKeyFile:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "data" / "credential_keys"

    def test_is_made_at_the_first_need_for_its_owner_only(self, path):
        keys = LocalKeys(path)
        with pytest.raises(KeysUnavailable):
            keys.unwrap(b"wrapped by a key that is lost", "clinic-a")
        assert not path.exists(), "a lost key file is not replaced by one that opens nothing"
        keys.generate("clinic-a")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [file.name for file in path.parent.iterdir()] == ["credential_keys"]

    def test_is_agreed_on_by_many_processes(self, path):
        """Each thread opens the folder for itself, so the lock is between them as between processes."""
        barrier = Barrier(16)

        def first_call(_: int) -> bytes:
            barrier.wait(20)
            return LocalKeys(path).generate("clinic-a")[1]

        with ThreadPoolExecutor(16) as threads:
            wrapped = list(threads.map(first_call, range(16)))
        assert len(path.read_text().split()) == 1
        for each in wrapped:
            LocalKeys(path).unwrap(each, "clinic-a")

    def test_loses_no_key_where_many_are_added_at_once(self, path):
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda _: LocalKeys(path).add_key(), range(16)))
        assert len(set(path.read_text().split())) == 16

    def test_rotates(self, path):
        keys, elsewhere = LocalKeys(path), LocalKeys(path)
        plain, wrapped = keys.generate("clinic-a")
        elsewhere.add_key()
        again = keys.rewrap(wrapped, "clinic-a")
        assert keys.unwrap(wrapped, "clinic-a") == keys.unwrap(again, "clinic-a") == plain

        path.write_text(path.read_text().split()[-1])
        assert keys.unwrap(again, "clinic-a") == plain
        with pytest.raises(KeysDenied):
            keys.unwrap(wrapped, "clinic-a")

    @pytest.mark.parametrize("content", ["", "\n", "AAAA\n", "not base64!\n", f"{'A' * 44}\n\xff\n"])
    def test_that_is_broken_is_away_and_stays_as_it_is(self, path, content):
        path.parent.mkdir()
        path.write_text(content)
        for call in (
            lambda: LocalKeys(path).generate("clinic-a"),
            lambda: LocalKeys(path).unwrap(b"w", "clinic-a"),
            lambda: LocalKeys(path).add_key(),
        ):
            with pytest.raises(KeysUnavailable):
                call()
        assert path.read_text() == content

    def test_that_cannot_be_made_is_away(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(KeysUnavailable):
            LocalKeys(tmp_path / "file" / "keys").generate("clinic-a")

"""Presigned uploads: what a form lets its holder do, and everything that it does not.

moto takes any form: the round trip through it shows only that the fields are the ones an upload needs. The
signature is held against botocore's; and ministack, which checks signatures and policies, refuses every form
that was changed. Neither is S3 itself: how S3 words its refusals is not shown here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import boto3
import botocore.auth
import botocore.signers
import httpx
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.errors import NotFound
from app.stores.images import ImageStore
from app.stores.s3 import Bucket, S3Credentials, S3Images
from app.stores.uploads import UploadForm, presign_post, upload_form
from loadtests.emulators import Verifier, ministack
from tests.photos import coffee_jpeg
from tests.stores.faults import emulated_s3, make_bucket

NOW = datetime(2026, 2, 28, 23, 59, 30, 999_999, UTC)
KEY = "tenant/uploads/0199"
BUCKET = Bucket("photos", region="eu-west-1")
SECRET = "the-secret-of-a-bucket"  # noqa: S105 - of the tests
TOKEN = "the-token-of-a-session"  # noqa: S105 - of the tests
UNSIGNED = {"policy", "x-amz-signature"}


def keys(**more: Any) -> S3Credentials:
    return S3Credentials(access_key_id="ours", secret_access_key=SecretStr(SECRET), **more)


def form(bucket: Bucket = BUCKET, credentials: S3Credentials | None = None, **changed: Any) -> UploadForm:
    asked = {"media_type": "image/jpeg", "max_bytes": 1000, "now": NOW, "lifetime": timedelta(minutes=5)}
    object_key = changed.pop("object_key", KEY)
    return presign_post(bucket, credentials or keys(), object_key, **(asked | changed))


def policy(made: UploadForm) -> dict[str, Any]:
    return json.loads(base64.b64decode(made.fields["policy"], validate=True))


def exact(made: UploadForm) -> dict[str, str]:
    """What the policy wants to be equal."""
    found: dict[str, str] = {}
    for condition in policy(made)["conditions"]:
        if isinstance(condition, dict):
            assert not condition.keys() & found.keys()
            found |= condition
    return found


class TestThePolicy:
    def test_wants_the_key_the_type_the_size_and_encryption(self):
        made = form()
        assert policy(made)["expiration"] == "2026-03-01T00:04:30Z"
        assert ["content-length-range", 1, 1000] in policy(made)["conditions"]
        wanted = {
            "bucket": "photos",
            "key": KEY,
            "Content-Type": "image/jpeg",
            "x-amz-server-side-encryption": "AES256",
            "x-amz-algorithm": "AWS4-HMAC-SHA256",
            "x-amz-credential": "ours/20260228/eu-west-1/s3/aws4_request",
            "x-amz-date": "20260228T235930Z",
        }
        assert exact(made) == wanted

    def test_expires_when_it_says(self):
        made = form()
        assert made.expires_at == datetime(2026, 3, 1, 0, 4, 30, tzinfo=UTC)
        assert f"{made.expires_at:%Y-%m-%dT%H:%M:%SZ}" == policy(made)["expiration"]

    def test_is_the_same_wherever_the_clock_is(self):
        assert form(now=NOW.astimezone(timezone(timedelta(hours=9)))) == form()

    def test_wants_the_key_of_kms(self):
        made = form(Bucket("photos", kms_key_id="alias/photos"))
        wanted = {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "alias/photos",
        }
        assert wanted.items() <= exact(made).items()

    def test_holds_a_temporary_key_to_its_session(self):
        made = form(credentials=keys(session_token=SecretStr(TOKEN)))
        assert exact(made)["x-amz-security-token"] == made.fields["x-amz-security-token"] == TOKEN
        assert "x-amz-security-token" not in form().fields

    @given(
        st.text(min_size=1, max_size=80), st.text(max_size=40), st.integers(1, 2**40), st.datetimes(
            min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)
        )
    )  # fmt: skip
    def test_leaves_no_field_open(self, object_key: str, media_type: str, max_bytes: int, now: datetime):
        """A field that the policy does not name could be anything; S3 refuses such a form."""
        made = form(object_key=object_key, media_type=media_type, max_bytes=max_bytes, now=now)
        sent = {name: value for name, value in made.fields.items() if name not in UNSIGNED}
        assert exact(made) == sent | {"bucket": "photos"}
        assert sent["key"] == object_key
        assert ["content-length-range", 1, max_bytes] in policy(made)["conditions"]

    def test_and_nothing_else_shows_no_secret(self):
        assert SECRET not in repr(form())
        assert SECRET.encode() not in base64.b64decode(form().fields["policy"])


class TestTheSignature:
    @pytest.mark.parametrize("token", [None, TOKEN])
    @pytest.mark.parametrize("now", [NOW, datetime(2024, 2, 29, tzinfo=UTC)])
    def test_is_what_botocore_signs(self, monkeypatch, token: str | None, now: datetime):
        """The whole form: the same fields, conditions and expiry, and the signature of our own policy."""
        for module in (botocore.auth, botocore.signers):
            monkeypatch.setattr(module, "get_current_datetime", lambda: now.replace(tzinfo=None))
        pair = {"aws_access_key_id": "ours", "aws_secret_access_key": SECRET, "aws_session_token": token}
        encryption = {"x-amz-server-side-encryption": "AES256"}
        version_4 = Config(region_name="eu-west-1", signature_version="s3v4")
        with contextlib.closing(boto3.client("s3", config=version_4, **pair)) as client:
            theirs = client.generate_presigned_post(
                "photos",
                KEY,
                Fields={"Content-Type": "image/jpeg", **encryption},
                Conditions=[{"Content-Type": "image/jpeg"}, encryption, ["content-length-range", 1, 1000]],
                ExpiresIn=300,
            )
        ours = form(credentials=keys(session_token=SecretStr(token) if token else None), now=now)
        signed = UploadForm(theirs["url"], theirs["fields"], ours.expires_at)
        assert exact(ours) == exact(signed)
        assert policy(ours)["expiration"] == policy(signed)["expiration"]
        assert ours.fields.keys() == signed.fields.keys()
        assert ours.fields["x-amz-signature"] == self.of(ours.fields["policy"], now)
        assert signed.fields["x-amz-signature"] == self.of(signed.fields["policy"], now)

    def of(self, encoded: str, now: datetime) -> str:
        """Botocore's signature of a policy."""
        signer = botocore.auth.S3SigV4PostAuth(
            botocore.credentials.Credentials("ours", SECRET), "s3", "eu-west-1"
        )
        request = botocore.awsrequest.AWSRequest()
        request.context["timestamp"] = f"{now:%Y%m%dT%H%M%SZ}"
        return signer.signature(encoded, request)

    def test_changes_with_everything_that_is_signed(self):
        made = [
            form(),
            form(object_key="another"),
            form(media_type="image/png"),
            form(max_bytes=1001),
            form(now=NOW + timedelta(seconds=1)),
            form(lifetime=timedelta(minutes=6)),
            form(Bucket("photos", region="eu-west-2")),
            form(Bucket("photo", region="eu-west-1")),
            form(credentials=keys(session_token=SecretStr(TOKEN))),
            form(credentials=S3Credentials(access_key_id="ours", secret_access_key=SecretStr("other"))),
        ]
        assert len({each.fields["x-amz-signature"] for each in made}) == len(made)


def send(made: UploadForm, data: bytes, **changed: str | None) -> httpx.Response:
    fields = {name: value for name, value in {**made.fields, **changed}.items() if value is not None}
    return httpx.post(made.url, data=fields, files={"file": ("meal.jpg", data)}, trust_env=False)


def store_at(url: str, bucket: str, verifier: Verifier | None = None) -> ImageStore:
    pair = (verifier.access_key_id, verifier.secret_access_key) if verifier else ("ours", SECRET)
    credentials = S3Credentials(access_key_id=pair[0], secret_access_key=SecretStr(pair[1]), endpoint=url)
    return ImageStore.at(f"s3://{bucket}/pre/fix", credentials)


def form_of(images: ImageStore, *, now: datetime | None = None, max_bytes: int = 100_000) -> UploadForm:
    now = now or datetime.now(UTC)
    return asyncio.run(upload_form(images, KEY, media_type="image/jpeg", max_bytes=max_bytes, now=now))


def test_a_photo_goes_from_the_form_to_the_store():
    """Through moto: it would also take a wrong signature, other fields and an expired form."""
    photo = coffee_jpeg()
    with emulated_s3() as url:
        images = store_at(url, make_bucket(url, "photos"))
        assert send(form_of(images), photo).status_code == 204
        assert asyncio.run(images.fetch(KEY, len(photo))).data == photo


class TestChecked:
    """By ministack, for which a form counts as much as its signature and its policy allow."""

    @pytest.fixture(scope="module")
    @staticmethod
    def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
        with ministack(tmp_path_factory.mktemp("ministack")) as running:
            running.make_bucket("photos")
            running.make_bucket("others")
            yield running

    @pytest.fixture
    def images(self, verifier: Verifier) -> S3Images:
        images = store_at(verifier.url, "photos", verifier)
        assert isinstance(images, S3Images)
        asyncio.run(images.delete(KEY))
        return images

    def test_a_form_used_as_it_is_meant(self, images):
        photo = coffee_jpeg()
        assert send(form_of(images, max_bytes=len(photo)), photo).status_code == 204
        assert asyncio.run(images.get(KEY)) == photo

    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"key": "another/tenant"}, "AccessDenied"),
            ({"Content-Type": "text/html"}, "AccessDenied"),
            ({"Content-Type": None}, "AccessDenied"),
            ({"x-amz-server-side-encryption": None}, "AccessDenied"),
            ({"x-amz-meta-more": "than asked"}, "AccessDenied"),
            ({"acl": "public-read"}, "AccessDenied"),
            ({"policy": base64.b64encode(b"{}").decode()}, "SignatureDoesNotMatch"),
            ({"x-amz-signature": "0" * 64}, "SignatureDoesNotMatch"),
        ],
    )
    def test_a_form_that_was_changed(self, images, changed: dict[str, str | None], code: str):
        self.refuses(images, send(form_of(images), b"photo", **changed), code)

    @pytest.mark.parametrize(("data", "code"), [(b"", "EntityTooSmall"), (b"123456", "EntityTooLarge")])
    def test_a_photo_of_another_size(self, images, data: bytes, code: str):
        self.refuses(images, send(form_of(images, max_bytes=5), data), code)

    def test_a_form_that_has_expired(self, images):
        old = form_of(images, now=datetime.now(UTC) - timedelta(minutes=6))
        self.refuses(images, send(old, b"photo"), "AccessDenied")

    def test_a_form_for_another_bucket(self, images):
        made = form_of(images)
        moved = UploadForm(made.url.replace("photos", "others"), made.fields, made.expires_at)
        self.refuses(images, send(moved, b"photo"), "AccessDenied")

    def test_a_form_signed_by_somebody_else(self, images, verifier):
        forger = Verifier(verifier.url, verifier.access_key_id, SECRET)
        made = form_of(store_at(verifier.url, "photos", forger))
        self.refuses(images, send(made, b"photo"), "SignatureDoesNotMatch")

    def refuses(self, images: S3Images, answer: httpx.Response, code: str) -> None:
        assert answer.is_client_error
        assert re.findall("<Code>(.*)</Code>", answer.text) == [code]
        with pytest.raises(NotFound):
            asyncio.run(images.head(KEY))

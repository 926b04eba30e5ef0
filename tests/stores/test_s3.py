"""Photos in S3: never overwritten, encrypted and checked, and what the store does wrong told apart in time.

The emulator believes every signature. That they are right is shown against swift, which checks them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import os
import pickle
import subprocess
import sys
import traceback
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from pydantic import SecretStr, ValidationError

from app.errors import BodyTooLarge, FoodDXError, ImageConflict, ImagesUnavailable, NotFound
from app.stores.images import ImageStore, image_key
from app.stores.s3 import Bucket, S3Credentials, S3Images, S3Limits, diagnose
from loadtests.emulators import Verifier, swift
from tests.photos import coffee_jpeg
from tests.stores.faults import Fault, FaultProxy, emulated_s3, make_bucket

KEY = image_key("tenant", "5a" * 32)
SECRET = "the-secret-of-a-bucket"  # noqa: S105
TOKEN = "the-token-of-a-session"  # noqa: S105
# For what is not about time: an overloaded machine must not look like a slow store.
PATIENT = S3Limits(connect_s=20, attempt_s=20, total_s=60, backoff_s=0.01, ready_s=60)

Call = Callable[[ImageStore], Coroutine[Any, Any, object]]
CALLS: dict[str, Call] = {
    "put": lambda images: images.put(KEY, b"photo"),
    "get": lambda images: images.get(KEY),
    "head": lambda images: images.head(KEY),
    "delete": lambda images: images.delete(KEY),
    "ping": lambda images: images.ping(),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with emulated_s3() as url:
        yield url


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    with swift(tmp_path_factory.mktemp("swift")) as running:
        running.make_bucket("photos")
        yield running


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultProxy]:
    with FaultProxy(moto) as running:
        yield running


@pytest.fixture
def bucket(moto: str) -> str:
    return make_bucket(moto, f"b-{uuid.uuid4().hex}")


@pytest.fixture
def images(proxy: FaultProxy, bucket: str) -> S3Images:
    return open_bucket(proxy.url, bucket)


@pytest.fixture
def aws(moto: str) -> Iterator[Any]:
    """Somebody else with access to the bucket."""
    keys = {"aws_access_key_id": "other", "aws_secret_access_key": "other", "region_name": "us-east-1"}
    with contextlib.closing(boto3.client("s3", endpoint_url=moto, **keys)) as client:
        yield client


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of AWS in the environment, nor in the home folder, nor a machine that hands out a role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def keys(access_key_id: str = "ours", **more: Any) -> S3Credentials:
    return S3Credentials(access_key_id=access_key_id, secret_access_key=SecretStr(SECRET), **more)


def open_bucket(
    endpoint: str, bucket: str, *, kms_key_id: str = "", prefix: str = "pre/fix", limits: S3Limits = PATIENT
) -> S3Images:
    credentials = keys(endpoint=endpoint)
    location = f"s3://{bucket}/{prefix}"
    return S3Images(Bucket.at(location, credentials, kms_key_id=kms_key_id), credentials, limits)


def stored_keys(aws: Any, bucket: str) -> set[str]:
    return {entry["Key"] for entry in aws.list_objects_v2(Bucket=bucket).get("Contents", ())}


def methods(proxy: FaultProxy) -> list[str]:
    return [request.method for request in proxy.requests]


class TestPhotos:
    # More than obstore sends in one piece by itself: in several, nothing would be conditional.
    @pytest.mark.parametrize("data", [coffee_jpeg(), b"", bytes(range(256)) * 24_000])
    def test_come_back_as_they_were(self, images, aws, bucket, proxy, data):
        async def story() -> None:
            await images.put(KEY, data)
            assert await images.get(KEY) == data

        asyncio.run(story())
        assert stored_keys(aws, bucket) == {f"pre/fix/{KEY}"}
        assert methods(proxy) == ["PUT", "GET"]

    def test_may_lie_at_the_top_of_a_bucket(self, proxy, aws, bucket):
        asyncio.run(open_bucket(proxy.url, bucket, prefix="").put(KEY, b"photo"))
        assert stored_keys(aws, bucket) == {KEY}

    def test_a_missing_one_is_not_found(self, images):
        for ask in (images.get, images.fetch, images.head):
            with pytest.raises(NotFound):
                asyncio.run(ask(KEY))

    def test_a_deleted_one_is_gone_and_its_neighbours_stay(self, images, aws, bucket):
        other = image_key("tenant", "5a" * 31 + "00")

        async def story() -> None:
            await images.put(KEY, b"photo")
            await images.put(other, b"photo")
            await images.delete(KEY)
            await images.delete(KEY)
            with pytest.raises(NotFound):
                await images.get(KEY)

        asyncio.run(story())
        assert stored_keys(aws, bucket) == {f"pre/fix/{other}"}

    def test_many_at_once(self, images):
        all_keys = [image_key("tenant", f"{n:064x}") for n in range(20)]

        async def story() -> None:
            await asyncio.gather(*(images.put(key, key.encode()) for key in all_keys))
            assert await asyncio.gather(*map(images.get, all_keys)) == [key.encode() for key in all_keys]

        asyncio.run(story())

    @pytest.mark.parametrize("key", ["", "/", f"/{KEY}", f"{KEY}/", "a//b", "a/../b", "a\nb"])
    def test_a_key_that_the_store_would_tidy_up_asks_for_nothing(self, images, proxy, key: str):
        """DELETE of no key would be DELETE of the bucket."""
        for call in (images.get(key), images.head(key), images.put(key, b"photo")):
            with pytest.raises(NotFound):
                asyncio.run(call)
        asyncio.run(images.delete(key))
        assert proxy.requests == []

    def test_a_missing_bucket_is_no_missing_photo(self, proxy):
        images = open_bucket(proxy.url, "no-such-bucket")
        for call in (images.put(KEY, b"photo"), images.get(KEY), images.ping()):
            with pytest.raises(ImagesUnavailable, match=r"s3://no-such-bucket is not there \(NoSuchBucket\)"):
                asyncio.run(call)


class TestWriting:
    def test_asks_for_a_checksum_for_encryption_and_for_no_overwriting(self, images, proxy):
        asyncio.run(images.put(KEY, b"photo"))
        digest = hashlib.sha256(b"photo")
        wanted = {
            "x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode(),
            "x-amz-content-sha256": digest.hexdigest(),
            "x-amz-server-side-encryption": "AES256",
            "if-none-match": "*",
        }
        [request] = proxy.requests
        assert wanted.items() <= request.headers.items()
        signed = request.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        assert set(wanted) <= set(signed)

    def test_the_store_encrypts(self, images, aws, bucket):
        asyncio.run(images.put(KEY, b"photo"))
        found = aws.head_object(Bucket=bucket, Key=f"pre/fix/{KEY}")
        assert found["ServerSideEncryption"] == "AES256"

    def test_takes_a_key_of_kms(self, proxy, aws, bucket):
        asyncio.run(open_bucket(proxy.url, bucket, kms_key_id="alias/photos").put(KEY, b"photo"))
        assert proxy.requests[0].headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
        found = aws.head_object(Bucket=bucket, Key=f"pre/fix/{KEY}")
        assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", "alias/photos")


class TestTwoWriters:
    def test_of_one_photo_both_succeed_and_it_is_written_once(self, images, proxy):
        async def story() -> None:
            await images.put(KEY, b"photo")
            written = await images.head(KEY)
            await images.put(KEY, b"photo")
            assert await images.head(KEY) == written

        asyncio.run(story())
        # The second has asked for a HEAD, not for the photo.
        assert methods(proxy) == ["PUT", "HEAD", "PUT", "HEAD", "HEAD"]

    @pytest.mark.parametrize("other", [b"PHOTO", b"pic", b"a longer one"])
    def test_of_other_content_the_second_fails_and_the_first_stays(self, images, other):
        async def story() -> None:
            await images.put(KEY, b"photo")
            with pytest.raises(FoodDXError, match="holds something else") as failed:
                await images.put(KEY, other)
            assert isinstance(failed.value, ImageConflict)
            assert await images.get(KEY) == b"photo"

        asyncio.run(story())

    def test_at_the_same_time_one_wins(self, images):
        async def story() -> None:
            writers = [images.put(KEY, bytes([n])) for n in range(8)]
            outcomes = await asyncio.gather(*writers, return_exceptions=True)
            assert [await images.get(KEY)] == [bytes([n]) for n in range(8) if outcomes[n] is None]

        asyncio.run(story())

    def test_what_has_no_md5_for_an_etag_is_read(self, images, aws, bucket, proxy):
        """As with KMS, or where somebody uploaded in parts."""
        target = {"Bucket": bucket, "Key": f"pre/fix/{KEY}"}
        upload = aws.create_multipart_upload(**target)["UploadId"]
        part = aws.upload_part(**target, UploadId=upload, PartNumber=1, Body=b"photo")
        parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
        aws.complete_multipart_upload(**target, UploadId=upload, MultipartUpload=parts)

        async def story() -> None:
            await images.put(KEY, b"photo")
            with pytest.raises(FoodDXError, match="holds something else"):
                await images.put(KEY, b"PHOTO")

        asyncio.run(story())
        assert methods(proxy) == ["PUT", "HEAD", "GET"] * 2

    def test_an_answer_that_got_lost_is_found_out(self, images, proxy):
        """The photo was written, but who wrote it does not know; the second attempt finds it there."""
        proxy.goes("lose", times=1)
        asyncio.run(images.put(KEY, b"photo"))
        assert methods(proxy) == ["PUT", "PUT", "HEAD"]

    def test_a_clash_that_leaves_nothing_is_tried_again(self, images, proxy):
        proxy.goes("clash", times=1)
        asyncio.run(images.put(KEY, b"photo"))
        assert methods(proxy) == ["PUT", "HEAD", "PUT"]


class TestFetching:
    def test_tells_what_was_read(self, images, aws, bucket):
        aws.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        target = {"Bucket": bucket, "Key": f"pre/fix/{KEY}"}
        version = aws.put_object(**target, Body=b"photo")["VersionId"]
        fetched = asyncio.run(images.fetch(KEY, 5))
        assert fetched.data == b"photo"
        assert fetched.stored == asyncio.run(images.head(KEY))
        assert (fetched.stored.size, fetched.stored.version) == (5, version)
        assert abs((fetched.stored.modified - datetime.now(UTC)).total_seconds()) < 60
        aws.put_object(**target, Body=b"other")
        changed = asyncio.run(images.head(KEY))
        assert (changed.etag, changed.version) != (fetched.stored.etag, version)

    def test_stops_where_there_is_more_than_asked_for(self, images):
        asyncio.run(images.put(KEY, b"photo"))
        with pytest.raises(BodyTooLarge, match="more than 4 bytes"):
            asyncio.run(images.fetch(KEY, 4))


FAULTS: dict[Fault, tuple[str, int]] = {
    "deny": ("denies access", 1),
    "fail": ("fails with status 503", 3),
    "cut": ("cannot be reached", 3),
    "lose": ("cannot be reached", 3),
}


class TestFaults:
    @each_call
    @pytest.mark.parametrize(("fault", "words", "attempts"), [(f, *told) for f, told in FAULTS.items()])
    def test_are_told_apart_and_tried_again_only_where_that_helps(
        self, images, proxy, bucket, call: Call, fault: Fault, words: str, attempts: int
    ):
        proxy.goes(fault)
        with pytest.raises(ImagesUnavailable, match=f"The image store s3://{bucket} {words}") as failed:
            asyncio.run(call(images))
        first = [request for request in proxy.requests if request.method == proxy.requests[0].method]
        assert len(first) == attempts
        assert failed.value.retry_after_s
        text = "".join(traceback.format_exception(failed.value)) + failed.value.detail
        for secret in (SECRET, "quoted-token", KEY, "127.0.0.1"):
            assert secret not in text

    @each_call
    @pytest.mark.parametrize("fault", ["fail", "cut", "lose"])
    def test_that_pass_are_not_noticed(self, images, proxy, call: Call, fault: Fault):
        asyncio.run(images.put(KEY, b"photo"))
        proxy.goes(fault, times=2)
        asyncio.run(call(images))

    def test_slow_is_given_up_on_within_the_budget(self, proxy, bucket):
        """The store would answer in 2 s, and well."""
        images = open_bucket(proxy.url, bucket, limits=S3Limits())
        proxy.goes("slow")

        async def story() -> list[Any]:
            return await asyncio.gather(*(call(images) for call in CALLS.values()), return_exceptions=True)

        for outcome in asyncio.run(story()):
            assert isinstance(outcome, ImagesUnavailable)
            assert outcome.detail == f"The image store s3://{bucket} is slow: no answer within 900 ms."

    def test_one_slow_attempt_leaves_time_for_another(self, proxy, bucket):
        images = open_bucket(proxy.url, bucket, limits=S3Limits(attempt_s=0.3, total_s=20))
        proxy.goes("slow", times=1)
        asyncio.run(images.put(KEY, b"photo"))
        assert methods(proxy)[:2] == ["PUT", "PUT"]

    def test_every_attempt_slow_is_slow_too(self, proxy, bucket):
        images = open_bucket(proxy.url, bucket, limits=S3Limits(attempt_s=0.1, total_s=20))
        proxy.goes("slow")
        with pytest.raises(ImagesUnavailable, match="is slow: it did not answer in time"):
            asyncio.run(images.get(KEY))
        assert methods(proxy) == ["GET"] * 3

    @each_call
    def test_away_and_back_needs_no_restart(self, images, proxy, bucket, call: Call):
        async def story() -> None:
            await images.put(KEY, b"photo")
            proxy.stop()
            for _ in range(2):
                with pytest.raises(ImagesUnavailable, match=f"s3://{bucket} cannot be reached"):
                    await call(images)
            proxy.start()
            await call(images)

        asyncio.run(story())

    def test_another_region_is_named_as_such(self):
        """S3 answers 301 without a place to go to, and obstore with these words."""
        words = "Received redirect without LOCATION, this normally indicates an incorrectly configured region"
        assert diagnose(GenericError(words)) == ("is in another region", False)


class TestReadiness:
    def test_is_asked_for_once_in_a_while(self, images, proxy):
        async def story() -> None:
            await images.ping()
            await images.ping()

        asyncio.run(story())
        assert [(request.method, request.path.split("/", 2)[2]) for request in proxy.requests] == [
            ("PUT", "pre/fix/.ready")
        ]

    def test_is_asked_for_again_when_the_answer_is_old(self, proxy, bucket):
        images = open_bucket(proxy.url, bucket, limits=S3Limits(ready_s=0, total_s=60, attempt_s=20))

        async def story() -> None:
            await images.ping()
            await images.ping()

        asyncio.run(story())
        assert methods(proxy) == ["PUT", "PUT"]

    def test_needs_the_right_to_write(self, images, proxy, aws, bucket):
        proxy.goes("deny")
        with pytest.raises(ImagesUnavailable, match="denies access"):
            asyncio.run(images.ping())
        proxy.goes("")
        asyncio.run(images.ping())
        assert stored_keys(aws, bucket) == {"pre/fix/.ready"}


class TestCredentials:
    def test_show_no_secret(self):
        credentials = keys(session_token=SecretStr(TOKEN))
        for text in (repr(credentials), str(credentials), str(credentials.model_dump()), repr([credentials])):
            assert SECRET not in text
            assert TOKEN not in text
        assert SECRET not in credentials.model_dump_json()
        assert pickle.loads(pickle.dumps(credentials)) == credentials  # noqa: S301 - our own

    def test_come_as_json_and_refuse_what_they_do_not_know_without_quoting_it(self):
        given = f'{{"access_key_id": "a", "secret_access_key": "{SECRET}", "session_token": null}}'
        assert S3Credentials.model_validate_json(given).secret_access_key.get_secret_value() == SECRET
        for wrong in ('"no_such": "s3cr3t"', '"endpoint": "http://s3cr3t@example.org"', '"session_token": 5'):
            with pytest.raises(ValidationError) as refused:
                S3Credentials.model_validate_json(given.replace('"session_token": null', wrong))
            assert SECRET not in str(refused.value)
            assert "s3cr3t" not in str(refused.value)

    def test_of_a_store_are_in_no_text_of_it(self, images):
        assert SECRET not in repr(images)
        assert SECRET not in repr(vars(images))

    def test_go_with_the_store_that_had_them(self, proxy, bucket):
        """Stores come and go with a tenant's credentials; a circle through obstore would stay for ever."""
        own = keys(endpoint=proxy.url)
        images = ImageStore.at(f"s3://{bucket}", own)
        asyncio.run(images.put(KEY, b"photo"))
        gone = weakref.ref(own), weakref.ref(images)
        del own, images
        gc.collect()
        assert [each() for each in gone] == [None, None]

    def test_of_one_tenant_never_sign_for_another(self, proxy, moto, monkeypatch):
        """Nor do those of the environment, of which not even the session token slips in."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "everybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "everybody")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "everybody")

        async def story() -> None:
            for tenant in ("one", "two"):
                bucket = make_bucket(moto, f"{tenant}-{uuid.uuid4().hex}")
                images = ImageStore.at(f"s3://{bucket}", keys(tenant, endpoint=proxy.url))
                await images.put(KEY, tenant.encode())
                [request] = [request for request in proxy.requests if bucket in request.path]
                assert f"Credential={tenant}/" in request.headers["authorization"]
                assert "x-amz-security-token" not in request.headers

        asyncio.run(story())

    @pytest.mark.usefixtures("bare_environment")
    def test_are_found_by_the_chain_of_aws(self, proxy, bucket, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "everybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        images = ImageStore.at(f"s3://{bucket}/pre/fix")
        assert isinstance(images, S3Images)

        async def story() -> None:
            await images.put(KEY, b"photo")
            found = await images.credentials()
            assert found.session_token
            assert (found.access_key_id, found.session_token.get_secret_value()) == ("everybody", TOKEN)

        asyncio.run(story())
        headers = proxy.requests[0].headers
        assert "Credential=everybody/" in headers["authorization"]
        assert "/eu-central-1/s3/" in headers["authorization"]
        assert headers["x-amz-security-token"] == TOKEN

    @pytest.mark.usefixtures("bare_environment")
    def test_that_nobody_gave_are_missed_in_words(self, proxy, bucket, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        images = ImageStore.at(f"s3://{bucket}")
        assert isinstance(images, S3Images)
        for call in (images.put(KEY, b"photo"), images.ping(), images.credentials()):
            with pytest.raises(ImagesUnavailable, match="cannot be used without credentials"):
                asyncio.run(call)
        assert proxy.requests == []

    def test_of_ones_own_and_folders_load_nothing_of_aws(self, tmp_path):
        program = """if True:
            import sys
            from app.stores.images import ImageStore
            from app.stores.s3 import S3Credentials
            from app.stores import uploads
            ImageStore.at(sys.argv[1])
            ImageStore.at("s3://bucket", S3Credentials(access_key_id="a", secret_access_key="b"))
            assert not {"boto3", "botocore"} & set(sys.modules)
        """
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "images")], check=True)


class TestBuckets:
    @pytest.mark.parametrize(
        ("location", "name", "prefix"),
        [
            ("s3://photos", "photos", ""),
            ("s3://photos/", "photos", ""),
            ("s3://photos/a/b", "photos", "a/b"),
            ("s3://my.photos-2/a/", "my.photos-2", "a"),
        ],
    )
    def test_are_named_by_a_location(self, location: str, name: str, prefix: str):
        bucket = Bucket.at(location, environ={})
        assert (bucket.name, bucket.prefix, str(bucket)) == (name, prefix, f"s3://{name}")
        assert bucket.object_key("k") == (f"{prefix}/k" if prefix else "k")

    @pytest.mark.parametrize(
        "location",
        ["s3://", "s3:///a", "s3://Photos", "s3://ab", "s3://a..b", "s3://photos/a//b", "s3://photos/../b",
         "s3://user:secret@photos", "s3://photos?region=x", "https://photos", "photos"],
    )  # fmt: skip
    def test_cannot_be_named_otherwise(self, location: str):
        with pytest.raises(ValueError, match=r"bucket|prefix"):
            Bucket.at(location, environ={})

    @pytest.mark.parametrize(
        ("name", "endpoint", "url"),
        [
            ("photos", "", "https://photos.s3.eu-west-1.amazonaws.com"),
            ("my.photos", "", "https://s3.eu-west-1.amazonaws.com/my.photos"),
            ("photos", "https://s3.example.org", "https://s3.example.org/photos"),
        ],
    )
    def test_have_an_address(self, name: str, endpoint: str, url: str):
        assert Bucket(name, region="eu-west-1", endpoint=endpoint).url == url

    def test_take_from_the_environment_what_credentials_leave_open(self):
        everywhere = {
            "AWS_REGION": "eu-1",
            "AWS_DEFAULT_REGION": "eu-2",
            "AWS_ENDPOINT_URL_S3": "https://s3.example.org/",
            "AWS_ENDPOINT_URL": "https://all.example.org",
        }

        def at(credentials: S3Credentials | None, *names: str) -> tuple[str, str]:
            bucket = Bucket.at("s3://photos", credentials, environ={name: everywhere[name] for name in names})
            return bucket.region, bucket.endpoint

        assert at(None) == ("us-east-1", "")
        assert at(None, "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL") == ("eu-2", "https://all.example.org")
        assert at(None, *everywhere) == ("eu-1", "https://s3.example.org")
        own = keys(region="us-2", endpoint="https://own.example.org")
        assert at(own, *everywhere) == ("us-2", "https://own.example.org")
        assert at(keys(), *everywhere) == ("eu-1", "https://s3.example.org")

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost", "https://a.b"]
    )
    def test_may_be_behind_tls_or_on_this_machine(self, url: str):
        assert keys(endpoint=url).endpoint == url

    @pytest.mark.parametrize(
        "url",
        ["http://10.0.0.1", "http://s3.example.org", "http://localhost.example.org", "ftp://localhost",
         "s3.example.org", "https://", "https://user:pw@example.org", "https://example.org/?a=b", "https://example.org/#a"],
    )  # fmt: skip
    def test_are_never_spoken_to_in_the_clear(self, url: str):
        with pytest.raises(ValidationError, match="an endpoint"):
            keys(endpoint=url)
        with pytest.raises(ValueError, match="an endpoint"):
            Bucket.at("s3://photos", environ={"AWS_ENDPOINT_URL": url})

    @given(st.text(max_size=60))
    def test_a_location_is_a_bucket_or_an_error(self, path: str):
        with contextlib.suppress(ValueError):
            bucket = Bucket.at(f"s3://{path}", environ={})
            assert bucket.object_key("tenant/photo").startswith(bucket.prefix)
            assert path.rstrip("/") == f"{bucket.name}/{bucket.prefix}".rstrip("/")


class TestSignatures:
    """Against swift: it recomputes each signature, the digest of each body and each checksum."""

    @pytest.fixture
    def proxy(self, verifier: Verifier) -> Iterator[FaultProxy]:
        with FaultProxy(verifier.url) as running:
            yield running

    def at(self, verifier: Verifier, endpoint: str, secret: str = "") -> ImageStore:
        credentials = S3Credentials(
            access_key_id=verifier.access_key_id,
            secret_access_key=SecretStr(secret or verifier.secret_access_key),
            region=verifier.region,
            endpoint=endpoint,
        )
        return S3Images(Bucket.at("s3://photos/pre fix/ü", credentials), credentials, PATIENT)

    def test_right_ones_pass(self, verifier):
        images = self.at(verifier, verifier.url)
        key = "tenant/a b+c=d&e/ü"

        async def story() -> None:
            await images.ping()
            await images.put(key, b"photo")
            await images.put(key, b"photo")
            with pytest.raises(FoodDXError, match="holds something else"):
                await images.put(key, b"other")
            fetched = await images.fetch(key, 5)
            assert (fetched.data, fetched.stored) == (b"photo", await images.head(key))
            await images.delete(key)
            await images.delete(key)
            with pytest.raises(NotFound):
                await images.head(key)

        asyncio.run(story())

    @each_call
    def test_wrong_ones_are_denied(self, verifier, call: Call):
        with pytest.raises(ImagesUnavailable, match="s3://photos denies access"):
            asyncio.run(call(self.at(verifier, verifier.url, SECRET)))

    def test_a_body_that_was_changed_on_the_way_is_refused(self, verifier, proxy):
        images = self.at(verifier, proxy.url)
        proxy.goes("tamper")
        with pytest.raises(ImagesUnavailable, match="refuses the request with status 400"):
            asyncio.run(images.put(KEY, b"photo"))
        with pytest.raises(NotFound):
            asyncio.run(images.get(KEY))

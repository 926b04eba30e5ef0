"""Photos in S3, or in what speaks its protocol: a store that never overwrites and never waits for long.

An object is created, never replaced (``If-None-Match: *``): keys are by content, so whoever comes second
finds its own photo there. That makes every call safe to repeat, also when nobody knows whether the one before
arrived. obstore would not repeat such a create or delete, so its retries are off and all are made here.

Every object is written with a SHA-256 checksum, which S3 verifies and keeps, and encrypted at rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from app.errors import ImageConflict, ImagesUnavailable, NotFound
from app.stores.images import READY_KEY, Fetched, ImageStore, Stored, is_plain, plain_key, read_object, stored

if TYPE_CHECKING:
    from obstore.store import S3Credential

_BUCKET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_DEFAULT_REGION: Final = "us-east-1"
# botocore renews credentials at the latest when they have ten minutes left, and obstore asks again for those
# that have five: what is handed to it for ten minutes never runs out in its hands.
_CREDENTIALS_LAST: Final = timedelta(minutes=10)
_NO_CREDENTIALS: Final = "cannot be used without credentials, and none were found"

T = TypeVar("T")


class S3Credentials(BaseModel):
    """The keys to a bucket, and where it is. No text made of this holds a secret.

    Attributes:
        access_key_id: names the key pair; no secret.
        secret_access_key: signs requests.
        session_token: goes with a temporary key pair.
        region: of the bucket; "": as the environment says.
        endpoint: URL of a server other than AWS's own; "": as the environment says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    access_key_id: str = Field(min_length=1)
    secret_access_key: SecretStr = Field(min_length=1)
    session_token: SecretStr | None = None
    region: str = ""
    endpoint: str = ""

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        return usable_endpoint(value)


def usable_endpoint(url: str) -> str:
    """The URL of a server, without a slash at its end; "" stays.

    Raises:
        ValueError: it is no https URL, nor an http URL of this machine: photos do not travel in the clear.
    """
    parts = urlsplit(url)
    if not url:
        return ""
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("an endpoint is a URL without user, query or fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError("an endpoint must use https, unless it is on this machine")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where photos are, and how they are kept there.

    Attributes:
        name: of the bucket.
        prefix: what every key in it begins with, without a slash at either end; "": nothing.
        region: of the bucket.
        endpoint: URL of a server other than AWS's own, or "".
        kms_key_id: the KMS key that encrypts objects (``aws:kms``); "": a key of S3's own (``AES256``).
    """

    name: str
    prefix: str = ""
    region: str = _DEFAULT_REGION
    endpoint: str = ""
    kms_key_id: str = ""

    @classmethod
    def at(
        cls,
        location: str,
        credentials: S3Credentials | None = None,
        *,
        kms_key_id: str = "",
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """The bucket of ``s3://bucket/prefix``; what credentials leave open, AWS's own variables say.

        Raises:
            ValueError: no such bucket or endpoint can be; the text says why.
        """
        scheme, _, path = location.partition("://")
        name, _, prefix = path.partition("/")
        prefix = prefix.strip("/")
        if scheme != "s3" or not _BUCKET_NAME.fullmatch(name) or ".." in name:
            raise ValueError("a bucket is named as s3://bucket or s3://bucket/prefix")
        if prefix and not is_plain(prefix):
            raise ValueError("a prefix has no empty parts, '.' or '..'")
        region = (credentials.region if credentials else "") or environ.get("AWS_REGION", "")
        endpoint = (credentials.endpoint if credentials else "") or environ.get("AWS_ENDPOINT_URL_S3", "")
        return cls(
            name=name,
            prefix=prefix,
            region=region or environ.get("AWS_DEFAULT_REGION", "") or _DEFAULT_REGION,
            endpoint=usable_endpoint(endpoint or environ.get("AWS_ENDPOINT_URL", "")),
            kms_key_id=kms_key_id,
        )

    @property
    def url(self) -> str:
        """Where it answers; a key follows after a slash."""
        if self.endpoint:
            return f"{self.endpoint}/{self.name}"
        host = f"s3.{self.region}.amazonaws.com"
        # AWS's certificate covers one name before its own, and a dot makes two of it.
        return f"https://{host}/{self.name}" if "." in self.name else f"https://{self.name}.{host}"

    def object_key(self, key: str) -> str:
        """The whole key of an object that is ``key`` to us."""
        return f"{self.prefix}/{key}" if self.prefix else key

    @property
    def encryption(self) -> dict[str, str]:
        """What asks for encryption at rest, as headers or as fields of a form."""
        if not self.kms_key_id:
            return {"x-amz-server-side-encryption": "AES256"}
        return {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": self.kms_key_id,
        }

    def __str__(self) -> str:
        return f"s3://{self.name}"


@dataclass(frozen=True, slots=True)
class S3Limits:
    """How long a store may take. The defaults fit into a budget of one second.

    Attributes:
        connect_s: for a connection.
        attempt_s: for one request, the connection and the whole answer included.
        total_s: for one call, all its attempts and the waits between them included.
        retries: attempts after the first.
        backoff_s: the longest wait before the second attempt; doubled before each further one. How much of
            it is waited is drawn at random, so that those who failed together do not come back together.
        ready_s: how long an answer to ping is taken for true: readiness is asked often, and S3 counts calls.
    """

    connect_s: float = 0.3
    attempt_s: float = 0.45
    total_s: float = 0.9
    retries: int = 2
    backoff_s: float = 0.05
    ready_s: float = 1.0


class NoCredentialsError(LookupError):
    """AWS's chain of credentials found none."""


class AmbientCredentials:
    """Whatever AWS's own chain finds: variables, profile, web identity, container or instance role."""

    def __init__(self) -> None:
        self._found: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> S3Credentials:
        """The credentials of this moment; renewing them may ask a server, so call this in a thread.

        Raises:
            NoCredentialsError: there are none.
        """
        with self._lock:
            if self._found is None:
                import botocore.session  # noqa: PLC0415 - 20 MB that a folder, or a tenant's own keys, spare

                self._found = botocore.session.get_session().get_credentials()
            if self._found is None:
                raise NoCredentialsError("AWS's chain of credentials found none")
            frozen = self._found.get_frozen_credentials()
        return S3Credentials(
            access_key_id=frozen.access_key,
            secret_access_key=SecretStr(frozen.secret_key),
            session_token=SecretStr(frozen.token) if frozen.token else None,
        )


class S3Images(ImageStore):
    """Photos in a bucket."""

    lands_late = True

    def __init__(
        self,
        bucket: Bucket,
        credentials: S3Credentials | None = None,
        limits: S3Limits = S3Limits(),
    ) -> None:
        """Open a bucket; nothing is asked of it yet.

        Args:
            bucket: where photos are.
            credentials: of the bucket; None: those that AWS's own chain finds.
            limits: how long it may take.
        """
        self.bucket = bucket
        self._credentials = (lambda: credentials) if credentials else AmbientCredentials()
        self._limits = limits
        self._ready_until = 0.0
        self._store = S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            region=bucket.region,
            # By the name that a variable of the environment cannot override, and with the bucket in it.
            aws_endpoint_url_s3=bucket.url,
            virtual_hosted_style_request=True,
            # Nothing of this object: obstore's could not be collected in a circle with it.
            credential_provider=functools.partial(_for_obstore, self._credentials),
            skip_signature=False,
            checksum_algorithm="SHA256",
            unsigned_payload=False,
            # One DELETE for one key: the call for many answers 200 also where it failed, and is no simpler.
            disable_bulk_delete=True,
            **_encryption_options(bucket),
            client_options={
                "allow_http": bucket.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=limits.connect_s),
                "timeout": timedelta(seconds=limits.attempt_s),
            },
            retry_config={"max_retries": 0},
        )

    async def put(self, key: str, data: bytes) -> None:
        """See ImageStore.

        Raises:
            ImageConflict: something else is under this key; it was left as it is.
            ImagesUnavailable: the store failed. The photo may arrive all the same.
        """

        async def create() -> None:
            try:
                await obstore.put_async(self._store, plain_key(key), data, mode="create")
            except AlreadyExistsError as conflict:
                if not await self._holds(key, data, conflict):
                    raise ImageConflict(
                        f"{self.bucket} holds something else under this photo's key."
                    ) from None

        await self._call(create, writes=True)

    async def _holds(self, key: str, data: bytes, conflict: AlreadyExistsError) -> bool:
        """Whether ``data`` is what is under ``key``, for the price of a HEAD in all but rare cases."""
        try:
            found = stored(await obstore.head_async(self._store, key))
        except FileNotFoundError:
            # Two came at once, or it was deleted meanwhile: another attempt decides.
            raise _Undecided from conflict
        if found.size != len(data):
            return False
        # What was put in one piece has its MD5 as etag, unless KMS encrypts it. Not against forgery: whoever
        # may write under this key needs none.
        if found.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        return (await read_object(self._store, key, len(data))).data == data

    async def fetch(self, key: str, max_bytes: int | None = None) -> Fetched:
        """See ImageStore."""
        return await self._call(lambda: read_object(self._store, key, max_bytes))

    async def head(self, key: str) -> Stored:
        """See ImageStore."""

        async def ask() -> Stored:
            return stored(await obstore.head_async(self._store, plain_key(key)))

        return await self._call(ask)

    async def delete(self, key: str) -> None:
        """See ImageStore."""
        with contextlib.suppress(NotFound):
            await self._call(lambda: obstore.delete_async(self._store, plain_key(key)))

    async def ping(self) -> None:
        """See ImageStore. What was found out a moment ago is not asked again; a failure always is."""

        async def touch() -> None:
            try:
                await obstore.put_async(self._store, READY_KEY, b"", mode="create")
            except AlreadyExistsError:
                return  # the right to write is checked first, and a bucket with versions gets no new one

        if time.monotonic() < self._ready_until:
            return
        await self._call(touch, writes=True)
        self._ready_until = time.monotonic() + self._limits.ready_s

    async def credentials(self) -> S3Credentials:
        """Those that are valid now.

        Raises:
            ImagesUnavailable: there are none.
        """
        try:
            return await asyncio.to_thread(self._credentials)
        except Exception:  # noqa: BLE001 - botocore's own errors: the chain asks files, programs and servers
            raise self._unavailable(_NO_CREDENTIALS) from None

    async def _call(self, attempt: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        """Try until it works, cannot work, or the time is up. What misses for a write is the bucket."""
        limits = self._limits
        try:
            async with asyncio.timeout(limits.total_s):
                for retry in range(limits.retries):
                    try:
                        return await attempt()
                    except (BaseError, _Undecided) as error:
                        if not diagnose(error)[1]:
                            raise
                    longest = limits.backoff_s * 2**retry
                    await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - spreads load, hides nothing
                return await attempt()
        except TimeoutError:
            raise self._unavailable(f"is slow: no answer within {limits.total_s * 1000:.0f} ms") from None
        except (BaseError, FileNotFoundError, _Undecided) as error:
            # Not chained: the store's own words may quote a session token.
            if isinstance(error, FileNotFoundError) and not writes and "NoSuchBucket" not in str(error):
                raise NotFound("This photo is not stored.") from None
            raise self._unavailable(diagnose(error)[0]) from None

    def _unavailable(self, what: str) -> ImagesUnavailable:
        return ImagesUnavailable(f"The image store {self.bucket} {what}.", retry_after_s=1)


class _Undecided(Exception):
    """A key was taken, and free again a moment later."""


def _for_obstore(credentials: Callable[[], S3Credentials]) -> S3Credential:
    """What obstore asks for when it has none, in a thread of its own."""
    found = credentials()
    token = found.session_token
    return {
        "access_key_id": found.access_key_id,
        "secret_access_key": found.secret_access_key.get_secret_value(),
        "token": token.get_secret_value() if token else None,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
    }


def diagnose(error: Exception) -> tuple[str, bool]:
    """What a store did, in words without a secret, and whether another attempt may help.

    obstore has no types for most of it. Its text gives the status, S3's error code and the kind of failure.
    """
    text = str(error)
    code = re.search(r"<Code>([\w.]{1,64})</Code>", text)
    why = f" ({code[1]})" if code else ""
    if "External AWS credential provider" in text:
        return _NO_CREDENTIALS, False
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return f"denies access{why}", False
    if isinstance(error, FileNotFoundError):
        return f"is not there{why}", False
    if isinstance(error, _Undecided):
        return "could not decide between two writers of a photo", True
    if status := re.search(r"Server returned non-2xx status code: (\d{3})", text):
        retryable = status[1] == "429" or status[1] >= "500"
        return f"{'fails' if retryable else 'refuses the request'} with status {status[1]}{why}", retryable
    if "kind: Timeout" in text:
        return "is slow: it did not answer in time", True
    if "Received redirect without LOCATION" in text:
        return "is in another region", False
    return "cannot be reached", True


def _encryption_options(bucket: Bucket) -> dict[str, Any]:
    if not bucket.kms_key_id:
        return {"server_side_encryption": "AES256"}
    return {
        "server_side_encryption": "aws:kms",
        "sse_kms_key_id": bucket.kms_key_id,
        # One data key of KMS serves many objects for a while, instead of one call to KMS for each.
        "sse_bucket_key_enabled": True,
    }

"""Presigned uploads: a form that lets whoever holds it put one photo, and nothing else, into a bucket.

A form is signed here and checked by S3 (POST Object, Signature Version 4). Nobody is asked while it is made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from app.errors import NeedsObjectStorage
from app.stores.images import ImageStore
from app.stores.s3 import Bucket, S3Credentials, S3Images

UPLOAD_LIFETIME: Final = timedelta(minutes=5)
"""How long a form is good for by default; temporary credentials that sign it last longer."""

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class UploadForm:
    """What a client needs for one upload.

    Attributes:
        url: where the form is sent to, as ``multipart/form-data``.
        fields: its fields; the file follows as the last one, named ``file``. None of them is a secret, but
            together they are the right to upload.
        expires_at: when S3 stops taking it, whole seconds, UTC.
    """

    url: str
    fields: Mapping[str, str]
    expires_at: datetime


async def upload_form(
    images: ImageStore,
    key: str,
    *,
    media_type: str,
    max_bytes: int,
    now: datetime,
    lifetime: timedelta = UPLOAD_LIFETIME,
) -> UploadForm:
    """A form for the bucket behind ``images``; see presign_post for the rest.

    Raises:
        NeedsObjectStorage: photos are kept in a folder.
        ImagesUnavailable: there are no credentials to sign with.
    """
    if not isinstance(images, S3Images):
        raise NeedsObjectStorage
    return presign_post(
        images.bucket,
        await images.credentials(),
        images.bucket.object_key(key),
        media_type=media_type,
        max_bytes=max_bytes,
        now=now,
        lifetime=lifetime,
    )


def presign_post(
    bucket: Bucket,
    credentials: S3Credentials,
    object_key: str,
    *,
    media_type: str,
    max_bytes: int,
    now: datetime,
    lifetime: timedelta,
) -> UploadForm:
    """Sign a form that uploads one object.

    S3 takes it until it expires, for exactly this key, Content-Type and encryption, and for 1 to
    ``max_bytes`` bytes. It takes it more than once: give each form a key of its own.

    Args:
        bucket: where the object goes.
        credentials: of somebody who may put it there.
        object_key: the whole key, the bucket's prefix included.
        media_type: such as ``image/jpeg``.
        max_bytes: largest upload.
        now: the time, with its zone.
        lifetime: how long the form is good for.
    """
    now = now.astimezone(UTC)
    expires_at = (now + lifetime).replace(microsecond=0)
    day = f"{now:%Y%m%d}"
    scope = (day, bucket.region, "s3", "aws4_request")
    fields = {
        "key": object_key,
        "Content-Type": media_type,
        **bucket.encryption,
        "x-amz-algorithm": _ALGORITHM,
        "x-amz-credential": "/".join((credentials.access_key_id, *scope)),
        "x-amz-date": f"{day}T{now:%H%M%S}Z",
    }
    if credentials.session_token:
        fields["x-amz-security-token"] = credentials.session_token.get_secret_value()
    conditions: list[Any] = [
        {"bucket": bucket.name},
        ["content-length-range", 1, max_bytes],
        *({name: value} for name, value in fields.items()),
    ]
    policy = {"expiration": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}", "conditions": conditions}
    encoded = base64.b64encode(json.dumps(policy).encode())
    # Signature Version 4: the key is derived from the secret and the scope; what it signs is the policy.
    key = b"AWS4" + credentials.secret_access_key.get_secret_value().encode()
    for part in scope:
        key = _hmac(key, part.encode())
    fields |= {"policy": encoded.decode(), "x-amz-signature": _hmac(key, encoded).hex()}
    return UploadForm(bucket.url, fields, expires_at)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()

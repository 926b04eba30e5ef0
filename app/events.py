"""What a message of the intake queue means: which objects have arrived, and for whom they are scored.

Plain functions over the text of a message; nothing is asked of a queue or a store here.

S3 percent-encodes the key in an event notification, with ``+`` for a space. An event that comes by way of
EventBridge has the key as it is, and so has a message of our own: decoding these would turn ``a+b`` into
``a b``, which is another object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from pydantic import ValidationError

from app.schemas import Profile, Wire

MAX_MESSAGE_BYTES: Final = 2**20
"""The largest message SQS takes; 256 KiB before August 2025."""
MAX_KEY_BYTES: Final = 1024
"""The longest key S3 takes, in UTF-8."""


class MalformedMessage(ValueError):
    """A message that no retry makes understandable. The text is public and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An object to be scored.

    Attributes:
        bucket: where it is; "": where the service keeps its own photos.
        key: the object's whole key, decoded.
        etag: of its content, without quotes; "": unknown.
        version: in a bucket that keeps versions; "": none, and what is under the key may be replaced.
        size: in bytes, as the event says; None: unknown.
        profile: who the tip is for; None: nobody said.
    """

    bucket: str
    key: str
    etag: str = ""
    version: str = ""
    size: int | None = None
    profile: Profile | None = None


class _Request(Wire):
    """Our own message."""

    key: str
    profile: Profile | None = None
    bucket: str = ""


def parse(body: str) -> tuple[Arrival, ...]:
    """Read a message: S3's own, by SNS or EventBridge on its way or not, or ours.

    Ours is ``{"key": …, "profile": {…}, "bucket": …}``, of which only the key must be there.

    Args:
        body: the message, JSON.

    Returns:
        What has arrived, in the message's order. Empty for what S3 sends to try a queue out, and for events
        of other kinds, such as deletions.

    Raises:
        MalformedMessage: it, or any one of its records, is none of these.
    """
    message = _load(body)
    match message:
        case {"Type": "Notification", "Message": str(wrapped)}:
            message = _load(wrapped)
    match message:
        case {"Event": "s3:TestEvent"}:
            return ()
        case {"Records": list(records)}:
            return tuple(arrival for record in records if (arrival := _notified(record)))
        case {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}:
            return (_bridged(detail),)
        case {"source": "aws.s3", "detail-type": str()}:
            return ()
        case {"key": _}:
            return (_requested(message),)
    raise MalformedMessage("it is neither an event of S3 nor a request of ours")


def _load(text: str) -> Any:
    # No character takes less than a byte, so what is far too long is not copied to be measured.
    if len(text) > MAX_MESSAGE_BYTES or len(text.encode(errors="replace")) > MAX_MESSAGE_BYTES:
        raise MalformedMessage("it is larger than a message can be")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedMessage("it is not JSON") from None


def _notified(record: object) -> Arrival | None:
    """The object of one record of an event notification; None if it is about something else."""
    match record:
        case {
            "eventName": str(event),
            "s3": {"bucket": {"name": str(bucket)}, "object": {"key": str(encoded), **facts}},
        }:
            try:
                key = unquote_plus(encoded, errors="strict")
            except UnicodeDecodeError:
                raise MalformedMessage("a key in it is not UTF-8") from None
            arrival = _arrival(bucket, key, facts, etag="eTag", version="versionId")
            # S3 leaves the "s3:" out; other stores with its protocol write it.
            return arrival if event.removeprefix("s3:").startswith("ObjectCreated:") else None
    raise MalformedMessage("a record in it is not an event of S3")


def _bridged(detail: object) -> Arrival:
    match detail:
        case {"bucket": {"name": str(bucket)}, "object": {"key": str(key), **facts}}:
            return _arrival(bucket, key, facts, etag="etag", version="version-id")
    raise MalformedMessage("its detail is not an object of S3")


def _requested(message: object) -> Arrival:
    try:
        request = _Request.model_validate(message)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0]
        # Only a name of ours is repeated: another could be anything.
        field = f"its field {wrong}" if wrong in _Request.model_fields else "a field of it"
        raise MalformedMessage(f"{field} is not valid") from None
    return Arrival(_plain(request.bucket, "bucket"), _key(request.key), profile=request.profile)


def _arrival(bucket: str, key: str, facts: Mapping[Any, Any], *, etag: str, version: str) -> Arrival:
    if not bucket:
        raise MalformedMessage("a bucket in it has no name")
    size = facts.get("size")
    if size is not None and (type(size) is not int or size < 0):
        raise MalformedMessage("a size in it is not a number of bytes")
    found = _plain(facts.get(version) or "", "version")
    return Arrival(
        bucket=_plain(bucket, "bucket"),
        key=_key(key),
        etag=_plain(facts.get(etag) or "", "etag").strip('"'),
        # What was written while versions were off or suspended is the version "null", again and again.
        version="" if found == "null" else found,
        size=size,
    )


def _key(key: str) -> str:
    try:
        if 0 < len(key.encode()) <= MAX_KEY_BYTES:
            return key
    except UnicodeEncodeError:
        pass
    raise MalformedMessage(f"a key in it is not 1 to {MAX_KEY_BYTES} bytes of UTF-8")


def _plain(value: object, what: str) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= MAX_KEY_BYTES:
        return value
    raise MalformedMessage(f"the {what} in it is not one")

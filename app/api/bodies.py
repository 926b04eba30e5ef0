"""Request bodies, read under a cap: a photo sent raw or as multipart, and small JSON."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.errors import BodyTimeout, BodyTooLarge, InvalidField, InvalidRequest
from app.schemas import Profile

# A profile is a few words; the largest that the schema admits is far below this.
_LARGEST_PROFILE = 16 * 1024
# What a form may hold beside the photo: the profile, boundaries and the headers of two parts.
_LARGEST_FRAMING = _LARGEST_PROFILE + 4096
_LARGEST_JSON = 64 * 1024
_LENGTH = re.compile(r"[0-9]{1,20}")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class PhotoBody:
    """A photo and a profile, however they were sent."""

    data: bytes
    sha256: str
    profile: Profile


def parse_profile(text: str | bytes) -> Profile:
    """A profile from JSON."""
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(error, "profile") from None


async def read_photo(request: Request, *, max_bytes: int, timeout_s: float) -> PhotoBody:
    """Read a photo, raw or as multipart, never holding more than ``max_bytes`` of it.

    Raises:
        BodyTooLarge: said as soon as it is known, by its Content-Length or while reading.
        BodyTimeout: the client took longer than ``timeout_s``.
        InvalidRequest: multipart that cannot be parsed, or without an image.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    async with _arriving("photo", timeout_s):
        if kind == b"multipart/form-data":
            return await _read_multipart(request, options.get(b"boundary", b""), max_bytes)
        digest = hashlib.sha256()
        chunks = []
        async for chunk in _stream(request, max_bytes, _too_large(max_bytes)):
            digest.update(chunk)
            chunks.append(chunk)
        return PhotoBody(b"".join(chunks), digest.hexdigest(), Profile())


async def read_model(request: Request, model: type[M], *, timeout_s: float) -> M:
    """Read a small JSON body as ``model``.

    Raises:
        BodyTooLarge, BodyTimeout, InvalidRequest: as for a photo.
        InvalidField: it is not JSON, or not a ``model``.
    """
    too_large = BodyTooLarge(f"The body may have at most {_LARGEST_JSON // 1024} KiB.")
    async with _arriving("body", timeout_s):
        body = b"".join([chunk async for chunk in _stream(request, _LARGEST_JSON, too_large)])
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error, "body") from None


@asynccontextmanager
async def _arriving(what: str, timeout_s: float) -> AsyncIterator[None]:
    """What the network does to a body, as errors of ours."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise BodyTimeout(f"The {what} must arrive within {timeout_s:g} seconds.") from None
    except ClientDisconnect:
        raise InvalidRequest(f"The connection closed before the {what} was complete.") from None


async def _stream(request: Request, limit: int, too_large: BodyTooLarge) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if _LENGTH.fullmatch(declared) and int(declared) > limit:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk


class _Form:
    """Collects the two parts of the form; anything else is refused."""

    def __init__(self, max_bytes: int) -> None:
        self.limits = {"image": max_bytes, "profile": _LARGEST_PROFILE}
        self.parts: dict[str, bytearray] = {}
        self._max_bytes = max_bytes
        self._header = bytearray()
        self._value = bytearray()
        self._name = ""

    def on_part_begin(self) -> None:
        self._name = ""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        if self._name not in self.limits or self._name in self.parts:
            raise InvalidRequest("The form must hold one 'image' and at most one 'profile'.")
        self.parts[self._name] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[self._name]
        part += data[start:end]
        if len(part) > self.limits[self._name]:
            if self._name == "image":
                raise _too_large(self._max_bytes)
            raise InvalidField("profile: too long.")


async def _read_multipart(request: Request, boundary: bytes, max_bytes: int) -> PhotoBody:
    form = _Form(max_bytes)
    ended = False

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_end": on_end,
            },
        )
        async for chunk in _stream(request, max_bytes + _LARGEST_FRAMING, _too_large(max_bytes)):
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("The multipart body cannot be parsed.") from None
    if not ended or "image" not in form.parts:
        raise InvalidRequest("The form must hold an 'image' and be complete.")
    data = bytes(form.parts["image"])
    profile = parse_profile(bytes(form.parts["profile"])) if "profile" in form.parts else Profile()
    return PhotoBody(data, hashlib.sha256(data).hexdigest(), profile)


def _invalid(error: ValidationError, whole: str) -> InvalidField:
    # Only where and why: the value itself may be somebody's name.
    return InvalidField(
        "; ".join(f"{'.'.join((whole, *map(str, e['loc'])))}: {e['msg']}" for e in error.errors())
    )


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The photo may have at most {max_bytes / 2**20:g} MiB.")

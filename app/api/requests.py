"""What a request brings in its headers: an id, an API key, an Idempotency-Key, a time budget."""

from __future__ import annotations

import re
from typing import Annotated

import uuid_utils
from fastapi import Depends, Header, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidField

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,128}$")
_IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,255}$")


class RequestIdMiddleware:
    """Gives every request an id, the client's own where it is a plain one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.match(given) else uuid_utils.uuid7().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message["headers"] if k.lower() != b"x-request-id"]
                message["headers"] = [*headers, (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(request: Request) -> str:
    """The id that RequestIdMiddleware gave."""
    return str(request.state.request_id)


def tenant_of(
    request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
) -> str:
    """The tenant whose API key came with the request."""
    tenant: str = request.app.state.service.tenant(authorization)
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]


def idempotency_key(given: str | None) -> str | None:
    """The client's key, checked."""
    if given is not None and not _IDEMPOTENCY_KEY.match(given):
        raise InvalidField("Idempotency-Key: 1 to 255 visible ASCII characters.")
    return given


def budget_s(given: str | None) -> float | None:
    """Seconds from an ``X-Budget-Ms`` header: how long the client is willing to wait."""
    if given is None:
        return None
    if not given.isdigit() or not 1 <= int(given) <= 60_000:
        raise InvalidField("X-Budget-Ms: a whole number of milliseconds, 1 to 60000.")
    return int(given) / 1000

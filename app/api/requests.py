"""What a request brings in its headers: an id, an API key, an Idempotency-Key, a time budget."""

from __future__ import annotations

import math
import re
from typing import Annotated

import uuid_utils
from fastapi import Depends, Header, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidField, RateLimited
from app.stores.tenants import Allowance
from app.telemetry import STAGES, Stages
from app.tenants.access import Access

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BUDGET_MS = re.compile(r"[0-9]{1,5}")
_LONGEST_BUDGET_MS = 60_000


class RequestMiddleware:
    """Gives every request an id, the client's own where it is a plain one, and a clock for its stages.

    The answer carries both: ``X-Request-Id``, and ``Server-Timing`` with the milliseconds of each stage; and
    ``RateLimit-…`` where the tenant has a limit.
    """

    def __init__(self, app: ASGIApp, *, echo: bool = True) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        # Serve sends back whatever came, so behind it the id must be that; in the logs it is escaped.
        usable = given if not self._echo else _REQUEST_ID.fullmatch(given)
        request_id = given if usable else uuid_utils.uuid7().hex
        stages = Stages()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, stages=stages, allowance=None)

        async def send_with_both(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"x-request-id", request_id.encode())] if self._echo else []
                if stages.seconds:
                    extra.append((b"server-timing", _server_timing(stages).encode()))
                if state["allowance"]:
                    extra += _rate_limit(state["allowance"])
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._app(scope, receive, send_with_both)


def _server_timing(stages: Stages) -> str:
    return ", ".join(f"{s};dur={stages.seconds[s] * 1000:.1f}" for s in STAGES if s in stages.seconds)


def _rate_limit(allowance: Allowance) -> list[tuple[bytes, bytes]]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-07, of the limit that is nearest."""
    values = {
        b"ratelimit-limit": allowance.limit,
        b"ratelimit-remaining": allowance.remaining,
        b"ratelimit-reset": math.ceil(allowance.reset_s),
    }
    return [(name, str(value).encode()) for name, value in values.items()]


def request_id_of(request: Request) -> str:
    """The id that RequestMiddleware gave."""
    return str(request.state.request_id)


def stages_of(request: Request) -> Stages:
    """The clock that RequestMiddleware gave."""
    stages: Stages = request.state.stages
    return stages


async def tenant_of(
    request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
) -> str:
    """The tenant whose API key came with the request."""
    with stages_of(request).timed("auth"):
        access: Access = request.app.state.service.access
        tenant, allowance = await access.enter(authorization)
    request.state.allowance = allowance
    if allowance and not allowance.allowed:
        raise RateLimited(
            f"As many requests as this key may make were made: {allowance.limit}.",
            retry_after_s=allowance.reset_s,
        )
    return tenant.id


Tenant = Annotated[str, Depends(tenant_of)]


def idempotency_key(given: str | None) -> str | None:
    """The client's key, checked."""
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidField("Idempotency-Key: 1 to 255 visible ASCII characters.")
    return given


def prefers_async(given: str | None) -> bool:
    """Whether a ``Prefer`` header (RFC 7240) asks for an answer later."""
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in (given or "").split(","))


def budget_s(given: str | None) -> float | None:
    """Seconds from an ``X-Budget-Ms`` header: how long the client is willing to wait."""
    if given is None:
        return None
    if not _BUDGET_MS.fullmatch(given) or not 1 <= int(given) <= _LONGEST_BUDGET_MS:
        raise InvalidField(f"X-Budget-Ms: a whole number of milliseconds, 1 to {_LONGEST_BUDGET_MS}.")
    return int(given) / 1000

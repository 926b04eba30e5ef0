"""What a request brings in its headers: an id, an API key, an Idempotency-Key, a time budget."""

from __future__ import annotations

import re
from typing import Annotated

import uuid_utils
from fastapi import Depends, Header, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidField
from app.telemetry import STAGES, Stages

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BUDGET_MS = re.compile(r"[0-9]{1,5}")
_LONGEST_BUDGET_MS = 60_000


class RequestMiddleware:
    """Gives every request an id, the client's own where it is a plain one, and a clock for its stages.

    The answer carries both: ``X-Request-Id``, and ``Server-Timing`` with the milliseconds of each stage.
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
        scope.setdefault("state", {}).update(request_id=request_id, stages=stages)

        async def send_with_both(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"x-request-id", request_id.encode())] if self._echo else []
                if stages.seconds:
                    extra.append((b"server-timing", _server_timing(stages).encode()))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._app(scope, receive, send_with_both)


def _server_timing(stages: Stages) -> str:
    return ", ".join(f"{s};dur={stages.seconds[s] * 1000:.1f}" for s in STAGES if s in stages.seconds)


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
        tenant: str = request.app.state.service.tenant(authorization)
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]


def idempotency_key(given: str | None) -> str | None:
    """The client's key, checked."""
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise InvalidField("Idempotency-Key: 1 to 255 visible ASCII characters.")
    return given


def budget_s(given: str | None) -> float | None:
    """Seconds from an ``X-Budget-Ms`` header: how long the client is willing to wait."""
    if given is None:
        return None
    if not _BUDGET_MS.fullmatch(given) or not 1 <= int(given) <= _LONGEST_BUDGET_MS:
        raise InvalidField(f"X-Budget-Ms: a whole number of milliseconds, 1 to {_LONGEST_BUDGET_MS}.")
    return int(given) / 1000

"""One shape for every error on the wire: RFC 9457 problem details, made from the tree in app/errors.py."""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.requests import request_id_of
from app.errors import (
    FoodDXError,
    InvalidField,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    tree,
)
from app.schemas import Problem
from app.telemetry import Meter, logger

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_S = 1.0


def problem(error: FoodDXError, request_id: str) -> Response:
    """The answer for ``error``."""
    headers = {}
    if error.retryable:
        wait_s = _RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="fooddx"'
    body = Problem(
        type=f"urn:fooddx:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
    )
    return JSONResponse(body.model_dump(), error.status, headers, MEDIA_TYPE)


def install(app: FastAPI, meter: Meter) -> None:
    """Answer every error of ``app`` as a problem."""

    @app.exception_handler(FoodDXError)
    async def ours(request: Request, error: FoodDXError) -> Response:
        return answer(request, error, meter)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Only where and why: the value itself may be somebody's name.
        words = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return answer(request, InvalidField(words), meter)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kinds: dict[int, FoodDXError] = {404: NotFound("No such path."), 405: MethodNotAllowed()}
        response = answer(request, kinds.get(error.status_code) or InvalidRequest(str(error.detail)), meter)
        response.headers.update(error.headers or {})  # a 405 names the methods that are allowed
        return response

    app.add_middleware(LastResort, meter=meter)


def answer(request: Request, error: FoodDXError, meter: Meter) -> Response:
    """The answer for ``error``, counted."""
    meter.add("fooddx_rejected_total", code=error.code)
    return problem(error, request_id_of(request))


class LastResort:
    """Answers an error that nobody planned for.

    A handler for Exception would run outside every middleware, and its answer would lack their headers.
    """

    def __init__(self, inner: ASGIApp, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._inner(scope, receive, watched)
        except Exception as error:
            request = Request(scope)
            logger.error("unplanned error", exc_info=error, extra={"request_id": request_id_of(request)})
            response = answer(request, FoodDXError(), self._meter)
            if started:
                raise  # the server closes the connection: half an answer must not look whole
            await response(scope, receive, send)


def responses(*errors: type[FoodDXError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors a route may answer, each with an example."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = by_status.setdefault(
            error.status,
            {
                "description": error.title,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["content"][MEDIA_TYPE]["examples"][error.code] = {
            "summary": error.title,
            "value": {
                "type": f"urn:fooddx:problem:{error.code}",
                "title": error.title,
                "status": error.status,
                "detail": error.title,
                "code": error.code,
                "request_id": "0199c3f2a7d47c1f9b1de0a35a2e8b11",
            },
        }
    return by_status


def with_subclasses(root: type[FoodDXError]) -> list[type[FoodDXError]]:
    """``root`` and everything below it."""
    return [error for error in tree() if issubclass(error, root)]

"""The FastAPI application of one ingress replica."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.examples import BY_SCHEMA
from app.api.requests import RequestMiddleware
from app.api.routes import health, router, score_photo
from app.errors import FoodDXError
from app.schemas import Problem, ReviewIn, ScoreByKey, UploadIn
from app.service import Service
from app.telemetry import Meter

Endpoint = Callable[[Request], Awaitable[Response]]

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS = "/docs/assets"
_DESCRIPTION = (
    "A photo of a meal in; a score from 1 (rarely) to 5 (great choice), what is on the plate, a tip for this "
    "person and the photo's hash out, within a second. Every error is `application/problem+json` with a "
    "stable `code`; every answer carries `X-Request-Id`."
)


def create_app(service: Service, *, behind_serve: bool = False) -> FastAPI:
    """All routes over ``service``, which is closed with the application.

    Ray Serve wraps an application in a middleware that sends X-Request-Id back; ``behind_serve`` leaves that
    header to it, so that it comes once.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    api = _Api(
        title="FoodDX", version=version("fooddx"), description=_DESCRIPTION, docs_url=None, redoc_url=None,
        lifespan=lifespan,
        # Where TLS ends before us a redirect would name http://, and send the API key in the clear.
        redirect_slashes=False,
    )  # fmt: skip
    api.state.service = service
    api.include_router(router)
    api.include_router(health)
    problems.install(api, service.meter)
    _install_docs(api)
    web = Path(__file__).parents[1] / "web"
    page = (web / "index.html").read_text()

    @api.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    api.mount("/static", StaticFiles(directory=web), name="static")
    api.add_middleware(_SecurityHeaders)
    api.add_middleware(RequestMiddleware, echo=not behind_serve)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    api.shorten("POST", "/v1/scores", score_photo, service.meter, echo=not behind_serve)
    return api


class _Api(FastAPI):
    """FastAPI, with a short way in for the one call that all the load comes by.

    It leaves out FastAPI's middlewares, its router and what it does to fill in a route's parameters, and has
    the same errors and headers; tests/api/test_short_way.py holds both ways against each other.
    """

    _short: tuple[str, str, ASGIApp] | None = None

    def shorten(self, method: str, path: str, endpoint: Endpoint, meter: Meter, *, echo: bool) -> None:
        """Have ``endpoint`` answer what the routes would otherwise."""
        app: ASGIApp = _Direct(self, endpoint, meter)
        app = problems.LastResort(app, meter)
        self._short = method, path, RequestMiddleware(_SecurityHeaders(app), echo=echo)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._short and scope["type"] == "http":
            method, path, app = self._short
            if scope["path"] == path and scope["method"] == method:
                await app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _Direct:
    """An endpoint of its own; our errors are answered as problems."""

    def __init__(self, api: FastAPI, endpoint: Endpoint, meter: Meter) -> None:
        self._api = api
        self._endpoint = endpoint
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._api
        request = Request(scope, receive)
        try:
            response = await self._endpoint(request)
        except FoodDXError as error:
            response = problems.answer(request, error, self._meter)
        await response(scope, receive, send)


def _install_docs(api: FastAPI) -> None:
    """The OpenAPI page from installed files: it works without a network, under a strict policy."""
    assets = Path(fastapi_offline.__file__).parent / "static"
    api.mount(_DOCS, StaticFiles(directory=assets), name="docs-assets")
    html = bytes(
        get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="FoodDX API",
            swagger_js_url=f"{_DOCS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_DOCS}/swagger-ui.css",
            swagger_favicon_url="/static/favicon.svg",
        ).body
    )
    inline = re.search(rb"<script>(.*?)</script>", html, re.DOTALL)
    script = base64.b64encode(hashlib.sha256(inline[1] if inline else b"").digest()).decode()
    # Swagger UI sets styles from its script; scripts are its bundle and this one, named by hash.
    policy = _PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
        "script-src 'self'", f"script-src 'self' 'sha256-{script}'"
    )

    @api.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with our problems in place of its own validation error, and the API key."""
    if api.openapi_schema is None:
        schema = get_openapi(
            title=api.title, version=api.version, description=api.description, routes=api.routes
        )
        schemas = schema["components"]["schemas"]
        for model in (Problem, ReviewIn, ScoreByKey, UploadIn):
            own = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= own.pop("$defs", {}) | {model.__name__: own}
        for name, example in BY_SCHEMA.items():  # not by FastAPI, which would leave out what is null in them
            schemas[name]["examples"] = [example]
        schema["components"]["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path.startswith("/v1/"):
                    operation["security"] = [{"apiKey": []}]
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        api.openapi_schema = schema
    return api.openapi_schema


class _SecurityHeaders:
    """Headers that every answer carries unless it set its own."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner
        self._headers = (
            (b"content-security-policy", _PAGE_POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            # Results are personal; pages and modules are asked for again, so that an update never mixes them.
            (b"cache-control", b"no-cache"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [header for header in self._headers if header[0] not in present]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._inner(scope, receive, send_with_headers)

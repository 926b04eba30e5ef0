"""The service in this process, called as a client would, with every answer held against the contract."""

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import pytest
import redis
from fastapi import FastAPI

from app.api.app import create_app
from app.schemas import Problem
from app.stores.embedded import EmbeddedStore
from app.stores.tenants import TENANTS, TenantAdmin
from app.tenants.tenants import Tenant as TenantRecord
from tests.conftest import API_KEY, Local

OTHER_KEY = "fdx_key-of-another-tenant-0123456789"
T = TypeVar("T")


@functools.cache
def contract() -> dict[str, Any]:
    """openapi.json, which is the same whatever service is behind it."""
    return create_app(SimpleNamespace(meter=None)).openapi()  # type: ignore[arg-type]


class Api:
    """One service and a client of it. The loop runs only while a call does.

    Whatever a test asks, an answer that openapi.json does not document, or an error that is not exactly a
    problem, fails it.
    """

    def __init__(self, runner: asyncio.Runner, local: Local) -> None:
        self.local = local
        self.app: FastAPI = create_app(local.service)
        self._runner = runner
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://fooddx",
            headers={"Authorization": f"Bearer {API_KEY}"},
        )

    @property
    def tenant(self) -> str:
        return self.local.service.access.directory.ids[-1]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the service's loop."""
        return self._runner.run(work)

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        response = await self._client.request(method, url, **options)
        self._check(method, response)
        return response

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.run(self.send(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def delete(self, url: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", url, **options)

    def score(self, photo: Any, headers: Any = None) -> httpx.Response:
        """Send a photo raw."""
        return self.post("/v1/scores", content=photo, headers=headers)

    def result(self, photo: bytes, profile: str | None = None) -> dict[str, Any]:
        """The result of a photo that can be scored."""
        fields = {"data": {"profile": profile}} if profile else {}
        response = self.post("/v1/scores", files={"image": photo}, **fields)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def settled(self) -> None:
        """Wait for the clean-up of failed requests."""
        self.run(self.local.service.pipeline.drained())

    def stored(self) -> list[str]:
        """The SHA-256 of every photo in the image folder."""
        self.settled()
        folder = self.local.settings.data_dir / "images" / self.tenant
        return sorted(file.name for file in folder.rglob("*") if file.is_file())

    def asgi(
        self,
        method: str,
        path: str,
        incoming: Sequence[dict[str, Any]],
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> list[dict[str, Any]]:
        """Call the application with these messages and no others; what it sent."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "server": ("fooddx", 80), "client": ("127.0.0.1", 1),
            "headers": [(b"authorization", b"Bearer " + API_KEY.encode()), *headers],
        }  # fmt: skip
        messages = iter(incoming)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.run(self.app(scope, receive, send))  # type: ignore[arg-type]
        return sent

    @staticmethod
    def operation(method: str, path: str) -> dict[str, Any] | None:
        """What openapi.json says of a call; None for a path or method that it does not name."""
        for template, operations in contract()["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                found: dict[str, Any] | None = operations.get(method.lower())
                return found
        return None

    def _check(self, method: str, response: httpx.Response) -> None:
        assert re.fullmatch(r"[\x21-\x7e]{1,128}", response.headers["x-request-id"])
        assert response.headers["x-content-type-options"] == "nosniff"
        code = check_problem(response).code if response.status_code >= 400 else None
        operation = self.operation(method, response.request.url.path)
        if operation is None:
            return
        documented = operation["responses"].get(str(response.status_code))
        assert documented, f"{response.status_code} {code} is not documented"
        if code:
            assert code in documented["content"]["application/problem+json"]["examples"], code

    async def close(self) -> None:
        await self._client.aclose()
        await self.local.service.close()


def check_problem(response: httpx.Response) -> Problem:
    """The problem of an error, which has one shape whatever went wrong."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert problem.status == response.status_code
    assert problem.type == f"urn:fooddx:problem:{problem.code}"
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.title
    assert problem.detail
    return problem


def is_problem(response: httpx.Response, status: int, code: str) -> Problem:
    """Check that ``response`` is this problem."""
    assert response.status_code == status, response.text
    problem = check_problem(response)
    assert problem.code == code
    return problem


@pytest.fixture
def make_api(make_local: Callable[..., Local], store: EmbeddedStore) -> Iterator[Callable[..., Api]]:
    """Make an Api with some settings changed; ``keys`` are further API keys and whose they are."""
    made: list[Api] = []
    with asyncio.Runner() as runner:

        def make(keys: dict[str, str] | None = None, **changes: Any) -> Api:
            async def local() -> Local:
                return make_local(**changes)

            found = runner.run(local())
            with TenantAdmin(store.url) as admin:
                for key, tenant in (keys or {}).items():
                    admin.put(TenantRecord.first(key, tenant))
            made.append(Api(runner, found))
            return made[-1]

        yield make
        for api in made:
            runner.run(api.close())
        with redis.Redis.from_url(store.url) as client:  # the next test's keys are the same
            client.delete(TENANTS)


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """The service with its default settings."""
    return make_api()

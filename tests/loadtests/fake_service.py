"""A service that answers at once and remembers what it was asked, for tests of what sends the load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.loopback import serving

KEY = "key-of-the-load"
END_OF_IMAGE = b"\xff\xd9"


class FakeService:
    """Scores every photo, or does to some of them what it is made for; all answers are counted.

    Args:
        reject_every: this many photos have one among them that is answered 429.
        fail_every: this many photos have one among them that is answered 500.
        garble_every: this many photos have one among them whose answer is no JSON.
    """

    def __init__(self, *, reject_every: int = 0, fail_every: int = 0, garble_every: int = 0) -> None:
        self.reject_every, self.fail_every, self.garble_every = reject_every, fail_every, garble_every
        self.url = ""
        self.answers: Counter[str] = Counter()
        self.photos: list[bytes] = []

    @contextmanager
    def running(self) -> Iterator[FakeService]:
        routes = [
            Route("/v1/scores", self._score, methods=["POST"]),
            Route("/v1/scores", self._diary),
            Route("/v1/scores/{id}", self._delete, methods=["DELETE"]),
        ]
        with serving(lambda: Starlette(routes=routes)) as self.url:
            yield self

    async def _score(self, request: Request) -> Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        body, count = await request.body(), self.answers.total()
        if self.reject_every and count % self.reject_every == 1:
            return self._answer("rejected (429)", 429, {"code": "overloaded"}, {"Retry-After": "0"})
        if not body:
            return self._answer("bad file: empty", 422, {"code": "image_empty"})
        if body.startswith(b"This is the recipe"):
            return self._answer("bad file: text", 415, {"code": "unsupported_media_type"})
        if not body.endswith((END_OF_IMAGE, b"--\r\n")):
            return self._answer("bad file: truncated", 422, {"code": "image_truncated"})
        self.photos.append(body)
        if self.fail_every and count % self.fail_every == 2:
            return self._answer("failed", 500, {"code": "internal"}, {"X-Request-Id": f"r-{count}"})
        if self.garble_every and count % self.garble_every == 3:
            self.answers["garbled"] += 1
            return Response("<html>")
        return self._answer("photo", 200, {"id": f"id-{count}"})

    async def _diary(self, _: Request) -> Response:
        return self._answer("diary", 200, {"items": []})

    async def _delete(self, _: Request) -> Response:
        self.answers["delete"] += 1
        return Response(status_code=204)

    def _answer(
        self, name: str, status: int, content: object, headers: dict[str, str] | None = None
    ) -> Response:
        self.answers[name] += 1
        return JSONResponse(content, status, headers)

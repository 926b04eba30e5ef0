"""The intake tool against a small service and bucket: what is timed, counted and written."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from loadtests import intake
from loadtests.photos import Photo

PHOTO = Photo("tiny", b"<", b">")


class Stub:
    """A service and a bucket in one. A result is there when it was asked for ``polls`` times."""

    def __init__(self, *, polls: int = 2, bucket_status: int = 204, failed: bool = False) -> None:
        self.polls, self.bucket_status, self.failed = polls, bucket_status, failed
        self.forms = 0
        self.uploaded: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.scored: list[bytes] = []
        self.bucket_headers: list[str | None] = []

    async def form(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer key"
        assert (await request.json()).keys() == {"media_type", "bytes"}
        self.forms += 1
        new = str(self.forms)
        return web.json_response(
            {"id": new, "url": str(request.url.with_path("/bucket")), "fields": {"key": new}}
        )

    async def bucket(self, request: web.Request) -> web.Response:
        self.bucket_headers.append(request.headers.get("Authorization"))
        reader = await request.multipart()
        parts = [(part.name, bytes(await part.read())) async for part in reader]  # type: ignore[union-attr]
        assert parts[-1][0] == "file"
        self.uploaded[dict(parts)["key"].decode()] = parts[-1][1]
        return web.Response(status=self.bucket_status)

    async def result(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        assert wanted in self.uploaded
        self.asked[wanted] += 1
        if self.asked[wanted] < self.polls:
            return web.json_response({}, status=202)
        return web.json_response({"code": "bad_image"}, status=422) if self.failed else web.json_response({})

    async def score(self, request: web.Request) -> web.Response:
        self.scored.append(await request.read())
        return web.json_response({})

    def run(self, photos: int, clients: list[int]) -> list[intake.Measured]:
        app = web.Application()
        app.router.add_post("/v1/uploads", self.form)
        app.router.add_post("/bucket", self.bucket)
        app.router.add_get("/v1/scores/{id}", self.result)
        app.router.add_post("/v1/scores", self.score)

        async def story() -> list[intake.Measured]:
            async with TestServer(app) as server:
                return await intake.run(str(server.make_url("")).rstrip("/"), "key", PHOTO, photos, clients)

        return asyncio.run(story())


def test_every_photo_is_new_goes_both_ways_and_is_waited_for():
    stub = Stub(polls=3)
    rows = stub.run(4, [1, 3])
    assert [(row.way, row.clients, row.photos, row.errors) for row in rows] == [
        ("by the queue", 1, 4, {}),
        ("over HTTP", 1, 4, {}),
        ("by the queue", 3, 4, {}),
        ("over HTTP", 3, 4, {}),
    ]
    sent = [*stub.uploaded.values(), *stub.scored]
    assert len(set(sent)) == len(sent) == 2 * (5 + 4 + 4)
    assert set(stub.asked.values()) == {3}
    assert all(row.p50_ms and row.p50_ms >= 2 * intake.POLL_S * 1000 for row in rows[::2])


def test_the_bucket_is_not_told_the_api_key():
    stub = Stub()
    stub.run(2, [1])
    assert set(stub.bucket_headers) == {None}


@pytest.mark.parametrize(
    ("stub", "error"),
    [(Stub(bucket_status=403), "403"), (Stub(failed=True), "422 bad_image")],
)
def test_a_photo_without_result_is_an_error_and_no_time(stub: Stub, error: str):
    by_queue, over_http = stub.run(3, [2])
    assert (by_queue.photos, by_queue.p50_ms, by_queue.errors) == (0, None, {error: 3})
    assert over_http.photos == 3


def test_percentiles_are_of_the_photos_with_a_result():
    row = intake.summarise("way", 2, [n / 1000 for n in range(1, 101)], Counter({"503": 3}), wall_s=4.0)
    assert (row.photos, row.photos_per_s, row.max_ms) == (100, 25, 100)
    assert (row.p50_ms, row.p99_ms) == pytest.approx((50.5, 99.01))
    assert row.errors == {"503": 3}


def test_the_table_sets_the_ancestor_beside_it():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(intake.table([intake.summarise("way", 1, [0.05], Counter(), 1.0)], "title"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert [row for row in rows if row] == [
        ["way", "1", "1", "1.0", "50.0", "50.0", "50.0", ""],
        ["ancestor on AWS, 15 consumers", "–", "–", "–", "1300.0", "–", "–", ""],
        ["ancestor on AWS, 2 consumers", "–", "–", "–", "–", "–", "17700.0", ""],
    ]


def test_a_service_that_is_not_there_is_an_error_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
):
    monkeypatch.setenv("FOODDX_API_KEY", "key")
    file = tmp_path / "figures.json"
    options = ["--uploads", "2", "--clients", "1", "--megapixels", "0.01", "--json", str(file)]
    assert intake.main(["--url", f"http://127.0.0.1:{unused_port}", *options]) == 1
    figures = json.loads(file.read_text())
    assert [row["errors"] for row in figures["rows"]] == [{"ClientConnectorError": 2}] * 2
    assert [row["max_ms"] for row in figures["ancestors"]] == [None, 17_700.0]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

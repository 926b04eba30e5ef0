"""The latency tool against a small service: what is counted, what is sent, what is written."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests import latency
from loadtests.photos import Photo

PHOTO = Photo("tiny", b"<", b">")
OVERLOADED = {"code": "overloaded"}


def test_percentiles_are_of_the_scored_photos() -> None:
    measured = latency.summarise(
        2, [n / 1000 for n in range(1, 101)], Counter({"429": 3}), wall_s=2.0, cpu_s=0.1
    )
    assert (measured.images, measured.images_per_s, measured.max_ms) == (100, 50, 100)
    assert (measured.p50_ms, measured.p95_ms, measured.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert measured.client_cpu_ms_per_image == pytest.approx(1)
    assert measured.errors == {"429": 3}


def test_no_scored_photo_is_no_division_by_zero() -> None:
    assert latency.summarise(1, [], Counter({"503": 1}), wall_s=1.0, cpu_s=0.1).images_per_s == 0


def test_every_answer_is_counted_once_and_every_photo_is_new() -> None:
    bodies: list[bytes] = []

    async def score(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer key"
        bodies.append(await request.read())
        refused = len(bodies) % 5 == 0
        headers = {"Retry-After": "0"} if refused else {}
        return web.json_response(
            OVERLOADED if refused else {}, status=429 if refused else 200, headers=headers
        )

    async def measure() -> latency.Measured:
        app = web.Application()
        app.router.add_post("/v1/scores", score)
        async with TestServer(app) as server:
            return await latency.run(str(server.make_url("")).rstrip("/"), "key", PHOTO, 4, 0.2)

    measured = asyncio.run(measure())
    assert measured.images > 0
    assert measured.images + measured.errors["429 overloaded"] == len(bodies) == len(set(bodies))


def test_a_service_that_is_not_there_is_an_error_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("FOODDX_API_KEY", "key")
    file = tmp_path / "figures.json"
    options = [
        "--clients",
        "2",
        "--seconds",
        "0.1",
        "--warmup",
        "0.1",
        "--megapixels",
        "0.01",
        "--json",
        str(file),
    ]
    assert latency.main(["--url", f"http://127.0.0.1:{unused_port}", *options]) == 1
    (row,) = json.loads(file.read_text())["rows"]
    assert row["images"] == 0
    assert row["errors"].keys() == {"ClientConnectorError"}


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

"""Every malformed, truncated and exotic image of Pillow's own test suite, through the running service."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from app.errors import tree
from tests.conftest import Running
from tests.corpus import corpus_images
from tests.photos import coffee_jpeg

pytestmark = pytest.mark.server


def test_every_image_is_scored_or_refused_with_a_stable_code(service: Running) -> None:
    known = {error.code: error.status for error in tree()}
    images = corpus_images()
    assert len(images) > 1000

    async def send_all() -> list[httpx.Response]:
        gate = asyncio.Semaphore(8)
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(
            base_url=service.url, headers=service.headers, timeout=30, limits=limits
        ) as client:

            async def send(data: bytes) -> httpx.Response:
                async with gate:
                    return await client.post("/v1/scores", content=data)

            return await asyncio.gather(*(send(path.read_bytes()) for path in images))

    outcomes: Counter[str] = Counter()
    for path, response in zip(images, asyncio.run(send_all()), strict=True):
        if response.status_code == 200:
            outcomes[response.json()["status"]] += 1
            continue
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json", path
        assert problem["status"] == response.status_code == known[problem["code"]], path
        # A photo that takes longer than the budget may be refused for that; nothing may be our fault.
        assert response.status_code in {413, 415, 422, 504}, (path, problem)
        outcomes[problem["code"]] += 1
    assert outcomes["scored"] + outcomes["not_food"] + outcomes["needs_review"] > 300
    assert outcomes["unsupported_media_type"] > 100
    after = httpx.post(f"{service.url}/v1/scores", content=coffee_jpeg(640, 480), headers=service.headers)
    assert after.status_code == 200

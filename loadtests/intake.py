"""How long a photo takes by way of bucket and queue, beside the same number of photos over HTTP.

    python -m loadtests.intake --url http://127.0.0.1:8000 --uploads 200 --clients 1 8

By the queue, the time runs from the first byte of the presigned upload to the first answer 200 of
``GET /v1/scores/{id}``, asked every 20 ms; the form is fetched before. Over HTTP it runs from the first byte
of ``POST /v1/scores`` to the last of its 200. Every photo has bytes of its own, so every one is scored. The
clients are closed loops: each waits for its result before it sends the next photo.

Against an emulator the table shows what FoodDX itself adds: uploads, events and queue are calls within one
machine. What AWS adds it cannot show: how long S3 takes to tell SQS, how SQS finds a message among its hosts,
TLS, throttling, and the network in between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests.photos import Photo, make_photo
from loadtests.target import NoKeyError, api_key, problem_code, retry_after_s

POLL_S: Final = 0.02
PATIENCE_S: Final = 60.0
"""For one photo; the ancestor's slowest took 17.7 s."""


@dataclass(frozen=True)
class Measured:
    """What clients saw on one way. Milliseconds; None where it is not known."""

    way: str
    clients: int | None
    photos: int | None
    photos_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    errors: dict[str, int]


ANCESTORS: Final = (
    Measured("ancestor on AWS, 15 consumers", None, None, None, 1300.0, None, None, {}),
    Measured("ancestor on AWS, 2 consumers", None, None, None, None, None, 17_700.0, {}),
)
"""As its own benchmark reported them."""


class Refused(Exception):
    """A photo got no result; the text is the status and code of the answer that decided it."""


@dataclass(frozen=True)
class Service:
    """A running service and how to call it."""

    session: aiohttp.ClientSession
    url: str
    key: str

    async def upload(self, body: bytes) -> float:
        """Send a photo by a presigned form; seconds until its result is there.

        Raises:
            Refused: there was no form, no upload or no result.
        """
        asked = {"media_type": "image/jpeg", "bytes": len(body)}
        async with self.session.post(f"{self.url}/v1/uploads", json=asked, headers=self._ours) as answer:
            await _check(answer, 200, 201)
            form = await answer.json()
        fields = aiohttp.FormData(form["fields"])
        fields.add_field("file", body, filename="photo.jpg")
        sent = time.perf_counter()
        # Without our API key: the bucket is somebody else.
        async with self.session.post(form["url"], data=fields) as answer:
            await _check(answer, 200, 201, 204)
        while not await self._has_result(form["id"]):
            if time.perf_counter() - sent > PATIENCE_S:
                raise Refused(f"no result in {PATIENCE_S:.0f} s")
            await asyncio.sleep(POLL_S)
        return time.perf_counter() - sent

    async def _has_result(self, result_id: str) -> bool:
        async with self.session.get(f"{self.url}/v1/scores/{result_id}", headers=self._ours) as answer:
            if answer.status == 429:
                await asyncio.sleep(retry_after_s(answer.headers.get("Retry-After")))
            if answer.status in {202, 429, 503}:
                return False
            await _check(answer, 200)
            return True

    async def score(self, body: bytes) -> float:
        """Send a photo over HTTP; seconds until its result is there.

        Raises:
            Refused: it got none.
        """
        sent = time.perf_counter()
        headers = self._ours | {"Content-Type": "image/jpeg"}
        async with self.session.post(f"{self.url}/v1/scores", data=body, headers=headers) as answer:
            await _check(answer, 200)
        return time.perf_counter() - sent

    @property
    def _ours(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


async def _check(answer: aiohttp.ClientResponse, *wanted: int) -> None:
    body = await answer.read()
    if answer.status not in wanted:
        raise Refused(f"{answer.status} {problem_code(body)}".strip())


async def measure(
    way: str, send: Callable[[bytes], Awaitable[float]], photo: Photo, photos: int, clients: int
) -> Measured:
    """``photos`` photos through ``send``, by as many clients at a time."""
    seconds: list[float] = []
    errors: Counter[str] = Counter()
    left = iter(range(photos))

    async def client() -> None:
        for _ in left:
            try:
                seconds.append(await send(photo.unique()))
            except Refused as refused:
                errors[str(refused)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                errors[type(error).__name__] += 1

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return summarise(way, clients, seconds, errors, time.perf_counter() - start)


def summarise(
    way: str, clients: int, seconds: Sequence[float], errors: Counter[str], wall_s: float
) -> Measured:
    """The seconds of the photos with a result → percentiles (linear between the two nearest ranks)."""
    counted = dict(errors.most_common())
    if not seconds:
        return Measured(way, clients, 0, 0.0, None, None, None, counted)
    p50, p99, most = (float(value) for value in np.percentile(np.asarray(seconds) * 1000, (50, 99, 100)))
    return Measured(way, clients, len(seconds), len(seconds) / wall_s, p50, p99, most, counted)


def table(rows: Sequence[Measured], title: str) -> Table:
    """The rows, and below them the ancestor's, for people."""
    result = Table(title=title)
    for column in ("way", "clients", "photos", "photos/s", "p50 ms", "p99 ms", "max ms", "errors"):
        result.add_column(column, justify="left" if column in {"way", "errors"} else "right")
    for index, row in enumerate((*rows, *ANCESTORS), start=1):
        figures = (row.clients, row.photos, row.photos_per_s, row.p50_ms, row.p99_ms, row.max_ms)
        errors = ", ".join(f"{count} × {what}" for what, count in row.errors.items())
        result.add_row(row.way, *map(_figure, figures), errors, end_section=index == len(rows))
    return result


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


async def run(url: str, key: str, photo: Photo, photos: int, clients: Sequence[int]) -> list[Measured]:
    """Each number of clients on both ways, after a few photos that warm the service up."""
    patience = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patience) as session:
        service = Service(session, url, key)
        ways = (("by the queue", service.upload), ("over HTTP", service.score))
        for way, send in ways:
            await measure(way, send, photo, 5, 1)
        return [await measure(way, send, photo, photos, many) for many in clients for way, send in ways]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a photo got no result, 2 where there is no API key."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.intake", description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--uploads", type=int, default=200, metavar="N", help="photos on each way")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="closed loops, in turn")
    parser.add_argument("--megapixels", type=float, default=0.8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        key = api_key(file=Path("data/aws/api_key"))
    except NoKeyError as error:
        console.print(f"[red]{error}")
        return 2

    photo, url = make_photo(options.megapixels), options.url.rstrip("/")
    with console.status(f"{options.uploads} photos on each way"):
        rows = asyncio.run(run(url, key, photo, options.uploads, options.clients))
    console.print(table(rows, f"{photo.label} JPEG, {len(photo.unique()) / 1000:.0f} kB"))
    if options.json:
        figures = {
            "url": url, "megapixels": options.megapixels, "uploads": options.uploads, "poll_s": POLL_S,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [asdict(row) for row in rows], "ancestors": [asdict(row) for row in ANCESTORS],
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())

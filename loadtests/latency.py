"""How long one photo takes, and how many go through: a closed loop of 1, 32, … clients.

    python -m loadtests.latency --url http://127.0.0.1:8000 --clients 1 32 --seconds 20 --megapixels 0.8

Each client sends a photo, waits for the answer and sends the next, on a connection that stays open. Every
photo has bytes of its own, so every one is scored. A latency is the time from the first byte sent to the last
byte read of a 200; other answers are counted by their code and have no part in the percentiles. A slow answer
delays the next request, so a closed loop says nothing about a queue that grows: for that, use an open loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp  # per 0.8 MP photo 0.19 ms of CPU, httpx 0.69: the service may need that CPU
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests.photos import Photo, make_photo
from loadtests.target import NoKeyError, api_key, problem_code, retry_after_s

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Measured:
    """What a number of clients saw. Times are in milliseconds; zero where no photo was scored."""

    clients: int
    images: int
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_ms_per_image: float
    errors: dict[str, int]


def summarise(
    clients: int, latencies_s: Sequence[float], errors: Counter[str], wall_s: float, cpu_s: float
) -> Measured:
    """Latencies of the scored photos → percentiles (linear between the two nearest ranks)."""
    milliseconds = np.asarray(latencies_s or [0.0]) * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    images = len(latencies_s)
    return Measured(
        clients, images, images / wall_s, p50, p95, p99, float(milliseconds.max()),
        cpu_s * 1000 / max(images, 1), dict(errors.most_common()),
    )  # fmt: skip


async def run(url: str, key: str, photo: Photo, clients: int, seconds: float) -> Measured:
    """``clients`` closed loops for ``seconds``; requests under way at the end are waited for and counted."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}
    limits, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=limits, headers=headers, timeout=patience) as session:

        async def client() -> None:
            while time.perf_counter() < end:
                body = photo.unique()
                sent = time.perf_counter()
                try:
                    async with session.post(f"{url}/v1/scores", data=body) as response:
                        answer = await response.read()
                except (aiohttp.ClientError, TimeoutError) as error:
                    errors[type(error).__name__] += 1
                    await asyncio.sleep(0.1)  # a service that is gone is not asked a thousand times a second
                    continue
                if response.status == 200:
                    latencies.append(time.perf_counter() - sent)
                else:
                    errors[f"{response.status} {problem_code(answer)}".strip()] += 1
                    await asyncio.sleep(retry_after_s(response.headers.get("Retry-After"), default=0.1))

        start, cpu = time.perf_counter(), time.process_time()
        end = start + seconds
        await asyncio.gather(*(client() for _ in range(clients)))
        return summarise(clients, latencies, errors, time.perf_counter() - start, time.process_time() - cpu)


def table(rows: Sequence[Measured], title: str) -> Table:
    """The rows as a table for people."""
    columns = ("clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "client CPU ms", "errors")
    result = Table(title=title)
    for column in columns:
        result.add_column(column, justify="left" if column == "errors" else "right")
    for row in rows:
        times = (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms, row.client_cpu_ms_per_image)
        errors = ", ".join(f"{count} × {what}" for what, count in row.errors.items()) or "none"
        result.add_row(
            str(row.clients), f"{row.images_per_s:.1f}", *(f"{value:.1f}" for value in times), errors
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a number of clients saw an error, 2 where there is no API key."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.latency", description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 32], help="closed loops at a time, in turn"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long each number of clients is measured"
    )
    parser.add_argument(
        "--warmup", type=float, default=3.0, help="seconds before that, with the most clients"
    )
    parser.add_argument("--megapixels", type=float, default=0.8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        key = api_key()
    except NoKeyError as error:
        console.print(f"[red]{error}")
        return 2

    photo, url = make_photo(options.megapixels), options.url.rstrip("/")
    size = len(photo.unique())
    with console.status("warming up") as status:
        asyncio.run(run(url, key, photo, max(options.clients), options.warmup))
        rows = []
        for clients in options.clients:
            status.update(f"{clients} clients, {options.seconds:g} s")
            rows.append(asyncio.run(run(url, key, photo, clients, options.seconds)))
    console.print(
        table(rows, f"{photo.label} JPEG, {size / 1000:.0f} kB, closed loop, {options.seconds:g} s each")
    )
    if options.json:
        figures = {
            "url": url, "megapixels": options.megapixels, "bytes": size, "seconds": options.seconds,
            "at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())

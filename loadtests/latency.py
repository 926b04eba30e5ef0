"""How long one photo takes, and how many go through: a closed loop of 1, 32, … clients.

    python -m loadtests.latency --url http://127.0.0.1:8000 --clients 1 32 --seconds 20 --megapixels 0.8

Each client sends a photo, waits for the answer and sends the next, on a connection that stays open. Every
photo has bytes of its own, so every one is scored. A latency is the time from the first byte sent to the last
byte read of a 200; other answers are counted by their code and have no part in the percentiles. A slow answer
delays the next request, so a closed loop says nothing about a queue that grows: for that, there is
loadtests/open_loop.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.photos import make_photo
from loadtests.sending import Sample, Senders, Source, Tally, Target, connections, fresh, send
from loadtests.target import NoKeyError, api_key, retry_after_s


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


def summarise(clients: int, sample: Sample) -> Measured:
    """Latencies of the scored photos → percentiles (linear between the two nearest ranks)."""
    milliseconds = sample.latencies_s * 1000 if sample.images else np.zeros(1)
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    return Measured(
        clients, sample.images, sample.images / sample.wall_s, p50, p95, p99, float(milliseconds.max()),
        sample.cpu_s * 1000 / max(sample.images, 1), dict(sample.errors.most_common()),
    )  # fmt: skip


def closed_loop(
    senders: Senders, target: Target, source: Source, clients: int, seconds: float, processes: int = 1
) -> Sample:
    """``clients`` closed loops for ``seconds``, shared out among ``processes``."""
    shares = [len(range(first, clients, processes)) for first in range(min(processes, clients))]
    return senders.run([partial(run, target, source, share, seconds) for share in shares])


def run(target: Target, source: Source, clients: int, seconds: float) -> Sample:
    """The loops of one process. Requests under way at the end are waited for and counted."""
    return uvloop.run(_run(target, source, clients, seconds))


async def _run(target: Target, source: Source, clients: int, seconds: float) -> Sample:
    tally, bodies = Tally(), source()
    async with connections(target) as pool:

        async def client() -> None:
            while time.perf_counter() < end:
                body = next(bodies)
                sent = time.perf_counter()
                outcome = await send(pool, body)
                tally.count(outcome, time.perf_counter() - sent)
                if outcome.status != 200:  # a service that is gone is not asked a thousand times a second
                    await asyncio.sleep(retry_after_s(outcome.retry_after, default=0.1))

        start, cpu = time.perf_counter(), time.process_time()
        end = start + seconds
        await asyncio.gather(*(client() for _ in range(clients)))
        return tally.sample(time.perf_counter() - start, time.process_time() - cpu)


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
        target = Target(options.url.rstrip("/"), api_key())
    except NoKeyError as error:
        console.print(f"[red]{error}")
        return 2

    photo = make_photo(options.megapixels)
    size, source = len(photo.unique()), fresh(photo)
    with console.status("warming up") as status, Senders() as senders:
        warm = closed_loop(senders, target, source, max(options.clients), options.warmup)
        rows = []
        for clients in options.clients:
            status.update(f"{clients} clients, {options.seconds:g} s")
            sample = closed_loop(senders, target, source, clients, options.seconds, warm.wanted_processes())
            rows.append(summarise(clients, sample))
    console.print(
        table(rows, f"{photo.label} JPEG, {size / 1000:.0f} kB, closed loop, {options.seconds:g} s each")
    )
    if options.json:
        figures = {
            "url": target.url, "megapixels": options.megapixels, "bytes": size, "seconds": options.seconds,
            "at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())

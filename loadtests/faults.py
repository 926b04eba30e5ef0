"""What clients see when a replica is killed: kill -9 under load, on the machine the service runs on.

    python -m loadtests.faults --kill Preprocessor Scorer Ingress

Closed loops send photos of their own; after ``--before`` seconds one replica of the named deployment is
killed. Each photo is sent again, under its Idempotency-Key, until it is answered, as a careful client would:
at most until 30 s after the load has ended, and never after an answer that another try cannot change.
At the end every id that was answered with 200 is asked for again: ``lost`` counts those that are gone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from loadtests.photos import Photo, make_photo
from loadtests.target import NoKeyError, api_key, problem_code

TIMEOUT_S = 10.0
PATIENCE_S = 30.0
_PAUSE_S = 0.05


@dataclass
class Seen:
    """What clients saw around one fault. Times are from ``time.perf_counter``."""

    sent: int = 0
    acknowledged: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    lost: int = 0

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which nobody got an answer."""
        moments = sorted(self.acknowledged.values())
        return max((late - early for early, late in itertools.pairwise(moments)), default=0.0)


def replicas(deployment: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas on this machine."""
    title = f"ray::ServeReplica:fooddx:{deployment}"
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if " ".join(process.info["cmdline"] or ()).startswith(title)]


async def strike(
    url: str, key: str, photo: Photo, deployment: str, clients: int, before_s: float, after_s: float
) -> Seen:
    """Load, a kill after ``before_s``, load for ``after_s`` more, and the count of what was lost.

    Raises:
        LookupError: no replica of ``deployment`` runs here.
    """
    victims = replicas(deployment)
    if not victims:
        raise LookupError(f"no replica of {deployment} runs on this machine")
    seen = Seen()
    patience = aiohttp.ClientTimeout(total=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, timeout=patience) as session:
        end = time.perf_counter() + before_s + after_s

        async def client() -> None:
            while time.perf_counter() < end:
                seen.sent += 1
                await _until_answered(session, url, photo.unique(), seen, end + PATIENCE_S)

        async def fault() -> None:
            await asyncio.sleep(before_s)
            victims[0].kill()

        await asyncio.gather(fault(), *(client() for _ in range(clients)))
        for result_id in seen.acknowledged:
            async with session.get(f"{url}/v1/scores/{result_id}/image") as response:
                seen.lost += response.status != 200
    return seen


async def _until_answered(
    session: aiohttp.ClientSession, url: str, body: bytes, seen: Seen, deadline: float
) -> None:
    """Send one photo until it is answered with 200 or refused for good, until ``deadline`` (perf_counter)."""
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "image/jpeg"}
    while time.perf_counter() < deadline:
        try:
            async with session.post(f"{url}/v1/scores", data=body, headers=headers) as response:
                answer = await response.json(content_type=None) if response.status == 200 else None
                if answer:
                    seen.acknowledged[answer["id"]] = time.perf_counter()
                    return
                seen.failures[f"{response.status} {problem_code(await response.read())}".strip()] += 1
                if 400 <= response.status < 500 and response.status not in {409, 429}:
                    break
        except (aiohttp.ClientError, TimeoutError) as error:
            seen.failures[type(error).__name__] += 1
        await asyncio.sleep(_PAUSE_S)
    seen.unanswered += 1


def table(rows: dict[str, Seen]) -> Table:
    """One row per killed deployment."""
    result = Table(title="kill -9 of one replica under load; failed requests were sent again by their key")
    columns = ("killed", "photos", "answered", "unanswered", "lost", "failed tries", "longest gap s")
    for column in columns:
        result.add_column(column, justify="left" if column in {"killed", "failed tries"} else "right")
    for deployment, seen in rows.items():
        failures = ", ".join(f"{count} × {what}" for what, count in seen.failures.most_common()) or "none"
        result.add_row(
            deployment, str(seen.sent), str(len(seen.acknowledged)), str(seen.unanswered), str(seen.lost),
            failures, f"{seen.longest_gap_s:.1f}",
        )  # fmt: skip
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when a photo was lost or never answered, 2 when it could not be tried."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--kill", nargs="+", default=["Preprocessor", "Scorer", "Ingress"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--before", type=float, default=3.0, help="seconds of load before the kill")
    parser.add_argument("--after", type=float, default=12.0, help="seconds of load after it")
    parser.add_argument("--megapixels", type=float, default=0.8)
    options = parser.parse_args(arguments)
    console = Console()
    photo, rows = make_photo(options.megapixels), {}
    try:
        key = api_key()
        for deployment in options.kill:
            with console.status(f"killing a replica of {deployment}"):
                rows[deployment] = asyncio.run(
                    strike(
                        options.url.rstrip("/"), key, photo, deployment,
                        options.clients, options.before, options.after,
                    )
                )  # fmt: skip
    except (NoKeyError, LookupError) as error:
        console.print(f"[red]{error}")
        return 2
    console.print(table(rows))
    return 1 if any(seen.lost or seen.unanswered for seen in rows.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())

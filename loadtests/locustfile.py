"""The load test: many users who photograph meals, look into their diary, and sometimes send the wrong file.

    locust -f loadtests/locustfile.py --headless -u 32 -r 8 -t 60s --host http://127.0.0.1:8000

Users wait for their answer and then send the next photo at once (closed loop): ``-u`` is the number of
requests in flight. Exit code 1: more failures than ``--max-failure-ratio`` allows, or no photo scored at all.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import sys
import uuid
from collections import deque
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, events
from locust.runners import WorkerRunner
from rich.console import Console
from rich.table import Table

from loadtests.mix import DUPLICATES, PROFILES, SIZES, BadFile, Mix, bad_files, multipart, parse_sizes
from loadtests.photos import Photo, make_photo
from loadtests.target import NoKeyError, api_key, problem_code, retry_after_s

REJECTED = "rejected (429)"
PHOTO = "photo "
WITH_PROFILE = 0.2
FAILURES_SHOWN = 20
console = Console(width=None if sys.stdout.isatty() else 100)


class Meals:
    """What all users of this process share: the photos, the key, and the failures to report."""

    mix: Mix
    bad: itertools.cycle[BadFile]
    authorization: str
    failures: ClassVar[deque[str]] = deque(maxlen=FAILURES_SHOWN)

    @classmethod
    def prepare(cls, environment: Any, **_: Any) -> None:
        """Make the photos before the first user starts; without a usable option or key, stop."""
        options = environment.parsed_options
        try:
            sizes = parse_sizes(options.sizes)
            cls.authorization = f"Bearer {api_key()}"
        except (ValueError, NoKeyError) as error:
            console.print(f"[red]{error}")
            sys.exit(2)
        photos: dict[Photo, float] = {make_photo(size): weight for size, weight in sizes.items()}
        cls.mix = Mix(photos, options.duplicates)
        cls.bad = itertools.cycle(bad_files(next(iter(photos))))


def send_photo(user: Any) -> None:
    """Score a photo, one in five with a profile."""
    shot = next(Meals.mix)
    body, media_type = shot.jpeg, "image/jpeg"
    if random.random() < WITH_PROFILE:  # noqa: S311 - not a secret
        body, media_type = multipart(shot.jpeg, {"user": user.name, **random.choice(PROFILES)})  # noqa: S311
    # A retry after a 429 carries the key again: whatever the service already did is not done twice.
    headers = {"Content-Type": media_type, "Idempotency-Key": str(uuid.uuid4())}
    result = user.call("POST", "/v1/scores", PHOTO + shot.label, 200, data=body, headers=headers)
    if result is not None:
        user.scored.append(result["id"])


def send_bad_file(user: Any) -> None:
    """Send what is no photo: the right refusal is the success."""
    bad = next(Meals.bad)
    headers = {"Content-Type": "image/jpeg"}
    user.call(
        "POST",
        "/v1/scores",
        f"bad file: {bad.label}",
        bad.status,
        bad.code,
        data=bad.content,
        headers=headers,
    )


def read_diary(user: Any) -> None:
    """Read the newest page of the user's diary."""
    user.call("GET", f"/v1/scores?user={user.name}", "diary", 200)


def delete_result(user: Any) -> None:
    """Delete a photo this user has sent, if there is one left."""
    if user.scored:
        user.call("DELETE", f"/v1/scores/{user.scored.popleft()}", "delete", 204)


class Eater(FastHttpUser):  # type: ignore[misc]  # locust is untyped here
    """One person with a phone."""

    tasks = {send_photo: 80, read_diary: 12, send_bad_file: 4, delete_result: 4}  # noqa: RUF012 - Locust's interface
    network_timeout = connection_timeout = 10.0

    def on_start(self) -> None:
        """A user of their own, so that diaries stay apart."""
        self.name = f"load-{uuid.uuid4()}"
        self.scored: deque[str] = deque(maxlen=100)

    def call(
        self,
        method: str,
        path: str,
        label: str,
        status: int,
        code: str = "",
        *,
        headers: Any = None,
        data: Any = None,
    ) -> Any:
        """One request, repeated for as long as the service says 429.

        Each 429 is counted under its own label, never as a failure, and its time never among the photos'.
        Returns the JSON answer if it had ``status`` and, where given, the problem ``code``; otherwise None.
        """
        headers = {"Authorization": Meals.authorization, **(headers or {})}
        while True:
            with self.client.request(
                method, path, name=label, data=data, headers=headers, catch_response=True
            ) as response:
                answered = response.headers or {}
                if response.status_code == 429:
                    response.request_meta["name"] = REJECTED
                    response.success()
                elif response.status_code == status and (not code or problem_code(response.content) == code):
                    response.success()
                    return response.json() if response.content else {}
                else:
                    why = problem_code(response.content) or response.error or "unexpected answer"
                    what = f"{response.status_code} {why}"
                    response.failure(what)
                    Meals.failures.append(
                        f"{label}: {what}, request id {answered.get('x-request-id', 'none')}"
                    )
                    return None
            gevent.sleep(retry_after_s(answered.get("retry-after")))


def add_options(parser: Any) -> None:
    """What can be set on Locust's command line besides its own options."""
    group = parser.add_argument_group("FoodDX")
    group.add_argument("--sizes", default=SIZES, help=f"megapixels=weight, comma-separated (default {SIZES})")
    group.add_argument("--duplicates", type=float, default=DUPLICATES, help="share of photos sent before")
    group.add_argument("--max-failure-ratio", type=float, default=0.001, help="exit with 1 above this share")


def by_size(entry: Any) -> tuple[str, float, str]:
    """Sort key of a row: what was sent, then how many megapixels."""
    kind, _, rest = entry.name.partition(" ")
    size = re.match(r"[\d.]+", rest)
    return kind, float(size[0]) if size else math.inf, rest


def report(environment: Any, **_: Any) -> None:
    """At the end: the request ids of failures, the table, the exit code. Locust rounds to two digits."""
    for failure in Meals.failures:
        console.print(f"[red]failed[/] {failure}")
    if isinstance(environment.runner, WorkerRunner):
        return  # the master has everyone's numbers
    stats = environment.stats
    seconds = max((stats.total.last_request_timestamp or 0) - (stats.total.start_time or 0), 1e-9)
    table = Table(
        "request", *(f"{name:>9}" for name in ("sent", "failed", "per s", "p50 ms", "p95 ms", "p99 ms"))
    )
    for entry in sorted(stats.entries.values(), key=by_size):
        times = (f"{entry.get_response_time_percentile(q):.0f}" for q in (0.5, 0.95, 0.99))
        row = (
            str(entry.num_requests),
            str(entry.num_failures),
            f"{entry.num_requests / seconds:.1f}",
            *times,
        )
        table.add_row(entry.name, *(f"{cell:>9}" for cell in row))
    console.print(table)

    counted = [entry for entry in stats.entries.values() if entry.name != REJECTED]
    photos = sum(entry.num_requests - entry.num_failures for entry in counted if entry.name.startswith(PHOTO))
    sent, failed = sum(entry.num_requests for entry in counted), sum(entry.num_failures for entry in counted)
    console.print(f"{photos / seconds:.1f} images/s over {seconds:.0f} s; {failed} of {sent} failed")
    within = photos > 0 and failed <= environment.parsed_options.max_failure_ratio * sent
    environment.process_exit_code = 0 if within else 1


events.init_command_line_parser.add_listener(add_options)
events.test_start.add_listener(Meals.prepare)
events.quitting.add_listener(report)

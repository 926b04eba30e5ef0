"""What a load test comes to: totals over Locust's rows, a table of them, and why it is not passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from rich.table import Table

from loadtests.timeline import Totals

REJECTED: Final = "rejected (429)"
"""The row of all that was answered 429."""
PHOTO: Final = "photo "
"""How the rows of photos begin."""


class Row(Protocol):
    """One of Locust's, of all requests of a kind."""

    name: str
    num_requests: int
    num_none_requests: int
    """Of these, the ones without a time."""
    num_failures: int
    response_times: dict[int, int]
    """Milliseconds, rounded to two digits → how many."""

    def get_response_time_percentile(self, percent: float) -> int:
        """Milliseconds; ``percent`` is a share, 0 to 1."""


def totals(rows: Iterable[Row], users: int, seconds: float) -> Totals:
    """What happened so far, as far as it was reported."""
    every = list(rows)
    photos = [row for row in every if row.name.startswith(PHOTO)]
    return Totals(
        seconds=seconds,
        users=users,
        photos=sum(row.num_requests - row.num_failures for row in photos),
        failed=sum(row.num_failures for row in every),
        rejected=sum(row.num_requests for row in every if row.name == REJECTED),
        times=sum((Counter(row.response_times) for row in photos), Counter()),
    )


def requests_sent(rows: Iterable[Row]) -> int:
    """How many requests there were, each counted once however often it was rejected."""
    return sum(row.num_requests for row in rows if row.name != REJECTED)


def table(rows: Sequence[Row], seconds: float) -> Table:
    """For people."""
    names = ("sent", "failed", "per s", "p50 ms", "p95 ms", "p99 ms")
    made = Table("request", *(f"{name:>8}" for name in names))
    for row in sorted(rows, key=lambda row: row.name):
        timed = row.num_requests > row.num_none_requests
        times = (f"{row.get_response_time_percentile(q):.0f}" if timed else "" for q in (0.5, 0.95, 0.99))
        counts = (str(row.num_requests), str(row.num_failures), f"{row.num_requests / seconds:.1f}")
        made.add_row(row.name, *(f"{cell:>8}" for cell in (*counts, *times)))
    return made


def faults(end: Totals, sent: int, max_failure_ratio: float, crashes: int, lost: int) -> Iterator[str]:
    """Why the test is not passed; nothing where it is.

    Args:
        end: what happened in all.
        sent: requests, rejected ones aside.
        max_failure_ratio: the share of these that may fail.
        crashes: exceptions in the users themselves.
        lost: workers that went missing.
    """
    if not end.photos:
        yield "no photo was scored"
    if end.failed > max_failure_ratio * sent:
        yield f"{end.failed} of {sent} requests failed"
    if crashes:
        yield f"{crashes} times a user could not go on with an answer: see the exceptions above"
    if lost:
        yield f"{lost} of the workers went missing, and what they saw last with them"

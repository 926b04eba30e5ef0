"""What a load test saw over time: totals, noted down now and then, and what changed between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from rich.table import Table

SLICES: Final = 10
SHORTEST_S: Final = 5.0
"""Of a slice: what a worker saw is counted when it reports, up to a second later."""


@dataclass(frozen=True)
class Totals:
    """Since the start of the test.

    Attributes:
        seconds: since the start.
        users: at this moment, which is no total.
        photos: that were scored.
        failed: requests of any kind with the wrong answer, or none.
        rejected: requests that were answered 429.
        times: of the scored photos and those that failed, milliseconds → how many.
    """

    seconds: float
    users: int
    photos: int
    failed: int
    rejected: int
    times: Counter[int]


@dataclass(frozen=True)
class Slice:
    """What happened between two moments; ``users`` is the number at its end, times are in milliseconds."""

    begin_s: float
    end_s: float
    users: int
    photos_per_s: float
    p50_ms: int
    p95_ms: int
    p99_ms: int
    failed: int
    rejected: int


def slice_count(duration_s: float) -> int:
    """How many equal slices a test has: ten, or as many as are long enough, or one."""
    return min(SLICES, max(1, int(duration_s / SHORTEST_S)))


def percentile(times: Mapping[int, int], share: float) -> int:
    """The smallest of the values that ``share`` (0 to 1) of all do not exceed; 0 where there are none."""
    left = share * sum(times.values())
    for value in sorted(times):
        left -= times[value]
        if left <= 0:
            return value
    return 0


def slices(moments: Sequence[Totals]) -> list[Slice]:
    """What happened between each two moments, which are in their order."""
    return [_between(before, after) for before, after in pairwise(moments) if after.seconds > before.seconds]


def _between(before: Totals, after: Totals) -> Slice:
    times = after.times - before.times
    return Slice(
        begin_s=before.seconds,
        end_s=after.seconds,
        users=after.users,
        photos_per_s=(after.photos - before.photos) / (after.seconds - before.seconds),
        p50_ms=percentile(times, 0.5),
        p95_ms=percentile(times, 0.95),
        p99_ms=percentile(times, 0.99),
        failed=after.failed - before.failed,
        rejected=after.rejected - before.rejected,
    )


def drift(found: Sequence[Slice]) -> float | None:
    """The p95 of the last slice over that of the second: the first has those who come. None: too few."""
    if len(found) < 3 or not found[1].p95_ms:
        return None
    return found[-1].p95_ms / found[1].p95_ms


def table(found: Sequence[Slice]) -> Table:
    """For people."""
    names = ("users", "photos/s", "p50 ms", "p95 ms", "p99 ms", "failed", "429")
    made = Table("from … to s", *(f"{name:>8}" for name in names))
    for part in found:
        cells = (part.users, f"{part.photos_per_s:.1f}", part.p50_ms, part.p95_ms, part.p99_ms)
        numbers = (f"{cell:>8}" for cell in (*cells, part.failed, part.rejected))
        made.add_row(f"{part.begin_s:.0f} … {part.end_s:.0f}", *numbers)
    return made

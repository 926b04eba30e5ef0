"""Photos on their way to the service: what is sent, by which processes, and what became of it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from loadtests.connections import Body, Pool
from loadtests.mix import Mix
from loadtests.photos import Photo, new_token
from loadtests.processes import be_as_nice
from loadtests.target import problem_code

TIMEOUT_S: Final = 10.0
BUSY: Final = 0.7
"""Share of a core above which a sending process may delay what it measures."""

Bodies = Iterator[Body]
Source = Callable[[], Bodies]
"""Makes the endless bodies of one process; it is sent there by pickle."""


class Target(NamedTuple):
    """Where photos go."""

    url: str
    key: str


def fresh(photo: Photo) -> Source:
    """Bytes that were never sent before: every photo is scored."""
    return partial(_fresh, photo)


def repeated(body: bytes) -> Source:
    """The same bytes again and again."""
    return partial(_repeated, body)


def mixed(photos: Mapping[Photo, float], duplicates: float) -> Source:
    """Photos by weight, and a share of exact duplicates: see ``Mix``."""
    return partial(_mixed, dict(photos), duplicates)


def _fresh(photo: Photo) -> Bodies:
    while True:
        yield photo.head, new_token(), photo.tail


def _repeated(body: bytes) -> Bodies:
    while True:
        yield (body,)


def _mixed(photos: Mapping[Photo, float], duplicates: float) -> Bodies:
    return ((shot.jpeg,) for shot in Mix(photos, duplicates))


class Outcome(NamedTuple):
    """What a request came to.

    Attributes:
        status: 0 where there was no answer.
        error: empty for a 200; else its status and code, or why there was no answer.
        retry_after: the header, None without it.
    """

    status: int
    error: str = ""
    retry_after: str | None = None


def connections(target: Target) -> Pool:
    """The connections of one process, which stay open."""
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "image/jpeg"}
    return Pool(f"{target.url}/v1/scores", headers)


async def send(pool: Pool, body: Body) -> Outcome:
    """Send a photo and read the answer to its end."""
    try:
        answer = await pool.post(body, TIMEOUT_S)
    except OSError as error:  # TimeoutError is one
        return Outcome(0, type(error).__name__)
    if answer.status == 200:
        return Outcome(200)
    words = f"{answer.status} {problem_code(answer.body)}".strip()
    return Outcome(answer.status, words, answer.headers.get("retry-after"))


def no_times() -> NDArray[np.float64]:
    """An empty array of seconds."""
    return np.empty(0)


@dataclass(frozen=True)
class Sample:
    """What the requests of one or several processes came to.

    Attributes:
        latencies_s: of each answer 200, float64 (n,).
        errors: every other answer by status and code, or by why there was none.
        rejects: answers 429, by whether they had a Retry-After.
        lags_s: how late each request of an open loop left, float64 (n,).
        wall_s: the longest process's time.
        cpu_s: CPU time of all processes together.
        processes: how many there were.
    """

    latencies_s: NDArray[np.float64] = field(default_factory=no_times)
    errors: Counter[str] = field(default_factory=Counter)
    rejects: Counter[bool] = field(default_factory=Counter)
    lags_s: NDArray[np.float64] = field(default_factory=no_times)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    processes: int = 1

    @property
    def images(self) -> int:
        """Answers 200."""
        return len(self.latencies_s)

    @classmethod
    def merge(cls, samples: Sequence[Sample]) -> Self:
        """All of them, as if one process had seen it."""
        return cls(
            np.concatenate([sample.latencies_s for sample in samples]),
            sum((sample.errors for sample in samples), Counter()),
            sum((sample.rejects for sample in samples), Counter()),
            np.concatenate([sample.lags_s for sample in samples]),
            max(sample.wall_s for sample in samples),
            sum(sample.cpu_s for sample in samples),
            sum(sample.processes for sample in samples),
        )

    def wanted_processes(self) -> int:
        """How many processes this load needs so that none is busy enough to delay it."""
        return min(max(1, math.ceil(self.cpu_s / max(self.wall_s, 1e-9) / BUSY)), os.cpu_count() or 1)


@dataclass
class Tally:
    """What one process has seen so far."""

    latencies_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    rejects: Counter[bool] = field(default_factory=Counter)

    def count(self, outcome: Outcome, latency_s: float) -> None:
        """Take up what one request came to."""
        if outcome.status == 200:
            self.latencies_s.append(latency_s)
            return
        self.errors[outcome.error] += 1
        if outcome.status == 429:
            self.rejects[outcome.retry_after is not None] += 1

    def sample(self, wall_s: float, cpu_s: float) -> Sample:
        """All that was seen."""
        return Sample(
            np.array(self.latencies_s), self.errors, self.rejects, np.array(self.lags_s), wall_s, cpu_s
        )


class Senders:
    """Processes that send, as nice as the service's own. Also a context manager."""

    def __init__(self, most: int = os.cpu_count() or 1) -> None:
        # Not forked, since the parent has threads; a pool for each, so that all have their task at once.
        context = get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, context, initializer=be_as_nice) for _ in range(most)]

    def run(self, tasks: Sequence[Callable[[], Sample]]) -> Sample:
        """Run each task in a process of its own, at the same time; what they saw together."""
        futures = [pool.submit(task) for pool, task in zip(self._pools, tasks, strict=False)]
        return Sample.merge([future.result() for future in futures])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()

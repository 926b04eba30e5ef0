"""Photos that arrive whether or not the service keeps up: Poisson arrivals, an open loop.

A latency runs from the moment a photo *was to be sent* to the last byte of its 200, so that a stalled service
or a late generator cannot hide what its users would have waited (coordinated omission). Nobody sends again
what was refused. The lag is how late the generator itself was; timers here have a resolution of 1 ms.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtests.sending import Sample, Senders, Source, Tally, Target, connections, send

GOOD_S = 1.0


@dataclass(frozen=True)
class Measured:
    """What arrivals at one rate came to. Latencies are of the answers 200; 0 where there was none.

    Attributes:
        load: the rate as a share of capacity.
        rate: photos per second that were to arrive.
        arrivals: how many did.
        goodput: answers 200 within a second of the intended moment, per second.
        rejected: answers 429 that name a time to try again.
        rejected_mute: answers 429 that do not.
        errors: everything else that is no 200, by status and code.
        lag_p99_ms: how late the generator sent.
    """

    load: float
    rate: float
    seconds: float
    arrivals: int
    answered: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float
    goodput: float
    rejected: int
    rejected_mute: int
    errors: dict[str, int]
    lag_p99_ms: float
    client_cpu_ms_per_image: float


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """When photos are to be sent: a Poisson process of ``rate`` per second, in [0, ``seconds``), sorted."""
    generator = np.random.default_rng(seed)
    moments = np.empty(0)
    while not len(moments) or moments[-1] < seconds:
        more = generator.exponential(1 / rate, max(16, int(rate * seconds * 1.1)))
        moments = np.concatenate([moments, (moments[-1] if len(moments) else 0.0) + np.cumsum(more)])
    return moments[moments < seconds]


def open_loop(
    senders: Senders, target: Target, source: Source, moments: NDArray[np.float64], processes: int = 1
) -> Sample:
    """Send a photo at each of ``moments`` (seconds from now), dealt out to ``processes`` in turn."""
    return senders.run(
        [partial(run, target, source, moments[first::processes]) for first in range(processes)]
    )


def run(target: Target, source: Source, moments: NDArray[np.float64]) -> Sample:
    """The arrivals of one process. All answers are waited for."""
    return uvloop.run(_run(target, source, moments))


async def _run(target: Target, source: Source, moments: NDArray[np.float64]) -> Sample:
    tally, bodies = Tally(), source()
    start, cpu = time.perf_counter(), time.process_time()
    async with connections(target) as pool, asyncio.TaskGroup() as tasks:

        async def photo(due: float) -> None:
            body = next(bodies)
            tally.lags_s.append(time.perf_counter() - due)
            outcome = await send(pool, body)
            tally.count(outcome, time.perf_counter() - due)

        for due in (start + moments).tolist():
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(photo(due))
    return tally.sample(time.perf_counter() - start, time.process_time() - cpu)


def summarise(load: float, rate: float, seconds: float, sample: Sample) -> Measured:
    """A sample of arrivals at ``rate`` during ``seconds`` → percentiles, goodput and what was refused."""
    milliseconds = sample.latencies_s * 1000 if sample.images else np.zeros(1)
    p50, p95, p99, p99_9 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99, 99.9)))
    lags = sample.lags_s if len(sample.lags_s) else np.zeros(1)
    return Measured(
        load, rate, seconds, len(sample.lags_s), sample.images, p50, p95, p99, p99_9,
        float(milliseconds.max()), int((sample.latencies_s <= GOOD_S).sum()) / seconds,
        sample.rejects[True], sample.rejects[False],
        {what: count for what, count in sample.errors.most_common() if not what.startswith("429")},
        float(np.percentile(lags, 99)) * 1000, sample.cpu_s * 1000 / max(sample.images, 1),
    )  # fmt: skip

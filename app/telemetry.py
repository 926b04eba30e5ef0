"""Metrics and logs. One table names every metric; a test holds docs/operations.md against it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

# Serve gives this logger a file and, with LoggingConfig(encoding="JSON"), writes `extra` as fields.
logger = logging.getLogger("ray.serve")

_SOON_S = 0.005

STAGES = ("auth", "dedupe", "store", "queue", "decode", "score", "tip")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def log_soon(message: str, **fields: Any) -> None:
    """Log a line when the answer that it tells of is on its way: writing it takes a tenth of a millisecond.

    Within a running event loop.
    """
    asyncio.get_running_loop().call_later(_SOON_S, _log, message, fields)


def _log(message: str, fields: dict[str, Any]) -> None:
    logger.info(message, extra=fields)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's kind, help text, labels and, for a histogram, bucket bounds."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    "fooddx_images_total": Metric("counter", "Photos answered with a result, by its status", ("status",)),
    "fooddx_rejected_total": Metric("counter", "Requests answered with an error, by its code", ("code",)),
    "fooddx_cache_hits_total": Metric("counter", "Photos whose stored probabilities were reused"),
    "fooddx_in_flight": Metric("gauge", "Photos this ingress replica is working on"),
    "fooddx_request_seconds": Metric("histogram", "Body read to answer", buckets=_SECONDS),
    "fooddx_stage_seconds": Metric("histogram", "Time in one stage", ("stage",), _SECONDS),
    "fooddx_batch_size": Metric("histogram", "Photos per batch", buckets=(1, 2, 4, 8, 16, 32, 64)),
    "fooddx_scorer_queue": Metric("gauge", "Photos waiting or being scored in this scorer replica"),
    "fooddx_expired_total": Metric("counter", "Photos dropped unworked, their budget spent", ("stage",)),
    "fooddx_intake_total": Metric("counter", "Messages the intake is done with, by outcome", ("outcome",)),
    "fooddx_intake_in_flight": Metric("gauge", "Messages this intake replica has in hand"),
    "fooddx_intake_seconds": Metric(
        "histogram", "From a message's arrival in the queue to its result", buckets=(*_SECONDS, 20, 60, 600)
    ),
    "fooddx_swept_total": Metric("counter", "Photos without a result that were deleted by the sweep"),
}


@dataclass(slots=True)
class Stages:
    """How long each stage of one request took, in seconds, in the order they came."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Any:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add ``seconds`` to ``stage``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + max(seconds, 0.0)


class Meter(Protocol):
    """Where numbers go."""

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Count, observe or set ``value``, as the metric's kind has it."""


class RayMeter:
    """Numbers to Ray's Prometheus endpoint on each node. Make one per process, inside a replica."""

    def __init__(self) -> None:
        from ray.serve import metrics  # noqa: PLC0415 - the pure rooms import this module without Ray

        make = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._metrics: dict[str, Any] = {
            name: metrics.Histogram(name, description=m.help, boundaries=list(m.buckets), tag_keys=m.labels)
            if m.kind == "histogram"
            else make[m.kind](name, description=m.help, tag_keys=m.labels)
            for name, m in METRICS.items()
        }

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """See Meter."""
        metric, kind = self._metrics[name], METRICS[name].kind
        record = metric.inc if kind == "counter" else metric.set if kind == "gauge" else metric.observe
        record(value, tags=labels or None)

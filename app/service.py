"""The parts one ingress replica works with, wired once."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from app.errors import Overloaded
from app.pipeline import Judge, Pipeline, Score
from app.records import Records
from app.schemas import Models
from app.settings import Settings
from app.stores.images import ImageStore
from app.stores.results import ResultStore
from app.telemetry import Meter
from app.tenants.access import Access
from app.tenants.tenants import Tenant

# How long a claim outlives its photo's budget. Every request ends within it; only one whose process died
# leaves its claim to expire, and then a retry of it, or a twin, should not wait for long.
_CLAIM_MARGIN_S = 1.0


class Admission:
    """How many photos may arrive and be in work here. One more is refused at once: waiting makes it late.

    Photos that arrive have a bound of their own, twice the other, so that slow senders fill neither the
    memory nor the places of those whose photo is here.
    """

    def __init__(self, limit: int, meter: Meter) -> None:
        self.limit = limit
        self.arriving = 0
        self.in_flight = 0
        self._meter = meter

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Hold the block while a body is read; Overloaded, unread, when it could not be worked on after."""
        if self.in_flight >= self.limit or self.arriving >= 2 * self.limit:
            raise _full()
        self.arriving += 1
        try:
            yield
        finally:
            self.arriving -= 1

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place while the block runs; Overloaded when there is none."""
        if self.in_flight >= self.limit:
            raise _full()
        self.in_flight += 1
        self._meter.add("fooddx_in_flight", self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._meter.add("fooddx_in_flight", self.in_flight)


def _full() -> Overloaded:
    return Overloaded("All places are taken; try again shortly.", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes call. ``scorer_ready`` raises ScorerUnavailable unless a photo could be scored now."""

    settings: Settings
    access: Access
    images: ImageStore
    results: ResultStore
    pipeline: Pipeline
    records: Records
    admission: Admission
    meter: Meter
    scorer_ready: Callable[[], Awaitable[None]]

    @classmethod
    def wire(
        cls,
        *,
        settings: Settings,
        redis_url: str,
        first: Tenant,
        judge: Judge,
        score: Score,
        scorer_ready: Callable[[], Awaitable[None]],
        meter: Meter,
    ) -> Service:
        """Open the stores and put the parts together; ``first`` is the tenant that is in no registry."""
        images = ImageStore.at(settings.store)
        results = ResultStore(
            redis_url,
            dedupe_ms=round(settings.dedupe_days * 86_400_000),
            idempotency_ms=round(settings.idempotency_hours * 3_600_000),
            claim_ms=round((settings.budget_s + _CLAIM_MARGIN_S) * 1000),
        )
        pipeline = Pipeline(
            images=images, results=results, score=score, judge=judge, budget_s=settings.budget_s, meter=meter
        )
        return cls(
            settings=settings,
            access=Access(first, results.tenants),
            images=images,
            results=results,
            pipeline=pipeline,
            records=Records(images, results, meter),
            admission=Admission(settings.max_in_flight, meter),
            meter=meter,
            scorer_ready=scorer_ready,
        )

    def models(self) -> Models:
        """The models that judge photos now."""
        return self.pipeline.judge.describe()

    async def ready(self) -> None:
        """Raise what is missing: a store that does not take writes, or a scorer."""
        await self.results.ping()
        await self.images.ping()
        await self.scorer_ready()

    async def close(self) -> None:
        """Finish the clean-up of failed requests and let go of the stores."""
        await self.pipeline.drained()
        await self.results.close()

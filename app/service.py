"""The parts one ingress replica works with, wired once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from app.arrivals import Arrivals, Send
from app.errors import Overloaded
from app.judge import Judges, TableJudge
from app.pipeline import Pipeline, Score
from app.records import Records
from app.schemas import Models
from app.settings import Settings
from app.stores.images import ImageStore
from app.stores.results import ResultStore
from app.telemetry import Meter
from app.tenants.access import Access
from app.tenants.images import TenantImages, open_credentials
from app.tenants.places import Places
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
    images: TenantImages
    results: ResultStore
    judges: Judges
    places: Places
    pipeline: Pipeline
    arrivals: Arrivals
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
        judge: TableJudge,
        score: Score,
        scorer_ready: Callable[[], Awaitable[None]],
        meter: Meter,
        send: Send | None = None,
        budget_s: float | None = None,
    ) -> Service:
        """Open the stores and put the parts together.

        Args:
            settings: of the service.
            redis_url: of the result store.
            first: the tenant that is in no registry.
            judge: of the models that serve.
            score: prepares and scores a photo.
            scorer_ready: see above.
            meter: where numbers go.
            send: to the intake's queue, where there is one.
            budget_s: seconds a photo may take; None: as the settings say.
        """
        budget_s = budget_s or settings.budget_s
        results = ResultStore(
            redis_url,
            dedupe_ms=round(settings.dedupe_days * 86_400_000),
            idempotency_ms=round(settings.idempotency_hours * 3_600_000),
            claim_ms=round((budget_s + _CLAIM_MARGIN_S) * 1000),
        )
        access = Access(first, results.tenants)
        judges = Judges(judge, access.models_of, registry=settings.registry_dir)
        images = TenantImages(
            ImageStore.at(settings.store, kms_key_id=settings.photo_key),
            lambda: access.directory,
            functools.cache(lambda: open_credentials(settings.credential_key, settings.data_dir)),
        )
        places = Places(settings.store, lambda: access.directory)
        pipeline = Pipeline(
            images=images, results=results, score=score, judge=judges.of, budget_s=budget_s, meter=meter
        )
        records = Records(images, results, meter)
        return cls(
            settings=settings,
            access=access,
            images=images,
            results=results,
            judges=judges,
            places=places,
            pipeline=pipeline,
            arrivals=Arrivals(
                images=images,
                results=results,
                pipeline=pipeline,
                places=places,
                max_bytes=settings.max_body_bytes,
                delete=records.delete,
                send=send,
            ),
            records=records,
            admission=Admission(settings.max_in_flight, meter),
            meter=meter,
            scorer_ready=scorer_ready,
        )

    async def models(self, tenant: str) -> Models:
        """The models that judge a tenant's photos now."""
        return (await self.judges.of(tenant)).describe()

    async def ready(self) -> None:
        """Raise what is missing: a store that does not take writes, or a scorer."""
        await self.results.ping()
        await self.images.shared.ping()
        await self.scorer_ready()

    async def close(self) -> None:
        """Finish the clean-up of failed requests and let go of the stores."""
        await self.pipeline.drained()
        await self.results.close()

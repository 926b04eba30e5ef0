"""One photo's way: seen before? → store and score → result → written.

For whoever brings the photo: HTTP, the queue. Nothing here knows of HTTP, queues or Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

import uuid_utils

from app.errors import (
    DeadlineExceeded,
    FoodDXError,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    ImageConflict,
    ImagesUnavailable,
    NotFound,
    ScorerUnavailable,
    by_code,
)
from app.food.assessment import Assessment, Distribution
from app.food.tips import Tip, TipContext
from app.imaging.guards import recognise
from app.messages import PhotoJob, Rejected, Scored
from app.schemas import Analysis, Dish, ImageFacts, ModelRef, Models, Profile, Result, TipOut
from app.stores.images import ImageStore, image_key
from app.stores.results import Begun, Record, ResultStore, Ticket
from app.telemetry import Meter, Stages, logger

# A request that waits for its twin asks again after these times, the last one repeatedly.
_TWIN_WAITS_S: Final = (0.005, 0.01, 0.02, 0.04)
_RETRY_WAIT_S: Final = 0.02

T = TypeVar("T")
Score = Callable[[PhotoJob], Awaitable[Scored | Rejected]]
Images = Callable[[str], Awaitable[ImageStore]]
"""The image store of a tenant."""


class Judge(Protocol):
    """The models' words made into an assessment and tips. Pure; see app/food."""

    @property
    def model(self) -> ModelRef:
        """What a result is marked with."""

    @property
    def models(self) -> tuple[str, ...]:
        """What the models are called that it judges the answers of."""

    @property
    def revision(self) -> str:
        """What must be equal for an analysis to be reused: models, versions and thresholds."""

    def assess(self, scored: Scored) -> Assessment:
        """Judge the probabilities of one photo."""

    def describe(self) -> Models:
        """The models, for whoever asks which they are."""

    def tips(self, context: TipContext, profile: Profile, seed: str) -> tuple[Tip, ...]:
        """Tips for this person and photo, best first."""


@dataclass(frozen=True, slots=True)
class Photo:
    """What a client sent, and who sent it.

    Attributes:
        data: the encoded photo.
        sha256: its hash, hex.
        tenant: whose it is.
        profile: for whom the tip is.
        idempotency_key: of the request, or None.
        request_id: for the logs.
        result_id: the id that its result was promised, UUIDv7; None: a new one.
    """

    data: bytes
    sha256: str
    tenant: str
    profile: Profile
    idempotency_key: str | None = None
    request_id: str = "-"
    result_id: str | None = None


@dataclass(slots=True)
class _Request:
    """One photo on its way, and the writes to the stores that were set going for it."""

    photo: Photo
    ticket: Ticket
    images: ImageStore
    judge: Judge
    stages: Stages
    deadline: float
    writes: list[asyncio.Task[Any]] = field(default_factory=list)

    def write(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work``. Await it shielded: a write that was cancelled may still land after the clean-up."""
        task = asyncio.create_task(work)
        self.writes.append(task)
        return task


class Pipeline:
    """The way of one photo over the given stores and scorer.

    Attributes:
        budget_s: seconds that a photo may take.
    """

    def __init__(
        self,
        *,
        images: Images,
        results: ResultStore,
        score: Score,
        judge: Callable[[str], Awaitable[Judge]],
        budget_s: float,
        meter: Meter,
    ) -> None:
        self._images = images
        self._results = results
        self._score = score
        self._judge = judge
        self.budget_s = budget_s
        self._meter = meter
        self._cleanups: set[asyncio.Task[None]] = set()

    async def run(self, photo: Photo, stages: Stages, budget_s: float | None = None) -> bytes:
        """Score ``photo`` and write the result.

        Args:
            photo: the photo and its sender.
            stages: gets the time of each stage.
            budget_s: seconds the caller waits; at most the configured budget counts.

        Returns:
            The Result as JSON. When this returns, the photo is stored and the result is written. Of two
            photos that were promised the same id, both get the result of the first.

        Raises:
            FoodDXError: one of the tree; nothing was acknowledged. Nothing is left behind either; or, when
                the last write crossed the deadline, a whole result, which the same Idempotency-Key finds.
        """
        started = time.perf_counter()
        recognise(photo.data)  # what is no image at all is told so before it costs anybody anything
        budget_s = min(budget_s or self.budget_s, self.budget_s)
        deadline = time.time() + budget_s
        request: _Request | None = None
        try:
            async with asyncio.timeout(budget_s):
                request = await self._request(photo, stages, deadline)
                body = await self._run(request)
        except BaseException as error:
            if request:
                self.in_background(self._abandon(request))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"The photo could not be scored within {budget_s * 1000:.0f} ms.", retry_after_s=1
                ) from None
            raise
        self._meter.add("fooddx_request_seconds", time.perf_counter() - started)
        for stage, seconds in stages.seconds.items():
            self._meter.add("fooddx_stage_seconds", seconds, stage=stage)
        return body

    async def _request(self, photo: Photo, stages: Stages, deadline: float) -> _Request:
        judge = await self._judge(photo.tenant)
        ticket = Ticket(
            tenant=photo.tenant,
            sha256=photo.sha256,
            revision=judge.revision,
            token=uuid_utils.uuid4().hex,
            idempotency_key=photo.idempotency_key,
            fingerprint=_fingerprint(photo) if photo.idempotency_key else "",
        )
        return _Request(photo, ticket, await self._images(photo.tenant), judge, stages, deadline)

    async def _run(self, request: _Request) -> bytes:
        while True:
            with request.stages.timed("dedupe"):
                begun = await self._begin(request)
            if begun.kind == "replay":
                body = await self._results.get(request.ticket.tenant, begun.value.decode())
                if body is None:
                    raise NotFound("The result of this Idempotency-Key was deleted.")
                return body
            if begun.kind == "claimed":
                return await self._score_claimed(request)
            body = await self._answer(request, Analysis.model_validate_json(begun.value), reused=True)
            if body is not None:
                self._meter.add("fooddx_cache_hits_total")
                return body

    async def _begin(self, request: _Request) -> Begun:
        """Begin, waiting while a twin of this photo is being scored."""
        for attempt in range(2**31):
            begun = await asyncio.shield(request.write(self._results.begin(request.ticket)))
            if begun.kind == "reused":
                raise IdempotencyKeyReused("Use a new Idempotency-Key for a new photo or profile.")
            if begun.kind == "in_flight":
                wait_s = max(int(begun.value) / 1000, 0.1)
                raise IdempotencyInFlight("Ask again with the same key.", retry_after_s=min(wait_s, 1))
            if begun.kind != "busy":
                break
            await asyncio.sleep(_TWIN_WAITS_S[min(attempt, len(_TWIN_WAITS_S) - 1)])
        return begun

    async def _score_claimed(self, request: _Request) -> bytes:
        """Store and score at the same time; the caller holds the claim on this photo."""
        photo, stages = request.photo, request.stages
        put = request.write(self._put(request))
        job = PhotoJob(photo.data, request.judge.models, request.deadline, photo.request_id)
        scored = await self._score_with_retry(job)
        stages.add("decode", scored.decode_s)
        stages.add("queue", scored.inference.queue_s)
        stages.add("score", scored.inference.score_s)
        await asyncio.shield(put)
        body = await self._answer(request, self._analyse(photo, scored, request.judge), reused=False)
        if body is None:
            raise ScorerUnavailable("The photo took too long; nothing was kept.", retry_after_s=1)
        return body

    async def _put(self, request: _Request) -> None:
        photo = request.photo
        with request.stages.timed("store"):
            await request.images.put(image_key(photo.tenant, photo.sha256), photo.data)

    async def _score_with_retry(self, job: PhotoJob) -> Scored:
        # A replica that dies takes its photos with it. Scoring has no effect, so trying once more is safe,
        # and whoever is left answers within the same budget.
        try:
            return await self._score_once(job)
        except ScorerUnavailable:
            await asyncio.sleep(_RETRY_WAIT_S)
            return await self._score_once(job)

    async def _score_once(self, job: PhotoJob) -> Scored:
        outcome = await self._score(job)
        if isinstance(outcome, Rejected):
            raise by_code(outcome.code, outcome.detail)
        return outcome

    def _analyse(self, photo: Photo, scored: Scored, judge: Judge) -> Analysis:
        judged = judge.assess(scored)
        return Analysis(
            first_id="",
            status=judged.status,
            score=judged.score,
            score_mean=None if judged.score_mean is None else round(judged.score_mean, 4),
            score_probabilities=_rounded(judged.score_probabilities),
            dishes=tuple(Dish(name=name, probability=round(p, 4)) for name, p in judged.dishes),
            food_probability=round(judged.food_probability, 4),
            group=judged.group,
            flags=tuple(sorted(judged.flags)),
            contains=tuple(sorted(judged.contains)),
            image=ImageFacts(
                sha256=photo.sha256,
                pdq=scored.pdq,
                width=scored.width,
                height=scored.height,
                bytes=len(photo.data),
                media_type=scored.media_type,
                key=image_key(photo.tenant, photo.sha256),
            ),
            model=judge.model,
        )

    async def _answer(self, request: _Request, analysis: Analysis, *, reused: bool) -> bytes | None:
        """Pick the tip, write the result; None when what it rests on is gone."""
        profile = request.photo.profile
        result_id = request.photo.result_id or str(uuid_utils.uuid7())
        made_ms = uuid_utils.UUID(result_id).timestamp
        with request.stages.timed("tip"):
            tips = _tips(request.judge, analysis, profile, result_id)
        result = Result(
            id=result_id,
            status=analysis.status,
            score=analysis.score,
            score_mean=analysis.score_mean,
            score_probabilities=analysis.score_probabilities,
            dishes=analysis.dishes,
            food_probability=analysis.food_probability,
            tip=tips[0],
            image=analysis.image,
            duplicate_of=analysis.first_id if reused else None,
            model=analysis.model,
            user=profile.user,
            # The moment in the id, by which the diary finds what belongs to a day.
            created_at=datetime.fromtimestamp(made_ms / 1000, UTC),
        )
        # Where no user is named, nobody could have had the first tip before.
        wordings = [result, result.model_copy(update={"tip": tips[-1]})] if profile.user else [result]
        bodies = [wording.model_dump_json().encode() for wording in wordings]
        ids = [tip.id if tip else "" for tip in tips]
        first = analysis.model_copy(update={"first_id": result_id})
        record = Record(
            id=result_id,
            user=profile.user,
            analysis=None if reused else first.model_dump_json().encode(),
            needs_review=analysis.status == "needs_review",
            tips=(ids[0], ids[-1]),
            bodies=(bodies[0], bodies[-1]),
        )
        with request.stages.timed("store"):
            finish = request.write(self._results.finish(request.ticket, record))
            outcome, body = await asyncio.shield(finish)
        if outcome != "written":
            return None
        self._meter.add("fooddx_images_total", status=analysis.status)
        return body

    async def _abandon(self, request: _Request) -> None:
        """Leave nothing of a failed request behind. What cannot be undone now, the sweep will find."""
        outcomes = await asyncio.gather(*request.writes, return_exceptions=True)
        photo, ticket = request.photo, request.ticket
        try:
            if token := await self._results.abandon(ticket):
                # What is in the photo's place and is not the photo, is not ours to delete.
                if not any(isinstance(outcome, ImageConflict) for outcome in outcomes):
                    await request.images.delete(image_key(photo.tenant, photo.sha256))
                late = request.images.lands_late and any(
                    isinstance(outcome, ImagesUnavailable) for outcome in outcomes
                )
                await self._results.release(photo.tenant, photo.sha256, token, look_again=late)
        except FoodDXError as error:
            logger.warning("cleanup postponed", extra={"request_id": photo.request_id, "code": error.code})

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Clean up after a failed request, while nobody waits for it."""
        task = asyncio.create_task(work)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)

    async def drained(self) -> None:
        """Wait for the clean-up of failed requests."""
        await asyncio.gather(*self._cleanups)


def _tips(judge: Judge, analysis: Analysis, profile: Profile, seed: str) -> list[TipOut | None]:
    """The best tip and the one to fall back to; [None] for a photo of something else than food."""
    if analysis.status == "not_food":
        return [None]
    context = TipContext(contains=frozenset(analysis.contains))
    if analysis.status == "scored":
        context = TipContext(
            analysis.score, analysis.group, frozenset(analysis.flags), frozenset(analysis.contains)
        )
    ranked = judge.tips(context, profile, seed)
    return [TipOut(id=tip.id, text=tip.text, source=tip.source) for tip in ranked[:2]]


def _rounded(distribution: Distribution | None) -> Distribution | None:
    """Four digits: what is beyond says nothing about a meal."""
    if distribution is None:
        return None
    one, two, three, four, five = (round(p, 4) for p in distribution)
    return one, two, three, four, five


def _fingerprint(photo: Photo) -> str:
    """Everything a request asks for, as one digest."""
    asked = f"{photo.sha256} {photo.profile.model_dump_json()}"
    return hashlib.sha256(asked.encode()).hexdigest()

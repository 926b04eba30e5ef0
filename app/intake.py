"""The queue intake: what arrives in a bucket is scored like what comes by HTTP, if it takes several tries.

A message is taken, its photo scored, the result written, whoever wants to know told, and only then the
message deleted: whatever dies on the way, it comes again. That does no harm, since the result of an object
has one id (app/arrivals.py) and the second try finds what the first one wrote.

Why a loop of its own and no task consumer of Ray Serve: that one reads messages of Celery, and S3 sends none.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from app.errors import FoodDXError, NotFound, Overloaded, QueueUnavailable, ResultsUnavailable
from app.events import Arrival, MalformedMessage, parse
from app.schemas import Failure, Job
from app.service import Service
from app.stores.images import READY_KEY
from app.stores.queue import MAX_BATCH, Received
from app.telemetry import Stages, logger
from app.tenants.places import Place, is_kept
from app.tenants.tenants import Tenant

BUDGET_S: Final = 10.0
"""How long one try of a photo may take. Nobody waits at the other end, so longer than over HTTP."""
# So long may a stop take longer than the photos in hand, and so long a paused intake stays blind.
_POLL_S: Final = 5
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
# How long a message stays away after its first, second and any further try, at most: what is brief is over
# by the second, and an outage of one tenant's store or key by the last.
_BACKOFFS_S: Final = (5, 60, 600)
_LEAST_VISIBLE_S: Final = 3


class Queue(Protocol):
    """What this asks of app/stores/queue.py."""

    async def receive(self, max_messages: int, wait_s: int) -> list[Received]:
        """Take messages."""

    async def delete(self, message: Received) -> None:
        """Take one out for good."""

    async def hide(self, message: Received, seconds: int) -> None:
        """Keep one from others; 0 gives it back."""

    async def send(self, body: str, attributes: Mapping[str, str]) -> None:
        """Put one in."""

    async def visibility_s(self) -> int:
        """How long a message that was received is hidden."""

    async def close(self) -> None:
        """Wait for what is under way."""


Tell = Callable[[Tenant, str, bytes], Awaitable[None]]
"""Tells whoever wants to know of a tenant's result, by its id and as JSON; see app/notices."""


class NotTold(Exception):
    """A result that somebody should have been told of, and was not; ``again`` where another try may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Pace:
    """How many photos to have in work at once, by how long they wait for the scorer.

    Additive increase, multiplicative decrease, as TCP does against a full link: photos that wait are a sign
    that others, who come by HTTP and have a second, wait too. One photo is always in work.
    """

    def __init__(self, most: int, wait_s: float = 0.1) -> None:
        """Begin slowly.

        Args:
            most: never more than this.
            wait_s: what a photo may wait for the scorer: longer than a batch, shorter than anybody minds.
        """
        self._most, self._wait_s = most, wait_s
        self._allowed = 1.0
        self._settling = 0  # photos that were sent off before the last decrease

    @property
    def allowed(self) -> int:
        """So many at once."""
        return int(self._allowed)

    def waited(self, seconds: float) -> None:
        """One photo has waited so long."""
        if seconds <= self._wait_s:
            self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        elif not self._settling:
            self.refused()
        self._settling = max(0, self._settling - 1)

    def refused(self) -> None:
        """There was no place for a photo."""
        self._settling = self.allowed
        self._allowed = max(1.0, self._allowed / 2)


@dataclass(frozen=True, slots=True)
class _GiveUp:
    """No retry mends this."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Again:
    """Another try may."""

    code: str
    reason: str


class Intake:
    """Takes messages from one queue as long as it runs."""

    def __init__(
        self, *, queue: Queue, dead_letters: Queue, service: Service, tell: Tell, pace: Pace, tries: int
    ) -> None:
        """Put the parts together.

        Args:
            queue: where messages come from.
            dead_letters: where those go that cannot be scored, each with its ``code`` and ``reason``.
            service: scores photos; its budget is BUDGET_S.
            tell: raises NotTold.
            pace: how many photos at once.
            tries: how often a message is tried that another try might help.
        """
        self._queue, self._dead_letters = queue, dead_letters
        self._service, self._tell = service, tell
        self._pace, self._tries = pace, tries
        self._in_hand: dict[asyncio.Task[None], Received] = {}
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._trouble = False
        self._visible: int | None = None

    async def run(self) -> None:
        """Take messages until ``stop``; what fails outside is waited for, nothing is given up for it."""
        self._at_rest.clear()
        try:
            while not self._stopping.is_set():
                self._changed.clear()
                free = self._pace.allowed - len(self._in_hand)
                if free <= 0:
                    await self._either(self._changed.wait())
                elif not self._trouble or await self._all_well():
                    await self._take(min(free, MAX_BATCH))
        finally:
            self._at_rest.set()

    async def stop(self, patience_s: float) -> None:
        """Take no more, finish what is in hand within ``patience_s``, and give back the rest."""
        self._stopping.set()
        await self._at_rest.wait()  # messages may just have come
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=patience_s)
        if late := dict(self._in_hand):
            for task in late:
                task.cancel()
            await asyncio.wait(late)
            await asyncio.gather(*map(self._give_back, late.values()))
        await self._queue.close()
        await self._dead_letters.close()

    async def _give_back(self, message: Received) -> None:
        with contextlib.suppress(QueueUnavailable):
            await self._queue.hide(message, 0)

    async def _take(self, most: int) -> None:
        try:
            messages = await self._either(self._queue.receive(most, _POLL_S))
        except QueueUnavailable as error:
            logger.warning("queue unavailable", extra={"reason": str(error)})
            await self._either(asyncio.sleep(random.choice(_PAUSES_S)))  # noqa: S311 - spreads load
            return
        for message in messages or ():
            task = asyncio.create_task(self._handle(message))
            self._in_hand[task] = message
            task.add_done_callback(self._done)
        self._service.meter.add("fooddx_intake_in_flight", len(self._in_hand))

    def _done(self, task: asyncio.Task[None]) -> None:
        message = self._in_hand.pop(task)
        self._changed.set()
        self._service.meter.add("fooddx_intake_in_flight", len(self._in_hand))
        if not task.cancelled() and (error := task.exception()):
            # The message comes again when its time is over; its tries are counted by the queue.
            logger.error("message failed", exc_info=error, extra={"message_id": message.id})

    async def _either(self, work: Awaitable[Any]) -> Any:
        """What ``work`` gives, or None as soon as this is to stop."""
        task, stop = asyncio.ensure_future(work), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for either in (task, stop):
                either.cancel()
            await asyncio.wait((task, stop))

    async def _all_well(self) -> bool:
        """Whether a photo could be scored now. Asked after a failure: messages have few tries to waste."""
        try:
            await self._service.ready()
        except FoodDXError as error:
            logger.warning("intake waits", extra={"code": error.code})
            await self._either(asyncio.sleep(random.choice(_PAUSES_S)))  # noqa: S311 - spreads load
            return False
        self._trouble = False
        return True

    async def _handle(self, message: Received) -> None:
        over = asyncio.Event()
        keeping = asyncio.create_task(self._keep(message, over))
        try:
            verdict = await self._work(message)
        finally:
            over.set()
            await keeping  # a call of it that is under way would undo what comes now
        if isinstance(verdict, _Again) and message.tries < self._tries:
            logger.warning("message tried again", extra={"message_id": message.id, "code": verdict.code})
            self._count("again")
            longest = _BACKOFFS_S[min(message.tries, len(_BACKOFFS_S)) - 1]
            away_s = random.randint(max(1, longest // 2), longest)  # noqa: S311 - spreads load
            await self._queue.hide(message, away_s)
            return
        if verdict:
            logger.error("message given up", extra={"message_id": message.id, "code": verdict.code})
            await self._dead_letters.send(message.body, {"code": verdict.code, "reason": verdict.reason})
            self._count("given_up")
        else:
            self._count("scored")
            waited = datetime.now(UTC) - message.sent_at
            self._service.meter.add("fooddx_intake_seconds", max(0.0, waited.total_seconds()))
        await self._queue.delete(message)

    def _count(self, outcome: str) -> None:
        self._service.meter.add("fooddx_intake_total", outcome=outcome)

    async def _keep(self, message: Received, over: asyncio.Event) -> None:
        """Keep others from a message until its work is over."""
        visible_s = _LEAST_VISIBLE_S
        while not await _set_within(visible_s / 3, over):
            with contextlib.suppress(QueueUnavailable):
                visible_s = await self._visible_s()
                await self._queue.hide(message, visible_s)

    async def _visible_s(self) -> int:
        if self._visible is None:
            self._visible = max(await self._queue.visibility_s(), _LEAST_VISIBLE_S)
        return self._visible

    async def _work(self, message: Received) -> _GiveUp | _Again | None:
        """All that a message names. Of what failed the worst; what went well is found done next time."""
        try:
            arrivals = parse(message.body)
        except MalformedMessage as error:
            return _GiveUp("malformed_message", str(error))
        verdicts = [await self._one(arrival, message) for arrival in arrivals]
        failed = [verdict for verdict in verdicts if verdict]
        again = [verdict for verdict in failed if isinstance(verdict, _Again)]
        return next(iter([*again, *failed]), None)

    async def _one(self, arrival: Arrival, message: Received) -> _GiveUp | _Again | None:
        place = self._service.places.of(arrival.bucket, arrival.key)
        if place is None:  # or its tenant is newer than what is known of them
            if not await self._service.access.refresh():
                self._trouble = True
                return _Again(ResultsUnavailable.code, ResultsUnavailable.title)
            place = self._service.places.of(arrival.bucket, arrival.key)
        if place is None or place.tenant.disabled:
            return _GiveUp("not_found", "The object is under no tenant's name.")
        own = is_kept(place.tenant.id, place.key) or place.key == READY_KEY
        if arrival.etag and own:
            return None  # an event about what the service itself has stored
        asked = 0
        while True:
            try:
                await self._score(place, arrival, message.id)
            except Overloaded:
                # To give the message back would cost it one of its tries, and it did nothing wrong.
                self._pace.refused()
                await asyncio.sleep(random.uniform(0, _PAUSES_S[asked]))  # noqa: S311 - spreads load
                asked = min(asked + 1, len(_PAUSES_S) - 1)
            except FoodDXError as error:
                return await self._failed(place, arrival, error, last=message.tries >= self._tries)
            except NotTold as error:
                return (_Again if error.again else _GiveUp)("not_told", str(error))
            else:
                return None

    async def _score(self, place: Place, arrival: Arrival, message_id: str) -> None:
        service, tenant = self._service, place.tenant
        stages = Stages()
        result_id = await service.arrivals.id_of(tenant.id, place.key, arrival.version or arrival.etag)
        body = await service.arrivals.score(
            tenant.id, place.key, arrival.profile, stages, request_id=message_id, result_id=result_id
        )
        if "queue" in stages.seconds:  # else it was scored before
            self._pace.waited(stages.seconds["queue"])
        await self._tell(tenant, result_id, body)
        await service.results.forget_job(tenant.id, result_id)

    async def _failed(
        self, place: Place, arrival: Arrival, error: FoodDXError, *, last: bool
    ) -> _GiveUp | _Again | None:
        """What becomes of a photo that was not scored; whoever waits for its result is told, if for good."""
        tenant = place.tenant.id
        if error.retryable:
            self._trouble = True
            self._pace.refused()
            if not last:
                return _Again(error.code, error.detail)
        try:
            result_id = await self._service.arrivals.id_of(tenant, place.key, arrival.version or arrival.etag)
            _, job = await self._service.results.find(tenant, result_id)
            if job is not None:
                known = Job.model_validate_json(job)
                if known.deleted:
                    return None
                failed = Failure(code=error.code, detail=error.detail)
                told = known.model_copy(update={"failed": failed}).model_dump_json().encode()
                await self._service.results.put_job(tenant, result_id, told)
            elif isinstance(error, NotFound) and arrival.etag:
                return None  # it was there when the event was sent, and somebody deleted it since
        except FoodDXError as untold:
            if untold.retryable and not last:
                return _Again(untold.code, untold.detail)
        return _GiveUp(error.code, error.detail)


async def _set_within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False

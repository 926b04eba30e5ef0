"""How photos travel between deployments: one call for all that wait.

A call from one deployment to another costs nearly as much for one photo as for ten. So a sender keeps only
a few calls open. Who comes while there is room leaves at once; who comes while all are out waits, and leaves
with everybody else who waits as soon as one returns. Groups grow with the load, and nobody ever waits for a
timer.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.errors import Overloaded

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sender may have under way.

    Attributes:
        calls: how many calls are open at a time. The fewer, the larger the groups.
        items: the most that one call carries.
        nbytes: the most bytes that one call carries; an item that is larger goes alone.
        waiting: the most items that wait; one more is Overloaded.
    """

    calls: int
    items: int
    nbytes: int
    waiting: int


@dataclass(eq=False, slots=True)
class _Group(Generic[Item, Outcome]):
    """What one call carries."""

    items: list[Item] = field(default_factory=list)
    outcomes: list[asyncio.Future[Outcome]] = field(default_factory=list)
    call: asyncio.Task[None] | None = None

    def forsaken(self) -> bool:
        return all(outcome.cancelled() for outcome in self.outcomes)


class Grouping(Generic[Item, Outcome]):
    """Sends items in groups. Call it with an item; it returns that item's outcome.

    One loop only: nothing here is locked.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[Sequence[Outcome]]],
        bounds: Bounds,
        nbytes: Callable[[Item], int],
    ) -> None:
        """Send nothing yet.

        Args:
            call: takes a group and gives an outcome for each item, in their order. What it raises, everybody
                in the group gets.
            bounds: see there.
            nbytes: how many bytes an item is.
        """
        self._call = call
        self._bounds = bounds
        self._nbytes = nbytes
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._open: set[_Group[Item, Outcome]] = set()
        self._due = False

    def __len__(self) -> int:
        """How many items wait or are on their way."""
        return len(self._waiting) + sum(len(group.items) for group in self._open)

    async def __call__(self, item: Item) -> Outcome:
        """Send ``item`` with whoever else waits.

        Whoever stops waiting before it left, takes it back; and a call that nobody waits for is cancelled.

        Raises:
            Overloaded: too many wait already.
            Exception: whatever the call raised.
        """
        if len(self._waiting) >= self._bounds.waiting:
            raise Overloaded("All places are taken; try again shortly.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append((item, outcome))
        if not self._due and len(self._open) < self._bounds.calls:
            # Not now but when the loop has gone round: who came in the same moment goes along.
            self._due = True
            loop.call_soon(self._leave)
        try:
            return await outcome
        except asyncio.CancelledError:
            self._forsake(outcome)
            raise

    def _leave(self) -> None:
        """Open as many calls as there is room and need for."""
        self._due = False
        while len(self._open) < self._bounds.calls and (group := self._next_group()).items:
            self._open.add(group)
            # In no request's context: Serve would end the call of all with the request of the first.
            group.call = asyncio.create_task(self._send(group), context=contextvars.Context())

    def _next_group(self) -> _Group[Item, Outcome]:
        group: _Group[Item, Outcome] = _Group()
        room = self._bounds.nbytes
        while self._waiting and len(group.items) < self._bounds.items:
            item, outcome = self._waiting[0]
            if not outcome.cancelled():
                room -= self._nbytes(item)
                if room < 0 and group.items:
                    break
                group.items.append(item)
                group.outcomes.append(outcome)
            self._waiting.popleft()
        return group

    async def _send(self, group: _Group[Item, Outcome]) -> None:
        try:
            found = await self._call(group.items)
            for outcome, value in zip(group.outcomes, found, strict=True):
                if not outcome.done():
                    outcome.set_result(value)
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            for outcome in group.outcomes:
                if not outcome.done():
                    outcome.set_exception(error)
        finally:
            self._open.discard(group)
            self._leave()

    def _forsake(self, outcome: asyncio.Future[Outcome]) -> None:
        outcome.cancel()
        for group in self._open:
            if outcome in group.outcomes and group.forsaken() and group.call:
                group.call.cancel()
